import logging
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from datamodules import BoundingBox, ImageRecord, clip_boxes, read_data
from datamodules.readers.mat_files import read_mat_files
from datamodules.readers.stanford_cars import Row, parse_class_names, parse_rows
from tests.support.data_sets import (
    CLASS_NAMES,
    PUBLISHED,
    SHARED,
    UPDATED_FIELDS,
    change_rows,
    needs_published,
    pack,
    write_mat,
    write_original_release,
    write_updated_release,
)
from utils.errors import DataError

CROPS = SHARED / "stanford_cars_crops"
needs_crops = pytest.mark.skipif(not CROPS.is_dir(), reason=f"the crops of Stanford Cars are not in {CROPS}")

LAYOUTS = {
    "updated": (write_updated_release, {}),
    "updated, archives": (write_updated_release, {"archives": True}),
    "updated, names in devkit": (write_updated_release, {"names_in_devkit": True}),
    "updated, names in devkit, archives": (write_updated_release, {"names_in_devkit": True, "archives": True}),
    "original": (write_original_release, {}),
    "original, archives": (write_original_release, {"archives": True}),
    "original, labels in devkit": (
        write_original_release,
        {"labels": "devkit/cars_test_annos_withlabels.mat"},
    ),
    "original, labels in devkit, archives": (
        write_original_release,
        {"labels": "devkit/cars_test_annos_withlabels.mat", "archives": True},
    ),
    "mirror": (write_original_release, {"nested": True}),
    "mirror, archives": (write_original_release, {"nested": True, "archives": True}),
    "mirror, its name of the labels": (
        write_original_release,
        {"nested": True, "labels": "cars_test_annos_withlabels (1).mat"},
    ),
}


def expected(folder: Path, photos: list, split: str) -> tuple[ImageRecord, ...]:
    return tuple(ImageRecord(folder / p.name, p.label, BoundingBox(*p.box)) for p in photos if p.split == split)


@pytest.mark.parametrize(
    ("layout", "below"),
    [*((layout, "") for layout in LAYOUTS), *((layout, "stanford_cars") for layout in LAYOUTS if "archives" in layout)],
)
def test_every_layout_gives_each_photo_its_own_box_and_label(tmp_path: Path, layout: str, below: str) -> None:
    write, options = LAYOUTS[layout]
    photos = write(tmp_path / below, **options)

    for _ in range(2):  # the second time, what was extracted is found
        annotations = read_data(tmp_path)
        assert annotations.train == expected(tmp_path / below, photos, "train")
        assert annotations.valid == expected(tmp_path / below, photos, "valid")
        assert annotations.class_names == CLASS_NAMES
        assert annotations.description.startswith(layout.split(",")[0].replace("mirror", "original"))
    assert (len(annotations.train), len(annotations.valid)) == (9, 6)
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.parametrize("write", [write_updated_release, write_original_release])
def test_archives_and_annotations_may_lie_elsewhere(tmp_path: Path, write) -> None:
    photos = write(tmp_path / "raw", archives=True)
    raw_files = sorted(path.name for path in (tmp_path / "raw").iterdir())

    annotations = read_data(tmp_path / "data", raw_path=tmp_path / "raw")

    assert annotations.train == expected(tmp_path / "data", photos, "train")
    assert sorted(path.name for path in (tmp_path / "raw").iterdir()) == raw_files


@pytest.mark.parametrize("write", [write_updated_release, write_original_release])
def test_nothing_is_written_where_all_is_extracted(tmp_path: Path, write) -> None:
    write(tmp_path, archives=True)
    read_data(tmp_path)
    folders = [tmp_path, *(path for path in tmp_path.rglob("*") if path.is_dir())]
    for folder in folders:
        os.utime(folder, (1, 1))
        folder.chmod(0o555)
    try:
        read_data(tmp_path)
        assert {folder.stat().st_mtime for folder in folders} == {1}
    finally:
        for folder in folders:
            folder.chmod(0o755)


def test_of_both_releases_the_updated_one_is_used_and_said_so_once(tmp_path: Path, caplog) -> None:
    photos = write_updated_release(tmp_path)
    write_original_release(tmp_path, seed=1)

    with caplog.at_level(logging.INFO):
        annotations = read_data(tmp_path)

    assert annotations.train == expected(tmp_path, photos, "train")
    assert [record.message for record in caplog.records] == [
        f"Both releases of Stanford Cars are in {tmp_path}; the updated one (car_ims/) is used",
        f"{tmp_path}: updated release of Stanford Cars, 3 classes, images: 9 train, 6 valid",
    ]


