"""Signals: the step is finished, the checkpoint written, the trackers closed and the way on said, within ten seconds."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from datamodules import images
from tests.support.data_sets import write_updated_release
from tests.support.small_runs import NAMES, only_run, run
from utils.cli import set_options
from utils.config import load_config
from utils.errors import Interrupted
from utils.machine import PROJECT
from utils.runs.folder import read_record
from utils.tracking import TRACKERS
from utils.tracking.mlflow import STORE
from utils.tracking.trackers import SIGNAL_SECONDS, Trackers

SCRIPT = """
import sys, time
import train
from models.classifier import Classifier
from utils.cli import run_command
original = {patched}
def slow(self, batch):
    print("in a step", flush=True)
    time.sleep({seconds})
    return original(self, batch)
{patched} = slow
sys.exit(run_command(train.main))
"""


def start(
    cars: Path, output: Path, *changes: str, script: str | None = None, **settings_of_it: bool
) -> subprocess.Popen:
    settings = [
        "image_size=[32, 32]", "batch_size=2", "num_epochs=1000", "early_stopping_patience=null", f"output_path={output}",
        f"cache_path={output / 'cache'}", "num_workers=2", *changes,
    ]  # fmt: skip
    command = ["train.py"] if script is None else ["-c", script]
    words = ["-d", str(cars), *set_options(settings)]
    return subprocess.Popen(
        [sys.executable, *command, *words], cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        **settings_of_it,
    )  # fmt: skip


def wait_for(found) -> None:
    limit = time.monotonic() + 90
    while not found():
        assert time.monotonic() < limit
        time.sleep(0.1)


@pytest.mark.parametrize("at", ["the first photo", "the last photo"])
def test_a_signal_ends_the_building_of_the_cache_at_once_and_nothing_is_left_of_it(tmp_path, monkeypatch, at):
    data = tmp_path / "data"
    write_updated_release(data, train_per_class=8, class_names=NAMES)
    read, cache = images.read_image, tmp_path / "cache"
    photos = []

    def signalled(path, **options):
        photos.append(path)
        if len(photos) == (1 if at == "the first photo" else 32):
            os.kill(os.getpid(), signal.SIGTERM)
        if len(photos) > 1 and at == "the first photo":
            time.sleep(0.05)  # what is still read is in the hands of a thread already
        return read(path, **options)

    monkeypatch.setattr(images, "read_image", signalled)
    waited, end = [], Trackers.end

    def ended(trackers, *arguments, timeout=None):
        waited.append(timeout)
        end(trackers, *arguments, timeout=timeout)

    monkeypatch.setattr(Trackers, "end", ended)
    with pytest.raises(Interrupted, match="SIGTERM ended the run before the first step") as caught:
        run(data, tmp_path / "output", f"cache_path={cache}")
    assert caught.value.exit_code == 143
    assert not list(cache.glob(".*")) and len(photos) < (20 if at == "the first photo" else 40)
    assert read_record(only_run(tmp_path / "output"))["status"] == "interrupted"
    assert waited == [SIGNAL_SECONDS]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


class Hanging:
    """A tracker whose `end` takes five seconds."""

    def __init__(self, *_):
        pass

    def start(self, *_):
        pass

    def end(self, *_):
        time.sleep(5)


def test_a_hanging_tracker_does_not_delay_the_end_after_a_signal(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(TRACKERS, "mlflow", (f"{__name__}:Hanging", "mlflow"))
    record = {
        "name": "x",
        "parameters": {},
        "status": "interrupted",
        "error": None,
        "seconds": 1.0,
        "tags": [],
        "versions": {},
    }
    record |= dict.fromkeys(("experiment_id", "description", "started", "runtime", "commit"))
    trackers = Trackers(load_config(), tmp_path, "x")
    trackers.start(record, [])
    trackers.end(record, [], timeout=0.2)
    assert trackers.threads[0].is_alive()  # it was not waited for
    trackers.release()
    assert "not everything was logged within 0.2 s" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_real_training_ends_within_ten_seconds_its_trackers_closed_and_the_way_on_said(cars, tmp_path, number, code):
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    process = start(cars, tmp_path, "trackers=[mlflow]")
    wait_for(lambda: list(tmp_path.glob("*/metrics.csv")))
    process.send_signal(number)
    began = time.monotonic()
    output, _ = process.communicate(timeout=30)
    assert time.monotonic() - began < 10
    folder = only_run(tmp_path)
    assert process.returncode == code, output
    assert f"to resume: python train.py --resume {folder}" in output and "Traceback" not in output
    assert (folder / "checkpoints/last.ckpt").is_file() and not list(tmp_path.rglob("*.partial*"))
    assert read_record(folder)["status"] == "interrupted"
    with closing(sqlite3.connect(tmp_path / STORE)) as store:
        assert store.execute("SELECT status FROM runs").fetchall() == [("KILLED",)]
        assert store.execute("SELECT value FROM tags WHERE key = 'status'").fetchall() == [("interrupted",)]


@pytest.mark.slow
def test_ctrl_c_ends_a_training_with_130_although_its_tee_is_gone(cars, tmp_path):
    process = start(cars, tmp_path, "trackers=[]")
    wait_for(lambda: list(tmp_path.glob("*/metrics.csv")))
    process.stdout.close()  # Ctrl-C ends tee first
    process.send_signal(signal.SIGINT)
    folder = only_run(tmp_path)
    assert process.wait(timeout=60) == 130 and read_record(folder)["status"] == "interrupted"
    assert (folder / "checkpoints/last.ckpt").is_file()


@pytest.mark.slow
def test_a_signal_to_all_processes_that_comes_twice_is_one(cars, tmp_path):
    process = start(cars, tmp_path, "trackers=[]", start_new_session=True)
    wait_for(lambda: list(tmp_path.glob("*/metrics.csv")))
    for _ in range(2):
        os.killpg(process.pid, signal.SIGTERM)
        time.sleep(0.02)
    output, _ = process.communicate(timeout=30)
    folder = only_run(tmp_path)
    assert process.returncode == 143, output
    assert "SIGTERM ended the training" in output and read_record(folder)["status"] == "interrupted"


@pytest.mark.slow
def test_a_second_signal_ends_a_real_training_at_once(cars, tmp_path):
    script = SCRIPT.format(patched="Classifier.training_step", seconds=60)
    process = start(cars, tmp_path, "trackers=[]", script=script)
    while "in a step" not in (line := process.stdout.readline()):
        assert line
    process.send_signal(signal.SIGINT)
    time.sleep(1.5)  # one signal that is delivered twice within a second is not a second one
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    process.communicate(timeout=30)
    assert time.monotonic() - began < 2 and process.returncode == -signal.SIGINT


@pytest.mark.slow
def test_a_signal_in_a_validation_that_takes_long_ends_a_real_training_and_its_workers_in_time(cars, tmp_path):
    script = SCRIPT.format(patched="Classifier.validation_step", seconds=1)
    process = start(cars, tmp_path, "trackers=[]", "cache_path=null", script=script)
    while "in a step" not in (line := process.stdout.readline()):
        assert line
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    output, _ = process.communicate(timeout=60)
    assert time.monotonic() - began < 10 and process.returncode == 143, output
