"""Trains planned jobs one after another. Several processes and machines can share one list through its folder.

Each job has a lock file in `<folder>/queue`. The operating system releases the lock when its process ends, for whatever reason,
so nothing has to be cleaned up. Each training is a process of its own: its memory or its crash cannot reach the next one.
"""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from reproduction.evaluation import FACTS
from reproduction.planning import Job, Key, RunIndex
from reproduction.published import read_published
from training.signals import SignalHandler
from utils.errors import Interrupted
from utils.files import make_folder
from utils.machine import PROJECT
from utils.processes import end_with_parent
from utils.progress import show_total, total_bar
from utils.runs.folder import SPEED, has_ended
from utils.runs.lock import is_held, try_lock
from utils.runs.metrics import read_rows

QUEUE = "queue"  # folder of the lock files and of the output of each training
POLL_SECONDS = 1.0
ERROR = "error: "  # prefix of an error message in utils.cli

Start = Callable[[Sequence[str], Path], subprocess.Popen]

logger = logging.getLogger(__name__)


@dataclass
class Unfinished:
    """The jobs that are not finished: those that failed, with the reason, and those that another process trains."""

    failed: dict[Key, str] = field(default_factory=dict)
    elsewhere: list[Key] = field(default_factory=list)


def start_process(
    arguments: Sequence[str], output: Path, environment: Mapping[str, str] | None = None
) -> subprocess.Popen:
    """Starts Python in the background, with additions to the environment, and appends its output to the file `output`."""
    path = os.pathsep.join([str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])])
    # In a session of its own, Ctrl-C reaches only this process, which passes it on once. On Linux, the training writes a
    # checkpoint and ends when this process is killed.
    parent = {"preexec_fn": partial(end_with_parent, signal.SIGTERM)} if sys.platform == "linux" else {}
    with output.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, *arguments], stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {}), "PYTHONPATH": path}, start_new_session=True, **parent,
        )  # fmt: skip


def run_jobs(jobs: Sequence[Job], folder: Path, *, start: Start = start_process) -> Unfinished:
    """Trains every job that is not finished and that no other process trains. A failed job does not stop the list.

    Args:
        jobs: In the order in which to train them.
        folder: Where the runs are.
        start: Starts a process.

    Raises:
        Interrupted: SIGINT or SIGTERM was received. The current training has written its checkpoint.
        RunError: The folder cannot be written, or its file system has no locks.
    """
    with SignalHandler() as signals:
        signals.install()
        return _Queue(jobs, folder, start, signals).run()


class _Queue:
    def __init__(self, jobs: Sequence[Job], folder: Path, start: Start, signals: SignalHandler) -> None:
        self.jobs = jobs
        self.folder = folder / QUEUE
        self.start = start
        self.signals = signals
        self.index = RunIndex(folder)
        self.unfinished = Unfinished()
        self.progress = Progress(jobs, self.index)

    def run(self) -> Unfinished:
        make_folder(self.folder)
        remaining = [job for job in self.jobs if not self._is_done(job)]
        if len(remaining) < len(self.jobs):
            logger.info("%d of %d runs are already finished", len(self.jobs) - len(remaining), len(self.jobs))
        count = len(remaining) + 1
        try:
            while len(remaining) < count:  # a job that another process had in one round may be free in the next
                count = len(remaining)
                remaining = [job for job in remaining if not self._try(job)]
        finally:
            self.progress.bar.close()
        self.unfinished.elsewhere = [job.key for job in remaining]
        return self.unfinished

    def _is_done(self, job: Job) -> bool:
        run = self.index.finished(job.key)
        return run is not None and (run / FACTS).is_file()

    def _try(self, job: Job) -> bool:
        """Trains `job` and returns True, unless another process has it."""
        self._check_interruption()
        if (lock := try_lock(self.folder / f"{job.key}.lock")) is None:
            return False
        try:
            # The list of a training that is still going on may have been killed.
            if any(is_held(run) for run in self.index.runs().get(job.key, [])):
                return False
            if not self._is_done(job):
                self._train(job)
        finally:
            lock.release()
        self._check_interruption()
        return True

    def _train(self, job: Job) -> None:
        output = self.folder / f"{job.key}.txt"
        output.unlink(missing_ok=True)
        code = 0
        if self.index.finished(job.key) is None:
            run = self.index.resumable(job.key)
            resuming = f", resuming {run}" if run else ""
            logger.info("%d of %d: %s%s", 1 + self.jobs.index(job), len(self.jobs), job.key.name, resuming)
            code = self._run([str(PROJECT / "train.py"), *job.arguments(run)], output, job)
        run = self.index.finished(job.key)
        if run is not None and not self.signals.received:
            code = code or self._run(["-m", "reproduction.evaluation", str(run)], output, job)
        if code == 0 or self.signals.received:
            return
        reason = failure_reason(code, output)
        if run is not None:
            logger.warning("%s is finished, but: %s; see %s", job.key.name, reason, output)
            return
        self.unfinished.failed[job.key] = f"{reason}; see {output}"
        logger.error("%s failed: %s", job.key.name, self.unfinished.failed[job.key])

    def _run(self, arguments: Sequence[str], output: Path, job: Job) -> int:
        """Runs a process to its end, passes a signal on to it, and returns its exit code."""
        process = self.start(arguments, output)
        is_passed_on = False
        try:
            while True:
                try:
                    return process.wait(POLL_SECONDS)
                except subprocess.TimeoutExpired:
                    self.progress.update(job)
                if self.signals.received and not is_passed_on:
                    process.send_signal(self.signals.signal_number)
                    is_passed_on = True
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()

    def _check_interruption(self) -> None:
        if self.signals.received:
            raise Interrupted(
                "interrupted; the same command resumes the list", signal_number=self.signals.signal_number
            )


class Progress:
    """A progress bar over the epochs of all jobs, whoever trains them.

    A job is expected to take as many epochs as the published run, or else its maximum. The time left follows from the
    epochs that all processes together have finished since the bar was created.
    """

    def __init__(self, jobs: Sequence[Job], index: RunIndex) -> None:
        self.index = index
        published = {name: each.epochs for name, each in read_published().items()}
        self.expected = {
            job.key: min(job.num_epochs, published.get(job.key.experiment, job.num_epochs)) for job in jobs
        }
        self.bar = total_bar(unit=" epochs", total=sum(self.expected.values()), done=sum(self.done().values()))

    def done(self) -> dict[Key, int]:
        """Returns the finished epochs of each job, at most the expected ones; all of these for a finished job."""
        runs = self.index.runs()
        return {
            key: expected
            if any(map(has_ended, runs.get(key, [])))
            else min(expected, max((len(read_rows(run / SPEED)) for run in runs.get(key, [])), default=0))
            for key, expected in self.expected.items()
        }

    def update(self, job: Job) -> None:
        """Shows the progress of the list and of `job`."""
        done = self.done()
        description = f"{job.key.name}: epoch {done[job.key]} of about {self.expected[job.key]}"
        show_total(self.bar, description, sum(done.values()))


def failure_reason(exit_code: int, output: Path) -> str:
    """Returns in one line why a process failed whose output is in a file."""
    if exit_code < 0:
        return f"ended by {signal.Signals(-exit_code).name}" + (", perhaps out of memory" if exit_code == -9 else "")
    text = output.read_text(encoding="utf-8", errors="replace") if output.exists() else ""
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line.removeprefix(ERROR) for line in lines if line.startswith(ERROR)]
    return (errors or lines or [f"exit code {exit_code}"])[-1]
