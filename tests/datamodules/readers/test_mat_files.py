import io
import random
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from datamodules import BoundingBox, read_data
from datamodules.readers import mat_files
from datamodules.readers.annotation_rows import read_class_names, read_rows
from datamodules.readers.mat_files import read_mat
from tests.support.data_sets import CLASS_NAMES, ORIGINAL_FIELDS, UPDATED_FIELDS, write_mat, write_updated_release
from utils.errors import DataError

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
PUBLISHED = SHARED / "stanford_cars_annotations"
needs_published = pytest.mark.skipif(not PUBLISHED.is_dir(), reason=f"the published annotations are not in {PUBLISHED}")
HEADER = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"
ROW = {"relative_im_path": "car_ims/000001.jpg", "fname": "00001.jpg", "class": 1, "test": 0}
ROW |= {"bbox_x1": 200, "bbox_y1": 250, "bbox_x2": 300, "bbox_y2": 260}  # in 8 and in 16 bits


@needs_published
@pytest.mark.parametrize(
    "name",
    [
        "cars_annos.mat",
        "cars_test_annos_withlabels.mat",
        "devkit/cars_train_annos.mat",
        "devkit/cars_test_annos.mat",
        "devkit/cars_meta.mat",
    ],
)
def test_every_value_of_the_published_files_equals_scipys(name: str) -> None:
    ours = read_mat(PUBLISHED / name, ("annotations", "class_names"))
    theirs = {key: value for key, value in scipy.io.loadmat(PUBLISHED / name).items() if not key.startswith("__")}

    assert set(ours) == set(theirs)
    if "class_names" in theirs:
        assert ours["class_names"] == [cell.item() for cell in theirs["class_names"].ravel()]
    if "annotations" in theirs:
        table = theirs["annotations"].ravel()
        assert tuple(ours["annotations"]) == table.dtype.names
        for field, values in ours["annotations"].items():
            expected = [value.item() for value in table[field]]
            assert values == [value if isinstance(value, str) else (value,) for value in expected]
            assert {type(value) if isinstance(value, str) else type(value[0]) for value in values} <= {int, str}


@pytest.mark.parametrize("compressed", [True, False])
def test_whatever_scipy_writes_is_read(tmp_path: Path, compressed: bool) -> None:
    cells = np.empty((2, 2), dtype=object)
    cells[:] = [["Citroën C4", np.zeros((0, 0))], [np.array([[1.5, 2.5], [3.5, 4.5]]), -7]]
    structs = np.empty((1, 2), dtype=[("a_field_of_31_characters_at_most", object), ("b", object)])
    structs[0, 0] = ("", np.int64(-(2**62)))
    structs[0, 1] = ("abc", np.array([[True, False]]))
    numbers = {
        dtype: np.array([[0, 1, 100]], dtype=dtype)
        for dtype in ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64")
    }
    variables = {"cells": cells, "structs": structs, **numbers}
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, variables | {"other": 1}, do_compression=compressed, long_field_names=True)

    assert read_mat(path, tuple(variables)) == {
        "cells": ["Citroën C4", (1.5, 3.5, 2.5, 4.5), (), (-7,)],
        "structs": {"a_field_of_31_characters_at_most": ["", "abc"], "b": [(-(2**62),), (1, 0)]},
        **dict.fromkeys(numbers, (0, 1, 100)),
    }


def test_numbers_are_pythons_and_boxes_do_not_wrap_around(tmp_path: Path) -> None:
    write_mat(tmp_path / "a.mat", [ROW], UPDATED_FIELDS)
    loaded = scipy.io.loadmat(tmp_path / "a.mat")["annotations"][0, 0]
    assert loaded["bbox_y1"].dtype == np.uint8 and loaded["bbox_x2"].dtype == np.uint16  # as published

    [row], names = read_rows(tmp_path / "a.mat", "updated")

    assert row.bounding_box == BoundingBox(199, 249, 300, 260)
    assert names is None
    x1, _, x2, _ = row.bounding_box
    assert x1 - x2 == -101 and type(x1 - x2) is int


def test_whole_numbers_may_be_written_in_floating_point(tmp_path: Path) -> None:
    write_mat(tmp_path / "a.mat", [{**ROW, "bbox_x2": 300.0, "class": np.array([[7.0]])}], UPDATED_FIELDS)
    [row], _ = read_rows(tmp_path / "a.mat", "updated")
    assert (row.bounding_box.x2, row.class_id) == (300, 7)
    assert type(row.bounding_box.x2) is type(row.class_id) is int


