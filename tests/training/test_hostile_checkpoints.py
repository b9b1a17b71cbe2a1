"""Checkpoints of unknown origin or with damage: nothing in them is executed, and each program answers in one line."""

import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given

import evaluate
import export
import predict
import train
from models.classifier import Classifier
from tests.support.hostile import damaged, examples, outcome
from tests.support.small_runs import run
from training.checkpoints import ABOUT, FORMAT, read_checkpoint
from utils.errors import RunError
from utils.runs.folder import BEST, LAST, read_record
from utils.runs.metrics import read_rows

SECONDS = 60  # for a training of two epochs


class Harmful:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def hidden_in_a_zip(whole: Path, path: Path, canary: Path) -> None:
    """Replaces the data.pkl of a whole checkpoint by a harmful pickle."""
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            target.writestr(name, pickle.dumps(Harmful(canary), 2) if name.endswith("data.pkl") else content)


HARMFUL: dict[str, Callable[[Path, Path, Path], object]] = {
    "a bare pickle": lambda _, path, canary: path.write_bytes(pickle.dumps(Harmful(canary), 2)),
    "the data.pkl of a zip": hidden_in_a_zip,
    "deep inside a whole one": lambda whole, path, canary: torch.save(
        read_checkpoint(whole) | {"callbacks": {"x": Harmful(canary)}}, path
    ),
}


@pytest.fixture
def run_folder(trained_run, tmp_path) -> Path:
    """A copy of a trained run, to be spoiled."""
    return Path(shutil.copytree(trained_run, tmp_path / "output" / trained_run.name))


def resume(folder: Path) -> None:
    train.main(["--resume", str(folder), "--set", "num_epochs=17"])


@pytest.mark.parametrize("kind", HARMFUL)
def test_no_program_executes_anything_in_a_checkpoint(kind, run_folder, car_photos, tmp_path):
    canary = tmp_path / "executed"
    whole = shutil.copy(run_folder / LAST, tmp_path / "whole.ckpt")
    for checkpoint in (run_folder / LAST, run_folder / BEST):
        checkpoint.unlink()
        HARMFUL[kind](whole, checkpoint, canary)
    best, image = str(run_folder / BEST), str(next(car_photos.glob("car_ims/*.jpg")))
    for program in (
        lambda: evaluate.main([best, "-d", str(car_photos), "--output", str(tmp_path / "evaluation")]),
        lambda: predict.main([best, image]),
        lambda: export.main([best, "--format", "torchscript"]),
        lambda: resume(run_folder),
    ):
        message = outcome(program, RunError, seconds=SECONDS)
        assert ".ckpt holds more than tensors and plain values" in message and "\n" not in message
        assert not canary.exists()
    assert read_record(run_folder)["status"] == "failed"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("loops", "fit_loop"), None),
        (("optimizer_states",), None),
        (("callbacks", "Recorder", "rows"), 5),
        (("callbacks", "Checkpoints", "lowest"), "x"),
        (("CarsDataModule", "images_per_step"), torch.zeros(2)),
        (("state_dict", "model.fc.bias"), torch.zeros(3)),
    ],
    ids=lambda part: ".".join(part) if isinstance(part, tuple) else "",
)
def test_a_checkpoint_with_wrong_content_is_named_in_one_line(path: tuple[str, ...], value: Any, run_folder):
    part = checkpoint = read_checkpoint(run_folder / LAST)
    for key in path[:-1]:
        part = part[key]
    assert path[-1] in part
    part[path[-1]] = value
    (run_folder / LAST).unlink()
    torch.save(checkpoint, run_folder / LAST)
    message = outcome(lambda: resume(run_folder), RunError, seconds=SECONDS)
    assert str(run_folder / LAST) in message and "\n" not in message


@pytest.mark.slow
def test_a_truncated_checkpoint_is_named_together_with_the_whole_one(cars, tmp_path, capsys):
    settings = ("num_epochs=3", "optimizer_params.lr=0.003", "lr_scheduler=null", "lr_scheduler_params=null")
    folder = run(cars, tmp_path, *settings)
    best, last = folder / BEST, folder / LAST
    content = last.read_bytes()
    last.unlink()
    last.write_bytes(content[:5000])
    capsys.readouterr()
    with pytest.raises(
        RunError, match=r"its end is missing or damaged; copy it again; or copy best.ckpt over it to resume"
    ):
        train.main(["--resume", str(folder), "--set", "num_epochs=4"])
    assert "to resume: python train.py" not in capsys.readouterr().err
    shutil.copy(best, last)
    train.main(["--resume", str(folder), "--set", "num_epochs=4"])
    assert len(read_rows(folder / "metrics.csv")) == 4


def test_an_error_of_the_training_itself_is_not_blamed_on_the_checkpoint(run_folder, monkeypatch):
    def broken(self, batch):
        if self.trainer.current_epoch == 16:
            raise TypeError("of the program itself")
        return original(self, batch)

    original = Classifier.training_step
    monkeypatch.setattr(Classifier, "training_step", broken)
    with pytest.raises(TypeError, match="of the program itself"):
        resume(run_folder)


def test_damaged_checkpoints_are_read_or_refused(tmp_path):
    path = tmp_path / "a.ckpt"
    content = {"state_dict": {"a": torch.ones(3, 2)}, ABOUT: {"format": FORMAT, "class_names": ["x"]}}
    originals = []
    for new in (True, False):
        torch.save(content, path, _use_new_zipfile_serialization=new)
        originals.append(path.read_bytes())

    @examples(100)
    @given(damaged(originals))
    def check(content: bytes) -> None:
        path.write_bytes(content)
        message = outcome(lambda: read_checkpoint(path), RunError)
        assert message is None or str(path) in message

    check()
