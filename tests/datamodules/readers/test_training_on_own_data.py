"""Every command takes data sets of every kind."""

from pathlib import Path

import pytest

import evaluate
import train
from tests.datamodules.readers.test_real_data import write_parquet, write_table
from tests.support.data_sets import write_images
from tests.support.small_runs import assert_same_run, run
from utils.errors import ConfigError

CLASSES = ("Audi A4", "Kia Rio", "VW Golf")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """Class folders with a training and a test split."""
    folder = tmp_path_factory.mktemp("own") / "folders"
    for name in CLASSES:
        write_images(folder, *(f"train/{name}/{number}.jpg" for number in range(6)), f"test/{name}/6.jpg")
    return folder


@pytest.fixture(scope="module")
def trained(folders) -> Path:
    return run(folders, folders.parent / "output")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("write", "changes"),
    [(write_parquet, ["cache_path=null", "num_workers=2"]), pytest.param(write_table, [], marks=pytest.mark.slow)],
)
def test_a_training_is_bit_equal_on_the_same_images_in_another_form(folders, trained, tmp_path, write, changes) -> None:
    from datamodules import read_data

    (tmp_path / "data").mkdir()
    write(read_data(folders), tmp_path / "data")
    assert_same_run(trained, run(tmp_path / "data", tmp_path / "output", *changes))


@pytest.mark.slow
def test_evaluation_and_the_check_of_the_data_take_them_too(folders, trained, tmp_path, capsys) -> None:
    metrics = evaluate.main([str(trained)])
    assert metrics == evaluate.main([str(trained), "-d", str(folders)])
    train.main(["--check", "-d", str(folders), "--set", f"output_path={tmp_path}"])
    assert f"21 images of 3 classes in {folders}" in capsys.readouterr().out


def test_options_that_need_boxes_are_refused_without(folders, tmp_path) -> None:
    message = r"^crop_to_bboxes: needs a bounding box for each training image; the data set has none, such as .*0\.jpg"
    with pytest.raises(ConfigError, match=message):
        run(folders, tmp_path, "crop_to_bboxes=True")
    with pytest.raises(ConfigError, match=r"^dataset: table, but .* holds class_folders"):
        run(folders, tmp_path, "dataset=table")