def mat_bytes(**variables) -> bytes:
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, variables)
    return buffer.getvalue()


DAMAGED = {
    "empty": (b"", r"a\.mat is empty \(0 bytes\): the download failed"),
    "web page": (b"\n<html><head><TITLE>404 Not\n Found</title>", r'is a web page with the title "404 Not\s+Found"'),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\noid", r"is a Git LFS pointer.*git lfs pull"),
    "matlab 7.3": (b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(512) + b"\x89HDF\r\n\x1a\n", r"MATLAB 7\.3 .*HDF5"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(500), "is an HDF5 file"),
    "zip": (b"PK\x03\x04" + bytes(500), "is a zip archive; unpack it first"),
    "gzip": (b"\x1f\x8b" + bytes(500), "is a gzip archive; unpack it first"),
    "random": (random.Random(0).randbytes(2000), "is not a MATLAB file: it begins with b'"),
    "text": (b"car_ims/000001.jpg,1,2,3,4", "is not a MATLAB file: it begins with b'car_ims/"),
    "header only": (HEADER, "'annotations' is missing"),
    "half a header": (b"MATLAB 5.0 MAT-file", "is damaged or cut short"),
    "big-endian": (b"MATLAB 5.0 MAT-file".ljust(124) + b"\x01\x00MI", "not that of a little-endian MATLAB 5.0 file"),
    "no annotations": (mat_bytes(something=1), "'annotations' is missing"),
    "numbers": (mat_bytes(annotations=np.eye(3)), "'annotations' is a tuple instead of a struct array"),
    "complex": (mat_bytes(annotations=np.array([1j])), "complex numbers"),
    "no rows": (mat_bytes(annotations=np.empty((1, 0), dtype=[(f, object) for f in UPDATED_FIELDS])), "has no rows"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_files_are_named_with_the_reason(tmp_path: Path, damage: str) -> None:
    content, message = DAMAGED[damage]
    path = tmp_path / "a.mat"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        read_rows(path, "updated")
    assert str(error.value).startswith(str(path))


@needs_published
def test_the_dead_link_is_called_what_it_is(tmp_path: Path) -> None:
    write_updated_release(tmp_path)
    shutil.copy(PUBLISHED / "dead_link_download.mat", tmp_path / "cars_annos.mat")
    with pytest.raises(DataError) as error:
        read_data(tmp_path)
    message = str(error.value)
    assert message.startswith(
        f'{tmp_path / "cars_annos.mat"} is a web page with the title "500 Internal Server Error", not annotations'
    )
    for word in ("Kaggle", "pytorch/vision/issues/7545", "Hugging Face", "Internet Archive", "car_ims.tgz"):
        assert word in message


@pytest.mark.parametrize("part", [0.05, 0.5, 0.999])
def test_a_file_cut_short_is_an_error(tmp_path: Path, part: float) -> None:
    path = tmp_path / "a.mat"
    write_mat(path, [ROW] * 50, UPDATED_FIELDS, class_names=CLASS_NAMES)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(DataError, match=r"is damaged or cut short .*download it again"):
        read_rows(path, "updated")


@pytest.mark.parametrize("compressed", [True, False])
def test_mutated_files_are_read_or_refused(tmp_path: Path, compressed: bool) -> None:
    path = tmp_path / "a.mat"
    write_mat(path, [ROW] * 5, UPDATED_FIELDS, class_names=CLASS_NAMES, compressed=compressed)
    whole = path.read_bytes()
    assert len(read_rows(path, "updated")[0]) == 5
    refused = 0
    for seed in range(500):
        generator = random.Random(seed)
        mutated = bytearray(whole)
        for _ in range(generator.randint(1, 8)):
            mutated[generator.randrange(len(mutated))] = generator.randrange(256)
        if generator.random() < 0.3:
            start = generator.randrange(len(mutated))
            mutated[start : start + generator.randrange(64)] = generator.randbytes(generator.randrange(64))
        path.write_bytes(mutated)
        try:
            read_rows(path, "updated")
        except DataError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 400


def element(kind: int, data: bytes) -> bytes:
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)


def array(array_class: int, dimensions: tuple[int, ...], contents: bytes, name: bytes = b"") -> bytes:
    flags = element(6, struct.pack("<II", array_class, 0))
    sizes = element(5, struct.pack(f"<{len(dimensions)}i", *dimensions))
    return element(14, flags + sizes + element(1, name) + contents)


def test_cells_in_cells_without_end_are_refused(tmp_path: Path) -> None:
    nested = array(6, (1, 1), element(9, struct.pack("<d", 1)))
    for _ in range(2000):
        nested = array(1, (1, 1), nested)
    path = tmp_path / "a.mat"
    path.write_bytes(HEADER + array(1, (1, 1), nested, b"class_names"))
    with pytest.raises(DataError, match="more than 4 cells and structs lie in each other"):
        read_class_names(path)


def test_sizes_that_reach_past_the_data_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    whole = HEADER + array(1, (1, 1), array(6, (1, 1), element(9, struct.pack("<d", 1))), b"class_names")
    path.write_bytes(whole[:-8])
    with pytest.raises(DataError, match="8 bytes are missing at the end"):
        read_class_names(path)
    short_element = struct.pack("<HHd", 9, 8, 1)  # has room for four bytes
    path.write_bytes(HEADER + array(1, (1, 1), array(6, (1, 1), short_element), b"class_names"))
    with pytest.raises(DataError, match="a short element has 8 bytes"):
        read_class_names(path)


def test_a_small_file_that_claims_to_be_huge_is_refused(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "a.mat"
    path.write_bytes(HEADER + array(1, (2**31 - 1,) * 3, b"", b"class_names"))
    with pytest.raises(DataError, match=r"an array of 9,903,520,300,447,984,150,353,281,023 has 0 values"):
        read_class_names(path)
    monkeypatch.setattr(mat_files, "MAX_BYTES", 1000)
    scipy.io.savemat(path, {"class_names": np.zeros((100, 100))}, do_compression=True)
    with pytest.raises(DataError, match="larger than 1,000 bytes"):
        read_class_names(path)


def test_missing_fields_are_named_with_what_the_file_seems_to_be(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    write_mat(path, [ROW], ORIGINAL_FIELDS)
    with pytest.raises(DataError, match=r"lacks the fields relative_im_path, test .*file of the original release"):
        read_rows(path, "updated")
    write_mat(path, [ROW], UPDATED_FIELDS)
    with pytest.raises(DataError, match=r"lacks the fields fname .*cars_annos\.mat of the updated release"):
        read_rows(path, "original")
    write_mat(path, [ROW], [field for field in ORIGINAL_FIELDS if field != "class"])
    with pytest.raises(DataError, match=r"lacks the fields class .*this is cars_test_annos\.mat, .*withlabels\.mat is"):
        read_rows(path, "original")


def test_values_of_a_wrong_shape_or_kind_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    wrong = [
        {"bbox_x1": np.array([[1, 2]], dtype=np.uint8)},
        {"bbox_y2": "12"},
        {"class": np.array([[1.5]])},
        {"test": np.array([[np.nan]])},
        {"relative_im_path": 7},
        {"relative_im_path": ""},
        {"bbox_x1": np.zeros((0, 0)), "bbox_x2": np.array([[np.inf]])},
    ]
    write_mat(path, [ROW, *({**ROW, **change} for change in wrong)], UPDATED_FIELDS)
    with pytest.raises(DataError) as error:
        read_rows(path, "updated")
    assert str(error.value).splitlines() == [
        f"8 problems in {path}:",
        "  row 2: bbox_x1 is (1, 2), expected one whole number",
        "  row 3: bbox_y2 is '12', expected one whole number",
        "  row 4: class is (1.5,), expected one whole number",
        "  row 5: test is (nan,), expected one whole number",
        "  row 6: relative_im_path is (7,), expected the name of a file",
        "  row 7: relative_im_path is '', expected the name of a file",
        "  row 8: bbox_x1 is (), expected one whole number",
        "  row 8: bbox_x2 is (inf,), expected one whole number",
    ]


@pytest.mark.parametrize("names", [[], ["A", ""], ["A", 1], "ABC"])
def test_class_names_must_be_names(tmp_path: Path, names) -> None:
    cells = np.empty((1, len(names)), dtype=object)
    cells[0] = names
    scipy.io.savemat(tmp_path / "cars_meta.mat", {"class_names": names if isinstance(names, str) else cells})
    with pytest.raises(DataError, match=r"cars_meta\.mat: its variable 'class_names' is missing or not a cell array"):
        read_class_names(tmp_path / "cars_meta.mat")
