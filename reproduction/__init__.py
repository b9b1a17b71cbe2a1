"""Runs the published experiments, and sets what is measured beside what was published."""
