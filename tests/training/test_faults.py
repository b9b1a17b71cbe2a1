"""What goes wrong from outside: one line that says what to do, and a run that can go on."""

import importlib.util
import itertools
import multiprocessing
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
import weakref
from contextlib import contextmanager
from datetime import datetime

import pytest
import torch

import train
from datamodules.cache import ImageCache
from datamodules.datamodule import ImageDataset
from measurements.proofs.run_differences import wrong_in_mlflow
from models.classifier import Classifier
from tests.support.devices import needs_cuda
from tests.support.small_runs import assert_same_run, only_run, run
from training import checkpoints
from training.checkpoint_callback import Checkpoints
from training.checkpoints import read_checkpoint
from utils import files
from utils.config import CONFIG_FILE
from utils.errors import DataError, RunError
from utils.runs import lock as run_lock
from utils.runs.folder import LAST, make_run_folder, read_record, write_record
from utils.runs.metrics import read_rows

YEAR = 365 * 24 * 3600  # seconds
HAS_MLFLOW = importlib.util.find_spec("mlflow") is not None


@pytest.mark.parametrize("when", ["step", "checkpoint"])
def test_a_loss_that_is_not_finite_ends_the_run_with_its_last_good_checkpoint(cars, tmp_path, monkeypatch, when):
    monkeypatch.setattr(Classifier, "_track_nonfinite", _seeing(Classifier._track_nonfinite))
    interval = "checkpoint_interval=1.0e-9" if when == "checkpoint" else "checkpoint_interval=null"
    with pytest.raises(
        RunError, match=r"^the training loss was not finite in epoch 1, step 4, at a learning rate of 0.003"
    ):
        run(cars, tmp_path, "num_epochs=4", interval, "lr_scheduler=null", "lr_scheduler_params=null")
    folder = only_run(tmp_path)
    record = read_record(folder)
    assert record["status"] == "failed" and f"the last checkpoint from before is {folder / LAST}. " in record["error"]
    checkpoint = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == (4 if when == "checkpoint" else 3)
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())


def _seeing(original, step=4):
    """Shows the training a loss that is no number in the step after `step` steps."""

    def note(self, loss):
        original(self, loss * float("nan") if self.trainer.global_step == step else loss)

    return note


