"""Reads Stanford Cars: path, label and box of each image stay together from the annotation file on.

Krause et al., "3D Object Representations for Fine-Grained Categorization", 3dRR-13, 2013. Unlike the published code,
which looks up boxes by their position in another list.
"""

import csv
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from datamodules.readers.layouts import (
    DIFFERENT_NUMBERS,
    IMAGE_FOLDERS,
    TEST_ANNOTATIONS,
    TEST_ANNOTATIONS_WITHOUT_LABELS,
    TRAIN_ANNOTATIONS,
    UPDATED_ANNOTATIONS,
    AnnotationFile,
    Layout,
    Release,
    find_layout,
    is_release_archive,
)
from datamodules.readers.location import Location
from datamodules.readers.mat_files import read_mat_files
from datamodules.readers.records import SPLIT_NAMES, BoundingBox, DataSplits, ImageRecord, Split, raise_data_errors
from utils.errors import DataError

KIND = "stanford_cars"
BOX_FIELDS = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")
FIELDS: dict[Release, tuple[str, ...]] = {
    "updated": ("relative_im_path", *BOX_FIELDS, "class", "test"),
    "original": ("fname", *BOX_FIELDS, "class"),
}
IMAGE_NAMES: dict[Release, str] = {"updated": r"\d{6}\.jpg", "original": r"\d{5}\.jpg"}
ANNOTATION_FILES: dict[Release, str] = {
    "updated": UPDATED_ANNOTATIONS,
    "original": f"{TRAIN_ANNOTATIONS} (in car_devkit.tgz) and {TEST_ANNOTATIONS}",
}
# Tables of Kaggle's copy in class folders (stanford-car-dataset-by-classes-folder), without column names.
KAGGLE_TABLES: dict[Split, str] = {"train": "anno_train.csv", "valid": "anno_test.csv"}
KAGGLE_CLASS_NAMES = "names.csv"


class Row(NamedTuple):
    """One row of an annotation file.

    Attributes:
        number: From 1.
        name: Of the image, as the file has it.
        bounding_box: Converted; the file counts pixels from 1 and includes x2 and y2.
        class_id: From 1.
        test: 1 for a validation image, 0 for a training image, None where the file does not say.
    """

    number: int
    name: str
    bounding_box: BoundingBox
    class_id: int
    test: int | None


def read_stanford_cars(location: Location, params: Mapping[str, Any]) -> DataSplits | None:
    """Reads Stanford Cars in any published layout, or returns None where it is not complete.

    The training split has the rows with `test` 0, or cars_train/ in the original release; the validation split has those
    with `test` 1, or cars_test/: the study has no other.

    Raises:
        DataError: Files are damaged, images are missing, or rows of the annotations are wrong.
    """
    if location.file is not None and not is_release_archive(location.file):
        return None  # a table, a Parquet file or an archive of one's own may lie beside a release
    layout = find_layout(location)
    return _read_release(layout) if layout is not None else _read_kaggle(location)


def _read_release(layout: Layout) -> DataSplits:
    mats = [file.mat for file in layout.annotation_files]
    if layout.release == "original":
        mats.append(layout.data_folder.class_names_file())
    contents = read_mat_files(*mats)
    rows_of = {
        file: parse_rows(file.mat, variables, layout.release)
        for file, variables in zip(layout.annotation_files, contents, strict=False)
    }
    if "class_names" not in contents[-1]:
        mats.append(layout.data_folder.class_names_file())
        contents = read_mat_files(mats[-1])
    class_names = parse_class_names(mats[-1], contents[-1])

    splits: dict[str, list[ImageRecord]] = {"train": [], "valid": []}
    problems: list[str] = []
    for file, rows in rows_of.items():
        images = layout.data_folder.extract(file.images)
        problems += _missing_images(file, rows, images, layout)
        problems += _wrong_values(rows, file.mat, len(class_names))
        for row in rows:
            split = file.split or ("valid" if row.test else "train")
            path = images / row.name.rpartition("/")[2]
            splits[split].append(ImageRecord(path, row.class_id - 1, row.bounding_box))
    raise_data_errors(problems, f"the data set in {layout.data_folder.folder}")
    return _data_set(splits, class_names, f"{layout.release} release of Stanford Cars")


