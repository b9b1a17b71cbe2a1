"""Turns the variables of an annotation file into rows of Python values."""

from pathlib import Path
from typing import NamedTuple

from datamodules.readers.layouts import TEST_ANNOTATIONS, TEST_ANNOTATIONS_WITHOUT_LABELS, UPDATED_ANNOTATIONS, Release
from datamodules.readers.mat_files import Value, read_mat
from datamodules.readers.records import BoundingBox, raise_data_errors
from utils.errors import DataError

BOX_FIELDS = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")
FIELDS: dict[Release, tuple[str, ...]] = {
    "updated": ("relative_im_path", *BOX_FIELDS, "class", "test"),
    "original": ("fname", *BOX_FIELDS, "class"),
}


class Row(NamedTuple):
    """One row of an annotation file.

    Attributes:
        number: Which row, from 1.
        name: Of the photo, as the file writes it.
        bounding_box: Converted; the file counts pixels from 1 and includes x2 and y2.
        class_id: From 1.
        test: 1 for a validation photo, 0 for a training photo, None where the file does not tell.
    """

    number: int
    name: str
    bounding_box: BoundingBox
    class_id: int
    test: int | None


def read_rows(path: Path, release: Release) -> tuple[list[Row], tuple[str, ...] | None]:
    """Reads an annotation file.

    Returns:
        Its rows, and the class names if it has them.

    Raises:
        DataError: The file is not one of this release's annotation files, or a value is not a whole number or a name.
    """
    variables = read_mat(path, ("annotations", "class_names"))
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
            problems.append(f"row {number:,}: {FIELDS[release][0]} is {name!r:.60}, expected the name of a file")
        elif None not in numbers:
            x1, y1, x2, y2, class_id, *test = numbers
            rows.append(Row(number, name, BoundingBox(x1 - 1, y1 - 1, x2, y2), class_id, test[0] if test else None))
    raise_data_errors(problems, path)
    return rows, _class_names(path, variables["class_names"]) if "class_names" in variables else None


def read_class_names(path: Path) -> tuple[str, ...]:
    """Reads cars_meta.mat: the names of the classes, in the order of their ids.

    Raises:
        DataError: There are none in the file.
    """
    return _class_names(path, read_mat(path, ("class_names",)).get("class_names"))


def _columns(path: Path, annotations: Value | None, release: Release) -> list[list[Value]]:
    if not isinstance(annotations, dict):
        kind = "missing" if annotations is None else f"a {type(annotations).__name__} instead of a struct array"
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


def _whole(value: Value) -> int | None:
    """Returns the number of an array of one; MATLAB may have written it as a floating-point number."""
    if not isinstance(value, tuple) or len(value) != 1 or (isinstance(value[0], float) and not value[0].is_integer()):
        return None
    return int(value[0])


def _class_names(path: Path, names: Value | None) -> tuple[str, ...]:
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise DataError(f"{path}: its variable 'class_names' is missing or not a cell array of names")
    return tuple(names)