def test_before_the_first_checkpoint_a_loss_that_is_not_finite_says_that_there_is_none(
    cars, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(Classifier, "_track_nonfinite", _seeing(Classifier._track_nonfinite, step=1))
    with pytest.raises(RunError, match=r"in epoch 0, step 1, .*; there is no checkpoint yet\. "):
        run(cars, tmp_path)
    assert "to resume" not in capsys.readouterr().err


@pytest.mark.parametrize("what", [pytest.param("training", marks=pytest.mark.slow), "validation"])
def test_it_can_be_told_to_train_on_regardless_and_the_end_says_so(cars, tmp_path, monkeypatch, capsys, what):
    if what == "training":
        monkeypatch.setattr(Classifier, "_track_nonfinite", _seeing(Classifier._track_nonfinite))
    else:
        monkeypatch.setattr(Classifier, "validation_step", _validated_to_infinity(Classifier.validation_step))
    with pytest.raises(
        RunError, match=rf"^the {what} loss was not finite in epoch 1.* 0\.0003; the last checkpoint from"
    ):
        run(cars, tmp_path)
    folder = only_run(tmp_path)
    assert read_checkpoint(folder / LAST)["global_step"] == 3
    (command,) = re.findall(r"to resume: python train.py (.*)", capsys.readouterr().err)
    assert command == f"--resume {folder} --set stop_on_nonfinite_loss=False"
    train.main(command.split())
    assert read_record(folder)["status"] == "completed"


def _validated_to_infinity(original):
    """Lets the validation loss be infinite from the second epoch on."""

    def validate(self, batch):
        original(self, batch)
        if self.trainer.current_epoch == 1:
            self.valid_sums[0] = float("inf")

    return validate


@pytest.mark.parametrize(
    ("room", "advice"),
    [(3, "--set batch_size=2 fits"), pytest.param(1, "set a smaller batch_size or image_size", marks=pytest.mark.slow)],
)
def test_a_device_that_is_out_of_memory_names_the_batch_that_fits(cars, tmp_path, monkeypatch, room, advice):
    """Activations of a device with room for so many images; freed where a batch is over, kept by what is at fault."""
    forward, held = Classifier._outputs, weakref.WeakSet()

    def fill(self, images):
        activations = images + 1
        held.add(activations)
        if sum(len(each) for each in held) > room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return forward(self, images)

    monkeypatch.setattr(Classifier, "_outputs", fill)
    with pytest.raises(
        RunError, match=f"too small for batches of 8 images; in a new run {advice}, or end other programs"
    ):
        run(cars, tmp_path)


@pytest.mark.slow
def test_a_cache_that_the_device_has_no_room_for_is_named_and_the_run_can_go_on_without(
    cars, tmp_path, monkeypatch, capsys
):
    def too_large(self, device):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    whole = run(cars, tmp_path / "whole", "augmentation_device=device")
    folder = run(cars, tmp_path / "parts", "augmentation_device=device", "num_epochs=1")
    change = ("--resume", str(folder), "--set", "num_epochs=2", "--set")
    with monkeypatch.context() as patch:
        patch.setattr(ImageCache, "to", too_large)
        message = r"^the device has too little memory for the cache of 20 images, .* GB; --set cache_on_device=False"
        with pytest.raises(RunError, match=message):
            train.main([*change, "cache_on_device=True"])
        assert f"to resume: python train.py --resume {folder} --set cache_on_device=False\n" in capsys.readouterr().err
        train.main([*change, "cache_on_device=False"])
    assert_same_run(whole, folder)


@needs_cuda
def test_on_cuda_the_batch_that_is_named_does_fit(cars, tmp_path):
    changes = ("accelerator=gpu", "image_size=[512, 512]", "precision=32-true")
    torch.cuda.set_per_process_memory_fraction(1.5e9 / torch.cuda.get_device_properties(0).total_memory)
    try:
        with pytest.raises(
            RunError, match="too small for batches of 20 images; in a new run --set batch_size="
        ) as caught:
            run(cars, tmp_path / "too_large", "batch_size=20", *changes)
        named = int(re.search(r"batch_size=(\d+) fits", str(caught.value))[1])
        del caught  # holds the first training
        run(cars, tmp_path / "fits", f"batch_size={named}", *changes)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_a_network_without_deterministic_kernels_is_named_by_what_it_lacks(cars, tmp_path, monkeypatch):
    forward = Classifier._outputs

    def undetermined(self, images):  # put_ is one of the few that have none on the CPU either
        return forward(self, images).put_(torch.tensor([0]), torch.zeros(1))

    monkeypatch.setattr(Classifier, "_outputs", undetermined)
    with pytest.raises(RunError, match=r"^deterministic: True is not possible here: put_ of this model has no"):
        run(cars, tmp_path, "deterministic=True")


@pytest.mark.slow
def test_a_worker_that_the_system_ends_is_explained_and_the_run_goes_on(cars, four_epochs, tmp_path, monkeypatch):
    original = ImageDataset.__getitem__

    def killed(self, item):
        if item[0] == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, item)

    with monkeypatch.context() as patch:
        patch.setattr(ImageDataset, "__getitem__", killed)
        with pytest.raises(RunError, match=r"the system ended a process that loads images.* --set num_workers=1"):
            run(cars, tmp_path, "num_epochs=4", "num_workers=2")
    folder = only_run(tmp_path)
    train.main(["--resume", str(folder), "--set", "num_workers=0"])
    assert_same_run(four_epochs, folder)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_photos_that_disappear_in_mid_epoch_are_named_and_the_run_goes_on_when_they_are_back(
    cars, four_epochs, tmp_path, monkeypatch, workers
):
    data, gone = shutil.copytree(cars, tmp_path / "data"), tmp_path / "gone"
    original = Checkpoints.on_train_batch_end

    def unplug(self, trainer, *arguments):
        original(self, trainer, *arguments)
        if trainer.global_step == 7:
            data.rename(gone)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "on_train_batch_end", unplug)
        with pytest.raises(DataError, match=rf"^{data}/car_ims/\d+\.jpg: no such file; restore it"):
            run(data, tmp_path / "output", "num_epochs=4", "cache_path=null", f"num_workers={workers}")
    assert multiprocessing.active_children() == []  # the command would not end before them
    gone.rename(data)
    folder = only_run(tmp_path / "output")
    assert read_record(folder)["status"] == "failed"
    train.main(["--resume", str(folder)])
    assert_same_run(four_epochs, folder)


