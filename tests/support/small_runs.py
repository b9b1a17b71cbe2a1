"""Trains a network of a few layers on a handful of photos, and compares such runs."""

import csv
import os
import signal
from functools import partial
from pathlib import Path

import pytest

import train
from datamodules import read_data
from utils.cli import set_options
from utils.config import load_run_config
from utils.errors import Interrupted
from utils.runs.folder import read_record

# Batch norm, dropout, stochastic depth and a head, as GhostNet has, in a fifth of its layers.
ARCHITECTURE = "timm/test_efficientnet"

NAMES = ("Alpha Sedan 2001", "Beta Coupe 2002", "Gamma Van 2003", "Delta SUV 2004")


def run(cars: Path, output: Path, *changes: str, extra: tuple[str, ...] = ()) -> Path:
    """Trains a small EfficientNet for two epochs of three steps and returns the run's folder."""
    given = any(change.startswith("architecture=") for change in changes)
    settings = [
        "image_size=[32, 32]", "batch_size=8", "num_epochs=2", "num_workers=0",
        "early_stopping_patience=null",
        "optimizer_params.lr=0.003", "lr_scheduler_params.milestones=[1, 3]", "accelerator=cpu", "trackers=[]",
        f"output_path={output}", f"cache_path={cars.parent / 'cache'}",
        *([] if given else [f"architecture={ARCHITECTURE}", "out_channels=null"]), *changes,
    ]  # fmt: skip
    before = set(output.glob("*")) if output.exists() else set()
    try:
        train.main([*extra, "-d", str(cars), *set_options(settings)])
    finally:
        made = set(output.glob("*")) - before if output.exists() else set()
    (folder,) = (path for path in made if (path / "train.log").is_file())  # and not what trackers have made
    return folder


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def rows(folder: Path) -> list[dict[str, str]]:
    return table(folder / "metrics.csv")


def broken_off(cars: Path, output: Path, monkeypatch: pytest.MonkeyPatch, step: int, *changes: str) -> Path:
    """Trains four epochs of three steps, but ends by a signal after `step`, and returns the run's folder."""
    from training.checkpoint_callback import Checkpoints

    original = Checkpoints.on_train_batch_end

    def send_signal(self, trainer, *arguments):
        if trainer.global_step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, trainer, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "on_train_batch_end", send_signal)
        with pytest.raises(Interrupted) as caught:
            run(cars, output, "num_epochs=4", *changes)
    assert caught.value.exit_code == 128 + signal.SIGTERM
    folder = only_run(output)
    assert read_record(folder)["status"] == "interrupted"
    return folder


def assert_validated(cars: Path, folder: Path) -> None:
    """Compares the last row of a run with its last checkpoint's loss and accuracy of all validation photos in one batch."""
    import torch

    import assembly
    from training.checkpoints import read_checkpoint

    config = load_run_config(folder)
    splits = read_data(cars)
    classifier = assembly.build_classifier(config, num_classes=len(splits.class_names))
    classifier.load_state_dict(read_checkpoint(folder / "checkpoints/last.ckpt")["state_dict"])
    classifier.eval()
    data = assembly.build_data(config, splits)
    images, labels = zip(*(data.dataset(data.valid)[0, index] for index in range(len(splits.valid))), strict=True)
    with torch.no_grad():
        logits = classifier(torch.stack(images))
    last = rows(folder)[-1]
    assert float(last["valid_loss"]) == pytest.approx(classifier.loss(logits, torch.tensor(labels)).item(), rel=1e-5)
    assert float(last["valid_acc"]) == pytest.approx((logits.argmax(1) == torch.tensor(labels)).double().mean().item())


def assert_same_run(first: Path, second: Path) -> None:
    import torch  # after the number of its threads has been set: conftest.py imports this module

    from training.checkpoints import read_checkpoint

    assert_equal = partial(torch.testing.assert_close, rtol=0, atol=0)
    assert (first / "metrics.csv").read_bytes() == (second / "metrics.csv").read_bytes()
    for name in ("last", "best"):
        a, b = (read_checkpoint(folder / f"checkpoints/{name}.ckpt") for folder in (first, second))
        assert a.keys() == b.keys()
        for weights in ("state_dict", *({"raw_state_dict"} & a.keys())):
            assert_equal(a[weights], b[weights])
        assert_equal(a["optimizer_states"][0]["state"], b["optimizer_states"][0]["state"])
        assert a.get("lr_scheduler") == b.get("lr_scheduler")
        for key in a["callbacks"].keys() & b["callbacks"].keys():  # early stopping's count among them
            assert a["callbacks"][key] == b["callbacks"][key], (name, key)


def only_run(output: Path) -> Path:
    """Returns the folder of the one run in `output`."""
    (folder,) = output.glob("*/train.log")
    return folder.parent
