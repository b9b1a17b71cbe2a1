"""Reads the annotations of Stanford Cars: one record of path, box and label for each photo, all of them checked.

Krause et al., "3D Object Representations for Fine-Grained Categorization", 3dRR-13, 2013. Unlike the published code,
which looked boxes up by their position in another list, path, box and label stay together from the file on.
"""

import logging
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from datamodules.images import FORMATS
from datamodules.readers.annotation_rows import BoundingBox, Row, read_class_names, read_rows, refuse
from datamodules.readers.layouts import (
    DIFFERENT_PHOTOS,
    PHOTO_FOLDERS,
    TEST_ANNOTATIONS,
    TRAIN_ANNOTATIONS,
    UPDATED_ANNOTATIONS,
    Layout,
    Release,
    Split,
    Table,
    find_layout,
)
from utils.errors import DataError
from utils.progress import progress_bar

PHOTO_NAMES: dict[Release, str] = {"updated": r"\d{6}\.jpg", "original": r"\d{5}\.jpg"}
ANNOTATION_FILES: dict[Release, str] = {
    "updated": UPDATED_ANNOTATIONS,
    "original": f"{TRAIN_ANNOTATIONS} (in car_devkit.tgz) and {TEST_ANNOTATIONS}",
}
THREADS = 16  # disks and network drives answer several readers at once

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Annotation:
    """One photo; `label` is the class id − 1: 0 … number of classes − 1."""

    image_path: Path
    bounding_box: BoundingBox
    label: int


@dataclass(frozen=True, slots=True)
class Annotations:
    """Both splits, each in the order of its annotation file; `class_names[label]` is the name of a label."""

    train: tuple[Annotation, ...]
    valid: tuple[Annotation, ...]
    class_names: tuple[str, ...]
    release: Release


def read_annotations(folder: Path, *, archive_folder: Path | None = None) -> Annotations:
    """Reads and checks the data set in a folder, of any published layout.

    The training split has the rows with `test` 0, or cars_train/ in the original release; the validation split those
    with `test` 1, or cars_test/.

    Args:
        folder: Where the data lies; archives that are not extracted yet are extracted into it.
        archive_folder: Where else archives and annotation files may lie.

    Raises:
        DataError: The data is missing, incomplete or damaged, or rows of the annotations are wrong.
    """
    layout = find_layout(folder, archive_folder)
    rows_of: dict[Table, list[Row]] = {}
    class_names = None
    for table in layout.tables:
        rows_of[table], class_names = read_rows(table.mat, layout.release)
    if class_names is None:
        class_names = read_class_names(layout.data_folder.class_names_file())

    splits: dict[Split, list[Annotation]] = {"train": [], "valid": []}
    problems: list[str] = []
    for table, rows in rows_of.items():
        photos = layout.data_folder.extract(table.photos)
        problems += _missing_photos(table, rows, photos, layout)
        problems += _wrong_values(table, rows, len(class_names))
        for row in rows:
            split = table.split or ("valid" if row.test else "train")
            image_path = photos / row.name.rpartition("/")[2]
            splits[split].append(Annotation(image_path, row.bounding_box, row.class_id - 1))
    refuse(problems, f"the data set in {folder}")
    return Annotations(tuple(splits["train"]), tuple(splits["valid"]), class_names, layout.release)


def clip_boxes(annotations: Annotations) -> tuple[Annotations, int]:
    """Reads the size of every photo, and clips the boxes that reach past theirs.

    Returns:
        The annotations, and how many boxes were clipped.

    Raises:
        DataError: Lists the photos that cannot be read and those that their box lies outside of.
    """
    everything = annotations.train + annotations.valid
    with ThreadPoolExecutor(THREADS) as pool:
        results = pool.map(_clipped, everything)
        checked = list(progress_bar(results, description="checking photos", unit=" photos", total=len(everything)))
    refuse([result for result in checked if isinstance(result, str)], "the photos")
    count = sum(new is not old for new, old in zip(checked, everything, strict=True))
    if count:
        logger.info("%d of %d boxes reached past their photos and were clipped", count, len(everything))
    train, valid = checked[: len(annotations.train)], checked[len(annotations.train) :]
    return replace(annotations, train=tuple(train), valid=tuple(valid)), count


def _clipped(annotation: Annotation) -> Annotation | str:
    """Returns the annotation with its box inside the photo, or what is wrong with it."""
    try:
        with Image.open(annotation.image_path, formats=FORMATS) as image:
            width, height = image.size
    except Exception as error:  # Pillow's plugins answer damaged headers with errors of a dozen kinds
        return f"{annotation.image_path}: cannot be read ({str(error) or type(error).__name__})"
    x1, y1, x2, y2 = box = annotation.bounding_box
    clipped = BoundingBox(max(x1, 0), max(y1, 0), min(x2, width), min(y2, height))
    if clipped == box:
        return annotation
    if clipped.x1 >= clipped.x2 or clipped.y1 >= clipped.y2:
        return f"{annotation.image_path}: its box {tuple(box)} lies outside of its {width}×{height} pixels"
    return replace(annotation, bounding_box=clipped)


def _missing_photos(table: Table, rows: Sequence[Row], photos: Path, layout: Layout) -> list[str]:
    """Returns a line for each photo that is not there.

    Raises:
        DataError: The photos that are there are of the other release.
    """
    prefix = "car_ims/" if layout.release == "updated" else ""
    try:
        with os.scandir(photos) as entries:  # one listing instead of a question for each photo
            present = {prefix + entry.name for entry in entries if entry.is_file()}
    except OSError as error:
        raise DataError(f"{photos} cannot be read: {error.strerror or error}") from error
    missing = [f"{_where(table, row)}: not in {photos}" for row in rows if row.name not in present]
    if not missing:
        return []
    other: Release = "original" if layout.release == "updated" else "updated"
    others = [name for name in present if re.fullmatch(PHOTO_NAMES[other], name.removeprefix(prefix))]
    if others:
        raise DataError(
            f"{table.mat} is of the {layout.release} release, with photos such as {rows[0].name}; but {photos} holds "
            f"{len(others):,} photos of the {other} release, such as {min(others)}.\n{DIFFERENT_PHOTOS}\n"
            f"The .mat for those photos is missing: {ANNOTATION_FILES[other]}. Or get the {layout.release} release's "
            f"photos: {', '.join(f'{name}.tgz' for name in PHOTO_FOLDERS[layout.release])}."
        )
    archive = layout.data_folder.archive(table.photos)
    if archive is not None:
        missing[0] += f" (delete that folder, and it is extracted anew from {archive})"
    return missing


def _wrong_values(table: Table, rows: Sequence[Row], num_classes: int) -> Iterator[str]:
    first_rows: dict[str, int] = {}
    for row in rows:
        where = _where(table, row)
        first_row = first_rows.setdefault(row.name, row.number)
        if first_row != row.number:
            yield f"{where}: row {first_row:,} is of the same photo"
        if not 1 <= row.class_id <= num_classes:
            yield f"{where}: class {row.class_id}, expected 1 … {num_classes}"
        if row.test not in (None, 0, 1):
            yield f"{where}: test {row.test}, expected 0 (training) or 1 (validation)"
        x1, y1, x2, y2 = row.bounding_box
        if x1 >= x2 or y1 >= y2:
            yield f"{where}: its box is empty (x {x1 + 1} … {x2}, y {y1 + 1} … {y2})"


def _where(table: Table, row: Row) -> str:
    return f"{row.name} (row {row.number:,} of {table.mat.name})"
