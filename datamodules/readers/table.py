"""Reads a table: a CSV or TSV file with a column of image paths, one of classes, and optionally a split and a box."""

import csv
import io
import itertools
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil, floor
from pathlib import Path
from typing import Any

from datamodules.images import IMAGE_SUFFIXES, read_size
from datamodules.readers.archives import check_download
from datamodules.readers.location import Location, path_inside
from datamodules.readers.records import (
    SPLIT_NAMES,
    THREADS,
    BoundingBox,
    DataSplits,
    NamedImage,
    Split,
    label_images,
    normalized,
    raise_data_errors,
)
from utils.errors import ConfigError, DataError
from utils.nearest import nearest
from utils.progress import in_threads

KIND = "table"
DELIMITERS = (",", ";", "\t", "|")
ENCODINGS = ("utf-8-sig", "cp1252", "latin-1")  # the last one decodes anything

# Recognized column names, without case and anything but letters and digits; of several, the first is used.
PATH_COLUMNS = (
    "path", "imagepath", "imgpath", "filepath", "relativeimpath", "filename", "file", "imagefile", "fname", "imagename",
    "image", "img",
)  # fmt: skip
LABEL_COLUMNS = (
    "classname",
    "labelname",
    "class",
    "label",
    "category",
    "carmodel",
    "makemodel",
    "model",
    "target",
    "classid",
)
SPLIT_COLUMNS = ("split", "set", "subset", "partition")
BOX_COLUMNS = ("bbox", "box", "boundingbox")
BOX_PREFIX = re.compile(r"^(boundingbox|bbox|box|roi|bb)(?=.)")
CORNERS = (
    ("x0", "y0", "x1", "y1"), ("x1", "y1", "x2", "y2"), ("xmin", "ymin", "xmax", "ymax"),
    ("left", "top", "right", "bottom"), ("xtl", "ytl", "xbr", "ybr"),
)  # fmt: skip
SIZES = tuple(
    (*start, *size)
    for start in (("x", "y"), ("xmin", "ymin"), ("x1", "y1"), ("left", "top"))
    for size in (("w", "h"), ("width", "height"))
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Columns:
    """The names of the columns to read.

    Attributes:
        path, label: Always there.
        split: None where there is none.
        box: Four columns, one that holds four numbers, or none.
        box_format: "xyxy" or "xywh"; None where neither the names nor the configuration decide.
    """

    path: str
    label: str
    split: str | None = None
    box: tuple[str, ...] = ()
    box_format: str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table; `where` names it in messages, `box` has four numbers as they stand there."""

    where: str
    path: Any
    class_name: str
    split: Split
    box: tuple[float, ...] | None


def read_table(location: Location, params: Mapping[str, Any]) -> DataSplits | None:
    """Reads the data set of a folder's tables, or returns None where no table has a path and a class column.

    Boxes count pixels from 0, and x2 and y2 are the first ones outside; or they are fractions of width and height.

    Args:
        location: The data set.
        params: `table_params` of the configuration.

    Raises:
        ConfigError: table_params names a column that is not there.
        DataError: Rows are wrong, or images are missing.
    """
    contents = {table: _read_file(table, params) for table in location.files.tables}
    given = {name for key in ("path", "label", "split") if (name := params.get(key))}
    contents = {table: content for table, content in contents.items() if given <= {*content[0]}} or contents
    columns = {table: find_columns(header, params, table) for table, (header, _) in contents.items()}
    usable = {table: found for table, found in columns.items() if found is not None}
    if not usable:
        return None
    splits = {table: split_of_name(table.stem) for table in usable}
    unclear = [table for table, found in usable.items() if found.split is None and splits[table] is None]
    if len(usable) > 1 and unclear:
        names = ", ".join(str(table.relative_to(location.folder)) for table in usable)
        raise DataError(
            f"{location.folder} holds several tables: {names}; {unclear[0].name} has no split column and no split in its "
            "name. Set data_path (-d) to one of them"
        )
    rows: list[Row] = []
    problems: list[str] = []
    for table, found in usable.items():
        images = _Images(table, location.folder)
        name = table.relative_to(location.folder).as_posix()  # two folders may have tables of one name
        for where, values in contents[table][1]:
            row = parse_row(f"{name}, {where}", values, found, splits[table] or "train")
            if isinstance(row, Row):
                path = images.find(row.path, row.split)
                row = replace(row, path=path) if isinstance(path, Path) else f"{row.where}: {path}"
            (rows if isinstance(row, Row) else problems).append(row)
    first_rows: dict[Path, str] = {}
    problems += [
        f"{row.where}: {row.path} is the image of {first} too"
        for row in rows
        if (first := first_rows.setdefault(row.path, row.where)) != row.where
    ]
    folders = len(location.files.images) > 1 and not rows
    hint = " (if its folders are the classes, set dataset: class_folders, which ignores tables)" if folders else ""
    raise_data_errors(problems, f"{location.folder}{hint}")
    formats = {found.box_format for found in usable.values() if found.box}
    if len(formats) > 1:
        raise DataError(f"{location.folder}: its tables write boxes in different ways; set table_params.box_format")
    box_format = next(iter(formats), None)
    names = ", ".join(table.name for table in usable)
    return build_splits(rows, params, box_format, kind=KIND, description=f"table {names}", location=location)


def describe_tables(location: Location, params: Mapping[str, Any]) -> list[str]:
    """Returns a line for each table without a path or a class column."""
    for table in location.files.tables:
        check_download(table)
    return [_describe(table, _read_file(table, params)[0]) for table in location.files.tables]


def _describe(table: Path, header: Sequence[str]) -> str:
    if not header:
        return f"{table} is empty"
    names = ", ".join(header)[:300]
    if any(cell.lower().endswith(IMAGE_SUFFIXES) for cell in header):
        return (
            f"{table} has no header row: its first line names an image, {names}; add a line such as path,class above it"
        )
    return (
        f"{table} has the columns {names}: name those of paths and classes by table_params, as in "
        f"{{path: {header[0]}, label: {header[-1]}}}"
    )


def split_of_name(stem: str) -> Split | None:
    """Returns the split in the name of a file such as train-00000-of-00002."""
    return next((SPLIT_NAMES[word] for word in re.split(r"[^a-z]+", stem.lower()) if word in SPLIT_NAMES), None)


def find_columns(names: Sequence[str], params: Mapping[str, Any], where: object) -> Columns | None:
    """Returns the columns to read, or None if there is none of paths or of classes.

    Args:
        names: Of all columns.
        params: `table_params`, which may name some.
        where: The table, for messages.

    Raises:
        ConfigError: `params` names a column that is not there.
    """
    boxes = [params["box"]] if isinstance(params.get("box"), str) else list(params.get("box") or ())
    for key, name in [(key, params.get(key)) for key in ("path", "label", "split")] + [("box", name) for name in boxes]:
        if name is not None and name not in names:
            raise ConfigError(f"table_params.{key}: {where} has no column {name!r}.{nearest(name, names)}")
    plain = {re.sub(r"[^a-z0-9]", "", name.lower()): name for name in reversed(names)}
    path, label, split = (
        params.get(key) or next((plain[name] for name in known if name in plain), None)
        for key, known in (("path", PATH_COLUMNS), ("label", LABEL_COLUMNS), ("split", SPLIT_COLUMNS))
    )
    if path is None or label is None:
        return None
    box, box_format = tuple(boxes), None
    if not box:
        edges = plain | {BOX_PREFIX.sub("", key): name for key, name in plain.items() if BOX_PREFIX.match(key)}
        four = ((group, form) for form, groups in (("xyxy", CORNERS), ("xywh", SIZES)) for group in groups)
        found = next(((group, form) for group, form in four if all(edge in edges for edge in group)), None)
        if found is not None:
            box, box_format = tuple(edges[edge] for edge in found[0]), found[1]
        else:
            box = tuple(plain[name] for name in BOX_COLUMNS if name in plain)[:1]
    return Columns(path, label, split, box, params.get("box_format") or box_format)


def parse_row(where: str, values: Mapping[str, Any], columns: Columns, split: Split) -> Row | str:
    """Returns a row, or what is wrong with it.

    Args:
        where: The row, for messages.
        values: By column; those beyond the last column under None.
        columns: Those to read.
        split: That of rows without a split of their own.
    """
    if any(more := values.get(None, ())):
        return f"{where}: {', '.join(more)!r:.100} has no column; quote values that contain the delimiter"
    path, class_name = values[columns.path], values[columns.label]
    for name, value in ((columns.path, path), (columns.label, class_name)):
        if value is None or value == "":
            return f"{where}: {name} is empty"
    if columns.split is not None:
        text = str(values[columns.split] or "").strip()
        if text.casefold() not in SPLIT_NAMES:
            return f"{where}: {columns.split} is {text!r}, expected train, valid or test"
        split = SPLIT_NAMES[text.casefold()]
    entries = [values[name] for name in columns.box]
    if len(entries) == 1:
        entries = re.findall(r"[^\s,;\[\]()]+", entries[0]) if isinstance(entries[0], str) else list(entries[0] or ())
    if all(entry in (None, "") for entry in entries):
        return Row(where, path, normalized(str(class_name)), split, None)
    try:
        box = tuple(float(entry) for entry in entries)
    except (TypeError, ValueError):
        box = ()
    if len(box) != 4 or not all(abs(edge) < 1e9 for edge in box):
        return f"{where}: the box is {entries!r:.100}, expected four numbers"
    return Row(where, path, normalized(str(class_name)), split, box)


def build_splits(
    rows: Sequence[Row],
    params: Mapping[str, Any],
    box_format: str | None,
    *,
    kind: str,
    description: str,
    location: Location,
    class_names: Sequence[str] = (),
) -> DataSplits:
    """Returns the data set of some rows, their boxes converted to pixel corners.

    Raises:
        ConfigError: Nothing decides whether boxes are corners or sizes.
        DataError: A box is empty, or as `label_images`.
    """
    boxes = [row.box for row in rows if row.box is not None]
    if boxes and box_format is None:
        if all(x2 > x1 and y2 > y1 for x1, y1, x2, y2 in boxes):
            raise ConfigError(
                f"{location.folder}: its boxes, such as {list(boxes[0])}, may be corners or sizes; set "
                "table_params.box_format to xyxy (x1, y1, x2, y2) or xywh (x1, y1, width, height)"
            )
        box_format = "xywh"
    in_fractions = params.get("box_unit") == "fractions" or (
        params.get("box_unit") is None and bool(boxes) and all(0 <= edge <= 1 for box in boxes for edge in box)
    )
    scales: Iterable = itertools.repeat((1, 1), len(rows))
    if in_fractions:
        size = partial(_size, upright=location.upright)
        scales = in_threads(size, rows, threads=THREADS, description="reading sizes")
    converted = [_convert(row, scale, box_format) for row, scale in zip(rows, scales, strict=True)]
    raise_data_errors([box for box in converted if isinstance(box, str)], location.folder)
    splits: dict[Split, list[NamedImage]] = {"train": [], "valid": [], "test": []}
    for row, box in zip(rows, converted, strict=True):
        splits[row.split].append(NamedImage(row.path, row.class_name, box))
    return label_images(splits, kind=kind, description=description, where=location.folder, class_names=class_names)


def _size(row: Row, *, upright: bool) -> tuple[int, int] | str:
    try:
        return read_size(row.path, upright=upright) if row.box is not None else (1, 1)
    except DataError as error:
        return str(error)


def _convert(row: Row, scale: tuple[int, int] | str, box_format: str | None) -> BoundingBox | str | None:
    """Returns the box in pixels, rounded outward, or what is wrong with it."""
    if row.box is None or isinstance(scale, str):
        return None if row.box is None else scale
    x1, y1, x2, y2 = row.box
    if box_format == "xywh":
        x2, y2 = x1 + x2, y1 + y2
    if x1 >= x2 or y1 >= y2:
        return f"{row.where}: its box {list(row.box)} is empty as {box_format} (table_params.box_format)"
    width, height = scale
    # Rounded first: 0.3 * 10 is 3.0000000000000004 in floating point, and not in the next pixel.
    x1, y1, x2, y2 = (round(edge, 6) for edge in (x1 * width, y1 * height, x2 * width, y2 * height))
    return BoundingBox(floor(x1), floor(y1), ceil(x2), ceil(y2))


def _read_file(path: Path, params: Mapping[str, Any]) -> tuple[list[str], Iterator[tuple[str, dict[str | None, Any]]]]:
    """Returns the column names of a table, and its rows: where they stand, and their values by column.

    Raises:
        DataError: It is not a table; also while the rows are read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = content.decode("utf-16", errors="replace")
    else:
        text, encoding = next(_decoded(content))
        if encoding != ENCODINGS[0]:
            logger.info("%s is not UTF-8; it is read as %s", path, encoding)
    first_line = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = params.get("delimiter") or max(DELIMITERS, key=first_line.count)
    lines = _lines(path, csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True))
    _, header = next((line for line in lines if any(line[1])), ("", []))
    rows = (
        (where, {**dict(itertools.zip_longest(header, row[: len(header)], fillvalue="")), None: row[len(header) :]})
        for where, row in lines
        if any(row)
    )
    return header, rows


