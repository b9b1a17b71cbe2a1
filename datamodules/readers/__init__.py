"""Reads annotations: one record of path, label and bounding box for each image."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

from datamodules.readers.records import DataSplits
from datamodules.readers.stanford_cars import read_stanford_cars


def read_data(
    path: Path, *, raw_path: Path | None = None, exif_orientation: Literal["auto"] | bool = "auto"
) -> DataSplits:
    """Reads the records of a data set; the images are not opened.

    Args:
        path: Folder of the data set; archives are extracted into it.
        raw_path: Another folder that holds archives and annotation files.
        exif_orientation: Whether images are turned by their EXIF orientation; "auto": all but those of Stanford Cars,
            whose boxes were drawn on the images as they are stored.

    Raises:
        DataError: The data set is missing, incomplete or damaged.
    """
    data = read_stanford_cars(path, raw_path=raw_path)
    return replace(data, upright=data.kind != "stanford_cars" if exif_orientation == "auto" else exif_orientation)
