"""The drawn cars of the demo: their format, their boxes, and that a set is written whole or not at all."""

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from datamodules import demo
from datamodules.demo import CarModel, car_models, write_demo_data
from tests.support.data_sets import PUBLISHED, needs_published
from utils.errors import DataError
from utils.machine import PROJECT

TRAINING, VALIDATION = 2, 1


def write_small(folder: Path, *, seed: int = 0) -> None:
    write_demo_data(folder, seed=seed, training_photos=TRAINING, validation_photos=VALIDATION)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parent") / "demo"
    write_small(folder)
    return folder


@pytest.fixture(scope="module")
def rows(small: Path) -> list[dict]:
    annotations = scipy.io.loadmat(small / "cars_annos.mat")["annotations"][0]
    return [{field: row[field].item() for field in annotations.dtype.names} for row in annotations]


def test_same_seed_gives_the_same_bytes_whenever_it_is_written(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "asctime", lambda *_: "Thu Jan  1 00:00:00 1970")  # what SciPy puts into its header
    empty = tmp_path / "empty"
    empty.mkdir()
    write_small(empty)
    assert contents(empty) == contents(small)


def test_another_seed_gives_other_photos(small: Path, tmp_path: Path) -> None:
    write_small(tmp_path / "other", seed=1)
    other, first = contents(tmp_path / "other"), contents(small)
    assert other.keys() == first.keys()
    assert not [path for path in first if path.endswith(".jpg") and other[path] == first[path]]


def structure(path: Path) -> dict[str, object]:
    """Returns everything about the file that does not depend on how many cars of how many models it describes."""
    file = scipy.io.loadmat(path)
    annotations, class_names = file["annotations"], file["class_names"]
    numbers = [value for name in annotations.dtype.names[1:] for value in annotations[0][name]]
    return {
        "version": file["__version__"],
        "variables": [(name, kind) for name, _, kind in scipy.io.whosmat(path)],
        "rows": (annotations.ndim, annotations.shape[0]),
        "fields": annotations.dtype,
        "paths": {(value.shape, value.dtype) for value in annotations[0]["relative_im_path"]},
        "numbers": {(value.shape, value.dtype) for value in numbers},
        "smallest type": all(value.dtype == np.min_scalar_type(value.item()) for value in numbers),
        "first path": annotations[0][0]["relative_im_path"].item(),
        "first label": annotations[0][0]["class"].item(),
        "last label is the number of classes": annotations[0][-1]["class"].item() == class_names.size,
        "class names": (class_names.ndim, class_names.shape[0], class_names.dtype),
        "names": {(name.shape, name.dtype.kind) for name in class_names[0]},
    }


@needs_published
def test_annotations_have_the_structure_of_the_updated_release(small: Path) -> None:
    assert structure(small / "cars_annos.mat") == structure(PUBLISHED / "cars_annos.mat")


def test_photos_lie_in_blocks_by_class_training_before_validation(small: Path, rows: list[dict]) -> None:
    block = [0] * TRAINING + [1] * VALIDATION
    expected = [(label, test) for label in range(1, len(car_models()) + 1) for test in block]
    assert [(row["class"], row["test"]) for row in rows] == expected
    paths = [f"car_ims/{number:06d}.jpg" for number in range(1, len(expected) + 1)]
    assert [row["relative_im_path"] for row in rows] == paths
    assert sorted(contents(small)) == sorted([demo.MARKER, "cars_annos.mat", *paths])


def test_models_are_many_with_names_of_their_own(small: Path) -> None:
    names = [name.item() for name in scipy.io.loadmat(small / "cars_annos.mat")["class_names"][0]]
    assert names == [model.name for model in car_models()]
    assert len(set(names)) == len(names) >= 12
    assert not [name for name in names if "/" in name or not name.rsplit(" ", 1)[1].isdigit()]


def test_photos_are_jpegs_of_varied_sizes(small: Path) -> None:
    sizes = Counter()
    for path in (small / "car_ims").iterdir():
        with Image.open(path) as photo:
            assert (photo.format, photo.mode) == ("JPEG", "RGB")
            sizes[photo.size] += 1
    assert all(160 <= width <= 480 for width, _ in sizes)
    assert len(sizes) > 0.9 * sizes.total()


