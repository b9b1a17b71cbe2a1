"""Which trials a search makes, and what becomes of each; no training here."""

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from reproduction.comparison import margin_of_error
from searching.reading import read_space
from searching.results import Result, judge, ranked, read_trials, repeats_of
from searching.space import Space
from searching.study import PLACE, ROOT, Search
from searching.trials import run_trials
from tests.support.reproduction_runs import run_in_two_processes
from tests.support.search_runs import Trainings, write_space
from utils.errors import ConfigError, RunError
from utils.runs.lock import try_lock

VARY = {
    "optimizer_params.lr": {"low": 0.001, "high": 0.1, "log": True},
    "optimizer_params.weight_decay": {"low": 0.0, "high": 1.0},
}


def accuracy(config: dict, epoch: int) -> float:
    return round(0.5 - abs(config["optimizer_params"]["lr"] - 0.02) + 0.01 * epoch, 6)


def space_of(folder: Path, **keys) -> Space:
    return read_space(write_space(folder / "s.yml", **{"vary": VARY, "budget": {"trials": 8}, **keys}))


def search_of(folder: Path, storage=None, **keys) -> Search:
    return open_search(space_of(folder, **keys), folder, storage)


def open_search(space: Space, folder: Path, storage=None) -> Search:
    return Search(space, folder / "runs", data="0", storage=storage)


def test_an_interrupted_search_makes_the_trials_of_an_undisturbed_one(tmp_path):
    class Killed(Exception):
        pass

    class Disturbed(Trainings):
        def __call__(self, *arguments):
            if len(self.started) == 7:
                raise Killed
            return super().__call__(*arguments)

    def fail(config: dict) -> str:
        return "the loss is NaN" if config["optimizer_params"]["lr"] > 0.08 else ""

    found = []
    for name in ("whole", "parts"):
        folder, storage = tmp_path / name, optuna.storages.InMemoryStorage()
        folder.mkdir()
        search = search_of(folder, storage, budget={"trials": 14}, pruning={"factor": 2, "rungs": 2})
        if name == "parts":
            with pytest.raises(Killed):
                run_trials(search, [{}], start=Disturbed(accuracy, fail))
            search = open_search(search.space, folder, storage)
        trainings = Trainings(accuracy, fail)
        run_trials(search, [{}], start=trainings)
        found.append([(t.number, t.state, t.params, t.intermediate_values, t.values) for t in search.trials()])
        run_trials(search, [{}], start=Trainings(accuracy, fail=pytest.fail))  # nothing is left to do
    assert found[0] == found[1]
    results = read_trials(search)
    assert len(results) == 14 and len({str(result.values) for result in results}) == 14
    assert {result.state for result in results} == {"finished", "pruned", "failed"}
    failed = next(result for result in results if result.state == "failed")
    assert failed.reason.startswith("the loss is NaN; see ") and failed.values["optimizer_params.lr"] > 0.08
    best = ranked(search.space, results)[0]
    assert best.accuracy == best.objectives[0] == max(result.accuracy for result in results if result.accuracy)


def test_a_pruned_trial_that_later_ones_put_into_the_best_half_resumes_its_run(tmp_path):
    rates = [0.02, 0.03, 0.05, 0.09]  # each worse than the one before
    keys = {
        "vary": {"optimizer_params.lr": rates},
        "sampler": "grid",
        "budget": {},
        "pruning": {"factor": 2, "rungs": 1},
    }
    search = search_of(tmp_path, optuna.storages.InMemoryStorage(), **keys)
    trainings = Trainings(accuracy)
    run_trials(search, [{}], start=trainings)
    assert trainings.started == ["s-0", "s-0", "s-1", "s-2", "s-3", "s-1"]
    results = read_trials(search)
    assert [(result.state, result.epochs) for result in results] == [
        ("finished", 24), ("finished", 24), ("pruned", 12), ("pruned", 12)
    ]  # fmt: skip
    assert len(list((tmp_path / "runs").glob("ghost_*"))) == 4 and search.hours() == (24 + 24 + 12 + 12) * 10 / 3600


