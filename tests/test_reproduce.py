"""Reproducing the study: which runs are the same, who does which, what counts as a difference, and what is written."""

import ast
import contextlib
import csv
import json
import math
import multiprocessing
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

import reproduce
from datamodules.annotations import BoundingBox, read_annotations
from reproduction import claims, running
from reproduction.batch_means import largest_difference, mean_of_batch_means
from reproduction.comparison import published_figures, published_spread
from reproduction.jobs import DataSet, Job, RunIndex, changes_of, digest_of_annotations, plan, read_data_set
from reproduction.noise import Figure, Spread, allowed_difference, pooled_spread
from reproduction.order import order_of
from reproduction.progress import Progress
from reproduction.published import (
    EXPERIMENTS,
    PUBLISHED,
    Group,
    choose_experiments,
    experiment_names,
    read_published,
    read_sections,
)
from reproduction.readme_table import BEGIN, END, MEASURED, README, table_text, update_table
from reproduction.results import read_measured, read_results
from reproduction.running import run_jobs
from reproduction.shortening import COUNTS
from tests.data_sets import write_updated_release
from utils.config import load_config
from utils.errors import ConfigError, Interrupted, RunError
from utils.expressions import parse_expression

PROJECT = Path(__file__).resolve().parents[1]
REFERENCE = PROJECT.parent / "shared" / "reference" / "experiments.csv"
DATA = DataSet("cars", "0123abcd")
SPAWN = multiprocessing.get_context("spawn")


def jobs_for(
    folder: Path, *names: str, overrides: tuple[str, ...] = (), repeat: int = 1, data: DataSet = DATA
) -> list[Job]:
    return plan(names, overrides=overrides, repeat=repeat, folder=folder, data=data)


def write_run(
    job: Job, *, acc: float = 0.5, status: str = "completed", epochs: int = 2, photos: tuple[int, int] = (20, 8)
) -> Path:
    """Writes the folder that train.py leaves behind, without training; returns it."""
    job.folder.mkdir(parents=True, exist_ok=True)
    folder = job.folder / f"ghost_{len(list(job.folder.iterdir()))}"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.ckpt").touch()
    config = load_config(EXPERIMENTS / f"{job.key.experiment}.yml", overrides=job.overrides)
    (folder / "config.yml").write_text(config.as_yaml())
    (folder / "speed.csv").write_text(
        "epoch,seconds,images_per_second\n" + "".join(f"{e},10.0,2.0\n" for e in range(epochs))
    )
    best = {"valid_acc": acc, "train_acc": 0.9, "valid_loss": 2.0, "train_loss": 1.0, "valid_top5_acc": 1.0}
    record = {
        "status": status, "tags": config.tags, "best": {f"best_{name}": value for name, value in best.items()},
        "train_photos": photos[0], "valid_photos": photos[1], "epochs": epochs, "seconds": 90.0,
        "parameters": {"num_params": 3_041_412}, "versions": {"torch": "2.11.0"}, "commit": "abc",
        "started": "2026-11-23T05:00:00+00:00",
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(record))
    return folder


class Ended:
    """In place of a process that has trained already."""

    def __init__(self, exitcode: int = 0) -> None:
        self.pid = os.getpid()
        self.exitcode = exitcode


