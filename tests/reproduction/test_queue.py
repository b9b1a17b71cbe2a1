"""One process works through a list of trainings, or several share it."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from filelock import FileLock

from reproduction.planning import Job, RunIndex
from reproduction.published import EXPERIMENTS
from reproduction.queue import QUEUE, Progress, failure_reason, run_jobs, start_process
from tests.support.reproduction_runs import DATA, Ended, jobs_for, run_in_two_processes, write_facts, write_run
from utils.errors import Interrupted, RunError
from utils.runs.lock import hold


class Trainings:
    """In place of `start_process`: writes at once what a training or an evaluation leaves behind."""

    def __init__(self, jobs: list[Job], fail: str = "") -> None:
        self.jobs = jobs
        self.fail = fail
        self.started: list[tuple[str, list[str]]] = []

    def __call__(self, arguments: list[str], output: Path) -> Ended:
        if arguments[0] == "-m":
            write_facts(Path(arguments[-1]))
            return Ended()
        (job,) = (job for job in self.jobs if str(job.key) == output.stem)
        self.started.append((job.key.experiment, arguments[1:]))
        if job.key.experiment == self.fail:
            output.write_text("run …\nerror: image 7 cannot be decoded\nwarning: …\n")
            return Ended(2)
        write_run(job)
        return Ended()


def test_a_list_skips_finished_runs_resumes_interrupted_ones_and_survives_a_failure(tmp_path):
    jobs = jobs_for(tmp_path, "C-1", "C-2", "C-3", "C-7", overrides=("table_params.label=car", "num_epochs=5"))
    write_facts(write_run(jobs[0]))
    interrupted = write_run(jobs[2], status="interrupted")
    trainings = Trainings(jobs, fail="C-2")
    unfinished = run_jobs(jobs, tmp_path, start=trainings)
    assert [name for name, _ in trainings.started] == ["C-2", "C-3", "C-7"]
    assert list(unfinished.failed) == [jobs[1].key] and not unfinished.elsewhere
    assert unfinished.failed[jobs[1].key].startswith("image 7 cannot be decoded; see ")
    assert trainings.started[1][1] == ["--resume", str(interrupted), "--set", "table_params.label=car"]
    fresh = trainings.started[2][1]
    assert fresh[:2] == ["--config", str(EXPERIMENTS / "C-7.yml")]
    assert {"num_epochs=5", "seed=0", "devices=1", f"output_path={json.dumps(str(tmp_path))}"} <= set(fresh)
    assert f'tags=["{DATA.tag}"]' in fresh

    trainings.started.clear()
    run_jobs(jobs, tmp_path, start=trainings)
    assert [name for name, _ in trainings.started] == ["C-2"]  # the same command tries it again


def test_a_finished_run_that_was_not_evaluated_is_evaluated_and_not_trained(tmp_path):
    (job,) = jobs_for(tmp_path, "C-1")
    run = write_run(job)
    trainings = Trainings([job])
    assert not run_jobs([job], tmp_path, start=trainings).failed
    assert not trainings.started and (run / "reproduction.json").is_file()


def test_the_reason_of_a_failure_is_one_line(tmp_path):
    output = tmp_path / "output.txt"
    output.write_text("Traceback …\n  File …\nValueError: too large\n\n")
    assert failure_reason(1, output) == "ValueError: too large"
    assert failure_reason(-9, output) == "ended by SIGKILL, perhaps out of memory"
    assert failure_reason(3, tmp_path / "missing") == "exit code 3"


def test_a_signal_is_passed_on_to_the_training_and_ends_the_list(tmp_path):
    jobs = jobs_for(tmp_path, "C-1", "C-2")
    started = []
    script = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda number, frame: (print('checkpoint written'), sys.exit(143)))\n"
        "print('ready', flush=True); time.sleep(60)"
    )

    def start(arguments: list[str], output: Path) -> subprocess.Popen:
        started.append(output)
        process = start_process(["-c", script], output)
        while "ready" not in output.read_text():
            time.sleep(0.01)
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        return process

    with pytest.raises(Interrupted, match="the same command resumes") as caught:
        run_jobs(jobs, tmp_path, start=start)
    assert caught.value.exit_code == 128 + signal.SIGTERM
    assert len(started) == 1 and "checkpoint written" in started[0].read_text()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    FileLock(tmp_path / QUEUE / f"{jobs[0].key}.lock").acquire(blocking=False)  # it is free again


def test_a_run_that_is_trained_elsewhere_is_left_alone(tmp_path):
    """By another list, or by a training whose list was killed."""
    jobs = jobs_for(tmp_path, "C-1", "C-2", "C-3")
    (tmp_path / QUEUE).mkdir()
    orphan = write_run(jobs[1], status="running")
    trainings = Trainings(jobs)
    with FileLock(tmp_path / QUEUE / f"{jobs[0].key}.lock"), hold(orphan):
        unfinished = run_jobs(jobs, tmp_path, start=trainings)
        assert unfinished.elsewhere == [jobs[0].key, jobs[1].key] and not unfinished.failed
        assert [name for name, _ in trainings.started] == ["C-3"]
    assert not run_jobs(jobs, tmp_path, start=trainings).elsewhere


def test_a_file_system_without_locks_is_an_error(tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    (job,) = jobs_for(tmp_path, "C-1")
    with pytest.raises(RunError, match=r"cannot be locked: FileSystem does not .*; give another --output folder"):
        run_jobs([job], tmp_path, start=Trainings([job]))


def work(folder: Path, log: Path, barrier) -> None:
    """One of several processes that share a list; each of its trainings writes a line."""
    jobs = jobs_for(folder, "C-1", "C-2", "C-3", repeat=4)
    trainings = Trainings(jobs)

    def start(arguments: list[str], output: Path) -> Ended:
        if arguments[0] != "-m":
            with log.open("a") as file:
                file.write(f"{output.stem} {os.getpid()}\n")
            time.sleep(0.02)
        return trainings(arguments, output)

    barrier.wait(60)
    assert not run_jobs(jobs, folder, start=start).failed


@pytest.mark.slow
def test_processes_share_a_list_without_doing_a_run_twice(tmp_path):
    log, folder = tmp_path / "log.txt", tmp_path / "runs"
    ids = run_in_two_processes(work, folder, log)
    lines = [line.split() for line in log.read_text().splitlines()]
    jobs = jobs_for(folder, "C-1", "C-2", "C-3", repeat=4)
    assert sorted(key for key, _ in lines) == sorted(str(job.key) for job in jobs)
    assert {pid for _, pid in lines} == ids
    assert all(RunIndex(folder).finished(job.key) for job in jobs)


def test_progress_counts_the_epochs_of_all_runs(tmp_path):
    jobs = jobs_for(tmp_path, "C-1", "C-2", "C-7", "C-10", overrides=("num_epochs=100",))  # 26, 27, 129, none published
    write_run(jobs[0], epochs=20)  # finished earlier than expected
    write_run(jobs[1], epochs=7, status="running")
    progress = Progress(jobs, RunIndex(tmp_path))
    assert list(progress.expected.values()) == [26, 27, 100, 100]
    assert list(progress.done().values()) == [26, 7, 0, 0]
    assert (progress.bar.n, progress.bar.total) == (33, 253)
    write_run(jobs[3], epochs=10, status="running")  # whoever trains it
    progress.update(jobs[1])
    assert progress.bar.n == 43
    progress.bar.start_t -= 10_000  # 10 epochs in 10,000 seconds: 210 more take 58 hours
    assert "C-2 with seed 0: epoch 7 of about 27, 58:2" in str(progress.bar)
    progress.bar.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can end a process with its parent")
def test_a_training_ends_with_the_list_that_was_killed(tmp_path):
    output = tmp_path / "output.txt"
    child = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    parent = (
        "import sys, time; from pathlib import Path; from reproduction.queue import start_process\n"
        f"start_process(['-c', {child!r}], Path(sys.argv[1])); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", parent, output], cwd=EXPERIMENTS.parent)
    while not (output.exists() and output.read_text()):
        assert process.poll() is None
        time.sleep(0.05)
    pid = int(output.read_text())
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}/stat").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
