"""Pretrained weights, and parameter groups for training them further."""
