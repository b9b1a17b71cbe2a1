"""What goes wrong from outside: one line that says what to do, and a run that can go on."""

import json
import os
import signal

import pytest
import torch

import train
from datamodules.stanford_cars import CarPhotos
from models.classifier import Classifier
from tests.test_training import assert_same_run, cars, four_epochs, run  # noqa: F401
from utils.errors import RunError


def only_run(folder):
    (found,) = folder.iterdir()
    return found


@pytest.mark.parametrize("when", ["step", "checkpoint"])
def test_a_loss_that_is_not_finite_ends_the_run_with_its_last_good_checkpoint(cars, tmp_path, monkeypatch, when):  # noqa: F811
    monkeypatch.setattr(Classifier, "_note_nonfinite", _seeing(Classifier._note_nonfinite))
    interval = "checkpoint_interval=1.0e-9" if when == "checkpoint" else "checkpoint_interval=null"
    with pytest.raises(RunError, match=r"was not finite in epoch 1, step 4, at a learning rate of 0.003"):
        run(cars, tmp_path, "num_epochs=4", interval, "lr_scheduler=null", "lr_scheduler_params=null")
    folder = only_run(tmp_path)
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "failed" and "not finite" in record["error"]
    checkpoint = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == (4 if when == "checkpoint" else 3)
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())


def _seeing(original):
    """Shows the training a loss that is no number in its fifth step."""

    def note(self, loss):
        original(self, loss * float("nan") if self.trainer.global_step == 4 else loss)

    return note


def test_it_can_be_told_to_train_on_regardless(cars, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(Classifier, "_note_nonfinite", _seeing(Classifier._note_nonfinite))
    folder = run(cars, tmp_path, "stop_on_nonfinite_loss=False")
    assert json.loads((folder / "run.json").read_text())["status"] == "completed"


def test_a_device_that_is_out_of_memory_names_a_batch_size(cars, tmp_path, monkeypatch):  # noqa: F811
    def out_of_memory(self, batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr(Classifier, "training_step", out_of_memory)
    with pytest.raises(RunError, match="too small for batches of 8 images; try --set batch_size=4"):
        run(cars, tmp_path)


def test_a_worker_that_the_system_ends_is_explained_and_the_run_goes_on(cars, four_epochs, tmp_path, monkeypatch):  # noqa: F811
    original = CarPhotos.__getitem__

    def killed(self, item):
        if item[0] == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, item)

    with monkeypatch.context() as patch:
        patch.setattr(CarPhotos, "__getitem__", killed)
        with pytest.raises(RunError, match=r"the system ended a process that reads photos.* --set num_workers=1"):
            run(cars, tmp_path, "num_epochs=4", "num_workers=2")
    folder = only_run(tmp_path)
    train.main(["--resume", str(folder), "--set", "num_workers=0"])
    assert_same_run(four_epochs, folder)


def test_a_full_disk_leaves_the_last_checkpoint_whole_and_the_run_goes_on(cars, four_epochs, tmp_path, monkeypatch):  # noqa: F811
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
    assert not list(folder.rglob("*.partial"))
    train.main(["--resume", str(folder)])
    assert_same_run(four_epochs, folder)
