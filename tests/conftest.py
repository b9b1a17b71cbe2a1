"""Small data sets and small runs, made once for all tests that use them."""

import colorsys
import os
import random
import shutil
import signal
import sqlite3
from pathlib import Path

import pytest
from PIL import Image

import train
from tests.support.data_sets import write_updated_release
from tests.support.small_runs import NAMES, run
from utils.cli import set_options
from utils.tracking.mlflow import EXPERIMENT, STORE, open_store

# Tests run side by side: threads that wait for each other's cores make a step of 0.2 s one of several.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell's background jobs ignore Ctrl-C, and so would the commands that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

CAR_MODELS = (
    "Audi TT RS Coupe 2012", "BMW X6 SUV 2012", "BMW X5 SUV 2007", "Fiat 500 Abarth 2012",
    "Ram C/V Cargo Van Minivan 2012", "smart fortwo Convertible 2012", "AM General Hummer SUV 2000",
)  # fmt: skip


@pytest.fixture(scope="session")
def car_photos(tmp_path_factory) -> Path:
    """A data set of seven models, four training and two validation photos each; a model's photos are alike in colour."""
    folder = tmp_path_factory.mktemp("car_photos")
    draws = random.Random(0)
    photos = write_updated_release(folder, train_per_class=4, valid_per_class=2, class_names=CAR_MODELS)
    for photo in photos:
        hue = (photo.label + draws.uniform(-0.3, 0.3)) / len(CAR_MODELS)
        colour = tuple(round(255 * level) for level in colorsys.hsv_to_rgb(hue, 0.9, draws.uniform(0.6, 1)))
        Image.new("RGB", photo.size, colour).save(folder / photo.name, quality=95)
    return folder


@pytest.fixture(scope="session")
def trained_run(car_photos, tmp_path_factory) -> Path:
    """The folder of a run of 15 epochs: ShuffleNetV2 ×0.5, images 64 pixels high and 48 wide, batches of 5."""
    output = tmp_path_factory.mktemp("output")
    settings = [
        "architecture=shuff_v2_x05", "dropout=null", "out_channels=null", "image_size=[64, 48]", "batch_size=5",
        "num_epochs=15", "optimizer_params={lr: 0.002}", "num_workers=0", "accelerator=cpu", "augment_images=False",
        "cache_path=null", "trackers=[]", f"output_path={output}",
    ]  # fmt: skip
    train.main(["-d", str(car_photos), *set_options(settings)])
    (folder,) = output.iterdir()
    return folder


@pytest.fixture(scope="session")
def cars(tmp_path_factory) -> Path:
    """A data set of four models, five training and two validation photos each."""
    folder = tmp_path_factory.mktemp("cars")
    write_updated_release(
        folder, train_per_class=5, valid_per_class=2, class_names=NAMES, image_sizes=[(40, 32), (32, 40)]
    )
    return folder


@pytest.fixture(scope="session")
def four_epochs(cars, tmp_path_factory) -> Path:
    """The folder of a run of four epochs of three steps."""
    return run(cars, tmp_path_factory.mktemp("whole"), "num_epochs=4")


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory) -> Path:
    """A store without an experiment: to make its tables takes seconds."""
    folder = tmp_path_factory.mktemp("store")
    open_store(folder)
    with sqlite3.connect(folder / STORE) as connection:
        connection.execute("DELETE FROM experiments WHERE name = ?", (EXPERIMENT,))
    connection.close()
    return folder / STORE


@pytest.fixture
def output(tmp_path, empty_store) -> Path:
    """The folder of runs, with an empty store."""
    folder = tmp_path / "My Drive ü #1 50%20?"
    folder.mkdir()
    shutil.copy(empty_store, folder)
    return folder
