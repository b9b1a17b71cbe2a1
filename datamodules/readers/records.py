"""The records that every reader returns, and their checks."""

import logging
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from datamodules.images import read_size
from utils.errors import ConfigError, DataError
from utils.nearest import nearest
from utils.progress import in_threads

if TYPE_CHECKING:
    from datamodules.readers.parquet import ParquetImage

Split = Literal["train", "valid", "test"]

# Names of splits in folders, tables and file names, in lower case.
SPLIT_NAMES: dict[str, Split] = {
    "train": "train", "training": "train", "val": "valid", "valid": "valid", "validation": "valid", "dev": "valid",
    "test": "test", "testing": "test",
}  # fmt: skip
MAX_LISTED_PROBLEMS = 10
NO_VALIDATION = ". To split validation images off, set validation_fraction, as in --set validation_fraction=0.15"
WRONG_BOXES = "see whether the boxes belong to images of this size, and table_params.box_format and box_unit"
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
        path: The file, or an image in a Parquet file, which has the methods of a path that reading needs.
        label: Index into the class names.
        bounding_box: In pixels; None where the data set has none.
    """

    path: "Path | ParquetImage"
    label: int
    bounding_box: BoundingBox | None = None


class NamedImage(NamedTuple):
    """An image whose class still has no label."""

    path: "Path | ParquetImage"
    class_name: str
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
            as in the study of Stanford Cars; "train" if it was split off from the training images.
        split_digest: Of the content, class and split of each image, where `validation_fraction` made the splits.
        upright: Whether images are turned by their EXIF orientation; boxes are in pixels of the image as it is read.
    """

    train: tuple[ImageRecord, ...]
    valid: tuple[ImageRecord, ...]
    class_names: tuple[str, ...]
    kind: str
    description: str
    test: tuple[ImageRecord, ...] = ()
    valid_from: Split = "valid"
    upright: bool = False
    split_digest: str | None = None

    @property
    def records(self) -> tuple[ImageRecord, ...]:
        """All records: training, validation, test."""
        return self.train + self.valid + self.test

    @property
    def class_counts(self) -> list[int]:
        """Number of training images of each label."""
        counts = Counter(record.label for record in self.train)
        return [counts[label] for label in range(len(self.class_names))]


def label_images(
    splits: Mapping[Split, Sequence[NamedImage]],
    *,
    kind: str,
    description: str,
    where: object,
    class_names: Sequence[str] = (),
) -> DataSplits:
    """Gives each class a label; those of all splits are by name, so that no split shifts the labels of another.

    Args:
        splits: The images of each split.
        kind, description: Of the data set.
        where: The data set, for messages.
        class_names: In the order of their labels; those of the images, sorted, if empty.

    Raises:
        DataError: Two classes differ by case or white space only.
    """
    names = tuple(class_names or _sorted({image.class_name for images in splits.values() for image in images}))
    similar: dict[str, str] = {}
    problems = []
    for name in names:
        other = similar.setdefault(" ".join(name.casefold().split()), name)
        if other != name:
            problems.append(
                f"the classes {other!r} and {name!r} differ by case or white space only; give them one name"
            )
    raise_data_errors(problems, where)
    label_of = {name: label for label, name in enumerate(names)}
    train, valid, test = (
        tuple(ImageRecord(path, label_of[name], box) for path, name, box in splits.get(split, ()))
        for split in ("train", "valid", "test")
    )
    if test and not valid:
        return DataSplits(train, test, names, kind, description, valid_from="test")
    return DataSplits(train, valid, names, kind, description, test)


