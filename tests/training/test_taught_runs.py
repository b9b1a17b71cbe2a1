"""Trainings with a teacher and auxiliary targets: exact resume, what is kept, and a teacher that is gone or another."""

import shutil
import sys
from pathlib import Path

import pytest
import torch

import train
from deployment.teachers import load_teachers
from deployment.trained import load_trained
from models import build_model, count_parameters
from tests.support.small_runs import NAMES, assert_same_run, broken_off, rows, run
from training.checkpoints import ABOUT, read_checkpoint
from utils.cli import set_options
from utils.errors import ConfigError
from utils.runs.folder import read_record
from utils.runs.teachers import TeacherFile

SMALL = ("architecture=sq_11", "dropout=null", "out_channels=null", "num_epochs=2")  # of three steps
LABELS = ("mixup_alpha=0.4", "class_weights=balanced", "ema_decay=0.8")


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("table") / "groups.csv"
    path.write_text("class,origin\n" + "".join(f"{name},{number % 2}\n" for number, name in enumerate(NAMES)))
    return path


@pytest.fixture(scope="module")
def teacher(cars, four_epochs, tmp_path_factory) -> Path:
    """A copy of the run of four epochs at 32×32."""
    return shutil.copytree(four_epochs, tmp_path_factory.mktemp("teacher") / "teacher")


@pytest.fixture(scope="module")
def taught(cars, table, teacher, tmp_path_factory) -> tuple[Path, tuple[str, ...]]:
    """The folder of a run of SqueezeNet at 40×36 that it taught, and its settings."""
    changes = (*SMALL, *LABELS, "image_size=[40, 36]", f"teacher={teacher}", f"auxiliary_targets=[{table}]")
    return run(cars, tmp_path_factory.mktemp("taught"), *changes), changes


def test_a_taught_run_resumes_in_the_middle_of_an_epoch(cars, taught, tmp_path, monkeypatch):
    folder, changes = taught
    parts = broken_off(cars, tmp_path, monkeypatch, 4, *changes)
    train.main(["--resume", str(parts)])
    assert_same_run(folder, parts)
    last = rows(folder)[-1]
    own = {"train_total_loss", "train_distillation_loss", "train_origin_acc", "valid_origin_acc"}
    assert own <= last.keys() and 0 < float(last["train_distillation_loss"]) < float(last["train_loss"])


def test_neither_teacher_nor_further_rows_are_in_what_is_kept(taught, teacher):
    folder, _ = taught
    checkpoint = read_checkpoint(folder / "checkpoints/best.ckpt")
    model = build_model("sq_11", num_classes=len(NAMES))
    names = {f"model.{name}" for name in model.state_dict()}
    for key in ("state_dict", "raw_state_dict"):
        assert checkpoint[key].keys() - {"loss.weight"} == names
        assert checkpoint[key]["model.classifier.1.weight"].shape[0] == len(NAMES)
        assert len(checkpoint["auxiliary_rows"][key]["model.classifier.1.weight"]) == 2
    assert load_trained(str(folder)).classifier(torch.zeros(1, 3, 40, 36)).shape == (1, len(NAMES))
    record = read_record(folder)
    assert record["parameters"]["num_params"] == count_parameters(model)
    assert list(checkpoint[ABOUT]["teachers"]) == list(record["teachers"])
    assert [Path(path) for path in record["teachers"]] == [(teacher / "checkpoints/best.ckpt").resolve()]