class Sleeping:
    """In place of a process that trains for long: a real process that does nothing."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(60)"], stderr=subprocess.DEVNULL
        )
        self.pid = self.process.pid

    @property
    def exitcode(self) -> int | None:
        return self.process.poll()

    def join(self, timeout: float | None = None) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(None if timeout is None else min(timeout, 0.1))

    def terminate(self) -> None:
        self.process.terminate()


# --- The published side ------------------------------------------------------------------------------------------------


@pytest.mark.skipif(
    not REFERENCE.exists(), reason=f"the published record is not part of the project; expected at {REFERENCE}"
)
def test_the_published_figures_are_those_of_the_study():
    with REFERENCE.open(newline="") as file:
        reference = list(csv.DictReader(file))
    with PUBLISHED.open(newline="") as file:
        ours = list(csv.DictReader(file))
    assert [row["id"] for row in ours] == [row["id"] for row in reference] and len(ours) == 56
    for row, published in zip(ours, reference, strict=True):
        assert row.pop("description") == published["description"]
        del row["id"]
        assert {key: ast.literal_eval(text) for key, text in row.items()} == {
            key: ast.literal_eval(published[key]) for key in row
        }


def test_figures_belong_to_the_boxes_they_were_measured_with():
    published = read_published()
    assert len(published) == 56 and set(experiment_names()) - set(published) == {"C-10", "C-11"}
    assert published["C-10-published-boxes"].valid_acc_percent == 3.91
    assert published["C-50"].valid_acc_percent == 83.79 and published["C-50"].epochs == 130


def test_experiments_are_chosen_by_name():
    everything = choose_experiments(["all"])
    assert len(everything) == 58 and everything[:2] == ["C-1", "C-2"] and everything[-1] == "C-66"
    assert everything[9:11] == ["C-10", "C-10-published-boxes"]
    assert choose_experiments(["C-7", "C-1", "C-7"]) == ["C-7", "C-1"]
    with pytest.raises(
        ConfigError, match=r"C-10-publised-boxes: there is no such experiment. Did you mean 'C-10-published"
    ):
        choose_experiments(["C-1", "C-10-publised-boxes"])


def test_the_questions_are_about_experiments_that_exist():
    sections = read_sections()
    assert len(sections) == 10
    assert {name for section in sections for group in section.groups for name in group.experiments} <= set(
        experiment_names()
    )


# --- Which runs are the same -------------------------------------------------------------------------------------------

SAME = [
    ("num_workers=3",), ("trackers=[tensorboard]",), ("accelerator=cpu",), ("devices=[1]",), ("loglevel=DEBUG",),
    ("checkpoint_interval=1",), ("tags=[mine]",), ("stanford_data_path=elsewhere",), ("cache_path=null",),
    ("num_epochs=200",), ("optimizer_params={weight_decay: 0.6, lr: 0.001}",),
]  # fmt: skip
OTHER = [
    ("image_size=[64, 64]",), ("num_epochs=20",), ("optimizer_params.lr=0.01",), ("precision=64-true",), ("devices=2",),
    ("devices=[0, 1]",), ("early_stopping_patience=3",), ("width_multiplier=0.5",), ("seed=1",),
    ("image_augmentations={RandomAffine: {degrees: 25, translate: [0.1, 0.1], scale: [0.9, 1.1], shear: 8}, "
     "RandomHorizontalFlip: {p: 0.5}, ColorJitter: {brightness: 0.2, contrast: 0.2, saturation: 0.2, hue: 0.1}}",),
]  # fmt: skip


def test_what_does_not_shape_the_result_leaves_a_run_the_same_run(tmp_path):
    (plain,) = jobs_for(tmp_path, "C-50")
    for overrides in SAME:
        assert jobs_for(tmp_path, "C-50", overrides=overrides)[0].key == plain.key, overrides


def test_what_shapes_the_result_makes_another_run(tmp_path):
    (plain,) = jobs_for(tmp_path, "C-50")
    keys = {jobs_for(tmp_path, "C-50", overrides=overrides)[0].key for overrides in OTHER}
    assert plain.key not in keys and len(keys) == len(OTHER) - 1  # two devices are two, whichever
    assert jobs_for(tmp_path, "C-50", data=DataSet("cars", "ffffffff"))[0].key != plain.key
    assert jobs_for(tmp_path, "C-50", data=DataSet("renamed", DATA.digest))[0].key == plain.key


def test_each_seed_is_a_run_and_all_experiments_have_one_before_any_has_two(tmp_path):
    jobs = jobs_for(tmp_path, "C-7", "C-1", overrides=("seed=4",), repeat=2)
    assert [(job.key.experiment, job.key.seed) for job in jobs] == [("C-7", 4), ("C-1", 4), ("C-7", 5), ("C-1", 5)]
    assert load_config(EXPERIMENTS / "C-1.yml", overrides=jobs[3].overrides).seed == 5
    assert jobs[0].key.settings == jobs[2].key.settings != jobs[1].key.settings


@pytest.mark.parametrize(
    "override", ["devices=auto", "output_path=x", "experiment_id=x", "num_epochs=none", "num_epoch=3"]
)
def test_settings_that_cannot_be_are_refused_before_anything_runs(tmp_path, override):
    with pytest.raises(ConfigError, match=override.partition("=")[0]):
        jobs_for(tmp_path, "C-7", overrides=(override,))


def test_a_run_folder_tells_whose_run_it_is(tmp_path):
    jobs = jobs_for(tmp_path, "C-7", "C-10-published-boxes", overrides=("num_epochs=3", "tags=[mine]"), repeat=2)
    runs = {job.key: write_run(job) for job in jobs}
    assert RunIndex(tmp_path).runs() == {key: [run] for key, run in runs.items()}

    (foreign := tmp_path / "ghost_foreign").mkdir()
    (foreign / "run.json").write_text(json.dumps({"status": "completed", "tags": [], "experiment_id": "C-7"}))
    folder = runs[jobs[0].key]
    values = yaml.safe_load((folder / "config.yml").read_text())
    del values["width_multiplier"], values["channels_last"]  # as if it were older than these keys
    (folder / "config.yml").write_text(yaml.safe_dump(values | {"num_workers": 7}, sort_keys=False))
    assert RunIndex(tmp_path).runs() == {key: [run] for key, run in runs.items()}

    (folder / "config.yml").write_text("seed: [")  # damaged: it does not count, and the others do
    assert set(RunIndex(tmp_path).runs()) == set(runs) - {jobs[0].key}


def test_of_several_folders_of_a_run_the_one_that_ended_counts(tmp_path):
    (job,) = jobs_for(tmp_path, "C-7")
    without_checkpoint, broken_off = write_run(job, status="failed"), write_run(job, status="interrupted")
    (without_checkpoint / "checkpoints" / "last.ckpt").unlink()
    index = RunIndex(tmp_path)
    assert not index.ended(job.key) and index.broken_off(job.key) == broken_off
    ended = write_run(job)
    assert index.ended(job.key) and index.runs()[job.key][0] == ended
    measured, unfinished = read_results(tmp_path, ["C-7"])
    assert [run.run for run in measured] == [ended.name] and not unfinished


def test_changes_are_named_as_they_would_be_set(tmp_path):
    (job,) = jobs_for(tmp_path, "C-50", overrides=("optimizer_params.lr=0.01", "image_size=[64, 48]", "num_workers=1"))
    values = load_config(EXPERIMENTS / "C-50.yml", overrides=job.overrides).plain()
    assert changes_of(values, "C-50") == "image_size=[64, 48]; optimizer_params.lr=0.01"
    values["optimizer_params"] = {"lr": 0.001}
    assert changes_of(values, "C-50") == "image_size=[64, 48]; optimizer_params.weight_decay=removed"
    (job,) = jobs_for(tmp_path, "C-50")
    assert changes_of(load_config(EXPERIMENTS / "C-50.yml", overrides=job.overrides).plain(), "C-50") == ""


def test_a_shortened_study_has_schedules_that_are_as_much_faster(tmp_path):
    names = ("C-1", "C-27", "C-39", "C-50", "C-63")
    jobs = plan(names, overrides=(), repeat=1, folder=tmp_path, shorten=8, data=DATA)
    configs = {
        job.key.experiment: load_config(EXPERIMENTS / f"{job.key.experiment}.yml", overrides=job.overrides)
        for job in jobs
    }
    assert all(config.num_epochs == 25 for config in configs.values())
    assert configs["C-1"].early_stopping_patience == 2  # 15 / 8
    assert configs["C-27"].lr_scheduler_params == {"factor": 0.1, "patience": 1, "threshold": 0.001, "min_lr": 1e-7}
    assert configs["C-50"].lr_scheduler_params == {"gamma": 0.1, "milestones": [9, 11, 12, 14]}
    schedule = parse_expression(configs["C-63"].lr_scheduler_params["lr_lambda"])
    assert schedule(3) == parse_expression(load_config(EXPERIMENTS / "C-63.yml").lr_scheduler_params["lr_lambda"])(24)
    for name, config in configs.items():
        assert config.tags == ["shortened 8", DATA.tag]
        assert changes_of(config.plain(), name) == "counts of epochs / 8"


def test_every_count_of_epochs_in_the_study_is_shortened():
    schedules = [load_config(EXPERIMENTS / f"{name}.yml").lr_scheduler_params or {} for name in experiment_names()]
    assert {key for params in schedules for key in params} == {
        *COUNTS,
        "lr_lambda",
        "gamma",
        "factor",
        "threshold",
        "min_lr",
    }


def test_a_data_set_is_known_by_its_annotations_wherever_it_lies(tmp_path):
    for name in ("one", "two"):
        write_updated_release(tmp_path / name)
    write_updated_release(tmp_path / "other", seed=1)
    config = load_config(overrides=[f"stanford_data_path={tmp_path / 'one'}"])
    digests = {name: digest_of_annotations(read_annotations(tmp_path / name)) for name in ("one", "two", "other")}
    assert read_data_set(config) == DataSet("one", digests["one"])
    assert digests["one"] == digests["two"] != digests["other"]

    annotations = read_annotations(tmp_path / "one")
    first, *rest = annotations.train
    changed = [
        replace(annotations, train=(replace(first, label=2 - first.label), *rest)),
        replace(annotations, train=(replace(first, bounding_box=BoundingBox(0, 0, 1, 1)), *rest)),
        replace(annotations, train=(replace(first, image_path=Path("999999.jpg")), *rest)),
        replace(annotations, train=(*rest, first)),
        replace(annotations, train=tuple(rest), valid=(first, *annotations.valid)),
        replace(annotations, class_names=annotations.class_names[::-1]),
    ]
    assert len({digest_of_annotations(each) for each in changed} | {digests["one"]}) == 7


# --- Running the list --------------------------------------------------------------------------------------------------


def test_a_list_skips_what_is_finished_resumes_what_was_broken_off_and_goes_on_past_a_failure(tmp_path):
    jobs = jobs_for(tmp_path, "C-1", "C-2", "C-3", "C-7", overrides=("num_workers=1", "num_epochs=5"))
    write_run(jobs[0])
    broken_off = write_run(jobs[2], status="interrupted")
    started = []

    def start(job: Job, output: Path) -> Ended:
        run = RunIndex(tmp_path).broken_off(job.key)
        started.append((job.key.experiment, job.arguments(run)))
        if job.key.experiment == "C-2":
            output.write_text("run …\nerror: photo 7 cannot be decoded\nwarning: to go on …\n")
            return Ended(exitcode=2)
        write_run(job)
        return Ended()

    unfinished = run_jobs(jobs, tmp_path, start=start)
    assert [name for name, _ in started] == ["C-2", "C-3", "C-7"]
    assert list(unfinished.failed) == [jobs[1].key] and not unfinished.elsewhere
    assert unfinished.failed[jobs[1].key].startswith("photo 7 cannot be decoded; see ")
    assert started[1][1] == ["--resume", str(broken_off), "--set", "devices=1", "--set", "num_workers=1"]
    fresh = started[2][1]
    assert fresh[:2] == ["--config", str(EXPERIMENTS / "C-7.yml")] and "num_epochs=5" in fresh and "seed=0" in fresh
    assert f"output_path={json.dumps(str(tmp_path))}" in fresh and f'tags=["{DATA.tag}"]' in fresh

    started.clear()
    run_jobs(jobs, tmp_path, start=start)
    assert [name for name, _ in started] == ["C-2"]  # the same command tries it again


def test_the_reason_of_a_failure_is_one_line(tmp_path):
    from reproduction.training import reason

    output = tmp_path / "output.txt"
    output.write_text("Traceback …\n  File …\nValueError: too large\n\n")
    assert reason(1, output) == "ValueError: too large"
    assert reason(-9, output) == "ended by SIGKILL, perhaps for want of memory"
    assert reason(3, tmp_path / "missing") == "exit code 3"


def test_what_just_failed_elsewhere_is_not_tried_again_here(tmp_path):
    job, other = jobs_for(tmp_path, "C-1", "C-2")
    tried = []

    def start(job: Job, output: Path) -> Ended:
        tried.append(job.key.experiment)
        claims.take(tmp_path / running.QUEUE, other.key).release("failed")  # meanwhile
        write_run(job)
        return Ended()

    unfinished = run_jobs([job, other], tmp_path, start=start)
    assert tried == ["C-1"] and "failed on" in unfinished.failed[other.key]


def test_what_was_finished_between_two_looks_is_not_trained_again(tmp_path, monkeypatch):
    (job,) = jobs_for(tmp_path, "C-1")

    def take_late(folder: Path, key: object) -> claims.Claim | None:
        write_run(job)  # by somebody who gives the job back just now
        return claims.take(folder, key)

    monkeypatch.setattr(running, "take", take_late)
    assert run_jobs([job], tmp_path, start=None) == running.Unfinished()  # it could not start anything
    assert claims.holder(tmp_path / running.QUEUE, job.key) is None


def test_a_signal_is_passed_on_to_the_training_and_ends_the_list(tmp_path, monkeypatch):
    jobs = jobs_for(tmp_path, "C-1", "C-2")
    processes = []
    start = lambda job, output: processes.append(Sleeping()) or processes[-1]  # noqa: E731
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    with pytest.raises(Interrupted, match="give the same command again") as caught:
        run_jobs(jobs, tmp_path, start=start)
    assert caught.value.exit_code == 128 + signal.SIGTERM
    assert [process.exitcode for process in processes] == [-signal.SIGTERM]
    assert claims.holder(tmp_path / running.QUEUE, jobs[0].key) is None
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_training_that_somebody_else_took_over_is_ended_here(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "BEAT", 0)
    (job,) = jobs_for(tmp_path, "C-1")
    queue = tmp_path / running.QUEUE
    processes = []

    def start(job: Job, output: Path) -> Sleeping:
        other = {"host": "other", "pid": 1, "birth": None, "outcome": None}
        (queue / f"{job.key}.claim-2").write_text(json.dumps(other))  # it had been silent for long
        processes.append(Sleeping())
        return processes[0]

    unfinished = run_jobs([job], tmp_path, start=start)
    assert processes[0].exitcode == -signal.SIGTERM and not unfinished.failed
    assert unfinished.elsewhere == {job.key: "other, process 1"}


def test_time_left_is_that_of_the_epochs_that_are_left(tmp_path):
    jobs = jobs_for(
        tmp_path, "C-1", "C-2", "C-7", "C-10", overrides=("num_epochs=100",)
    )  # published: 26, 27, 129, none
    write_run(jobs[0], epochs=20)  # finished earlier than expected; 10 s an epoch
    write_run(jobs[1], epochs=7, status="running")
    progress = Progress(jobs, RunIndex(tmp_path))
    assert list(progress.expected.values()) == [26, 27, 100, 100]
    assert list(progress.done.values()) == [26, 7, 0, 0]
    assert progress.seconds_left(workers=2) == (20 + 100 + 100) * 10 / 2
    progress.bar.close()
    empty = Progress(jobs[2:], RunIndex(tmp_path))
    assert empty.seconds_left(workers=1) is None
    empty.bar.close()


# --- Sharing the list --------------------------------------------------------------------------------------------------


def work(folder: Path, log: Path, barrier) -> None:
    """A process among several that share a list; each of its trainings writes one line."""

    def start(job: Job, output: Path) -> Ended:
        with log.open("a") as file:
            file.write(f"{job.key} {os.getpid()}\n")
        time.sleep(0.02)
        write_run(job)
        return Ended()

    jobs = jobs_for(folder, "C-1", "C-2", "C-3", "C-4", "C-7", repeat=3)
    barrier.wait(60)
    unfinished = run_jobs(jobs, folder, start=start)
    assert not unfinished.failed


def test_processes_share_a_list_without_doing_a_run_twice(tmp_path):
    barrier, log = SPAWN.Barrier(2), tmp_path / "log.txt"
    folder = tmp_path / "runs"
    processes = [SPAWN.Process(target=work, args=(folder, log, barrier)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    lines = [line.split() for line in log.read_text().splitlines()]
    expected = [str(job.key) for job in jobs_for(folder, "C-1", "C-2", "C-3", "C-4", "C-7", repeat=3)]
    assert sorted(key for key, _ in lines) == sorted(expected)
    assert {pid for _, pid in lines} == {str(process.pid) for process in processes}
    assert all(RunIndex(folder).ended(job.key) for job in jobs_for(folder, "C-1", "C-2", "C-3", "C-4", "C-7", repeat=3))


def abandon(folder: Path, *, host: str | None = None, age: float = 0, **values: object) -> Path:
    """Writes a claim as a process leaves it that was killed."""
    claim = claims.take(folder, "job")
    process = subprocess.Popen([sys.executable, "-c", ""])
    birth = claims._birth(process.pid)
    process.wait()
    known = {"host": host or claim.values["host"], "pid": process.pid, "birth": birth, "outcome": None}
    claim.path.write_text(json.dumps(known | values))
    os.utime(claim.path, (time.time() - age,) * 2)
    return claim.path


def test_a_claim_is_held_until_it_is_given_back(tmp_path):
    claim = claims.take(tmp_path, "job")
    assert claims.take(tmp_path, "job") is None and claims.take(tmp_path, "job-2") is not None
    assert claims.holder(tmp_path, "job").endswith(f"process {os.getpid()}")
    claim.release("finished")
    assert claims.holder(tmp_path, "job") is None
    again = claims.take(tmp_path, "job")
    assert again.path.name == "job.claim-2" and claims.take(tmp_path, "job") is None


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only Linux tells when a process started")
def test_a_dead_process_of_this_machine_is_found_out_at_once(tmp_path):
    abandon(tmp_path)
    assert claims.take(tmp_path, "job") is not None
    # Its number belongs to another process by now.
    reused = {"pid": os.getpid(), "birth": "1"}
    abandon(tmp_path / "b", **reused)
    assert claims.take(tmp_path / "b", "job") is not None


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only Linux tells when a process started")
def test_a_claim_holds_while_its_training_lives(tmp_path):
    worker = Sleeping()
    abandon(tmp_path, age=2 * claims.SILENCE, worker=worker.pid, worker_birth=claims._birth(worker.pid))
    assert claims.take(tmp_path, "job") is None
    worker.terminate()
    worker.process.wait()
    assert claims.take(tmp_path, "job") is not None


def test_a_claim_of_another_machine_holds_until_it_has_been_silent_for_long(tmp_path):
    path = abandon(tmp_path, host="other", age=claims.SILENCE - 30)
    assert claims.take(tmp_path, "job") is None
    os.utime(path, (time.time() - claims.SILENCE - 30,) * 2)
    assert claims.take(tmp_path, "job") is not None

    half = tmp_path / "half.claim-1"  # made, and not yet written
    half.touch()
    assert claims.take(tmp_path, "half") is None and claims.holder(tmp_path, "half") == "somebody"
    os.utime(half, (time.time() - claims.SILENCE - 30,) * 2)
    assert claims.take(tmp_path, "half") is not None


def test_of_all_who_find_a_claim_abandoned_one_gets_it(tmp_path):
    for number in range(20):
        folder = tmp_path / str(number)
        abandon_path = folder / "job.claim-1"
        folder.mkdir()
        abandon_path.write_text(json.dumps({"host": "other", "pid": 1, "birth": None, "outcome": "failed"}))
        barrier, taken = threading.Barrier(8), []

        def try_it(folder=folder, barrier=barrier, taken=taken) -> None:
            barrier.wait()
            taken.append(claims.take(folder, "job"))

        threads = [threading.Thread(target=try_it) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(claim is not None for claim in taken) == 1


def test_who_was_only_suspended_notices_that_the_job_is_gone(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "BEAT", 0)
    claim = claims.take(tmp_path, "job")
    os.utime(claim.path, (0, 0))
    assert claim.beat() and claim.path.stat().st_mtime > time.time() - 60  # a sign of life
    (tmp_path / "job.claim-2").touch()
    assert not claim.beat()
    claim.release("interrupted")
    assert claims._last(tmp_path, "job").name == "job.claim-2"  # giving the old one back changes nothing
    claim.path.unlink()
    assert not claim.beat()


def orphan(path: Path) -> None:
    from reproduction.training import _end_with_parent

    threading.Thread(target=_end_with_parent, daemon=True).start()
    path.write_text(str(os.getpid()))
    time.sleep(60)


def parent_of_orphan(path: Path) -> None:
    process = SPAWN.Process(target=orphan, args=(path,))
    process.start()
    process.join()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only Linux tells when a process started")
@pytest.mark.slow
def test_a_training_ends_with_the_process_that_started_it(tmp_path):
    path = tmp_path / "pid"
    parent = SPAWN.Process(target=parent_of_orphan, args=(path,))
    parent.start()
    deadline = time.monotonic() + 60
    while not (path.exists() and path.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    pid = int(path.read_text())
    assert claims._birth(pid) is not None
    parent.kill()
    parent.join()
    while claims._birth(pid) is not None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert claims._birth(pid) is None


# --- What counts as a difference ---------------------------------------------------------------------------------------


def test_the_allowed_difference_is_the_stated_formula():
    from scipy.stats import t  # which the processes below, that import this file, do without

    spread = Spread(variance=0.49, degrees=3)
    first, second = Figure(82.5, 8041, 1, spread), Figure(83.8, 8041, 2, spread)
    binomial = 82.5 * 17.5 / 8041 + 83.8 * 16.2 / 8041
    seeds = 0.49 / 1 + 0.49 / 2
    degrees = (binomial + seeds) ** 2 / (seeds**2 / 3)
    expected = t.ppf(0.975, degrees) * math.sqrt(binomial + seeds)
    assert allowed_difference(first, second) == pytest.approx(expected, rel=1e-12)
    assert allowed_difference(first, second) > 1.3  # one run each cannot tell them apart

    other = Spread(variance=0.25, degrees=7)
    two = allowed_difference(first, replace(second, spread=other))
    seeds = [0.49, 0.125]
    degrees = (binomial + sum(seeds)) ** 2 / (seeds[0] ** 2 / 3 + seeds[1] ** 2 / 7)
    assert two == pytest.approx(t.ppf(0.975, degrees) * math.sqrt(binomial + sum(seeds)), rel=1e-12)

    none = Spread(variance=0.0, degrees=1)
    alone = allowed_difference(Figure(80.0, 8041, 1, none))
    assert alone == pytest.approx(1.959964 * 100 * math.sqrt(0.8 * 0.2 / 8041), rel=1e-6)
    assert allowed_difference(Figure(0.0, 10, 1, none), Figure(100.0, 10, 1, none)) == 0


def test_more_seeds_narrow_the_difference_down_to_that_of_the_photos():
    spread = Spread(1.0, 20)
    widths = [allowed_difference(*[Figure(80.0, 8041, runs, spread)] * 2) for runs in (1, 2, 4, 10**6)]
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] == pytest.approx(1.959964 * math.sqrt(2 * 80 * 20 / 8041), rel=1e-3)


def test_spreads():
    assert pooled_spread([[80.0], [70.0]]) is None
    spread = pooled_spread([[80.0, 82.0], [70.0], [60.0, 61.0, 65.0]])
    assert spread == Spread(pytest.approx((1 * 2.0 + 2 * 7.0) / 3), 3)
    assert published_spread(read_published()) == Spread(statistics.variance([74.6, 76.2, 75.14, 74.82]), 3)


def test_a_true_difference_is_seldom_missed_and_chance_seldom_taken_for_one():
    """Draws photos and seeds: at 95 %, at most one in twenty equal experiments may seem different."""
    generator, false, found = random.Random(0), 0, 0
    for _ in range(400):
        groups = []
        for true in (80.0, 80.0, 90.0):
            percent = generator.gauss(true, 100 * math.sqrt(0.8 * 0.2 / 1372))  # of these photos
            groups.append([generator.gauss(percent, 0.7) for _ in range(3)])
        spread = pooled_spread(groups)
        a, b, c = (Figure(statistics.mean(group), 1372, 3, spread) for group in groups)
        false += abs(a.percent - b.percent) > allowed_difference(a, b)
        found += abs(a.percent - c.percent) > allowed_difference(a, c)
    assert 4 <= false <= 32 and found == 400


def figures(**percents: float) -> dict[str, Figure]:
    return {name: Figure(percent, 8041, 3, Spread(0.25, 10)) for name, percent in percents.items()}


def test_only_what_is_inverted_beyond_chance_is_called_inverted():
    group = Group("g", ("a", "b", "c"))
    published = figures(a=60.0, b=70.0, c=70.5)

    same = order_of(group, published, figures(a=40.0, b=55.0, c=58.0))
    assert (same.tau, len(same.inverted)) == (1.0, 0)
    assert same.verdict == "same order; 2 of the 2 published differences beyond chance confirmed"

    within = order_of(group, published, figures(a=40.0, b=55.0, c=54.9))
    assert within.tau == pytest.approx(1 / 3) and not within.inverted
    assert within.verdict.startswith("same order within chance, 1 of 3 pairs otherwise; 2 of the 2")

    far = order_of(group, published, figures(a=40.0, b=55.0, c=45.0))  # but the published difference is chance
    assert not far.inverted and far.pairs[2].measured_counts and not far.pairs[2].published_counts

    inverted = order_of(group, published, figures(a=60.0, b=55.0, c=66.0))
    assert [(pair.first, pair.second) for pair in inverted.inverted] == [("a", "b")]
    assert inverted.verdict == "inverted: a and b"

    tie = order_of(group, published, figures(a=50.0, b=50.0))
    assert tie.tau == 0 and tie.measured == 2 and tie.verdict.startswith("same order within chance, 1 of 1 pairs")


def test_an_order_that_was_not_published_or_not_measured_is_not_judged():
    published = published_figures(read_published())
    right_boxes = next(section for section in read_sections() if section.name == "boxes").groups[1]
    measured = {name: Figure(50.0, 1372, 1, Spread(0.25, 10)) for name in right_boxes.experiments}
    assert order_of(right_boxes, published, measured).verdict == "no order was published"
    assert order_of(Group("g", ("C-1", "C-2")), published, {}).verdict == "not enough was measured"


def test_the_mean_of_batch_means_and_how_far_it_can_be_from_the_mean_over_images():
    correct = [True] * 3 + [False] + [True]
    assert mean_of_batch_means(correct, 4) == (0.75 + 1.0) / 2
    assert mean_of_batch_means(correct, 5) == mean_of_batch_means(correct, 8) == 0.8
    assert (
        100 * largest_difference(8041, 64)
        == pytest.approx(100 * (1 / 126 - 41 / 8041))
        == pytest.approx(0.28376, abs=1e-5)
    )
    assert largest_difference(8000, 64) == largest_difference(64, 64) == largest_difference(9, 64) == 0
    generator = random.Random(0)
    for images, batch_size in ((8041, 64), (1372, 64), (10, 3)):
        bound = largest_difference(images, batch_size)
        last = images % batch_size
        extreme = [False] * (images - last) + [True] * last  # all right in the last batch, all wrong in the others
        assert mean_of_batch_means(extreme, batch_size) - last / images == pytest.approx(bound, rel=1e-9)
        for _ in range(20):
            drawn = [generator.random() < 0.8 for _ in range(images)]
            assert abs(mean_of_batch_means(drawn, batch_size) - sum(drawn) / images) <= bound + 1e-12


# --- What is written ---------------------------------------------------------------------------------------------------


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Runs of two seeds on other photos, of one on as many as the published, and one that is not finished."""
    folder = tmp_path / "output" / "reproduction"
    for job, acc in zip(
        jobs_for(folder, "C-3", "C-7", "C-10", repeat=2), (0.10, 0.50, 0.55, 0.11, 0.52, 0.56), strict=True
    ):
        run = write_run(job, acc=acc, photos=(5792, 1372), epochs=100 + job.key.seed)
        facts = {"device": "A GPU", "checkpoint_acc": 0.5, "checkpoint_acc_over_batches": 0.501}
        (run / "reproduction.json").write_text(json.dumps(facts))
    published = DataSet("stanford", "ffffffff")
    for job, acc in zip(jobs_for(folder, "C-7", "C-14", data=published), (0.5428, 0.9), strict=True):
        write_run(job, acc=acc, photos=(8144, 8041))
    write_run(jobs_for(folder, "C-1")[0], status="interrupted", photos=(5792, 1372))
    return tmp_path / "output"


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_comparison_of_what_is_there(output, capsys):
    from matplotlib.image import imread

    comparisons = reproduce.main(["--report", "--output", str(output)])
    assert [str(each.condition) for each in comparisons] == [
        "cars, 5,792 / 1,372; settings as published", "stanford, 8,144 / 8,041; settings as published"
    ]  # fmt: skip
    folder = output / "reproduction"
    rows = {(row["data"], row["experiment"]): row for row in table(folder / "comparison.csv")}
    assert list(rows) == [("cars", "C-3"), ("cars", "C-7"), ("cars", "C-10"), ("stanford", "C-7"), ("stanford", "C-14")]

    row = rows["cars", "C-7"]
    assert (row["published_percent"], row["measured_percent"], row["runs"], row["epochs"]) == (
        "54.28",
        "51.0",
        "2",
        "100.5",
    )
    assert float(row["deviation"]) == pytest.approx(math.sqrt(2), abs=1e-4)
    assert (row["same_task"], row["beyond_chance"], row["allowed_difference"]) == ("no", "", "")
    spread = Spread((0.5 + 2.0 + 0.5) / 3, 3)
    assert float(row["chance"]) == pytest.approx(allowed_difference(Figure(51.0, 1372, 2, spread)), abs=1e-4)
    assert rows["cars", "C-10"]["published_percent"] == rows["cars", "C-10"]["difference"] == ""

    same = rows["stanford", "C-7"]
    assert (same["same_task"], same["difference"], same["beyond_chance"]) == ("yes", "0.0", "no")
    far = rows["stanford", "C-14"]
    assert (far["difference"], far["beyond_chance"]) == ("21.5", "yes")

    pairs = {(row["data"], row["section"], row["first"], row["second"]): row for row in table(folder / "pairs.csv")}
    pair = pairs["cars", "augmentation", "C-3", "C-7"]
    assert (pair["published_difference"], pair["measured_difference"]) == ("42.32", "40.5")
    assert (pair["measured_beyond_chance"], pair["inverted"]) == ("yes", "no")
    assert ("cars", "boxes", "C-7", "C-10") not in pairs  # it has no published counterpart

    text = (folder / "comparison.md").read_text()
    assert "| 54.28 | 51.00 ± 1.41 |" in text and "| (-3.28) |" in text and "cars, 5,792 / 1,372: another task" in text
    assert "| +21.50 \\* |" in text and "**Not the published task**" in text
    assert (
        "| C-7 | 1 | cars, 5,792 / 1,372 | 50.00 | 50.10 | +0.100 | 2.50 |" in text
        and "at most 0.28 percent points" in text
    )
    printed = capsys.readouterr().out
    assert "not finished: C-1 with seed 0: interrupted" in printed and "(-3.28)" in printed
    picture = imread(folder / "comparison.png")
    assert picture.shape[1] == 1650 and picture.shape[0] > 600
    colours = {tuple(int(255 * part) for part in pixel[:3]) for row in picture[::2] for pixel in row[::2]}
    assert {(27, 108, 168), (209, 73, 91)} <= {tuple(round(part) for part in colour) for colour in colours}


