"""search.py with real trainings: killed and resumed to the bit, promoted to the bit, and what it writes."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import search
import train
from searching.trials import run_trials
from tests.support.search_runs import Trainings, train_here, write_space
from tests.support.small_runs import assert_same_run, table
from utils.cli import set_options
from utils.config import CONFIG_FILE, load_config
from utils.errors import ConfigError, RunError

pytestmark = pytest.mark.slow
RATES = [1e-6, 0.01, 0.1, 1.0]  # each worse than the one before after two epochs
KILLED = """
import os, signal, sys
import search, searching.trials
from searching.trials import run_trials
from tests.support.search_runs import train_here
from training.checkpoint_callback import Checkpoints
moment, started = sys.argv.pop(1).split(), []
def start(arguments, output, environment):
    started.append(output.stem)
    return train_here(arguments, output, environment)
original = Checkpoints.on_train_batch_end
def kill(self, trainer, *arguments):
    original(self, trainer, *arguments)
    if [*started, str(trainer.global_step)] == moment:
        os.kill(os.getpid(), signal.SIGKILL)
Checkpoints.on_train_batch_end = kill
searching.trials.run_trials.__kwdefaults__["start"] = start
search.main(sys.argv[1:])
"""


def arguments(folder: Path, cars: Path) -> list[str]:
    settings = [
        "image_size=[32, 32]", "batch_size=8", "num_workers=0", "accelerator=cpu", "trackers=[]", "num_epochs=4",
        "architecture=shuff_v2_x05", "dropout=null", "out_channels=null", f"cache_path={cars.parent / 'cache'}",
    ]  # fmt: skip
    words = set_options(settings)
    return [str(folder / "s.yml"), "-d", str(cars), "--output", str(folder), *words]


def run(folder: Path, cars: Path, patch: pytest.MonkeyPatch, *more: str) -> Path:
    patch.setitem(run_trials.__kwdefaults__, "start", train_here)
    return search.main([*arguments(folder, cars), *more])


@pytest.fixture(scope="module")
def undisturbed(cars, tmp_path_factory) -> Path:
    """The folder of a finished search with a promoted trial."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write(folder)
    with pytest.MonkeyPatch.context() as patch:
        run(folder, cars, patch)
    return folder


def write(folder: Path) -> None:
    fixed = {"lr_scheduler_params.milestones": [3], "validation_fraction": 0.4, "near_duplicate_distance": None}
    keys = {"vary": {"optimizer_params.lr": RATES}, "set": fixed}
    write_space(folder / "s.yml", **keys, sampler="grid", metric="valid_loss", pruning={"factor": 2, "rungs": 1})


def trials_of(folder: Path) -> list[dict[str, str]]:
    rows = table(folder / "searches" / "s.csv")
    return [{key: value for key, value in row.items() if key not in ("seconds", "run")} for row in rows]


def run_of(folder: Path, number: int) -> Path:
    return folder / "searches" / table(folder / "searches" / "s.csv")[number]["run"]


def test_a_search_leaves_a_table_a_picture_a_summary_and_a_configuration(undisturbed, cars):
    folder = undisturbed / "searches"
    assert [row["state"] for row in trials_of(undisturbed)] == ["finished", "finished", "pruned", "pruned"]
    best = load_config(folder / "s-best.yml")
    assert best.optimizer_params["lr"] in RATES[:2] and best.num_epochs == 4 and best.image_size == [32, 32]
    text = (folder / "s.md").read_text()
    assert "2 finished, 2 pruned" in text and "on the 8 test images, which chose nothing: " in text
    assert "trial 0 against trial 1, optimizer_params.lr=0.01: " in text and "within chance" in text
    assert (folder / "s.png").read_bytes().startswith(b"\x89PNG")