@pytest.mark.slow
def test_a_resumed_run_has_the_same_teacher_or_says_which_is_missing(taught, teacher, table, tmp_path):
    original, _ = taught
    folder = shutil.copytree(original, tmp_path / "sq_11")
    longer = ["--resume", str(folder), "--set", "num_epochs=3"]
    moved = shutil.move(teacher, tmp_path / "moved")
    try:
        with pytest.raises(ConfigError, match=r"teacher: .*no such run.*--set teacher=PATH names the same checkpoint"):
            train.main(longer)
        with pytest.raises(ConfigError, match=r"began with .*best.ckpt, and has .*best.ckpt now, with other weights"):
            train.main([*longer, "--set", f"teacher={original}"])
        groups = table.read_text()
        for changed in (",0", ",2"):  # as many groups, and one more
            table.write_text(groups.replace(",1", changed, 1))
            with pytest.raises(ConfigError, match="the groups of a table have changed since the run began"):
                train.main([*longer, "--set", f"teacher={moved}"])
        table.write_text(groups)
        train.main([*longer, "--set", f"teacher={moved}"])
    finally:
        shutil.move(moved, teacher)
    assert len(rows(folder)) == 3


def test_processes_that_start_later_get_the_path_of_a_teacher_that_is_named_last(cars, teacher, monkeypatch):
    settings = ("teacher=last", f"output_path={teacher.parent}", "trackers=[]", "image_size=[32, 32]")
    words = ["train.py", "-d", str(cars), *set_options(settings)]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(train, "train", lambda *_, **__: {})
    train.main()
    assert sys.argv[-1] == f'--set=teacher=["{(teacher / "checkpoints/best.ckpt").resolve()}"]'


def test_a_branch_takes_no_other_teacher_from_a_file(taught, tmp_path):
    folder, _ = taught
    (tmp_path / "branch.yml").write_text("teacher: null\nnum_epochs: 3\n")
    with pytest.raises(ConfigError, match=r"this run began with .*best\.ckpt, and has no teacher now"):
        train.main(["--branch", str(folder), "--at", "2", "--config", str(tmp_path / "branch.yml")])


def test_the_classes_of_a_teacher_are_found_by_their_names(teacher, tmp_path):
    checkpoint = torch.load(teacher / "checkpoints/best.ckpt", weights_only=True)
    checkpoint[ABOUT]["class_names"] = ["another", *NAMES[::-1]]
    for key in ("state_dict", "raw_state_dict"):
        for name in ("model.classifier.weight", "model.classifier.bias"):
            if name in checkpoint.get(key, {}):
                rows = checkpoint[key][name]
                checkpoint[key][name] = torch.cat([rows[:1], rows.flip(0)])
    torch.save(checkpoint, tmp_path / "other.ckpt")
    file = TeacherFile(str(tmp_path / "other.ckpt"), "")
    (loaded,) = load_teachers([file], NAMES)
    assert loaded.classes.tolist() == [4, 3, 2, 1] and loaded.view.size == (32, 32)
    (same,) = load_teachers([TeacherFile(str(teacher / "checkpoints/best.ckpt"), "")], NAMES)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(loaded.model(images)[:, loaded.classes], same.model(images)[:, same.classes])


def test_a_teacher_that_lacks_classes_or_is_none_is_an_error_before_a_run_begins(cars, teacher, tmp_path):
    words = ["-d", str(cars), "--set", f"output_path={tmp_path / 'output'}", "--set", "trackers=[]", "--set"]
    with pytest.raises(ConfigError, match=r"--set teacher: .*nothing: no such run"):
        train.main([*words, "teacher=nothing"])
    with pytest.raises(ConfigError, match=r"--set teacher: .* it names one run twice"):
        train.main([*words, f"teacher=[{teacher}, {teacher}/checkpoints/best.ckpt]"])
    checkpoint = torch.load(teacher / "checkpoints/best.ckpt", weights_only=True)
    checkpoint[ABOUT]["class_names"] = [*NAMES[:2], "Gamma Coupe 2003", NAMES[3]]
    torch.save(checkpoint, tmp_path / "other.ckpt")
    with pytest.raises(
        ConfigError, match=r"other.ckpt lacks 1 of 4 classes: 'Gamma Van 2003'\. Did you mean 'Gamma Coupe"
    ):
        train.main([*words, f"teacher={tmp_path / 'other.ckpt'}", "--set", "image_size=[32, 32]"])
    assert not (tmp_path / "output").exists()
