"""The records that every reader returns, and the checks of records against their image files."""

import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from datamodules.images import read_size
from utils.errors import ConfigError, DataError
from utils.progress import progress_bar

MAX_LISTED_PROBLEMS = 10
THREADS = 16  # disks and network drives serve several readers at once

logger = logging.getLogger(__name__)


class BoundingBox(NamedTuple):
    """Pixels from 0; x2 and y2 are the first ones outside, as in `PIL.Image.crop`."""

    x1: int
    y1: int
    x2: int
    y2: int


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image.

    Attributes:
        path: The file.
        label: Index into the class names.
        bounding_box: In pixels; None where the data set has none.
    """

    path: Path
    label: int
    bounding_box: BoundingBox | None = None


@dataclass(frozen=True, slots=True)
class DataSplits:
    """The records of each split, in the order of the data set.

    Attributes:
        train, valid, test: Empty where the data set has no such split.
        class_names: The name of each label.
        kind: Name of the reader, such as "stanford_cars".
        description: What was found, such as "updated release of Stanford Cars".
        valid_from: The split of the data set that serves as `valid`: its test split where it has no validation split,
            as in the study of Stanford Cars.
        upright: Whether images are turned by their EXIF orientation; boxes are in pixels of the image as it is read.
    """

    train: tuple[ImageRecord, ...]
    valid: tuple[ImageRecord, ...]
    class_names: tuple[str, ...]
    kind: str
    description: str
    test: tuple[ImageRecord, ...] = ()
    valid_from: Literal["valid", "test"] = "valid"
    upright: bool = False

    @property
    def records(self) -> tuple[ImageRecord, ...]:
        """All records: training, validation, test."""
        return self.train + self.valid + self.test


def clip_boxes(data: DataSplits) -> tuple[DataSplits, int]:
    """Reads the header of every image and clips the boxes that extend beyond their images.

    Returns:
        The data, and the number of clipped boxes.

    Raises:
        DataError: Lists the images that cannot be read and those whose box lies outside.
    """
    records = data.records
    with ThreadPoolExecutor(THREADS) as pool:
        results = pool.map(partial(clip_box, upright=data.upright), records)
        checked = list(progress_bar(results, description="checking images", unit=" images", total=len(records)))
    raise_data_errors([result for result in checked if isinstance(result, str)], "the images")
    count = sum(new is not old for new, old in zip(checked, records, strict=True))
    if count:
        logger.info("%d of %d boxes extended beyond their images and were clipped", count, len(records))
    first, second = len(data.train), len(data.train) + len(data.valid)
    train, valid, test = checked[:first], checked[first:second], checked[second:]
    return replace(data, train=tuple(train), valid=tuple(valid), test=tuple(test)), count


def require_boxes(records: Iterable[ImageRecord], key: str) -> None:
    """Checks that an option that needs bounding boxes can be used.

    Args:
        records: The images that the option applies to.
        key: The option, such as "crop_to_bboxes".

    Raises:
        ConfigError: An image has no bounding box.
    """
    records = list(records)
    without = [record for record in records if record.bounding_box is None]
    if without:
        count = (
            "no image has one" if len(without) == len(records) else f"{len(without):,} of {len(records):,} have none"
        )
        raise ConfigError(f"{key}: needs a bounding box for each training image; {count}, such as {without[0].path}")


def raise_data_errors(problems: list[str], where: object) -> None:
    """Raises one DataError that counts the problems and lists the first ten, if there are any."""
    if problems:
        more = [f"… and {len(problems) - MAX_LISTED_PROBLEMS:,} more"] if len(problems) > MAX_LISTED_PROBLEMS else []
        count = f"{len(problems):,} problem{'s' * (len(problems) > 1)}"
        raise DataError("\n  ".join([f"{count} in {where}:", *problems[:MAX_LISTED_PROBLEMS], *more]))


def clip_box(record: ImageRecord, *, upright: bool) -> ImageRecord | str:
    """Returns the record with its box inside the image, or the problem."""
    try:
        width, height = read_size(record.path, upright=upright)
    except DataError as error:
        return str(error)
    if record.bounding_box is None:
        return record
    x1, y1, x2, y2 = box = record.bounding_box
    clipped = BoundingBox(max(x1, 0), max(y1, 0), min(x2, width), min(y2, height))
    if clipped == box:
        return record
    if clipped.x1 >= clipped.x2 or clipped.y1 >= clipped.y2:
        return f"{record.path}: its box {tuple(box)} lies outside its {width}×{height} pixels"
    return replace(record, bounding_box=clipped)