def test_a_trial_that_is_nan_is_not_promoted(tmp_path):
    keys = {"vary": {"optimizer_params.lr": [0.02, 0.03, 0.05, 0.09]}, "sampler": "grid", "budget": {}}
    search = search_of(tmp_path, optuna.storages.InMemoryStorage(), **keys, pruning={"factor": 2, "rungs": 1})

    def first_is_nan(config: dict, epoch: int) -> float:
        return math.nan if config["optimizer_params"]["lr"] == 0.02 else accuracy(config, epoch)

    trainings = Trainings(first_is_nan)
    run_trials(search, [{}], start=trainings)
    assert trainings.started == ["s-0", "s-1", "s-1", "s-2", "s-3"]
    assert [result.state for result in read_trials(search)] == ["pruned", "finished", "pruned", "pruned"]


def test_a_pruned_trial_that_waits_to_be_resumed_is_in_the_report(tmp_path):
    search = search_of(tmp_path, optuna.storages.InMemoryStorage(), pruning={"factor": 2, "rungs": 1})
    run_trials(search, [{}], start=Trainings(accuracy))
    results = read_trials(search)
    (pruned, *_) = search.trials(TrialState.PRUNED)
    search.study.enqueue_trial(pruned.params, user_attrs={ROOT: pruned.number})
    assert read_trials(search) == results


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise NotImplementedError("no locks here")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    with pytest.raises(RunError, match=r"search\.lock cannot be locked: no locks here; give another --output folder"):
        search_of(tmp_path, optuna.storages.InMemoryStorage())


def test_several_devices_train_at_once_and_each_sees_its_own(tmp_path):
    seen = []

    class Slow(Trainings):
        def __call__(self, arguments, output, environment):
            seen.append(environment["CUDA_VISIBLE_DEVICES"])
            return super().__call__(arguments, output, environment)

    search = search_of(tmp_path, optuna.storages.InMemoryStorage(), sampler="random", budget={"trials": 4})
    run_trials(search, [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "3"}], start=Slow(accuracy))
    assert seen == ["0", "3", "0", "3"] and len(read_trials(search)) == 4


def test_three_failures_in_a_row_end_the_search_and_another_space_of_this_name_is_refused(tmp_path):
    storage = optuna.storages.InMemoryStorage()
    search = search_of(tmp_path, storage)
    with pytest.raises(RunError, match="3 trials in a row failed, the last one: disk full; see "):
        run_trials(search, [{}], start=Trainings(accuracy, fail=lambda config: "disk full"))
    assert [result.state for result in read_trials(search)] == ["failed"] * 3
    with pytest.raises(ConfigError, match="with another base, space, metric or data set"):
        search_of(tmp_path, storage, set={"dropout": 0.5})
    assert search_of(tmp_path, storage, budget={"trials": 9}, seed=1).space.trials == 9


def test_the_budget_of_hours_ends_a_search(tmp_path):
    search = search_of(tmp_path, optuna.storages.InMemoryStorage(), budget={"hours": 0.15})
    run_trials(search, [{}], start=Trainings(accuracy))
    assert len(read_trials(search)) == 3  # of 240 seconds each


