"""Reads annotations: one record of path, label and bounding box for each image."""

from pathlib import Path

from datamodules.readers.records import DataSplits
from datamodules.readers.stanford_cars import read_stanford_cars


def read_data(path: Path, *, raw_path: Path | None = None) -> DataSplits:
    """Reads the records of a data set; the images are not opened.

    Args:
        path: Folder of the data set; archives are extracted into it.
        raw_path: Another folder that holds archives and annotation files.

    Raises:
        DataError: The data set is missing, incomplete or damaged.
    """
    return read_stanford_cars(path, raw_path=raw_path)
