"""A list of experiments is worked off, by one process or by several that share it."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from reproduction import claims, running
from reproduction.jobs import Job, RunIndex
from reproduction.progress import Progress
from reproduction.published import (
    EXPERIMENTS,
)
from reproduction.running import run_jobs
from tests.support.reproduction_runs import DATA, Ended, Sleeping, jobs_for, write_run
from utils.errors import Interrupted

SPAWN = multiprocessing.get_context("spawn")


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
