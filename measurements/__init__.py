"""Measurements of the product, one command each; README.md has their dated results."""
