"""Searches for the best settings: a space of configurations, trials by Optuna, repeats, and what they show."""
