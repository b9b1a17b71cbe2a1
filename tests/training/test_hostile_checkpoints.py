"""Hostile checkpoints: nothing in them is executed, and every program that reads one answers with one message."""

import io
import json
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given

import evaluate
import export
import predict
import train
from deployment.trained import load_trained
from tests.support.hostile import damaged, examples, outcome
from tests.support.small_runs import run
from training.checkpoints import ABOUT, FORMAT, read_checkpoint
from utils.config import CONFIG_FILE
from utils.errors import RunError
from utils.runs.folder import BEST, LAST, has_ended, read_record
from utils.runs.metrics import read_rows

pytestmark = pytest.mark.filterwarnings("ignore")  # a training shows them; they are no errors there
PROJECT = CONFIG_FILE.parent
WRONG: list[Any] = [None, 5, -1.5, "x", [], [1, 2], {}, {"a": 1}, {0: {}}, True, 2**62, torch.zeros(2), torch.zeros(0)]
SECONDS = 60  # for a training of two epochs


class Harmful:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (__import__("os").system, (f"touch {self.path}",))


def hidden_in_a_zip(whole: Path, path: Path, canary: Path) -> None:
    """Puts the harmful pickle in the place of the whole checkpoint's data.pkl."""
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            target.writestr(name, pickle.dumps(Harmful(canary), 2) if name.endswith("data.pkl") else content)


def inside(whole: Path, path: Path, canary: Path) -> None:
    torch.save(read_checkpoint(whole) | {"callbacks": {"x": Harmful(canary)}}, path)


HARMFUL: dict[str, Callable[[Path, Path, Path], object]] = {
    "a bare pickle": lambda _, path, canary: path.write_bytes(pickle.dumps(Harmful(canary))),
    "a bare pickle of protocol 2": lambda _, path, canary: path.write_bytes(pickle.dumps(Harmful(canary), 2)),
    "torch's old format": lambda _, path, canary: torch.save(
        {ABOUT: Harmful(canary)}, path, _use_new_zipfile_serialization=False
    ),
    "the whole content": lambda _, path, canary: torch.save(Harmful(canary), path),
    "the zip's data.pkl": hidden_in_a_zip,
    "deep inside a whole one": inside,
}


@pytest.fixture
def run_folder(trained_run, tmp_path) -> Path:
    """A copy of a trained run, to be spoiled."""
    return Path(shutil.copytree(trained_run, tmp_path / "output" / trained_run.name))


def programs(folder: Path, checkpoint: Path, photos: Path, tmp_path: Path) -> dict[str, Callable[[], object]]:
    return {
        "evaluate": lambda: evaluate.main(
            [str(checkpoint), "-d", str(photos), "--output", str(tmp_path / "evaluation")]
        ),
        "predict": lambda: predict.main([str(checkpoint), str(next(photos.glob("car_ims/*.jpg")))]),
        "export": lambda: export.main([str(checkpoint), "--format", "torchscript"]),
        "resume": lambda: resume(folder),
    }


def resume(folder: Path) -> None:
    train.main(["--resume", str(folder), "--set", "num_epochs=17"])


@pytest.mark.parametrize("kind", HARMFUL)
def test_no_program_executes_anything_of_a_checkpoint(kind, run_folder, car_photos, tmp_path):
    canary = tmp_path / "executed"
    whole = shutil.copy(run_folder / LAST, tmp_path / "whole.ckpt")
    for checkpoint in (run_folder / LAST, run_folder / BEST):
        checkpoint.unlink()
        HARMFUL[kind](whole, checkpoint, canary)
    for name, program in programs(run_folder, run_folder / BEST, car_photos, tmp_path).items():
        message = outcome(program, RunError, seconds=SECONDS)
        assert message is not None and ".ckpt" in message and "\n" not in message, name
        assert "holds more than tensors and plain values" in message, name
        assert not canary.exists(), name
    assert read_record(run_folder)["status"] == "failed"


