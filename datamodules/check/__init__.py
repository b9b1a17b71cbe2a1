"""Checks a data set before training: `train.py --check`."""
