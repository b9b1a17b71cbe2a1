"""Measurements of the product, one command each, and their results."""
