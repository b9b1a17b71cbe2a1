"""Reads a data set and serves its images in batches."""

from pathlib import Path
from typing import TYPE_CHECKING

from datamodules.readers import read_data
from datamodules.readers.location import find_images
from datamodules.readers.records import (
    BoundingBox,
    DataSplits,
    ImageRecord,
    clip_boxes,
    require_boxes,
    require_trainable,
)

if TYPE_CHECKING:
    from utils.config import Config

__all__ = [
    "BoundingBox",
    "DataSplits",
    "ImageRecord",
    "clip_boxes",
    "find_images",
    "read_data",
    "read_splits",
    "require_boxes",
    "require_trainable",
]

EXTRACTED = "extracted"


def read_splits(config: "Config", path: Path | None = None) -> DataSplits:
    """Reads the data set of a configuration, or another one in its place.

    Args:
        config: The configuration.
        path: Another data set, of any kind; None for the configured one.

    Raises:
        ConfigError, DataError: As `read_data`.
    """
    extract_path = config.extract_path or (config.cache_path or Path(EXTRACTED)).with_name(EXTRACTED)
    if path is not None:
        return read_data(path, extract_path=extract_path, exif_orientation=config.exif_orientation)
    return read_data(
        config.data_path,
        kind=config.dataset,
        raw_path=config.raw_data_path,
        extract_path=extract_path,
        table_params=config.table_params.model_dump() if config.table_params is not None else None,
        exif_orientation=config.exif_orientation,
    )