def test_a_report_of_some_experiments_has_only_those(output):
    reproduce.main(["C-3", "--report", "--output", str(output)])
    assert [row["experiment"] for row in table(output / "reproduction" / "comparison.csv")] == ["C-3"]


def test_without_any_run_there_is_nothing_to_compare(tmp_path, capsys):
    assert reproduce.main(["--report", "--output", str(tmp_path)]) == []
    assert "no run in" in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_the_table_keeps_every_run_once(output, tmp_path):
    measured, readme = tmp_path / "measured.csv", tmp_path / "README.md"
    readme.write_text(f"# Before\n\n{BEGIN}\nold\n{END}\n\nAfter\n")
    new, _ = read_results(output / "reproduction", experiment_names())
    assert update_table(new, measured=measured, readme=readme) == len(new) == 8
    assert read_measured(measured) == new

    again = [replace(new[0], valid_acc_percent=12.5), replace(new[1], seed=9, run="ghost_new")]
    assert update_table(again, measured=measured, readme=readme) == 9
    rows = read_measured(measured)
    assert again[0] in rows and again[1] in rows and new[0] not in rows and new[1] in rows

    text = readme.read_text()
    assert (
        text.startswith(f"# Before\n\n{BEGIN}\n\n| id |") and text.endswith(f"{END}\n\nAfter\n") and "old" not in text
    )
    lines = {line.split("]")[0][3:]: line for line in text.splitlines() if line.startswith("| [C-")}
    assert len(lines) == 58
    assert lines["C-14"].endswith("| 98.84 | 68.50 | 134 | 4,153,092 | 90.00 | 1 | stanford (2) |")
    assert lines["C-7"].endswith("| 51.00 ± 1.41<br>54.28 | 2<br>1 | cars (1)<br>stanford (2) |")
    assert lines["C-10"].endswith("; right boxes | – | – | – | – | 55.50 ± 0.71 | 2 | cars (1) |")
    assert lines["C-66"].endswith("| 90 | 4,153,092 |  |  |  |") or lines["C-66"].endswith("|  |  |  |")
    assert "(1) cars, 5,792 / 1,372; settings as published. Not the published task" in text and "A GPU; 32-true" in text