def _read_kaggle(location: Location) -> DataSplits | None:
    """Reads Kaggle's copy of the original release in class folders, with its boxes; None where it is not there."""
    tables = {path.name: path for path in reversed(location.files.tables)}
    if not {*KAGGLE_TABLES.values(), KAGGLE_CLASS_NAMES} <= set(tables):
        return None
    class_names = tuple(",".join(row).strip() for row in _csv_rows(tables[KAGGLE_CLASS_NAMES]))
    folders: dict[tuple[str, str], tuple[str, ...]] = {}  # of split and name: two splits may have the same name
    for parts, names in location.files.images.items():
        if len(parts) >= 2 and (split := SPLIT_NAMES.get(parts[-2].casefold())):
            folders |= {("train" if split == "train" else "valid", name): parts for name in names}
    splits: dict[str, list[ImageRecord]] = {"train": [], "valid": []}
    problems: list[str] = []
    for split, table_name in KAGGLE_TABLES.items():
        rows: list[Row] = []
        for number, cells in enumerate(_csv_rows(tables[table_name]), start=1):
            try:
                name, (x1, y1, x2, y2, class_id) = cells[0], map(int, cells[1:])
                rows.append(Row(number, name, BoundingBox(x1 - 1, y1 - 1, x2, y2), class_id, None))
            except (IndexError, ValueError):
                problems.append(f"row {number:,} of {table_name}: {cells}, expected a name, the box and the class")
        problems += _wrong_values(rows, tables[table_name], len(class_names))
        for row in rows:
            parts = folders.get((split, row.name))
            where = f"{row.name} (row {row.number:,} of {table_name})"
            if parts is None:
                problems.append(f"{where}: not in the class folders of the {split} split")
            elif 1 <= row.class_id <= len(class_names):
                class_name = class_names[row.class_id - 1]
                if re.sub(r"\W|_", "", parts[-1]) != re.sub(r"\W|_", "", class_name):  # no folder name holds a slash
                    problems.append(f"{where}: its class is {class_name!r}, but it lies in the folder {parts[-1]!r}")
                path = location.folder.joinpath(*parts, row.name)
                splits[split].append(ImageRecord(path, row.class_id - 1, row.bounding_box))
    raise_data_errors(problems, f"the data set in {location.folder}")
    return _data_set(splits, class_names, "Kaggle's class folders of Stanford Cars, with boxes")