@pytest.mark.slow
def test_a_run_that_goes_on_with_another_photo_says_so(cars, tmp_path, capsys):
    data, moved = shutil.copytree(cars, tmp_path / "data"), tmp_path / "moved"
    folder = run(data, tmp_path / "output", "num_epochs=1")
    data.rename(moved)
    again = ("--resume", str(folder), "-d", str(moved), "--set")
    train.main([*again, "num_epochs=2"])
    assert "images are not those" not in capsys.readouterr().err
    photo = next(moved.glob("car_ims/*.jpg"))
    photo.write_bytes(photo.read_bytes() + b"more")
    train.main([*again, "num_epochs=3"])
    said = capsys.readouterr().err
    assert "the images are not those that this run was trained on: a name, size, label or box has changed" in said


@pytest.mark.slow
def test_a_cache_that_is_cut_in_training_is_one_line_and_built_anew_when_the_run_goes_on(
    cars, tmp_path, monkeypatch, capsys
):
    settings = ("augmentation_device=device", f"cache_path={tmp_path / 'cache'}")
    whole = run(cars, tmp_path / "whole", *settings)
    original = Checkpoints.on_validation_start

    def cut(self, trainer, module):
        original(self, trainer, module)
        if trainer.current_epoch == 1:
            os.truncate(next((tmp_path / "cache").glob("valid-*.photos")), 100)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "on_validation_start", cut)
        with pytest.raises(RunError, match=r"valid-.*\.photos: this cache was truncated; resume the run, and it is"):
            run(cars, tmp_path / "parts", *settings)
    folder = only_run(tmp_path / "parts")
    assert f"to resume: python train.py --resume {folder}\n" in capsys.readouterr().err
    train.main(["--resume", str(folder)])
    assert_same_run(whole, folder)


HOLDING = """
import sqlite3, sys, time
from pathlib import Path
sys.path.insert(0, {project!r})
from utils.runs.lock import hold
if sys.argv[1] == "store":
    held = sqlite3.connect(sys.argv[2], isolation_level=None)
    held.execute("BEGIN EXCLUSIVE")
else:
    held = hold(Path(sys.argv[2]))
print("held", flush=True)
time.sleep(100)
"""


