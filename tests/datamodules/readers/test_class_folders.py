"""Folders of images named by class, as people have them."""

import logging
import shutil
import subprocess
import sys
import tempfile
import unicodedata
from pathlib import Path

import pytest

from datamodules import clip_boxes, read_data, read_splits, require_trainable
from tests.support.data_sets import pack, write_images, write_updated_release
from utils.config import load_config
from utils.errors import ConfigError, DataError
from utils.machine import PROJECT


def contents(folder: Path, data) -> dict[str, list[tuple[str, str]]]:
    """Returns the path below the data set and the class name of each image of each split that has some."""
    return {
        split: [(record.path.relative_to(folder).as_posix(), data.class_names[record.label]) for record in records]
        for split in ("train", "valid", "test")
        if (records := getattr(data, split))
    }


def warnings_of(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("above", ["", "car_data/car_data", "one/two/three"])
def test_class_folders_without_splits(tmp_path: Path, above: str) -> None:
    root = tmp_path / above
    write_images(root, "b car/2.jpg", "b car/10.JPG", "Ä/1.PNG", "a/deep/er/1.jpeg", "a/1.jpg")
    data = read_data(tmp_path)
    expected = ["a/1.jpg", "a/deep/er/1.jpeg", "b car/10.JPG", "b car/2.jpg", "Ä/1.PNG"]
    assert contents(root, data) == {"train": [(name, name.partition("/")[0]) for name in expected]}
    assert (data.class_names, data.kind, data.valid_from) == (("a", "b car", "Ä"), "class_folders", "valid")
    assert clip_boxes(data) == data


@pytest.mark.parametrize("valid", ["val", "valid", "Validation"])
def test_splits_keep_their_names_and_labels_go_by_class_name(tmp_path: Path, valid: str) -> None:
    write_images(tmp_path, "Train/b/1.jpg", "Train/a/1.jpg", "Train/c/1.jpg", f"{valid}/c/2.jpg", "test/test/b/3.jpg")
    data = read_data(tmp_path)
    assert contents(tmp_path, data) == {
        "train": [("Train/a/1.jpg", "a"), ("Train/b/1.jpg", "b"), ("Train/c/1.jpg", "c")],
        "valid": [(f"{valid}/c/2.jpg", "c")],
        "test": [("test/test/b/3.jpg", "b")],
    }
    assert [record.label for record in data.train + data.valid + data.test] == [0, 1, 2, 2, 1]


def test_a_test_split_without_a_validation_split_is_used_for_validation(tmp_path: Path, caplog) -> None:
    write_images(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "test/b/2.jpg")
    with caplog.at_level(logging.INFO):
        data = read_data(tmp_path)
    assert contents(tmp_path, data)["valid"] == [("test/b/2.jpg", "b")]
    assert (data.test, data.valid_from) == ((), "test")
    assert f"{tmp_path}: class folders, 2 classes, images: 2 train, 1 valid" in caplog.messages
    assert f"{tmp_path} has no validation split: its test split is used for validation" in caplog.messages


def test_what_systems_add_is_no_obstacle(tmp_path: Path, caplog) -> None:
    write_images(
        tmp_path, "a/1.jpg", "b/1.jpg", "a/._1.jpg", "__MACOSX/a/1.jpg", ".hidden/1.jpg", "a/.ipynb_checkpoints/1.jpg"
    )
    for name in ("a/Thumbs.db", "b/.DS_Store", "notes.txt", "b/desktop.ini"):
        (tmp_path / name).touch()
    data = read_data(tmp_path)
    assert contents(tmp_path, data) == {"train": [("a/1.jpg", "a"), ("b/1.jpg", "b")]}
    assert not warnings_of(caplog)


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    write_images(tmp_path / "elsewhere", "c/1.jpg", "2.jpg")
    write_images(tmp_path / "data", "a/1.jpg")
    (tmp_path / "data/c").symlink_to(tmp_path / "elsewhere/c")
    (tmp_path / "data/a/2.jpg").symlink_to(tmp_path / "elsewhere/2.jpg")
    (tmp_path / "data/a/up").symlink_to(tmp_path / "data")
    data = read_data(tmp_path / "data")
    assert contents(tmp_path / "data", data) == {"train": [("a/1.jpg", "a"), ("a/2.jpg", "a"), ("c/1.jpg", "c")]}


def test_names_composed_in_two_ways_are_one_class(tmp_path: Path) -> None:
    names = [unicodedata.normalize(form, "Citroën") for form in ("NFC", "NFD")]
    write_images(tmp_path, f"train/{names[0]}/1.jpg", "train/a/1.jpg", f"valid/{names[1]}/2.jpg")
    data = read_data(tmp_path)
    assert data.class_names == (names[0], "a") and data.valid[0].label == 0


def test_folders_without_images_and_images_without_a_class_are_named(tmp_path: Path, caplog) -> None:
    write_images(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "train/stray.jpg", "extra/c/1.jpg")
    (tmp_path / "train/empty").mkdir()
    data = read_data(tmp_path)
    assert data.class_names == ("a", "b")
    assert warnings_of(caplog) == [
        f"{tmp_path}: images outside the class folders are left out: 2, such as {tmp_path / 'extra/c/1.jpg'}",
        f"folders without images: 1 ({tmp_path / 'train/empty'})",
    ]


def test_a_class_folder_named_as_a_split_is_an_error_that_names_it(tmp_path: Path) -> None:
    write_images(tmp_path, "test/1.jpg", "a/1.jpg", "b/1.jpg")
    with pytest.raises(DataError) as error:
        read_data(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}: images outside the class folders are left out: 3, such as {tmp_path / 'a/1.jpg'}; read as splits: test/ "
        "(rename a class of such a name)"
    )


