import shutil
from pathlib import Path

import pytest

from datamodules import read_data
from tests.support.data_sets import (
    ORIGINAL_FIELDS,
    change_rows,
    write_mat,
    write_original_release,
    write_updated_release,
)
from utils.errors import DataError

MIRRORS = ("Kaggle", "pytorch/vision/issues/7545", "Hugging Face", "Internet Archive")
DIFFERENT = "The releases number the images differently (car_ims/000001.jpg is not cars_train/00001.jpg)"


def message_of(folder: Path, archive_folder: Path | None = None) -> str:
    with pytest.raises(DataError) as error:
        read_data(folder, raw_path=archive_folder)
    return str(error.value)


def test_without_data_the_message_tells_what_to_get_where_and_that_the_demo_needs_none(tmp_path: Path) -> None:
    folder = tmp_path / "input"
    message = message_of(folder)
    assert message.startswith(f"{folder}: no data set here.\n")
    for name in ("car_ims.tgz", "cars_annos.mat", "cars_train.tgz", "cars_test.tgz", "car_devkit.tgz"):
        assert name in message
    for words in (*MIRRORS, "cars_test_annos_withlabels.mat", "python train.py --demo", "this folder does not exist"):
        assert words in message
    assert f"Put it into {folder}, or set data_path" in message
    assert not folder.exists()

    folder.mkdir()
    assert f"{folder}: this folder is empty" in message_of(folder)
    for number in range(12):
        (folder / f"{number:02d}.txt").touch()
    (folder / "00 photos").mkdir()
    assert f"{folder}: there is 00 photos/, 00.txt, 01.txt, " in message_of(folder)
    assert "08.txt and 3 more" in message_of(folder)
    assert f"{folder / '00.txt'} is not a data set; expected a folder, a table" in message_of(folder / "00.txt")
    assert f"{tmp_path / 'raw'}: this folder does not exist" in message_of(folder, tmp_path / "raw")


@pytest.mark.parametrize(
    "part", ["cars_train", "cars_train/cars_train", "car_devkit/devkit", "cars_train/../cars_test"]
)
def test_a_folder_inside_the_data_set_is_answered_with_the_right_one(tmp_path: Path, part: str) -> None:
    write_original_release(tmp_path, nested=True)
    assert f"Did you mean {tmp_path}?" in message_of(tmp_path / part)


def test_other_folders_near_the_data_set_are_answered_with_the_right_one(tmp_path: Path) -> None:
    write_updated_release(tmp_path / "cars")
    assert f"Did you mean {tmp_path / 'cars'}?" in message_of(tmp_path / "cars" / "car_ims")
    assert f"Did you mean {tmp_path / 'cars'}?" in message_of(tmp_path)
    (tmp_path / "cars" / "car_ims").rename(tmp_path / "cars" / "photos")
    assert f"Did you mean {tmp_path / 'cars'}?" in message_of(tmp_path / "cars" / "photos")


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("archives", [True, False])
def test_the_updated_annotations_beside_the_original_photos_are_refused(
    tmp_path: Path, nested: bool, archives: bool
) -> None:
    write_original_release(tmp_path, nested=nested, archives=archives)
    write_updated_release(tmp_path / "updated")
    shutil.move(tmp_path / "updated" / "cars_annos.mat", tmp_path)
    shutil.rmtree(tmp_path / "updated")
    for name in ("devkit", "car_devkit"):
        shutil.rmtree(tmp_path / name, ignore_errors=True)
        (tmp_path / f"{name}.tgz").unlink(missing_ok=True)
    (tmp_path / "cars_test_annos_withlabels.mat").unlink()

    message = message_of(tmp_path)

    names = ("cars_train", "cars_test")
    train, test = (f"{n}.tgz" if archives else f"{n}/{n}/" if nested else f"{n}/" for n in names)
    assert message.splitlines()[:3] == [
        f"{tmp_path}: no complete release of Stanford Cars here.",
        "  of the updated release there is cars_annos.mat; missing: car_ims/ (or car_ims.tgz)",
        f"  of the original release there is {train}, {test}; missing: cars_train_annos.mat (in car_devkit.tgz), "
        "cars_meta.mat (in car_devkit.tgz), cars_test_annos_withlabels.mat",
    ]
    assert message.splitlines()[3].startswith(DIFFERENT)
    for mirror in MIRRORS:
        assert mirror in message


