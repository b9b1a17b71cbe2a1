"""Reads MATLAB 5 files of structs, cells, text and real numbers into plain Python values.

Format: MathWorks, "MAT-File Format", chapter 1 (Level 5). Unlike scipy.io.loadmat, which some damaged files end with a
segmentation fault and which gives numbers of 8 and 16 bits whose differences wrap around, this answers damage with an
error that names the file, and gives Python's numbers.
"""

import struct
import zlib
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import NamedTuple

from datamodules.readers.downloads import check_download
from utils.errors import DataError

HEADER_LENGTH = 128  # bytes
VERSION_AND_ORDER = b"\x00\x01IM"  # the header's last bytes: version 1.0, little-endian
MAX_BYTES = 2**26  # of all decompressed variables; the published files have 2**23
MAX_VALUES = 2**20  # in a cell array or struct; the published files have 2**17
MAX_FIELD_NAMES = 2**16  # bytes of them
MAX_DIMENSIONS = 32
MAX_DEPTH = 4  # of cells and structs in each other; the published files have 2

MATRIX, COMPRESSED = 14, 15  # data types of elements
NUMBER_CODES = {1: "b", 2: "B", 3: "h", 4: "H", 5: "i", 6: "I", 7: "f", 9: "d", 12: "q", 13: "Q"}  # as in struct
FLOATING = (7, 9)
ENCODINGS = {1: "latin-1", 2: "latin-1", 4: "utf-16-le", 16: "utf-8", 17: "utf-16-le", 18: "utf-32-le"}
CELL, STRUCT, CHARACTERS, FIRST_NUMERIC, LAST_NUMERIC = 1, 2, 4, 6, 15  # classes of matrices
COMPLEX = 0x800  # flag of a matrix

OTHER_FORMATS = {
    b"MATLAB 7.3": "is a MATLAB 7.3 file (HDF5), which is not how the annotations are published",
    b"\x89HDF": "is an HDF5 file, which is not how the annotations are published",
    b"PK\x03\x04": "is a zip archive; unpack it first",
    b"\x1f\x8b": "is a gzip archive; unpack it first",
}


Value = dict[str, list] | list | str | tuple[int | float, ...]


class Element(NamedTuple):
    kind: int
    data: memoryview
    end: int


class Matrix(NamedTuple):
    array_class: int
    size: int
    name: str
    contents: memoryview


def read_mat(path: Path, names: tuple[str, ...]) -> dict[str, Value]:
    """Returns those of the named variables that a file holds.

    Numbers become a tuple, text a str, a cell array a list, a struct array a dict of the list of each field's values;
    arrays of several rows and columns stand in MATLAB's order, column after column.

    Raises:
        DataError: The file cannot be read, is of another format, damaged or cut short.
    """
    head = check_download(path)
    for magic, meaning in OTHER_FORMATS.items():
        if head.startswith(magic):
            raise DataError(f"{path} {meaning}")
    if not head.startswith(b"MATLAB 5.0"):
        raise DataError(f"{path} is not a MATLAB file: it begins with {head[:16]!r} instead of 'MATLAB 5.0 MAT-file'")
    try:
        data = path.read_bytes()
        if data[HEADER_LENGTH - 4 : HEADER_LENGTH] != VERSION_AND_ORDER:
            raise ValueError("its header is not that of a little-endian MATLAB 5.0 file")
        matrices = map(_matrix, _variables(memoryview(data)[HEADER_LENGTH:]))
        return {matrix.name: _value(matrix, {}) for matrix in matrices if matrix.name in names}
    except (ValueError, struct.error, zlib.error, MemoryError, OSError) as error:  # UnicodeError is a ValueError
        raise DataError(f"{path} is damaged or cut short ({error}); download it again") from error


def _variables(data: memoryview) -> Iterator[memoryview]:
    """Yields the contents of each variable's matrix."""
    room = MAX_BYTES
    for element in _elements(data):
        if element.kind == COMPRESSED:
            unpacker = zlib.decompressobj()
            unpacked = unpacker.decompress(element.data, room + 1)
            room -= len(unpacked)
            if room < 0 or not unpacker.eof:
                raise ValueError(f"a variable is incomplete, or they are larger than {MAX_BYTES:,} bytes")
            element = _element(memoryview(unpacked), 0)
        if element.kind != MATRIX:
            raise ValueError(f"a variable has the data type {element.kind}")
        yield element.data


def _elements(data: memoryview) -> Iterator[Element]:
    position = 0
    while position < len(data):
        element = _element(data, position)
        yield element
        position = element.end


