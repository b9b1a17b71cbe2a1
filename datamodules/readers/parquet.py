"""Reads Parquet files as the Hugging Face hub stores them: an image column, a class column, one or more files a split.

Images stay in their files: a record refers to a row, and its bytes are read when they are needed.
"""

import functools
import json
import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from datamodules.readers.archives import check_download
from datamodules.readers.location import Location, path_inside
from datamodules.readers.records import DataSplits, Split, normalized, raise_data_errors
from datamodules.readers.table import Columns, Row, build_splits, find_columns, parse_row, split_of_name
from utils.errors import ConfigError, DataError

KIND = "parquet"
MAX_ROW_GROUP_BYTES = 2**28  # above, a warning

logger = logging.getLogger(__name__)

_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class ParquetImage:
    """An image in a Parquet file, with the methods of a path that reading needs; it can be pickled.

    Attributes:
        file: The Parquet file.
        column: The column of the bytes; "image.bytes" is a field of a struct.
        row_group, row: Where it stands.
        name: Of the image, as the file names it.
    """

    file: Path
    column: str
    row_group: int
    row: int
    name: str

    def __str__(self) -> str:
        return f"{self.file}, row group {self.row_group}, row {self.row} ({self.name})"

    @property
    def parent(self) -> Path:
        return self.file

    def stat(self) -> os.stat_result:
        return self.file.stat()

    def read_bytes(self) -> bytes:
        """Returns the bytes of the image.

        Raises:
            DataError: They are missing, or the file is damaged.
        """
        try:
            owner = (os.getpid(), self.file.stat().st_mtime_ns)
            with _lock:  # the threads that read neighboring images wait for their row group instead of each reading it
                content = _row_group(owner, self.file, self.column, self.row_group)[self.row].as_py()
        except _errors() as error:
            raise DataError(f"{self.file} is damaged or was replaced ({error})") from error
        if content is None:
            raise DataError(f"{self}: the row has no image")
        return content


def read_parquet(location: Location, params: Mapping[str, Any]) -> DataSplits | None:
    """Reads the data set of a folder's Parquet files, or returns None where there are none.

    Class names come from the metadata that the `datasets` library writes, else from the values. Columns of a split and
    of boxes are recognized as those of a table.

    Raises:
        ConfigError: pyarrow is not installed, or table_params names a column that is not there.
        DataError: A file is damaged, has no image or no class column, or rows are wrong.
    """
    files = location.files.parquet
    if not files:
        return None
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"{files[0]}: reading Parquet files needs pyarrow; run pip install pyarrow") from error
    splits = {file: _split_of(file, location.folder) for file in files}
    rows: list[Row] = []
    problems: list[str] = []
    columns, class_names = None, set()
    for file in files:
        check_download(file)
        try:
            columns, names = _columns(file, params)
            class_names.add(names)
            if columns.split is None and splits[file] is None and any(splits.values()):
                raise DataError(
                    f"{file}: expected a split in its name, such as train-00000-of-00001.parquet, as in the others"
                )
            for row in _rows(file, columns, names, splits[file] or "train"):
                (rows if isinstance(row, Row) else problems).append(row)
        except _errors() as error:
            raise DataError(f"{file} is damaged or cut short ({error!s:.200}); download it again") from error
    raise_data_errors(problems, location.folder)
    description = f"Parquet, {len(files)} file{'s' * (len(files) > 1)}"
    return build_splits(
        rows, params, columns.box_format, kind=KIND, description=description, location=location,
        class_names=class_names.pop() if len(class_names) == 1 else (),
    )  # fmt: skip


def _errors() -> tuple[type[Exception], ...]:
    from pyarrow import ArrowException

    return ArrowException, OSError, ValueError  # the last one for JSON in the metadata


def _split_of(file: Path, folder: Path) -> Split | None:
    """Returns the split in the name of a file, or of the folders that it lies in."""
    parts = (file.stem, *reversed(file.relative_to(folder).parts[:-1]))
    return next(filter(None, map(split_of_name, parts)), None)