def _lines(path: Path, reader: Any) -> Iterator[tuple[str, list[str]]]:
    try:
        for row in reader:
            yield f"line {reader.line_num:,}", [cell.strip() for cell in row]
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num:,}: not a line of a table ({error})") from error


def _decoded(content: bytes) -> Iterator[tuple[str, str]]:
    for encoding in ENCODINGS:
        try:
            yield content.decode(encoding), encoding
        except UnicodeDecodeError:
            continue


class _Images:
    """Finds the images of a table: relative to it, or to a folder beside it."""

    def __init__(self, table: Path, root: Path) -> None:
        self.root = root
        self.folders = [table.parent, *(path for path in sorted(table.parent.iterdir()) if path.is_dir())]
        self.bases: dict[Split, Path] = {}
        self.listings: dict[Path, frozenset[str]] = {}

    def find(self, text: str, split: Split) -> Path | str:
        """Returns the path of an image of a split, or what is wrong with it."""
        relative = text.replace("\\", "/")
        if split not in self.bases:  # the first image that is found decides where all of its split are
            found = [folder for folder in self.folders if self._is_there(folder / relative)]
            if len(found) > 1 and found[0] != self.folders[0]:  # such as train/ and test/ with the same names
                names = ", ".join(f"{folder.name}/" for folder in found)
                found = [folder for folder in found if split_of_name(folder.name) == split]
                if len(found) != 1:
                    return f"{text} is in {names}; write the folder into the table's paths"
            if found:
                self.bases[split] = found[0]
        base = self.bases.get(split, self.folders[0])
        path = path_inside(self.root, base, relative)
        if path is None:
            return f"{text} lies outside of {self.root}"
        return path if self._is_there(path) else f"{text} is not in {base}"

    def _is_there(self, path: Path) -> bool:
        if path.parent not in self.listings:  # one listing instead of a question for each image
            try:
                self.listings[path.parent] = frozenset(each.name for each in path.parent.iterdir())
            except (OSError, ValueError):  # ValueError: a path with a NUL, as of UTF-16 without its mark
                self.listings[path.parent] = frozenset()
        return path.name in self.listings[path.parent]