def _element(data: memoryview, position: int) -> Element:
    kind, size = struct.unpack_from("<II", data, position)
    if kind >> 16:  # up to four bytes of data stand in the second half of the tag
        kind, size, start, end = kind & 0xFFFF, kind >> 16, position + 4, position + 8
        if size > 4:
            raise ValueError(f"a short element has {size} bytes")
    else:
        start = position + 8
        end = start + size + (0 if kind == COMPRESSED else -size % 8)
    if start + size > len(data):
        raise ValueError(f"{start + size - len(data):,} bytes are missing at the end")
    return Element(kind, data[start : start + size], end)


def _matrix(data: memoryview) -> Matrix:
    if not data:  # how an empty array is written inside a cell
        return Matrix(FIRST_NUMERIC, 0, "", data)
    flags = _element(data, 0)
    dimensions = _element(data, flags.end)
    name = _element(data, dimensions.end)
    (flag_bits,) = struct.unpack_from("<I", flags.data)
    sizes = _integers(dimensions)
    if min(sizes, default=-1) < 0 or len(sizes) > MAX_DIMENSIONS:
        raise ValueError(f"an array has the dimensions {sizes!s:.60}")
    if flag_bits & COMPLEX:
        raise ValueError("an array is of complex numbers")
    return Matrix(flag_bits & 0xFF, prod(sizes), bytes(name.data).decode("latin-1"), data[name.end :])


def _value(matrix: Matrix, known: dict[bytes, Value], depth: int = 0) -> Value:
    """Returns a matrix's value; `known` has those of equal bytes, as most numbers of a table occur often."""
    if FIRST_NUMERIC <= matrix.array_class <= LAST_NUMERIC:
        return _sized(_numbers(_element(matrix.contents, 0)) if matrix.size else (), matrix)
    if matrix.array_class == CHARACTERS:
        return _sized(_text(_element(matrix.contents, 0)) if matrix.size else "", matrix)
    if depth == MAX_DEPTH:
        raise ValueError(f"more than {MAX_DEPTH} cells and structs lie in each other")
    if matrix.array_class == CELL:
        return _sized(list(_values(matrix.contents, known, depth + 1)), matrix)
    if matrix.array_class == STRUCT:
        length = _element(matrix.contents, 0)
        names = _element(matrix.contents, length.end)
        (width,) = _integers(length)
        if width < 1:
            raise ValueError(f"its field names have {width} characters")
        if len(names.data) > MAX_FIELD_NAMES:
            raise ValueError(f"its field names have {len(names.data):,} bytes")
        packed = bytes(names.data).decode("latin-1")
        fields = [packed[start : start + width].partition("\0")[0] for start in range(0, len(packed), width)]
        values = list(_values(matrix.contents[names.end :], known, depth + 1))
        if len(values) != matrix.size * len(fields):
            raise ValueError(f"{matrix.size:,} structs of {len(fields)} fields have {len(values):,} values")
        return {field: values[index :: len(fields)] for index, field in enumerate(fields)}
    raise ValueError(f"an array is of class {matrix.array_class}, not of numbers, text, cells or structs")


def _values(data: memoryview, known: dict[bytes, Value], depth: int) -> Iterator[Value]:
    for count, element in enumerate(_elements(data)):
        if count == MAX_VALUES:
            raise ValueError(f"a cell array or struct has more than {MAX_VALUES:,} values")
        if element.kind != MATRIX:
            raise ValueError(f"an array inside a cell or struct has the data type {element.kind}")
        content = bytes(element.data)
        if content not in known:
            known[content] = _value(_matrix(element.data), known, depth)
        yield known[content]


def _sized(value: Value, matrix: Matrix) -> Value:
    if len(value) != matrix.size:
        raise ValueError(f"an array of {matrix.size:,} has {len(value):,} values")
    return value


def _numbers(element: Element) -> tuple[int | float, ...]:
    if element.kind not in NUMBER_CODES:
        raise ValueError(f"numbers have the data type {element.kind}")
    code = NUMBER_CODES[element.kind]
    return struct.unpack(f"<{len(element.data) // struct.calcsize(code)}{code}", element.data)


def _integers(element: Element) -> tuple[int, ...]:
    if element.kind in FLOATING:
        raise ValueError(f"sizes have the data type {element.kind}")
    return _numbers(element)


def _text(element: Element) -> str:
    if element.kind not in ENCODINGS:
        raise ValueError(f"text has the data type {element.kind}")
    return bytes(element.data).decode(ENCODINGS[element.kind])