def test_the_table_in_the_repository_is_the_one_that_the_command_writes():
    text = README.read_text(encoding="utf-8")
    written = re.search(f"{re.escape(BEGIN)}\n\n(.*)\n{re.escape(END)}", text, re.DOTALL)[1]
    assert written == table_text(read_measured(MEASURED))


def test_a_table_that_cannot_be_changed_is_named(output, tmp_path):
    measured, readme = tmp_path / "measured.csv", tmp_path / "README.md"
    readme.write_text("no place")
    with pytest.raises(ConfigError, match="has no place for the table"):
        update_table([], measured=measured, readme=readme)
    measured.write_text("experiment,seed\nC-1,none\n")
    with pytest.raises(ConfigError, match="is not what this command wrote"):
        update_table([], measured=measured, readme=readme)


# --- The command -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name the experiments"),
        (["C-1", "--repeat", "0"], "--repeat 0: expected at least 1"),
        (["C-1", "--shorten", "0"], "--shorten 0: expected at least 1"),
        (["--report", "--shorten", "2"], "--report runs nothing"),
        (["--report", "--set", "num_epochs=1"], "--report runs nothing"),
        (["--table", "-d", "x"], "--table runs nothing"),
        (["C-1", "--set", "num_epohs=1"], "C-1: .*(\n|.)*Did you mean 'num_epochs'"),
    ],
)
def test_wrong_arguments_are_answered_before_anything_is_read(arguments, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        reproduce.main([*arguments, "--output", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_failed_runs_are_named_at_the_end_and_the_rest_is_compared(tmp_path, monkeypatch, capsys):
    write_updated_release(tmp_path / "cars")

    def start(job: Job, output: Path) -> Ended:
        if job.key.experiment == "C-2":
            output.write_text("error: no room\n")
            return Ended(exitcode=1)
        write_run(job)
        return Ended()

    monkeypatch.setattr(reproduce, "run_jobs", lambda jobs, folder: run_jobs(jobs, folder, start=start))
    with pytest.raises(RunError, match=r"(?s)runs that failed: 1; .*C-2 with seed 0: no room; see ") as caught:
        reproduce.main(["C-1", "C-2", "C-3", "-d", str(tmp_path / "cars"), "--output", str(tmp_path / "output")])
    assert caught.value.exit_code == 1
    compared = table(tmp_path / "output" / "reproduction" / "comparison.csv")
    assert [row["experiment"] for row in compared] == ["C-1", "C-3"]


@pytest.mark.slow
def test_the_command_trains_two_experiments_and_does_nothing_the_second_time(tmp_path, capsys):
    cars, output = tmp_path / "cars", tmp_path / "output"
    write_updated_release(cars, train_per_class=4, valid_per_class=3, image_sizes=[(40, 32), (32, 40)])
    changes = ["image_size=[32, 32]", "batch_size=4", "num_epochs=1", "num_workers=0", "accelerator=cpu", "trackers=[]",
               "cache_path=null"]  # fmt: skip
    command = [
        "C-1",
        "C-12",
        "-d",
        str(cars),
        "--output",
        str(output),
        *(w for change in changes for w in ("--set", change)),
    ]
    (comparison,) = reproduce.main(command)

    folder = output / "reproduction"
    runs = {json.loads(path.read_text())["experiment_id"]: path.parent for path in folder.glob("*/run.json")}
    assert set(runs) == {"C-1", "C-12"} and all((run / "checkpoints" / "best.ckpt").is_file() for run in runs.values())
    assert str(comparison.condition) == "cars, 12 / 9; batch_size=4; image_size=[32, 32]; num_epochs=1"
    for row in table(folder / "comparison.csv"):
        run = runs[row["experiment"]]
        record, facts = (json.loads((run / name).read_text()) for name in ("run.json", "reproduction.json"))
        assert record["parameters"]["grayscale"] == (row["experiment"] == "C-12")
        assert float(row["measured_percent"]) == round(100 * record["best"]["best_valid_acc"], 4)
        # One epoch: the best checkpoint is of it. Batches of 4, 4 and 1 photos.
        assert facts["checkpoint_acc"] == record["best"]["best_valid_acc"]
        in_batches = {(a / 4 + b / 4 + c) / 3 for a in range(5) for b in range(5) for c in (0, 1)
                      if a + b + c == round(9 * facts["checkpoint_acc"])}  # fmt: skip
        assert any(facts["checkpoint_acc_over_batches"] == pytest.approx(each) for each in in_batches)
        assert facts["device"] and row["device"] == facts["device"]

    before = {path: path.stat().st_mtime_ns for run in runs.values() for path in run.rglob("*")}
    capsys.readouterr()
    reproduce.main(command)
    assert "2 of 2 runs are finished already" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for run in folder.glob("ghost_*") for path in run.rglob("*")} == before
