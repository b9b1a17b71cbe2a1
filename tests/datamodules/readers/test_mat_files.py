import io
import random
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from datamodules import BoundingBox, read_data
from datamodules.readers import mat_files
from datamodules.readers.mat_files import read_mat_files
from datamodules.readers.stanford_cars import parse_class_names, parse_rows
from tests.support.data_sets import (
    CLASS_NAMES,
    ORIGINAL_FIELDS,
    PUBLISHED,
    UPDATED_FIELDS,
    needs_published,
    write_mat,
    write_updated_release,
)
from utils.errors import DataError

ROW = {"relative_im_path": "car_ims/000001.jpg", "fname": "00001.jpg", "class": 1, "test": 0}
ROW |= {"bbox_x1": 200, "bbox_y1": 250, "bbox_x2": 300, "bbox_y2": 260}  # in 8 and in 16 bits


@needs_published
@pytest.mark.parametrize("name", ["cars_annos.mat", "devkit/cars_meta.mat", "devkit/cars_test_annos.mat"])
def test_every_value_of_the_published_files(name: str) -> None:
    ours = read_mat_files(PUBLISHED / name)[0]
    theirs = {key: value for key, value in scipy.io.loadmat(PUBLISHED / name).items() if not key.startswith("__")}
    assert set(ours) == set(theirs)
    if "class_names" in theirs:
        assert ours["class_names"] == [cell.item() for cell in theirs["class_names"].ravel()]
    if "annotations" in theirs:
        table = theirs["annotations"].ravel()
        assert tuple(ours["annotations"]) == table.dtype.names
        for field, values in ours["annotations"].items():
            assert values == [value.item() for value in table[field]]
            assert {type(value) for value in values} <= {int, str}


def test_numbers_are_pythons_and_boxes_do_not_wrap_around(tmp_path: Path) -> None:
    write_mat(tmp_path / "a.mat", [ROW], UPDATED_FIELDS)
    loaded = scipy.io.loadmat(tmp_path / "a.mat")["annotations"][0, 0]
    assert loaded["bbox_y1"].dtype == np.uint8 and loaded["bbox_x2"].dtype == np.uint16  # as published

    [row] = read_rows(tmp_path / "a.mat", "updated")

    assert row.bounding_box == BoundingBox(199, 249, 300, 260)
    x1, _, x2, _ = row.bounding_box
    assert x1 - x2 == -101 and type(x1 - x2) is int


def read_rows(path: Path, release: str) -> list:
    return parse_rows(path, read_mat_files(path)[0], release)


def test_whole_numbers_may_be_written_in_floating_point(tmp_path: Path) -> None:
    write_mat(tmp_path / "a.mat", [{**ROW, "bbox_x2": 300.0, "class": np.array([[7.0]])}], UPDATED_FIELDS)
    [row] = read_rows(tmp_path / "a.mat", "updated")
    assert (row.bounding_box.x2, row.class_id) == (300, 7)
    assert type(row.bounding_box.x2) is type(row.class_id) is int


def test_a_file_that_crashes_scipy_is_an_error_and_ends_nothing(tmp_path: Path, monkeypatch) -> None:
    write_mat(tmp_path / "a.mat", [ROW], UPDATED_FIELDS)
    crash = tmp_path / "crash.py"
    crash.write_text(f"import os; os.kill(os.getpid(), {int(signal.SIGSEGV)})")
    monkeypatch.setattr(mat_files, "__file__", str(crash))
    mat_files._read.cache_clear()
    with pytest.raises(DataError, match=r"a\.mat is not a MATLAB 5 file, .* \(scipy crashed with signal 11\)"):
        read_mat_files(tmp_path / "a.mat")


def mat_bytes(**variables) -> bytes:
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, variables)
    return buffer.getvalue()


DAMAGED = {
    "empty": (b"", r"a\.mat is empty \(0 bytes\): the download failed"),
    "web page": (b"\n<html><head><TITLE>404 Not\n Found</title>", r'is a web page with the title "404 Not\s+Found"'),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\noid", r"is a Git LFS pointer.*git lfs pull"),
    "matlab 7.3": (
        b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM" + bytes(9),
        "HDF reader for matlab v7.3",
    ),
    "random": (random.Random(0).randbytes(2000), r"is not a MATLAB 5 file, damaged or cut short \("),
    "text": (b"car_ims/000001.jpg,1,2,3,4", r"is not a MATLAB 5 file, damaged or cut short \("),
    "no annotations": (mat_bytes(something=1), "'annotations' is missing"),
    "numbers": (mat_bytes(annotations=np.eye(3)), "'annotations' is not a struct array"),
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


def test_a_file_cut_short_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    write_mat(path, [ROW] * 50, UPDATED_FIELDS, class_names=CLASS_NAMES)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DataError, match=r"damaged or cut short .*download it again"):
        read_rows(path, "updated")


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
        "  row 2: bbox_x1 is [1, 2], expected one whole number",
        "  row 3: bbox_y2 is '12', expected one whole number",
        "  row 4: class is 1.5, expected one whole number",
        "  row 5: test is nan, expected one whole number",
        "  row 6: relative_im_path is 7, expected a file name",
        "  row 7: relative_im_path is [], expected a file name",
        "  row 8: bbox_x1 is [], expected one whole number",
        "  row 8: bbox_x2 is inf, expected one whole number",
    ]


@pytest.mark.parametrize("names", [["A", ""], ["A", 1]])
def test_class_names_must_be_names(tmp_path: Path, names) -> None:
    cells = np.empty((1, len(names)), dtype=object)
    cells[0] = names
    scipy.io.savemat(tmp_path / "cars_meta.mat", {"class_names": cells})
    with pytest.raises(DataError, match=r"cars_meta\.mat: its variable 'class_names' is missing or not a cell array"):
        parse_class_names(tmp_path / "cars_meta.mat", read_mat_files(tmp_path / "cars_meta.mat")[0])