def test_repeats_are_reported_and_survive_another_call(cars, tmp_path, monkeypatch):
    def accuracy(config: dict, epoch: int) -> float:
        return {0: 0.6, 1: 0.5, 2: 0.52}[config["seed"]] - config["optimizer_params"]["lr"]

    vary = {"optimizer_params.lr": [0.1, 0.2, 0.3, 0.4], "optimizer_params.weight_decay": [0.1, 0.2]}
    write_space(tmp_path / "s.yml", vary=vary, sampler="grid")
    trainings = Trainings(accuracy)
    monkeypatch.setitem(run_trials.__kwdefaults__, "start", trainings)
    report = search.main([*arguments(tmp_path, cars), "--confirm", "2"]).read_text()
    assert "best: trial 0, optimizer_params.lr=0.1, optimizer_params.weight_decay=0.1: top-1 accuracy 50.00 %" in report
    assert "importance (PED-ANOVA, 8 finished trials): optimizer_params.lr 100 %, optimizer_params.weight" in report
    assert "its top-1 accuracy, mean of 2 other seeds: 41.00 ± " in report and "there are no test images" in report
    assert "trial 0 against trial 2, optimizer_params.lr=0.2, optimizer_params.weight_decay=0.1: +10.00 ± " in report
    assert len(trainings.started) == 8 + 6
    for again in (["--confirm", "2", "--report"], ["--report"], []):
        assert search.main([*arguments(tmp_path, cars), *again]).read_text() == report
    assert len(trainings.started) == 8 + 6


def test_importance_is_that_of_reaching_the_best(cars, tmp_path, monkeypatch):
    def accuracy(config: dict, epoch: int) -> float:  # a high rate fails, and among the others weight decay decides
        params = config["optimizer_params"]
        return 0.001 * params["lr"] if params["lr"] > 0.8 else 0.5 + 0.4 * (1 - params["weight_decay"])

    vary = {
        "optimizer_params.lr": {"low": 0.0, "high": 1.0},
        "optimizer_params.weight_decay": {"low": 0.0, "high": 1.0},
    }
    write_space(tmp_path / "s.yml", vary=vary, sampler="random", budget={"trials": 60})
    monkeypatch.setitem(run_trials.__kwdefaults__, "start", Trainings(accuracy))
    report = search.main(arguments(tmp_path, cars)).read_text()
    (share,) = re.findall(r"importance .*optimizer_params\.weight_decay (\d+) %", report)
    assert int(share) > 80


def test_the_best_configuration_names_its_data_and_reordered_choices_are_another_search(cars, tmp_path, monkeypatch):
    vary = {"optimizer_params.weight_decay": [0.1, 0.2], "optimizer_params.lr": [0.1, 0.2]}
    write_space(tmp_path / "s.yml", vary=vary, sampler="grid")
    monkeypatch.setitem(
        run_trials.__kwdefaults__, "start", Trainings(lambda config, epoch: config["optimizer_params"]["lr"])
    )
    search.main(arguments(tmp_path, cars))
    assert load_config(tmp_path / "searches" / "s-best.yml").data_path == cars
    write_space(tmp_path / "s.yml", vary=vary | {"optimizer_params.weight_decay": [0.2, 0.1]}, sampler="grid")
    with pytest.raises(ConfigError, match="has a search of this name with another base, space, metric or data set"):
        search.main(arguments(tmp_path, cars))


def test_a_report_before_anything_ran_writes_nothing(cars, tmp_path):
    write(tmp_path)
    with pytest.raises(RunError, match="has no search yet; without --report the same command starts one"):
        search.main([*arguments(tmp_path, cars), "--report"])
    assert not (tmp_path / "searches").exists()


def test_a_promoted_trial_equals_one_that_was_never_pruned(undisturbed, tmp_path):
    file = undisturbed / "searches" / "queue" / "s-1.yml"
    config = yaml.safe_load(file.read_text()) | {"output_path": str(tmp_path)}
    (tmp_path / "straight.yml").write_text(yaml.safe_dump(config, sort_keys=False))
    train.main(["--config", str(tmp_path / "straight.yml")])
    (straight,) = tmp_path.glob("shuff_*")
    assert_same_run(straight, run_of(undisturbed, 1))


@pytest.mark.parametrize(
    "moment",
    ["s-0 s-0 s-1 4", "s-0 s-0 6"],  # trials that were started, and the step
    ids=["before the rung", "after a value was reported"],
)
def test_a_search_that_was_killed_in_a_training_ends_as_an_undisturbed_one(
    moment, undisturbed, cars, tmp_path, monkeypatch
):
    write(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(CONFIG_FILE.parent)}
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, moment, *arguments(tmp_path, cars)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    run(tmp_path, cars, monkeypatch)
    assert trials_of(tmp_path) == trials_of(undisturbed)
    for number in range(4):
        assert_same_run(run_of(tmp_path, number), run_of(undisturbed, number))