def test_boxes_that_touch_the_edges_are_converted_to_the_pixel(tmp_path: Path) -> None:
    boxes = {"000001": (1, 1, 300, 20), "000002": (300, 20, 300, 20), "000003": (2, 3, 299, 19), "000004": (1, 1, 1, 1)}
    rows = []
    for name, (x1, y1, x2, y2) in boxes.items():
        image = Image.new("RGB", (300, 20), "blue")
        for x in range(x1, x2 + 1):  # as the data set counts: from 1, with x2 and y2
            for y in range(y1, y2 + 1):
                image.putpixel((x - 1, y - 1), (255, 0, 0))
        (tmp_path / "car_ims").mkdir(exist_ok=True)
        image.save(tmp_path / f"car_ims/{name}.jpg", format="PNG")  # without loss
        box = {"bbox_x1": x1, "bbox_y1": y1, "bbox_x2": x2, "bbox_y2": y2}
        rows.append({"relative_im_path": f"car_ims/{name}.jpg", **box, "class": 1, "test": 0})
    write_mat(tmp_path / "cars_annos.mat", rows, UPDATED_FIELDS, class_names=CLASS_NAMES)

    annotations = clip_boxes(read_data(tmp_path))

    assert [tuple(annotation.bounding_box) for annotation in annotations.train] == [
        (0, 0, 300, 20),
        (299, 19, 300, 20),
        (1, 2, 299, 19),
        (0, 0, 1, 1),
    ]
    for annotation in annotations.train:
        with Image.open(annotation.path) as image:
            red = image.crop(annotation.bounding_box).getcolors()
            assert red == [(red[0][0], (255, 0, 0))]
            assert {colour: count for count, colour in image.getcolors()}[255, 0, 0] == red[0][0]


def test_boxes_are_clipped_to_their_photos_and_counted(tmp_path: Path, caplog) -> None:
    photos = write_updated_release(tmp_path, valid_per_class=1, image_sizes=[(64, 48)])
    changes = {0: {"bbox_x2": 65}, 1: {"bbox_x1": 0, "bbox_y2": 300}, 2: {"bbox_x2": 64, "bbox_y2": 48}}
    change_rows(tmp_path, photos, changes)
    read = read_data(tmp_path)

    with caplog.at_level(logging.INFO):
        annotations = clip_boxes(read)

    assert "2 of 12 boxes extended beyond their images and were clipped" in caplog.text
    first, second, third = (photo.box for photo in photos[:3])
    assert tuple(annotations.train[0].bounding_box) == (first[0], first[1], 64, first[3])
    assert tuple(annotations.train[1].bounding_box) == (0, second[1], second[2], 48)
    assert tuple(annotations.train[2].bounding_box) == (third[0], third[1], 64, 48)
    assert annotations.train[3:] == read.train[3:]
    assert annotations.valid == read.valid
    assert clip_boxes(annotations) == annotations


def test_a_box_outside_its_photo_and_unreadable_photos_are_listed(tmp_path: Path) -> None:
    photos = write_updated_release(tmp_path, image_sizes=[(64, 48)])
    change_rows(tmp_path, photos, {0: {"bbox_x1": 65, "bbox_x2": 70}})
    path = tmp_path / photos[3].name
    path.write_bytes(path.read_bytes()[:30])
    (tmp_path / photos[4].name).write_text("<html>404</html>")

    with pytest.raises(DataError) as error:
        clip_boxes(read_data(tmp_path))

    heading, *lines = str(error.value).splitlines()
    assert heading == "3 problems in the images:"
    assert lines[0].startswith(f"  {tmp_path / photos[0].name}: its box (64, ")
    assert lines[0].endswith("lies outside its 64×48 pixels")
    assert lines[1].startswith(f"  {path}: this image cannot be decoded (")
    assert lines[2].startswith(f"  {tmp_path / photos[4].name}: this image cannot be decoded: its first bytes")
    assert len(lines) == 3