def warn_of_untrained_classes(data: DataSplits, where: object, *, to_split: bool) -> None:
    """Warns of the classes of other splits that have no training images; `to_split` as in `read_data`."""
    splits = {"train": data.train, data.valid_from: data.valid}
    if data.test:  # with which validation images join the training images, where they are split
        splits = ({"train": data.train + data.valid} if to_split else splits) | {"test": data.test}
    used = {split: {data.class_names[image.label] for image in images} for split, images in splits.items()}
    trained = used.pop("train")
    for split, found in used.items():
        if trained and (unknown := _sorted(found - trained)):
            logger.warning(
                "%s: the %s split has %d class%s without training images, which no prediction can hit: %r.%s",
                where, split, len(unknown), "es" * (len(unknown) > 1), unknown[0], nearest(unknown[0], _sorted(trained))[:200],
            )  # fmt: skip


def require_trainable(data: DataSplits, where: object) -> None:
    """Checks that there is enough to train on.

    Raises:
        DataError: There are fewer than two classes or training images, or no validation image.
    """
    if len(data.class_names) < 2:
        raise DataError(f"{where} has {only_class(data.class_names)}; expected at least 2 classes")
    if len(data.train) < 2 or not data.valid:
        raise DataError(
            f"{where} has {len(data.train):,} training and {len(data.valid):,} validation images; expected at least 2 and 1"
            f"{NO_VALIDATION if len(data.train) > 2 else ''}"
        )


def only_class(class_names: Sequence[str]) -> str:
    """Returns the words for less than two classes."""
    return f"only the class {class_names[0]!r}" if class_names else "no images"


def clip_boxes(data: DataSplits) -> DataSplits:
    """Reads the header of every image and clips the boxes that extend beyond their images.

    Raises:
        DataError: Lists the images that cannot be read and those whose box lies outside.
    """
    records = data.records
    clip = partial(clip_box, upright=data.upright)
    checked = list(in_threads(clip, records, threads=THREADS, description="checking images"))
    raise_data_errors([result for result in checked if isinstance(result, str)], "the images")
    count = sum(new is not old for new, old in zip(checked, records, strict=True))
    if count:
        boxes = sum(record.bounding_box is not None for record in records)
        level, hint = (logging.WARNING, f": {WRONG_BOXES}") if are_most(count, boxes) else (logging.INFO, "")
        logger.log(level, "%d of %d boxes extended beyond their images and were clipped%s", count, boxes, hint)
    first, second = len(data.train), len(data.train) + len(data.valid)
    train, valid, test = checked[:first], checked[first:second], checked[second:]
    return replace(data, train=tuple(train), valid=tuple(valid), test=tuple(test))


def are_most(clipped: int, boxes: int) -> bool:
    """Returns whether so many of the boxes were clipped that their unit, format or images may be wrong."""
    return 2 * clipped > boxes


def require_boxes(records: Sequence[ImageRecord]) -> None:
    """Checks that training images can be cut to their boxes.

    Raises:
        ConfigError: An image has no bounding box.
    """
    without = [record for record in records if record.bounding_box is None]
    if without:
        count = (
            "the data set has none"
            if len(without) == len(records)
            else f"{len(without):,} of {len(records):,} have none"
        )
        raise ConfigError(
            f"crop_to_bboxes: needs a bounding box for each training image; {count}, such as {without[0].path}"
        )


def raise_data_errors(problems: Sequence[str], where: object) -> None:
    """Raises one DataError that counts the problems and lists the first ten, if there are any."""
    if problems:
        more = [f"… and {len(problems) - MAX_LISTED_PROBLEMS:,} more"] if len(problems) > MAX_LISTED_PROBLEMS else []
        count = f"{len(problems):,} problem{'s' * (len(problems) > 1)}"
        raise DataError("\n  ".join([f"{count} in {where}:", *problems[:MAX_LISTED_PROBLEMS], *more]))


def normalized(class_name: str) -> str:
    """Returns a class name in Unicode's composed form; macOS writes `é` as two characters, other systems as one."""
    return unicodedata.normalize("NFC", class_name)


def _sorted(names: Iterable[str]) -> list[str]:
    """Sorts class names; whole numbers by their value."""
    names = list(names)
    return sorted(names, key=lambda name: (int(name), name)) if all(map(str.isdecimal, names)) else sorted(names)


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
