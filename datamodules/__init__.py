"""Reads a data set and serves its images in batches."""

from datamodules.readers import read_data
from datamodules.readers.records import BoundingBox, DataSplits, ImageRecord, clip_boxes, require_boxes

__all__ = ["BoundingBox", "DataSplits", "ImageRecord", "clip_boxes", "read_data", "require_boxes"]
