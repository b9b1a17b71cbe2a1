"""Reads a data set and serves its images in batches."""
