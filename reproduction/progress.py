"""Says how far a list of jobs is, and how long the rest will take."""

import statistics
from collections.abc import Sequence

from reproduction.jobs import Job, Key, RunIndex
from reproduction.published import read_published
from utils.progress import progress_bar
from utils.runs.folder import SPEED, has_ended
from utils.runs.metrics import read_rows
from utils.runs.summary import duration


class Progress:
    """A bar over the epochs of all jobs; how many a job will have is guessed from the published run.

    Args:
        jobs: The whole list.
        index: Knows their runs.
    """

    def __init__(self, jobs: Sequence[Job], index: RunIndex) -> None:
        self.index = index
        published = {name: each.epochs for name, each in read_published().items()}
        usual = round(statistics.median(published.values()))
        self.expected = {job.key: min(job.num_epochs, published.get(job.key.experiment, usual)) for job in jobs}
        self.done: dict[Key, int] = {}
        self.paces: dict[Key, float] = {}  # seconds of an epoch
        self.bar = progress_bar(description="", unit=" epochs", total=sum(self.expected.values()))
        self.bar.bar_format = "{percentage:3.0f}%|{bar}| {desc}"
        for job in jobs:
            self._look(job.key)

    def show(self, job: Job, *, workers: int) -> None:
        """Shows how far `job` is, and the whole list, which `workers` processes share."""
        epochs = self._look(job.key)
        left = self.seconds_left(workers)
        self.bar.set_description_str(
            f"{job.name}: epoch {epochs} of about {self.expected[job.key]}; "
            + ("time left not known yet" if left is None else f"about {duration(left)} left"),
            refresh=False,
        )
        self.bar.update(sum(self.done.values()) - self.bar.n)
        if self.bar.mininterval < 1:  # somebody watches it
            self.bar.refresh()

    def seconds_left(self, workers: int) -> float | None:
        """Returns how long the whole list will still take; None before any epoch has ended."""
        if not self.paces:
            return None
        usual = statistics.mean(self.paces.values())
        rest = {key: self.expected[key] - self.done[key] for key in self.done}
        return sum(epochs * self.paces.get(key, usual) for key, epochs in rest.items()) / workers

    def _look(self, key: Key) -> int:
        """Notes how far a job is and returns how many epochs it has."""
        runs = self.index.runs().get(key, [])
        counts = [read_rows(run / SPEED) for run in runs]
        rows = max(counts, key=len, default=[])
        self.done[key] = self.expected[key] if any(map(has_ended, runs)) else min(len(rows), self.expected[key])
        if rows:
            self.paces[key] = statistics.mean(row["seconds"] for row in rows)
        return len(rows)