def test_a_folder_with_nearly_the_name_of_a_split_is_named(tmp_path: Path, caplog) -> None:
    write_images(tmp_path, "Training Set/a/1.jpg", "Training Set/b/1.jpg", "Testing/a/1.jpg", "Testing/b/1.jpg")
    data = read_data(tmp_path)
    assert warnings_of(caplog)[0].endswith("Training Set/a/1.jpg; rename Training Set/ to train/")
    with pytest.raises(DataError, match="has 0 training and 2 validation images"):
        require_trainable(data, tmp_path)


def test_parameters_of_tables_have_no_effect_on_class_folders(tmp_path: Path, caplog) -> None:
    write_images(tmp_path, "a/1.jpg", "b/1.jpg")
    with caplog.at_level(logging.INFO):
        read_data(tmp_path, table_params={"path": None})
        assert "no effect" not in caplog.text
        read_data(tmp_path, table_params={"path": "picture", "label": None})
    assert f"{tmp_path}: table_params has no effect on class folders" in caplog.messages


@pytest.mark.parametrize("other", ["Audi a4", "Audi  A4"])
def test_classes_that_differ_by_case_or_white_space_are_an_error(tmp_path: Path, other: str) -> None:
    write_images(tmp_path, "Audi A4/1.jpg", f"{other}/1.jpg")
    with pytest.raises(DataError, match=r"the classes 'Audi.+A4' and 'Audi.+4' differ by case or white space only"):
        read_data(tmp_path)


def test_a_class_that_training_lacks_is_a_warning_and_shifts_no_label(tmp_path: Path, caplog) -> None:
    write_images(
        tmp_path, "train/Audi A4/1.jpg", "train/Volvo 850/1.jpg", "test/Audi A44/1.jpg", "test/Volvo 850/1.jpg"
    )
    data = read_data(tmp_path)
    assert data.class_names == ("Audi A4", "Audi A44", "Volvo 850")
    assert [record.label for record in data.train] == [0, 2] and [record.label for record in data.valid] == [1, 2]
    assert "the test split has 1 class without training images" in caplog.text
    assert "'Audi A44'. Did you mean 'Audi A4'?" in caplog.text


def test_too_little_to_train_on_is_an_error(tmp_path: Path) -> None:
    write_images(tmp_path, "a/1.jpg", "a/2.jpg")
    data = read_data(tmp_path)
    with pytest.raises(DataError, match=r"has only the class 'a'; expected at least 2 classes"):
        require_trainable(data, tmp_path)
    write_images(tmp_path, "b/1.jpg")
    with pytest.raises(DataError, match=r"has 3 training and 0 validation images; expected at least 2 and 1"):
        require_trainable(read_data(tmp_path), tmp_path)