@contextmanager
def held_by_another_process(what, path):
    command = [sys.executable, "-c", HOLDING.format(project=str(CONFIG_FILE.parent)), what, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield
        process.kill()


@pytest.mark.slow
def test_a_tracking_store_that_is_locked_all_the_time_is_said_once_and_changes_nothing(
    cars, four_epochs, tmp_path, monkeypatch, caplog
):
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    from utils.tracking import mlflow

    mlflow.open_store(tmp_path)
    monkeypatch.setattr(mlflow, "BUSY_SECONDS", 0.3)
    with held_by_another_process("store", tmp_path / mlflow.STORE):
        run(cars, tmp_path, "num_epochs=4", "trackers=[mlflow]")
    (message,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "mlflow: logging stopped" in message and "mlflow.db: database is locked" in message
    assert "the training is not affected and metrics.csv has every epoch" in message and "\n" not in message
    assert_same_run(four_epochs, only_run(tmp_path))


@pytest.mark.slow
def test_a_run_that_another_process_trains_is_refused_and_left_as_it_is(cars, four_epochs, tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "WAIT_SECONDS", 0.3)
    folder = run(cars, tmp_path)
    partial = folder / "checkpoints" / f".last.ckpt.{platform.node()}.{os.getpid()}.partial"
    partial.write_text("the other process is writing this")
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    longer = ["--resume", str(folder), "--set", "num_epochs=4"]
    with held_by_another_process("run", folder), pytest.raises(RunError) as caught:
        train.main(longer)
    assert str(caught.value) == (
        f"{folder} is being trained by another process: wait until it ends, or start a new run without --resume"
    )
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == files
    train.main(longer)
    assert_same_run(four_epochs, folder)
    assert not partial.exists()


@pytest.mark.slow
@pytest.mark.parametrize("jump", [pytest.param(-1, marks=pytest.mark.slow), 1], ids=["back", "forward"])
def test_a_clock_that_jumps_a_year_at_every_look_changes_nothing(cars, four_epochs, tmp_path, monkeypatch, jump):
    clock, saved = time.time, []
    looks = itertools.count()
    original = Checkpoints.save

    def save(self, trainer, *names, **second_name):
        saved.append(trainer.global_step)
        original(self, trainer, *names, **second_name)

    monkeypatch.setattr(time, "time", lambda: clock() + jump * YEAR * next(looks))
    monkeypatch.setattr(Checkpoints, "save", save)
    folder = run(cars, tmp_path, "num_epochs=4", f"trackers={'[mlflow]' if jump < 0 and HAS_MLFLOW else '[]'}")
    assert saved == [3, 6, 9, 12]  # none of them because ten minutes seem to be over
    assert_same_run(four_epochs, folder)
    assert 0 < read_record(folder)["seconds"] < 600
    assert all(0 < row["seconds"] < 600 and row["images_per_second"] > 0 for row in read_rows(folder / "speed.csv"))
    assert jump > 0 or not HAS_MLFLOW or list(wrong_in_mlflow(folder)) == []  # the best is not that of the latest clock


def test_runs_that_start_while_the_clock_goes_back_have_folders_of_their_own(tmp_path, monkeypatch):
    class Clock(datetime):
        seconds = itertools.cycle([5, 4, 5, 3, 4])

        @classmethod
        def now(cls, tz=None):
            return datetime(2026, 11, 23, 10, 15, next(cls.seconds), tzinfo=tz)

    monkeypatch.setattr(files, "datetime", Clock)
    assert len({make_run_folder(tmp_path, "ghost") for _ in range(20)}) == 20


@pytest.mark.slow
def test_a_run_that_is_killed_when_it_has_stopped_early_ends_without_another_epoch(cars, tmp_path):
    settings = ("early_stopping_patience=2", "num_epochs=9", "lr_scheduler=null", "lr_scheduler_params=null",
                "optimizer=SGD", "optimizer_params={lr: 0.0}")  # fmt: skip
    folder = run(cars, tmp_path, *settings)
    metrics, record = (folder / "metrics.csv").read_text(), read_record(folder)
    write_record(folder, record | {"status": "running"})
    train.main(["--resume", str(folder)])
    assert (folder / "metrics.csv").read_text() == metrics
    assert read_record(folder)["status"] == "early-stopped"
    train.main(["--resume", str(folder), "--set", "early_stopping_patience=4"])
    rows = read_rows(folder / "metrics.csv")
    assert len(rows) == record["epochs"] + 2
    assert read_record(folder)["status"] == "early-stopped"


@pytest.mark.slow
def test_a_run_that_is_killed_between_its_two_checkpoints_has_its_best_epoch_again(cars, tmp_path, monkeypatch):
    settings = (
        "architecture=ghost", "width_multiplier=0.35", "num_epochs=4", "optimizer=SGD", "optimizer_params={lr: 0.01}",
        "lr_scheduler=null", "lr_scheduler_params=null",
    )  # fmt: skip
    whole = run(cars, tmp_path / "whole", *settings)
    lowest = read_record(whole)["best"]["best_valid_loss_epoch"]
    original = checkpoints._link

    def killed(path, second_name):
        if read_checkpoint(path)["epoch"] == lowest:
            raise RunError("killed here")
        original(path, second_name)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "_link", killed)
        with pytest.raises(RunError, match="killed here"):
            run(cars, tmp_path / "parts", *settings)
    folder = only_run(tmp_path / "parts")
    assert lowest > 0 and not (folder / "checkpoints/last.ckpt").samefile(folder / "checkpoints/best.ckpt")
    train.main(["--resume", str(folder)])
    assert_same_run(whole, folder)


def test_a_full_disk_leaves_the_last_checkpoint_whole_and_the_run_goes_on(cars, four_epochs, tmp_path, monkeypatch):
    original = torch.save
    written = []

    def full(value, path, *arguments, **settings):
        written.append(path)
        if len(written) == 3:
            path.write_bytes(b"half of it")
            raise RuntimeError("PytorchStreamWriter failed writing file data/12: file write failed")
        original(value, path, *arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(RunError, match=r"last.ckpt cannot be written: .*make room"):
            run(cars, tmp_path, "num_epochs=4")
    folder = only_run(tmp_path)
    assert len(read_rows(folder / "metrics.csv")) == 3  # no epoch more, although training went on meanwhile
    assert not list(folder.rglob("*.partial"))
    train.main(["--resume", str(folder)])
    assert_same_run(four_epochs, folder)