def _csv_rows(path: Path) -> list[list[str]]:
    try:
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            return [row for row in csv.reader(file) if row]
    except (OSError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _data_set(splits: Mapping[str, list[ImageRecord]], class_names: tuple[str, ...], description: str) -> DataSplits:
    return DataSplits(
        tuple(splits["train"]), tuple(splits["valid"]), class_names, KIND, description, valid_from="test"
    )  # fmt: skip


def parse_rows(path: Path, variables: Mapping[str, Any], release: Release) -> list[Row]:
    """Returns the rows of an annotation file of a release.

    Raises:
        DataError: It is another file, or a value is not a whole number or a name.
    """
    columns = _columns(path, variables.get("annotations"), release)
    number_fields = FIELDS[release][1:]
    rows, problems = [], []
    for number, (name, *values) in enumerate(zip(*columns, strict=True), start=1):
        numbers = [_whole(value) for value in values]
        problems += [
            f"row {number:,}: {field} is {value!r:.60}, expected one whole number"
            for field, value, whole in zip(number_fields, values, numbers, strict=True)
            if whole is None
        ]
        if not isinstance(name, str) or not name:
            problems.append(f"row {number:,}: {FIELDS[release][0]} is {name!r:.60}, expected a file name")
        elif None not in numbers:
            x1, y1, x2, y2, class_id, *test = numbers
            rows.append(Row(number, name, BoundingBox(x1 - 1, y1 - 1, x2, y2), class_id, test[0] if test else None))
    raise_data_errors(problems, path)
    return rows


def parse_class_names(path: Path, variables: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the class names of a file in the order of their ids.

    Raises:
        DataError: The file has none.
    """
    names = variables.get("class_names")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise DataError(f"{path}: its variable 'class_names' is missing or not a cell array of names")
    return tuple(names)


def _columns(path: Path, annotations: Any, release: Release) -> list[list[Any]]:
    if not isinstance(annotations, dict):
        kind = "missing" if annotations is None else "not a struct array"
        raise DataError(f"{path}: its variable 'annotations' is {kind}; these are not the annotations of Stanford Cars")
    missing = [field for field in FIELDS[release] if field not in annotations]
    if missing:
        if release == "updated" and "fname" in annotations:
            hint = f"; this is a file of the original release under the name of the updated one's {UPDATED_ANNOTATIONS}"
        elif release == "original" and "relative_im_path" in annotations:
            hint = f"; this is {UPDATED_ANNOTATIONS} of the updated release under another name"
        elif missing == ["class"]:
            hint = f"; this is {TEST_ANNOTATIONS_WITHOUT_LABELS}, {TEST_ANNOTATIONS} is the one with labels"
        else:
            hint = ""
        found = ", ".join(annotations) or "none"
        raise DataError(f"{path}: 'annotations' lacks the fields {', '.join(missing)} (found: {found}){hint}")
    columns = [annotations[field] for field in FIELDS[release]]
    if not columns[0]:
        raise DataError(f"{path}: 'annotations' has no rows")
    return columns


def _whole(value: Any) -> int | None:
    """Returns a whole number as int; MATLAB may have written it in floating point."""
    return int(value) if isinstance(value, (int, float)) and value == value // 1 else None


def _missing_images(file: AnnotationFile, rows: Sequence[Row], images: Path, layout: Layout) -> list[str]:
    """Returns a line for each missing image.

    Raises:
        DataError: The images are those of the other release.
    """
    prefix = "car_ims/" if layout.release == "updated" else ""
    try:
        with os.scandir(images) as entries:  # one listing instead of a question for each image
            present = {prefix + entry.name for entry in entries if entry.is_file()}
    except OSError as error:
        raise DataError(f"{images} cannot be read: {error.strerror or error}") from error
    missing = [f"{_where(row, file.mat)}: not in {images}" for row in rows if row.name not in present]
    if not missing:
        return []
    other: Release = "original" if layout.release == "updated" else "updated"
    others = [name for name in present if re.fullmatch(IMAGE_NAMES[other], name.removeprefix(prefix))]
    if others:
        raise DataError(
            f"{file.mat} is of the {layout.release} release, with images such as {rows[0].name}; but {images} holds "
            f"{len(others):,} images of the {other} release, such as {min(others)}.\n{DIFFERENT_NUMBERS}\n"
            f"The .mat for those images is missing: {ANNOTATION_FILES[other]}. Or get the {layout.release} release's "
            f"images: {', '.join(f'{name}.tgz' for name in IMAGE_FOLDERS[layout.release])}."
        )
    archive = layout.data_folder.archive(file.images)
    if archive is not None:
        missing[0] += f" (delete that folder, and it is extracted anew from {archive})"
    return missing


def _wrong_values(rows: Sequence[Row], file: Path, num_classes: int) -> Iterator[str]:
    first_rows: dict[str, int] = {}
    for row in rows:
        where = _where(row, file)
        first_row = first_rows.setdefault(row.name, row.number)
        if first_row != row.number:
            yield f"{where}: row {first_row:,} has the same image"
        if not 1 <= row.class_id <= num_classes:
            yield f"{where}: class {row.class_id}, expected 1 … {num_classes}"
        if row.test not in (None, 0, 1):
            yield f"{where}: test {row.test}, expected 0 (training) or 1 (validation)"
        x1, y1, x2, y2 = row.bounding_box
        if x1 >= x2 or y1 >= y2:
            yield f"{where}: its box is empty (x {x1 + 1} … {x2}, y {y1 + 1} … {y2})"


def _where(row: Row, file: Path) -> str:
    return f"{row.name} (row {row.number:,} of {file.name})"
