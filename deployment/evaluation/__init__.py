"""Evaluates a trained model on a split: metrics, per-class accuracy and confusions, as tables and figures."""