@needs_published
def test_the_published_annotations_of_the_updated_release() -> None:
    path = PUBLISHED / "cars_annos.mat"
    [variables] = read_mat_files(path)
    rows, names = parse_rows(path, variables, "updated"), parse_class_names(path, variables)

    assert Counter(row.test for row in rows) == {0: 8144, 1: 8041}
    assert [row.name for row in rows] == [f"car_ims/{number:06d}.jpg" for number in range(1, 16186)]
    assert rows[0] == Row(1, "car_ims/000001.jpg", BoundingBox(111, 6, 853, 717), 1, 0)
    assert rows[2567] == Row(2568, "car_ims/002568.jpg", BoundingBox(55, 88, 717, 519), 32, 0)
    assert rows[16184] == Row(16185, "car_ims/016185.jpg", BoundingBox(0, 0, 200, 131), 196, 1)
    assert len(names) == len(set(names)) == 196
    assert [(index, name) for index, name in enumerate(names, start=1) if "/" in name] == [
        (174, "Ram C/V Cargo Van Minivan 2012")
    ]
    assert {row.class_id for row in rows} == set(range(1, 197))
    assert all(type(value) is int for row in rows for value in (*row.bounding_box, row.class_id, row.test))
    assert all(0 <= x1 < x2 and 0 <= y1 < y2 for _, _, (x1, y1, x2, y2), _, _ in rows)


@needs_published
def test_the_published_annotations_of_the_original_release() -> None:
    files = ("devkit/cars_train_annos.mat", "cars_test_annos_withlabels.mat", "devkit/cars_meta.mat", "cars_annos.mat")
    paths = [PUBLISHED / name for name in files]
    contents = read_mat_files(*paths)
    train, valid = (parse_rows(paths[index], contents[index], "original") for index in range(2))
    names = parse_class_names(paths[2], contents[2])

    assert (len(train), len(valid), "class_names" in contents[0]) == (8144, 8041, False)
    assert [row.name for row in train] == [f"{number:05d}.jpg" for number in range(1, 8145)]
    assert train[0] == Row(1, "00001.jpg", BoundingBox(38, 115, 569, 375), 14, None)
    assert valid[0] == Row(1, "00001.jpg", BoundingBox(29, 51, 246, 147), 181, None)
    updated = parse_rows(paths[3], contents[3], "updated")
    assert names == parse_class_names(paths[3], contents[3])
    for split, rows in enumerate((train, valid)):  # the same photos under other numbers
        same = Counter((row.bounding_box, row.class_id) for row in updated if row.test == split)
        assert Counter((row.bounding_box, row.class_id) for row in rows) == same


@pytest.mark.slow
@needs_crops
def test_the_crops_of_stanford_cars(tmp_path: Path) -> None:
    shutil.copy(CROPS / "cars_annos.mat", tmp_path)

    annotations = read_data(tmp_path, raw_path=CROPS)

    assert clip_boxes(annotations) == annotations
    assert (len(annotations.train), len(annotations.valid)) == (5792, 1372)
    assert Counter(Counter(annotation.label for annotation in annotations.valid).values()) == {7: 196}
    assert len(annotations.class_names) == 196
    for annotation in annotations.train[::500]:
        with Image.open(annotation.path) as image:
            assert tuple(annotation.bounding_box) == (0, 0, *image.size)


@pytest.mark.parametrize("write", [write_updated_release, write_original_release])
def test_zip_archives_are_read_as_the_others(tmp_path: Path, write) -> None:
    photos = write(tmp_path)
    for name in ("car_ims", "cars_train", "cars_test"):
        if (tmp_path / name).is_dir():
            pack(tmp_path / name, tmp_path / f"{name}.zip")
    if (tmp_path / "devkit").is_dir():
        pack(tmp_path / "devkit", tmp_path / "car_devkit.zip")
    data = read_data(tmp_path)
    assert data.train == expected(tmp_path, photos, "train") and data.valid == expected(tmp_path, photos, "valid")


def test_the_archives_of_a_read_only_folder_are_found_again_where_they_were_extracted(
    tmp_path: Path, monkeypatch
) -> None:
    photos = write_original_release(tmp_path / "input", archives=True)
    files = sorted(path.name for path in (tmp_path / "input").iterdir())
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    for _ in range(2):
        data = read_data(tmp_path / "input", extract_path=tmp_path / "extracted")
        (folder,) = (tmp_path / "extracted").iterdir()
        assert data.train == expected(folder, photos, "train") and data.valid == expected(folder, photos, "valid")
    assert sorted(path.name for path in (tmp_path / "input").iterdir()) == files
