"""Measures a trained model on a split."""