def _columns(file: Path, params: Mapping[str, Any]) -> tuple[Columns, tuple[str, ...]]:
    """Returns the columns of a file and the names of its classes, () where the values are the names."""
    import pyarrow.parquet as pq
    from pyarrow import types

    schema = pq.read_schema(file)
    metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = {
        name: feature
        for name, feature in metadata.get("info", {}).get("features", {}).items()
        if isinstance(feature, dict)
    }
    images = [name for name, feature in features.items() if feature.get("_type") == "Image"] or [
        field.name
        for field in schema
        if (types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0)
        or types.is_binary(field.type) or types.is_large_binary(field.type)
    ]  # fmt: skip
    classes = [name for name, feature in features.items() if feature.get("_type") == "ClassLabel"]
    known = {"path": images[0]} if images else {}
    given = {key: value for key, value in params.items() if value is not None}
    columns = find_columns(schema.names, known | given, file)
    if columns is None and len(classes) == 1:
        columns = find_columns(schema.names, known | {"label": classes[0]} | given, file)
    if columns is None:
        raise DataError(
            f"{file}: expected an image column (of bytes or paths) and a class column; found {', '.join(schema.names)}. Name "
            "them by table_params, as in {path: image, label: label}"
        )
    return columns, tuple(map(normalized, features.get(columns.label, {}).get("names") or ()))


def _rows(file: Path, columns: Columns, class_names: Sequence[str], split: Split) -> Iterator[Row | str]:
    """Yields each row, with the image's place in the file, or its path where the file has no bytes."""
    import pyarrow.parquet as pq

    content = pq.ParquetFile(file)
    leaves = {content.schema.column(index).path: index for index in range(len(content.schema))}
    is_text = columns.path in leaves and content.schema.column(leaves[columns.path]).logical_type.type == "STRING"
    bytes_leaf = next(
        (leaf for leaf in (f"{columns.path}.bytes", columns.path) if leaf in leaves and not is_text), None
    )
    path_leaf = next(
        (leaf for leaf in (f"{columns.path}.path", columns.path) if leaf in leaves and leaf != bytes_leaf), None
    )
    wanted = [name for name in (columns.label, columns.split, *columns.box, path_leaf) if name is not None]
    number = 0
    for group in range(content.num_row_groups):
        in_file = bytes_leaf is not None and not _is_empty(content.metadata.row_group(group), leaves[bytes_leaf])
        for row, values in enumerate(content.read_row_group(group, columns=wanted, use_threads=False).to_pylist()):
            number += 1
            where = f"{file.name}, row {number:,}"
            image = values.get(columns.path)
            name = image.get("path") if isinstance(image, dict) else image
            if in_file:
                stored_name = PurePosixPath(name or f"{file.stem}-{number:06d}").name
                values[columns.path] = ParquetImage(file, bytes_leaf, group, row, stored_name)
            else:
                values[columns.path] = _outside(file, name)
            label = values[columns.label]
            if class_names and isinstance(label, int):
                if not 0 <= label < len(class_names):
                    yield f"{where}: {columns.label} is {label}, expected 0 … {len(class_names) - 1}"
                    continue
                values[columns.label] = class_names[label]
            parsed = parse_row(where, values, columns, split)
            if isinstance(parsed, Row) and isinstance(parsed.path, str):
                parsed = f"{where}: {parsed.path}"
            yield parsed


def _is_empty(row_group: Any, column: int) -> bool:
    """Returns whether a column has only nulls, as that of the bytes where images are stored beside the file."""
    chunk = row_group.column(column)
    if chunk.total_uncompressed_size > MAX_ROW_GROUP_BYTES:
        logger.warning(
            "a row group has %.1f GB, and each process that reads images keeps two in memory; write the file with "
            "row_group_size=100, as the hub does", chunk.total_uncompressed_size / 1e9,
        )  # fmt: skip
    return chunk.statistics is not None and chunk.statistics.null_count == row_group.num_rows


def _outside(file: Path, name: str | None) -> Path | str | None:
    """Returns the path of an image beside the Parquet file, or what is wrong with it."""
    if not name:
        return None
    path = path_inside(file.parent, file.parent, name)
    if path is None:
        return f"{name} lies outside of {file.parent}"
    return path if path.is_file() else f"{name} is not in {file.parent}, and the file does not hold it either"


@functools.lru_cache(maxsize=2)
def _row_group(owner: tuple[int, int], file: Path, column: str, row_group: int) -> Any:
    """Returns the values of a column in a row group; the last ones are kept, `owner` (process, time of the file) by owner."""
    values = _open(owner, file).read_row_group(row_group, columns=[column], use_threads=False).column(0)
    values = values.combine_chunks()
    return values.field("bytes") if column.endswith(".bytes") else values


@functools.lru_cache(maxsize=8)
def _open(owner: tuple[int, int], file: Path) -> Any:
    import pyarrow.parquet as pq

    return pq.ParquetFile(file)