def without_car(model: CarModel, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Returns the very same photo, but for the car."""
    draw_car = demo.draw_car
    with monkeypatch.context() as patch:
        patch.setattr(demo, "draw_car", lambda *arguments: Image.new("RGBA", draw_car(*arguments).size))
        photo, _ = demo.draw_photo(model, rng)
    return np.asarray(photo)


def test_boxes_are_tight_and_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    for label, model in enumerate(car_models()):
        for number in range(2):
            photo, box = demo.draw_photo(model, np.random.default_rng((label, number)))
            empty = without_car(model, np.random.default_rng((label, number)), monkeypatch)
            y, x = np.nonzero((np.asarray(photo) != empty).any(-1))
            assert box == (x.min() + 1, y.min() + 1, x.max() + 1, y.max() + 1), model.name  # 1-based, inclusive
            assert 1 <= box[0] < box[2] <= photo.width
            assert 1 <= box[1] < box[3] <= photo.height


def test_annotations_hold_the_boxes_of_their_own_photos(small: Path, rows: list[dict]) -> None:
    for index, row in enumerate(rows):
        label, number = divmod(index, TRAINING + VALIDATION)
        photo, box = demo.draw_photo(car_models()[label], np.random.default_rng((0, label, number)))
        assert tuple(row[field] for field in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")) == box
        with Image.open(small / row["relative_im_path"]) as written:
            assert written.size == photo.size


def test_cars_face_both_ways() -> None:
    model = next(model for model in car_models() if "Box Truck" in model.name)
    higher_left = []
    for number in range(12):
        covered = np.asarray(demo.draw_car(model, 30, np.random.default_rng(number)).getchannel("A")) > 0
        tops = covered.argmax(0)
        higher_left.append(bool(tops[: len(tops) // 2].mean() < tops[len(tops) // 2 :].mean()))  # the box, not the cab
    assert set(higher_left) == {True, False}


def test_finished_set_is_left_as_it_is(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.stat().st_mtime_ns for path in small.rglob("*")}
    monkeypatch.setattr(demo, "draw_photo", lambda *_: pytest.fail("a photo was drawn again"))
    write_small(small)
    assert {path: path.stat().st_mtime_ns for path in small.rglob("*")} == before


def test_foreign_folder_is_refused(tmp_path: Path) -> None:
    photo = tmp_path / "mine" / "car_ims" / "000001.jpg"
    photo.parent.mkdir(parents=True)
    photo.write_bytes(b"a photo of mine")
    with pytest.raises(DataError, match=r"mine holds other files than drawn cars .*choose another folder"):
        write_small(tmp_path / "mine")
    assert contents(tmp_path) == {"mine/car_ims/000001.jpg": b"a photo of mine"}


def test_file_in_the_folders_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "demo").write_text("mine")
    with pytest.raises(DataError, match="holds other files than drawn cars"):
        write_small(tmp_path / "demo")
    assert (tmp_path / "demo").read_text() == "mine"


def test_set_of_another_seed_is_refused(small: Path) -> None:
    before = contents(small)
    with pytest.raises(DataError, match=r"(?s)other drawn cars.*expected: .*seed 7\.\n.*found: .*seed 0\.$"):
        write_small(small, seed=7)
    assert contents(small) == before


def test_set_with_a_photo_gone_is_refused_by_name(small: Path) -> None:
    gone = small / "car_ims" / "000005.jpg"
    photo = gone.read_bytes()
    gone.unlink()
    try:
        with pytest.raises(DataError, match=r"lacks 1 files, such as car_ims/000005\.jpg"):
            write_small(small)
    finally:
        gone.write_bytes(photo)


def test_failed_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(photo: Image.Image, path: Path, **_: int) -> None:
        if path.name == "000003.jpg":
            raise OSError("No space left on device")
        path.write_bytes(photo.tobytes())

    monkeypatch.setattr(Image.Image, "save", save)
    with pytest.raises(DataError, match=r"demo cannot be written: No space left on device; make room, or set another"):
        write_small(tmp_path / "demo")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file/demo cannot be written: "):
        write_small(tmp_path / "file" / "demo")


def test_killed_writing_leaves_no_folder_under_the_final_name(small: Path, tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    code = (
        "import pathlib, sys; from datamodules.demo import write_demo_data; write_demo_data(pathlib.Path(sys.argv[1]))"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(folder)], cwd=PROJECT, stderr=subprocess.DEVNULL) as writing:
        while writing.poll() is None and not list(tmp_path.rglob("*.jpg")):
            time.sleep(0.01)
        writing.kill()
    assert writing.returncode != 0
    assert list(tmp_path.rglob("*.jpg"))
    assert not folder.exists()
    write_small(folder)
    assert contents(folder) == contents(small)