@pytest.mark.parametrize("archives", [True, False])
def test_original_photos_in_car_ims_are_refused(tmp_path: Path, archives: bool) -> None:
    write_updated_release(tmp_path, archives=archives)
    shutil.rmtree(tmp_path / "car_ims", ignore_errors=True)
    write_original_release(tmp_path / "original")
    shutil.move(tmp_path / "original" / "cars_train", tmp_path / "car_ims")

    message = message_of(tmp_path)

    assert f"{tmp_path / 'cars_annos.mat'} is of the updated release, with images such as car_ims/0000" in message
    assert f"but {tmp_path / 'car_ims'} holds 9 images of the original release, such as car_ims/0000" in message
    assert DIFFERENT in message
    assert "is missing: cars_train_annos.mat (in car_devkit.tgz) and cars_test_annos_withlabels.mat." in message


def test_updated_photos_in_cars_train_are_refused(tmp_path: Path) -> None:
    write_original_release(tmp_path)
    write_updated_release(tmp_path / "updated")
    shutil.rmtree(tmp_path / "cars_train")
    shutil.move(tmp_path / "updated" / "car_ims", tmp_path / "cars_train")
    message = message_of(tmp_path)
    assert "cars_train_annos.mat is of the original release, with images such as 0000" in message
    assert f"{tmp_path / 'cars_train'} holds 15 images of the updated release, such as 0000" in message
    assert "The .mat for those images is missing: cars_annos.mat." in message


def test_training_photos_in_cars_test_are_refused(tmp_path: Path) -> None:
    write_original_release(tmp_path, train_per_class=8)
    shutil.rmtree(tmp_path / "cars_test")
    shutil.copytree(tmp_path / "cars_train", tmp_path / "cars_test")
    assert "(row 1 of cars_test_annos_withlabels.mat): not in" in message_of(tmp_path)


def test_numbers_alone_do_not_match(tmp_path: Path) -> None:
    photos = write_updated_release(tmp_path)
    change_rows(
        tmp_path, photos, {index: {"relative_im_path": Path(photo.name).name} for index, photo in enumerate(photos)}
    )
    assert message_of(tmp_path).startswith(f"15 problems in the data set in {tmp_path}:\n  0000")
    for name in ("car_ims/../cars_annos.mat", "/etc/passwd"):
        change_rows(tmp_path, photos, {0: {"relative_im_path": name}})
        assert message_of(tmp_path).splitlines()[1] == (
            f"  {name} (row 1 of cars_annos.mat): not in {tmp_path / 'car_ims'}"
        )


@pytest.mark.parametrize(
    ("removed", "missing"),
    [
        ("cars_train", "cars_train/ (or cars_train.tgz)"),
        ("cars_test", "cars_test/ (or cars_test.tgz)"),
        ("devkit/cars_train_annos.mat", "cars_train_annos.mat (in car_devkit.tgz)"),
        ("devkit/cars_meta.mat", "cars_meta.mat (in car_devkit.tgz)"),
        ("cars_test_annos_withlabels.mat", "cars_test_annos_withlabels.mat"),
    ],
)
def test_each_missing_part_of_the_original_release_is_named(tmp_path: Path, removed: str, missing: str) -> None:
    write_original_release(tmp_path)
    (tmp_path / removed).rename(tmp_path.parent / f"{tmp_path.name}-removed")
    line = message_of(tmp_path).splitlines()[1]
    assert line.startswith("  of the original release there is ")
    assert line.endswith(f"; missing: {missing}")
    assert "devkit/cars_test_annos.mat (has no labels)" in line