def test_a_path_that_does_not_exist_is_answered_with_the_nearest_one(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "photos").mkdir()
    config = load_config()
    for name, hint in (("fotos", f"did you mean {tmp_path / 'photos'}?"), ("x/y", f"the nearest folder is {tmp_path}")):
        with pytest.raises(DataError) as error:
            read_splits(config.model_copy(update={"data_path": tmp_path / name}))
        assert str(error.value) == f"data_path (-d): {tmp_path / name} does not exist; {hint}"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="no data set here"):  # the default folder: what to download
        read_splits(config.model_copy(update={"data_path": Path("input/stanford")}))


def test_images_side_by_side_are_an_error(tmp_path: Path) -> None:
    write_images(tmp_path, "1.jpg", "2.jpg")
    with pytest.raises(DataError, match="its images are not in class folders, and no table has their classes"):
        read_data(tmp_path)


def test_another_kind_than_the_named_one_is_an_error(tmp_path: Path) -> None:
    write_images(tmp_path, "a/1.jpg", "b/1.jpg")
    assert read_data(tmp_path, kind="class_folders").class_names == ("a", "b")
    for kind in ("stanford_cars", "parquet", "table"):
        with pytest.raises(
            ConfigError, match=rf"^dataset: {kind}, but .* holds class_folders \(class folders\); set auto or"
        ):
            read_data(tmp_path, kind=kind)


@pytest.mark.parametrize("suffix", [".tgz", ".ZIP"])
def test_a_folder_with_nothing_but_an_archive_is_read(tmp_path: Path, suffix: str) -> None:
    write_images(tmp_path / "data" / "my cars", "a/1.jpg", "b/1.jpg")
    archive = tmp_path / "data" / f"my cars{suffix}"
    pack(tmp_path / "data" / "my cars", archive)
    first = read_data(tmp_path / "data")
    assert [record.path for record in first.train] == [tmp_path / f"data/my cars/my cars/{name}/1.jpg" for name in "ab"]
    assert read_data(tmp_path / "data") == read_data(archive) == first


def test_an_archive_of_a_release_is_read_again_after_it_was_extracted(tmp_path: Path) -> None:
    write_updated_release(tmp_path / "data" / "archive")
    shutil.make_archive(str(tmp_path / "data" / "archive"), "zip", tmp_path / "data" / "archive")
    shutil.rmtree(tmp_path / "data" / "archive")
    first = read_data(tmp_path / "data")
    assert first.kind == "stanford_cars"
    assert read_data(tmp_path / "data") == read_data(tmp_path / "data" / "archive.zip") == first


READ_AS_ANOTHER_USER = """
import logging, os, sys
from pathlib import Path
logging.basicConfig(level=logging.INFO, format="%(message)s")
from datamodules import read_data
if os.geteuid() == 0:
    os.setuid(65534)
for _ in range(2):
    print(read_data(Path(sys.argv[1]), extract_path=Path(sys.argv[2])).train[0].path)
"""


def test_archives_of_a_read_only_folder_are_extracted_elsewhere_and_said_once() -> None:
    with tempfile.TemporaryDirectory() as name:  # unlike tmp_path, other users can reach it
        folder = Path(name)
        write_images(folder / "input" / "cars", "a/1.jpg", "b/1.jpg")
        pack(folder / "input" / "cars", folder / "input" / "cars.tgz")
        (folder / "extracted").mkdir()
        for path, mode in ((folder, 0o755), (folder / "extracted", 0o777), (folder / "input", 0o555)):
            path.chmod(mode)
        command = [sys.executable, "-c", READ_AS_ANOTHER_USER, str(folder / "input"), str(folder / "extracted")]
        outcome = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
        (folder / "input").chmod(0o755)
        assert outcome.returncode == 0, outcome.stderr
        first, second = outcome.stdout.splitlines()
        assert first == second and Path(first).match("extracted/input-*/cars/cars/a/1.jpg")
        assert [path.name for path in (folder / "input").iterdir()] == ["cars.tgz"]
        assert outcome.stderr.count("is read-only: cars.tgz is extracted to") == 1