@pytest.mark.slow
def test_the_command_to_go_on_from_a_hostile_checkpoint_says_one_line(run_folder, tmp_path):
    (run_folder / LAST).write_bytes(pickle.dumps(Harmful(tmp_path / "executed")))
    command = [sys.executable, "train.py", "--resume", str(run_folder), "--set", "num_epochs=17"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert f"error: {run_folder / LAST} holds more than tensors and plain values" in done.stderr
    assert not (tmp_path / "executed").exists()


def paths_of(value: Any, depth: int) -> Iterator[tuple]:
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield (key,)
        if depth > 1:
            yield from ((key, *rest) for rest in paths_of(value[key], depth - 1))


def changed(checkpoint: dict, path: tuple, value: Any) -> None:
    """Puts the value at the path; the word "missing" takes away what is there."""
    parent = checkpoint
    for key in path[:-1]:
        parent = parent[key]
    if value == "missing":
        del parent[path[-1]]
    else:
        parent[path[-1]] = value


def spoiled(whole: Path, *, depth: int, every: int) -> Iterator[tuple[str, dict]]:
    """Yields the checkpoint with wrong values under each of its keys, one at a time; of all of these each `every`-th."""
    kept = whole.read_bytes()
    number = 0
    for path in paths_of(read_checkpoint(whole), depth):
        if path[0] == "state_dict" and len(path) == 2 and not path[1].endswith("fc.bias"):
            continue  # one of the weights stands for all
        for value in ["missing", *WRONG]:
            number += 1
            if number % every == 0:
                checkpoint = torch.load(io.BytesIO(kept), weights_only=True)
                changed(checkpoint, path, value)
                yield f"{path}: {value!r:.40}", checkpoint


@pytest.mark.parametrize("every", [pytest.param(11, id="some"), pytest.param(1, marks=pytest.mark.slow, id="all")])
def test_wrong_values_under_every_key_that_is_loaded_are_one_message(every, trained_run, tmp_path):
    path = tmp_path / "last.ckpt"
    refused = 0
    for what, checkpoint in spoiled(trained_run / LAST, depth=2, every=every):
        if what.startswith(f"('{ABOUT}'") or what.startswith("('state_dict'") or what.startswith("('loops'"):
            torch.save(checkpoint, path)
            message = outcome(lambda: load_trained(str(path)), RunError, seconds=SECONDS)
            assert message is None or str(path) in message, what
            refused += message is not None
    assert refused >= 50 / every


@pytest.mark.parametrize("value", [*WRONG, {"train_loss": "x"}, {"train_loss": torch.zeros(3)}], ids=repr)
def test_wrong_values_within_the_configuration_and_the_metrics(value, trained_run, tmp_path):
    for key in ("architecture", "image_size", "optimizer_params", "loss_params", "normalization_params_rgb"):
        checkpoint = read_checkpoint(trained_run / LAST)
        checkpoint[ABOUT]["config"][key] = value
        torch.save(checkpoint, tmp_path / "a.ckpt")
        message = outcome(lambda: load_trained(str(tmp_path / "a.ckpt")), RunError, seconds=SECONDS)
        assert message is None or "a.ckpt" in message
    checkpoint[ABOUT]["config"] = read_checkpoint(trained_run / LAST)[ABOUT]["config"]
    checkpoint[ABOUT]["metrics"] = value
    torch.save(checkpoint, tmp_path / "a.ckpt")
    message = outcome(lambda: load_trained(str(tmp_path / "a.ckpt")), RunError, seconds=SECONDS)
    assert message is None or "a.ckpt" in message


@pytest.mark.parametrize("every", [pytest.param(227, id="some"), pytest.param(5, marks=pytest.mark.slow, id="more")])
def test_a_run_that_cannot_go_on_from_its_checkpoint_says_so(every, run_folder, tmp_path):
    whole = Path(shutil.copy(run_folder / LAST, tmp_path / "whole.ckpt"))
    kept = Path(shutil.copytree(run_folder, tmp_path / "kept"))
    refused = 0
    for what, checkpoint in spoiled(whole, depth=3, every=every):
        shutil.rmtree(run_folder)
        shutil.copytree(kept, run_folder)
        torch.save(checkpoint, run_folder / LAST)
        message = outcome(lambda: resume(run_folder), RunError, seconds=SECONDS)
        assert message is None or str(run_folder) in message, what
        assert (message is None) == has_ended(run_folder), what
        refused += message is not None
    assert refused


def test_a_checkpoint_that_is_cut_off_is_named_with_the_one_that_is_whole(cars, tmp_path, capsys):
    settings = ("num_epochs=3", "optimizer_params.lr=0.003", "lr_scheduler=null", "lr_scheduler_params=null")
    folder = run(cars, tmp_path, *settings)
    best, last = folder / BEST, folder / LAST
    whole = last.read_bytes()
    last.unlink()
    last.write_bytes(whole[:5000])
    capsys.readouterr()
    with pytest.raises(
        RunError, match=r"its end is missing or damaged; copy it again; or copy best.ckpt over it, to go on"
    ):
        train.main(["--resume", str(folder), "--set", "num_epochs=4"])
    assert "to go on: python train.py" not in capsys.readouterr().err
    shutil.copy(best, last)
    train.main(["--resume", str(folder), "--set", "num_epochs=4"])
    assert len(read_rows(folder / "metrics.csv")) == 4


def test_an_error_of_the_training_itself_is_not_put_down_to_the_checkpoint(run_folder, monkeypatch):
    from models.classifier import Classifier

    def broken(self, batch):
        if self.trainer.current_epoch == 16:
            raise TypeError("of the program itself")
        return original(self, batch)

    original = Classifier.training_step
    monkeypatch.setattr(Classifier, "training_step", broken)
    with pytest.raises(TypeError, match="of the program itself"):
        resume(run_folder)


@pytest.mark.parametrize("count", [pytest.param(200, id="some"), pytest.param(1000, marks=pytest.mark.slow, id="all")])
def test_damaged_checkpoints_are_read_or_refused(count, tmp_path):
    path = tmp_path / "a.ckpt"
    content = {
        "state_dict": {"a": torch.ones(3, 2), "b": torch.zeros(1)},
        ABOUT: {"format": FORMAT, "class_names": ["x"]},
    }
    originals = []
    for new in (True, False):
        torch.save(content, path, _use_new_zipfile_serialization=new)
        originals.append(path.read_bytes())

    @examples(count)
    @given(damaged(originals))
    def check(content: bytes) -> None:
        path.write_bytes(content)
        message = outcome(lambda: read_checkpoint(path), RunError)
        assert message is None or str(path) in message

    check()


@pytest.mark.slow
def test_a_format_of_any_type_and_a_run_record_of_any_content(run_folder):
    for value in (*WRONG, "1", 1.0):
        checkpoint = read_checkpoint(run_folder / BEST)
        checkpoint[ABOUT]["format"] = value
        torch.save(checkpoint, run_folder / LAST)
        if value is not True:
            assert "has checkpoint format" in outcome(lambda: read_checkpoint(run_folder / LAST), RunError)
    shutil.copy(run_folder / BEST, run_folder / LAST)
    for content in ("[]", "{", json.dumps({"run_id": 5}), json.dumps({"seconds": "x", "resumed": "y", "started": 7})):
        (run_folder / "run.json").write_text(content)
        outcome(lambda: resume(run_folder), RunError, seconds=SECONDS)
