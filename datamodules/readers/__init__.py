"""Reads data sets of several kinds: one record of path, label and bounding box for each image."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from datamodules.readers import class_folders, parquet, stanford_cars, table
from datamodules.readers.archives import ARCHIVE_SUFFIXES
from datamodules.readers.layouts import is_near_release, missing_data
from datamodules.readers.location import Location
from datamodules.readers.records import DataSplits, warn_of_untrained_classes
from utils.errors import ConfigError, DataError

Reader = Callable[[Location, Mapping[str, Any]], DataSplits | None]

# In the order in which `auto` tries them; a reader returns None for a folder that is not of its kind.
READERS: dict[str, Reader] = {
    stanford_cars.KIND: stanford_cars.read_stanford_cars,
    parquet.KIND: parquet.read_parquet,
    table.KIND: table.read_table,
    class_folders.KIND: class_folders.read_class_folders,
}

logger = logging.getLogger(__name__)


def read_data(
    path: Path,
    *,
    kind: str = "auto",
    raw_path: Path | None = None,
    extract_path: Path | None = None,
    table_params: Mapping[str, Any] | None = None,
    exif_orientation: Literal["auto"] | bool = "auto",
    to_split: bool = False,
) -> DataSplits:
    """Reads the records of a data set; the images are not opened.

    Args:
        path: Folder of the data set, or a table, a Parquet file or an archive. Archives are extracted beside themselves.
        kind: A key of `READERS`, or "auto".
        raw_path: Another folder that holds archives and annotation files.
        extract_path: Folder in which archives of a read-only data set are extracted.
        table_params: Delimiter, columns and box convention of tables, where they are not recognized.
        exif_orientation: Whether images are turned by their EXIF orientation; "auto": all but those of Stanford Cars,
            whose boxes were drawn on the images as they are stored.
        to_split: Whether the training images will be split (`validation_fraction`); for messages only.

    Raises:
        ConfigError: The data set is of another kind.
        DataError: The data set is missing, incomplete or damaged.
    """
    try:
        is_file = path.is_file()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    if is_file:
        location = Location(path.parent, raw_path, extract_path, file=path, upright=exif_orientation is not False)
        if not (location.files.tables or location.files.parquet or location.files.archives):
            raise DataError(
                f"{path} is not a data set; expected a folder, a table (.csv, .tsv), a .parquet file or an archive"
            )
    else:
        location = Location(path, raw_path, extract_path, upright=exif_orientation is not False)
    params = table_params or {}
    data = _read(location, kind, params)
    if data is None and (archive := _only_archive(location)) is not None:
        location = replace(location, folder=location.extract(archive, _stem(archive)), file=None)
        data = _read(location, kind, params)
    if data is None:
        other = _read(location, "auto", params) if kind != "auto" else None
        if other is not None:
            raise ConfigError(
                f"dataset: {kind}, but {path} holds {other.kind} ({other.description}); set auto or {other.kind}"
            )
        if location.files.tables and not is_near_release(location):
            raise DataError("\n".join(table.describe_tables(location, params)))
        if () in location.files.images and not is_near_release(location):
            raise DataError(f"{path}: its images are not in class folders, and no table has their classes")
        raise missing_data(location)
    upright = data.kind != stanford_cars.KIND if exif_orientation == "auto" else exif_orientation
    names = {"train": "train", "valid": "test" if to_split and data.valid_from == "test" else "valid", "test": "test"}
    counts = ", ".join(f"{len(images):,} {name}" for split, name in names.items() if (images := getattr(data, split)))
    classes = f"{len(data.class_names):,} class{'es' * (len(data.class_names) != 1)}"
    logger.info("%s: %s, %s, images: %s", path, data.description, classes, counts)
    if any(value is not None for value in params.values()) and data.kind not in (table.KIND, parquet.KIND):
        logger.info("%s: table_params has no effect on %s", path, data.description)
    warn_of_untrained_classes(data, path, to_split=to_split)
    if data.valid_from == "test" and data.kind != stanford_cars.KIND and not to_split:
        logger.info("%s has no validation split: its test split is used for validation", path)
    return replace(data, upright=upright)


def _read(location: Location, kind: str, params: Mapping[str, Any]) -> DataSplits | None:
    if kind != "auto":
        return READERS[kind](location, params)
    # Parts of Stanford Cars, such as cars_train/ and cars_test/ without their annotations, are not two classes.
    names = [name for name in READERS if name != class_folders.KIND or not is_near_release(location)]
    data = next((data for name in names if (data := READERS[name](location, params)) is not None), None)
    if data is not None and data.kind == class_folders.KIND and len(data.class_names) == 1 and location.files.tables:
        return None  # a folder of images beside a table that is not recognized
    return data


def _only_archive(location: Location) -> Path | None:
    """Returns the archive of a folder that holds nothing else but what was extracted from it."""
    files = location.files
    own = [path for path in files.archives if path.parent == location.folder]
    if len(own) != 1:
        return None
    stem = _stem(own[0])
    others = [Path(*parts) for parts in files.images]
    others += [
        path.relative_to(location.folder) for path in (*files.archives, *files.tables, *files.parquet) if path != own[0]
    ]
    return own[0] if all(path.parts[:1] == (stem,) for path in others) else None


def _stem(archive: Path) -> str:
    length = next(len(suffix) for suffix in ARCHIVE_SUFFIXES if archive.name.lower().endswith(suffix))
    return archive.name[:-length]