def test_a_devkit_archive_without_the_labels_is_not_enough(tmp_path: Path) -> None:
    write_original_release(tmp_path, archives=True)
    (tmp_path / "cars_test_annos_withlabels.mat").unlink()
    assert message_of(tmp_path).splitlines()[1].endswith("; missing: cars_test_annos_withlabels.mat")
    assert not (tmp_path / "cars_train").exists()


def test_missing_class_names_are_said(tmp_path: Path) -> None:
    write_updated_release(tmp_path, names_in_devkit=True)
    shutil.rmtree(tmp_path / "devkit")
    expected = f"{tmp_path}: the class names are missing; add car_devkit.tgz or its cars_meta.mat."
    assert message_of(tmp_path).startswith(expected)


def test_missing_photos_are_counted_and_ten_of_them_listed(tmp_path: Path) -> None:
    photos = write_updated_release(tmp_path, archives=True)
    read_data(tmp_path)
    for photo in photos[:12]:
        (tmp_path / photo.name).unlink()
    (tmp_path / photos[12].name).unlink()
    (tmp_path / photos[12].name).mkdir()

    heading, *lines = message_of(tmp_path).splitlines()

    assert heading == f"13 problems in the data set in {tmp_path}:"
    assert lines == [
        *(
            f"  {photo.name} (row {row} of cars_annos.mat): not in {tmp_path / 'car_ims'}"
            + f" (delete that folder, and it is extracted anew from {tmp_path / 'car_ims.tgz'})" * (row == 1)
            for row, photo in enumerate(photos[:10], start=1)
        ),
        "  … and 3 more",
    ]


def test_wrong_labels_splits_boxes_and_repeated_photos_are_listed(tmp_path: Path) -> None:
    photos = write_updated_release(tmp_path)
    changes = {
        0: {"class": 0},
        1: {"class": 4},
        2: {"test": 2},
        3: {"bbox_x1": 30, "bbox_x2": 29, "bbox_y1": 5, "bbox_y2": 5},
        4: {"bbox_x1": 7, "bbox_x2": 9, "bbox_y1": 30, "bbox_y2": 20},
        6: {"relative_im_path": photos[5].name},
    }
    change_rows(tmp_path, photos, changes)
    names = [photo.name for photo in photos]
    assert message_of(tmp_path).splitlines() == [
        f"6 problems in the data set in {tmp_path}:",
        f"  {names[0]} (row 1 of cars_annos.mat): class 0, expected 1 … 3",
        f"  {names[1]} (row 2 of cars_annos.mat): class 4, expected 1 … 3",
        f"  {names[2]} (row 3 of cars_annos.mat): test 2, expected 0 (training) or 1 (validation)",
        f"  {names[3]} (row 4 of cars_annos.mat): its box is empty (x 30 … 29, y 5 … 5)",
        f"  {names[4]} (row 5 of cars_annos.mat): its box is empty (x 7 … 9, y 30 … 20)",
        f"  {names[5]} (row 7 of cars_annos.mat): row 6 has the same image",
    ]


def test_problems_of_both_tables_of_the_original_release_come_together(tmp_path: Path) -> None:
    photos = write_original_release(tmp_path)
    for split, path in (("train", "devkit/cars_train_annos.mat"), ("valid", "cars_test_annos_withlabels.mat")):
        rows = [photo.row for photo in photos if photo.split == split]
        write_mat(tmp_path / path, [{**rows[0], "class": 9}, *rows[1:]], ORIGINAL_FIELDS)
    heading, first, second = message_of(tmp_path).splitlines()
    assert heading == f"2 problems in the data set in {tmp_path}:"
    assert first.endswith("(row 1 of cars_train_annos.mat): class 9, expected 1 … 3")
    assert second.endswith("(row 1 of cars_test_annos_withlabels.mat): class 9, expected 1 … 3")


def test_wrong_annotations_are_found_before_an_archive_is_extracted(tmp_path: Path) -> None:
    write_updated_release(tmp_path, archives=True)
    (tmp_path / "cars_annos.mat").write_bytes(b"<html>")
    assert "is a web page, not annotations" in message_of(tmp_path)
    assert not (tmp_path / "car_ims").exists()
