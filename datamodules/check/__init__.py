"""Looks at a data set before it is trained on: `train.py --check`."""
