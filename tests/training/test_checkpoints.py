"""Checkpoint files: copied whole from any device, written while nothing forks, and those of former versions are read."""

import multiprocessing
import threading
from multiprocessing import popen_fork

import pytest
import torch

import train
from tests.support.small_runs import assert_same_run, broken_off, run
from training import checkpoints
from training.checkpoints import ABOUT, read_checkpoint


class OnDevice(torch.Tensor):
    """A tensor that says it lies on an Apple GPU."""

    device = torch.device("mps")

    def detach(self):
        return self

    def to(self, *args, **kwargs):
        assert kwargs["non_blocking"]
        return torch.zeros(1)


def test_copies_from_every_kind_of_device_are_waited_for(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    checkpoints._on_host({"a": torch.ones(1), "b": [OnDevice(torch.zeros(1))]})
    assert waited == [torch.device("mps")]


@pytest.mark.slow
@pytest.mark.skipif(multiprocessing.get_start_method() != "fork", reason="no workers are forked here")
def test_no_checkpoint_is_being_written_when_workers_are_forked(cars, tmp_path, monkeypatch):
    forked, launch, save = [], popen_fork.Popen._launch, torch.save

    def watch(self, process):
        forked.append([thread.name for thread in threading.enumerate() if thread.name.startswith("checkpoint")])
        launch(self, process)

    def slow(*arguments):
        threading.Event().wait(0.3)
        save(*arguments)

    monkeypatch.setattr(popen_fork.Popen, "_launch", watch)
    monkeypatch.setattr(torch, "save", slow)
    run(cars, tmp_path, "num_workers=1", "cache_path=null", "checkpoint_interval=1.0e-9")
    assert forked == [[]] * 3  # of training once, and of each validation


@pytest.mark.parametrize("step", [pytest.param(3, marks=pytest.mark.slow), 4], ids=["after an epoch", "in mid-epoch"])
def test_a_checkpoint_of_the_first_version_is_resumed_as_the_same_run(cars, four_epochs, tmp_path, monkeypatch, step):
    """It had the data module under another name, and no denominators of the loss."""
    folder = broken_off(cars, tmp_path, monkeypatch, step)
    path = folder / "checkpoints/last.ckpt"
    checkpoint = read_checkpoint(path)
    checkpoint["StanfordCars"] = checkpoint.pop("CarsDataModule")
    checkpoint["train_sums"] = checkpoint["train_sums"][:4].clone()
    assert checkpoint[ABOUT]["format"] == 1 and checkpoint["global_step"] == step
    path.unlink()  # it may be a second name of best.ckpt
    torch.save(checkpoint, path)
    train.main(["--resume", str(folder)])
    assert_same_run(four_epochs, folder)
    assert read_checkpoint(path)["CarsDataModule"]["images_per_step"] == 8
