"""Reads annotations: one record of path, bounding box and label for each image."""
