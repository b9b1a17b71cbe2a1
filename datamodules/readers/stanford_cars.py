"""Reads the annotations of Stanford Cars: one record of path, box and label for each photo, all of them checked.

Krause et al., "3D Object Representations for Fine-Grained Categorization", 3dRR-13, 2013. Unlike the published code,
which looked boxes up by their position in another list, path, box and label stay together from the file on.
"""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from datamodules.readers.annotation_rows import Row, read_class_names, read_rows
from datamodules.readers.layouts import (
    DIFFERENT_PHOTOS,
    PHOTO_FOLDERS,
    TEST_ANNOTATIONS,
    TRAIN_ANNOTATIONS,
    UPDATED_ANNOTATIONS,
    AnnotationFile,
    Layout,
    Release,
    Split,
    find_layout,
)
from datamodules.readers.records import DataSplits, ImageRecord, raise_data_errors
from utils.errors import DataError

PHOTO_NAMES: dict[Release, str] = {"updated": r"\d{6}\.jpg", "original": r"\d{5}\.jpg"}
ANNOTATION_FILES: dict[Release, str] = {
    "updated": UPDATED_ANNOTATIONS,
    "original": f"{TRAIN_ANNOTATIONS} (in car_devkit.tgz) and {TEST_ANNOTATIONS}",
}


def read_stanford_cars(folder: Path, *, raw_path: Path | None = None) -> DataSplits:
    """Reads and checks the data set in a folder, of any published layout.

    The training split has the rows with `test` 0, or cars_train/ in the original release; the validation split those
    with `test` 1, or cars_test/.

    Args:
        folder: Where the data lies; archives that are not extracted yet are extracted into it.
        raw_path: Where else archives and annotation files may lie.

    Raises:
        DataError: The data is missing, incomplete or damaged, or rows of the annotations are wrong.
    """
    layout = find_layout(folder, raw_path)
    rows_of: dict[AnnotationFile, list[Row]] = {}
    class_names = None
    for table in layout.annotation_files:
        rows_of[table], class_names = read_rows(table.mat, layout.release)
    if class_names is None:
        class_names = read_class_names(layout.data_folder.class_names_file())

    splits: dict[Split, list[ImageRecord]] = {"train": [], "valid": []}
    problems: list[str] = []
    for table, rows in rows_of.items():
        photos = layout.data_folder.extract(table.photos)
        problems += _missing_photos(table, rows, photos, layout)
        problems += _wrong_values(table, rows, len(class_names))
        for row in rows:
            split = table.split or ("valid" if row.test else "train")
            image_path = photos / row.name.rpartition("/")[2]
            splits[split].append(ImageRecord(image_path, row.class_id - 1, row.bounding_box))
    raise_data_errors(problems, f"the data set in {folder}")
    return DataSplits(
        tuple(splits["train"]),
        tuple(splits["valid"]),
        class_names,
        "stanford_cars",
        f"{layout.release} release of Stanford Cars",
        valid_from="test",
    )


def _missing_photos(table: AnnotationFile, rows: Sequence[Row], photos: Path, layout: Layout) -> list[str]:
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


def _wrong_values(table: AnnotationFile, rows: Sequence[Row], num_classes: int) -> Iterator[str]:
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


def _where(table: AnnotationFile, row: Row) -> str:
    return f"{row.name} (row {row.number:,} of {table.mat.name})"
