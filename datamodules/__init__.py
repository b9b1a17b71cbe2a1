"""Reads a data set and serves its images in batches."""

from pathlib import Path
from typing import TYPE_CHECKING

from datamodules.readers import read_data
from datamodules.readers.location import require_path
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
    "read_data",
    "read_splits",
    "require_boxes",
    "require_trainable",
    "split_as_configured",
]

EXTRACTED = "extracted"


def read_splits(config: "Config", path: Path | None = None) -> DataSplits:
    """Reads the data set of a configuration, or another one in its place.

    With `validation_fraction`, the configured data set is split as it asks; another one keeps its own splits.

    Args:
        config: The configuration.
        path: Another data set, of any kind; None for the configured one.

    Raises:
        ConfigError, DataError: As `read_data`.
    """
    extract_path = config.extract_path or (config.cache_path or Path(EXTRACTED)).with_name(EXTRACTED)
    default = type(config).model_fields["data_path"].default
    if path is not None or (config.raw_data_path is None and config.data_path != default):
        require_path(path or config.data_path)
    table_params = config.table_params.model_dump() if config.table_params is not None else None
    if path is not None:  # of any kind; tables of one's own have the same columns
        return read_data(
            path, extract_path=extract_path, table_params=table_params, exif_orientation=config.exif_orientation
        )
    data = read_data(
        config.data_path,
        kind=config.dataset,
        raw_path=config.raw_data_path,
        extract_path=extract_path,
        table_params=table_params,
        exif_orientation=config.exif_orientation,
        to_split=config.validation_fraction is not None,
    )
    return split_as_configured(data, config, config.data_path)


def split_as_configured(data: DataSplits, config: "Config", path: Path) -> DataSplits:
    """Returns the data set at `path` with the splits of a configuration; unchanged without a `validation_fraction`.

    Raises:
        ConfigError, RunError: As `split_data`.
    """
    if config.validation_fraction is None:
        return data
    from datamodules.splits import Fractions, split_data

    seed = config.seed if config.split_seed is None else config.split_seed
    fractions = Fractions(config.validation_fraction, config.test_fraction, config.near_duplicate_distance, seed)
    return split_data(data, fractions, cache_path=config.cache_path, name=str(path))
