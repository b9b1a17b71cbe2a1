"""Runs jobs one after another, sharing the list with whoever else works on it."""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

from reproduction.claims import Claim, Outcome, failed_since, holder, now, take
from reproduction.jobs import Job, Key, RunIndex
from reproduction.progress import Progress
from reproduction.training import reason, start_training
from training.signals import SignalHandler
from utils.errors import Interrupted, RunError

QUEUE = "queue"  # folder of the claims, and of what the trainings said
POLL = 1.0  # seconds between two looks at a training

Start = Callable[[Job, Path], BaseProcess]

logger = logging.getLogger(__name__)


@dataclass
class Unfinished:
    """What is left of a list: the runs that failed and why, those that somebody else has, and who."""

    failed: dict[Key, str] = field(default_factory=dict)
    elsewhere: dict[Key, str] = field(default_factory=dict)


def run_jobs(jobs: Sequence[Job], folder: Path, *, start: Start = start_training) -> Unfinished:
    """Trains every one of `jobs` that is not finished and that nobody else has; goes on past one that fails.

    Args:
        jobs: In their order.
        folder: Where the runs lie.
        start: Starts a training, whose messages go into a file.

    Raises:
        Interrupted: A signal came; the training that was going on has written its checkpoint.
        RunError: The folder cannot be written.
    """
    with SignalHandler() as interruption:
        interruption.install()
        return _Runner(jobs, folder, start, interruption).run()


class _Runner:
    def __init__(self, jobs: Sequence[Job], folder: Path, start: Start, interruption: SignalHandler) -> None:
        self.jobs = jobs
        self.queue = folder / QUEUE
        self.start = start
        self.interruption = interruption
        self.index = RunIndex(folder)
        self.unfinished = Unfinished()
        try:
            self.queue.mkdir(parents=True, exist_ok=True)
            self.began = now(self.queue)
        except OSError as error:
            raise RunError(f"{self.queue} cannot be written: {error.strerror}") from error
        self.progress = Progress(jobs, self.index)

    def run(self) -> Unfinished:
        remaining = [job for job in self.jobs if not self.index.ended(job.key)]
        if len(remaining) < len(self.jobs):
            logger.info("%d of %d runs are finished already", len(self.jobs) - len(remaining), len(self.jobs))
        count = len(remaining) + 1
        try:
            while len(remaining) < count:  # what others had in one round may be free, or finished, in the next
                count = len(remaining)
                remaining = [job for job in remaining if not self._settle(job)]
        finally:
            self.progress.bar.close()
        for job in remaining:
            self.unfinished.elsewhere[job.key] = holder(self.queue, job.key) or "somebody, until a moment ago"
        return self.unfinished

    def _settle(self, job: Job) -> bool:
        """Trains `job`, unless it is finished, has just failed elsewhere or somebody has it; says whether that is all."""
        if self.index.ended(job.key):
            return True
        if host := failed_since(self.queue, job.key, self.began):
            self.unfinished.failed[job.key] = f"failed on {host}; see {self._output(job)}"
            return True
        self._check_interruption()
        claim = take(self.queue, job.key)
        if claim is None:
            return False
        outcome: Outcome = "interrupted"
        try:
            # Somebody may have finished it between the two looks.
            outcome = "finished" if self.index.ended(job.key) else self._train(job, claim)
        finally:
            claim.release(outcome)
        self._check_interruption()
        return outcome != "interrupted"

    def _train(self, job: Job, claim: Claim) -> Outcome:
        output = self._output(job)
        going_on = self.index.broken_off(job.key)
        number = 1 + [each.key for each in self.jobs].index(job.key)
        logger.info(
            "%d of %d: %s%s", number, len(self.jobs), job.name, f", going on with {going_on}" if going_on else ""
        )
        output.unlink(missing_ok=True)
        process = self.start(job, output)
        try:
            claim.started(process.pid)
            is_ours = self._wait(process, claim, job)
        finally:
            if process.exitcode is None:
                process.terminate()
                process.join()
        if not is_ours:
            logger.warning("%s was taken over by another process: this one had been silent for long", job.name)
            return "interrupted"
        said = reason(process.exitcode, output)
        if self.index.ended(job.key):
            if process.exitcode != 0:
                logger.warning("%s is finished, but: %s; see %s", job.name, said, output)
            return "finished"
        if self.interruption.signal_number is not None:
            return "interrupted"
        self.unfinished.failed[job.key] = f"{said}; see {output}"
        logger.error("%s failed: %s", job.name, self.unfinished.failed[job.key])
        return "failed"

    def _wait(self, process: BaseProcess, claim: Claim, job: Job) -> bool:
        """Waits for a training, and passes a signal on to it; returns False as soon as the claim is lost."""
        workers = sum(holder(self.queue, each.key) is not None for each in self.jobs)
        is_passed_on = False
        while process.exitcode is None:
            if not claim.beat():
                return False
            if self.interruption.signal_number is not None and not is_passed_on:
                os.kill(process.pid, self.interruption.signal_number)
                is_passed_on = True
            process.join(POLL)
            self.progress.show(job, workers=workers)
        return True

    def _check_interruption(self) -> None:
        if (number := self.interruption.signal_number) is not None:
            raise Interrupted("interrupted; to go on, give the same command again", signal_number=number)

    def _output(self, job: Job) -> Path:
        return self.queue / f"{job.key}.txt"