def test_repeats_decide_which_of_the_best_is_better_than_chance(tmp_path):
    space = space_of(tmp_path)
    values = {"optimizer_params.lr": 0.1, "optimizer_params.weight_decay": 0.1}
    best = [
        Result(number, "finished", values, (acc,), acc, valid_images=1000)
        for number, acc in ((4, 0.9), (2, 0.8), (7, 0.5))
    ]
    alone = judge(space, best, [])
    assert [each.trial.number for each in alone] == [4, 2, 7] and alone[0].accuracy.runs == 1
    assert alone[0].margin == pytest.approx(1.96 * (90 * 10 / 1000) ** 0.5, rel=1e-3)

    grid = repeats_of(space, best, 2)
    assert [(point["trial"], point["seed"]) for point in grid.points] == [
        (4, 1),
        (2, 1),
        (7, 1),
        (4, 2),
        (2, 2),
        (7, 2),
    ]
    apart = space_of(tmp_path, set={"validation_fraction": 0.2, "seed": 5})
    again = repeats_of(apart, best, 1)
    assert [(c.seed, c.split_seed) for c in (apart.config(values), again.config(again.points[0]))] == [(5, 5), (6, 5)]
    former = replace(best[0], number=1)  # its repeats may still be waiting from when it was one of the best
    assert repeats_of(space, best, 1, [former]).config({"trial": 1, "seed": 3}).seed == 3
    assert grid.config(grid.points[-1]).seed == 2 and grid.config(grid.points[0]).optimizer_params["lr"] == 0.1
    accuracies = {(4, 1): 0.70, (2, 1): 0.81, (7, 1): 0.52, (4, 2): 0.72, (2, 2): 0.79, (7, 2): 0.48}
    repeats = [
        Result(number, "finished", {"trial": trial, "seed": seed}, (acc,), acc, valid_images=1000)
        for number, ((trial, seed), acc) in enumerate(accuracies.items())
    ]
    judged = judge(space, best, repeats)
    assert [each.trial.number for each in judged] == [2, 4, 7]  # the winner of the search was lucky
    assert [each.accuracy.percent for each in judged] == pytest.approx([80, 71, 50])
    assert (
        judged[0].accuracy.spread.variance == pytest.approx((2 + 2 + 8) / 3) and judged[0].accuracy.spread.degrees == 3
    )
    assert judged[0].above(judged[1]).points == pytest.approx(9) and judged[0].above(judged[2]).is_significant
    assert judged[0].above(judged[1]).margin == margin_of_error(judged[0].accuracy, judged[1].accuracy)


def work(folder: Path, log: Path, barrier) -> None:
    """One of several processes that share a search."""

    class Logged(Trainings):
        def __call__(self, arguments, output, environment):
            with log.open("a") as file:
                file.write(f"{output.stem} {os.getpid()}\n")
            return super().__call__(arguments, output, environment)

    barrier.wait(60)
    run_trials(open_search(read_space(folder / "s.yml"), folder), [{}], start=Logged(accuracy))


@pytest.mark.slow
def test_processes_share_a_search_without_training_a_trial_twice(tmp_path):
    log = tmp_path / "log.txt"
    write_space(tmp_path / "s.yml", vary=VARY, budget={"trials": 10})
    ids = run_in_two_processes(work, tmp_path, log)
    lines = [line.split() for line in log.read_text().splitlines()]
    assert sorted(name for name, _ in lines) == sorted(f"s-{number}" for number in range(10))
    assert {pid for _, pid in lines} == ids
    results = read_trials(open_search(read_space(tmp_path / "s.yml"), tmp_path))
    assert len(results) == 10 and all(result.is_finished for result in results)
    assert len({json.dumps(result.values) for result in results}) == 10


def test_interrupted_trials_are_not_those_of_other_processes(tmp_path):
    class Killed(Exception):
        pass

    def killed(*_):
        raise Killed

    search = search_of(tmp_path, optuna.storages.InMemoryStorage())
    with pytest.raises(Killed):
        run_trials(search, [{}], start=killed)
    (trial,) = search.trials(TrialState.RUNNING)
    assert search.count_elsewhere() == 0
    lock = try_lock(search.queue / f"s-{trial.number}.lock")
    assert search.count_elsewhere() == 1
    lock.release()
    search.study._storage.set_trial_user_attr(trial._trial_id, PLACE, "another machine")
    assert search.count_elsewhere() == 1
