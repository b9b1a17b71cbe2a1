"""What a search found: its trials, the best of them, and which differences are larger than chance."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from reproduction.comparison import Accuracy, Difference, Spread, margin_of_error, pooled_spread
from searching.space import Range, Repeats, Space
from searching.study import REASON, Search, latest, root_of

BEST_FEW = 3  # that are trained again with other seeds
UNKNOWN_SPREAD = Spread(0.0, 1)  # between seeds, of trials that were trained once
STATES = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
}


@dataclass(frozen=True)
class Result:
    """A trial as it stands.

    Attributes:
        values: Of the axes.
        objectives: A value for each metric of the space; of a pruned trial the last one alone.
        accuracy: The best `Space.accuracy` of any epoch, in 0 … 1.
        run: Name of its run's folder.
        reason: Why it failed.
    """

    number: int
    state: str
    values: dict[str, Any]
    objectives: tuple[float, ...]
    accuracy: float | None = None
    epochs: int = 0
    seconds: float = 0.0
    num_params: int | None = None
    valid_images: int | None = None
    test_images: int | None = None
    run: str | None = None
    reason: str | None = None

    @property
    def is_finished(self) -> bool:
        return self.state == "finished"


@dataclass(frozen=True)
class Repeated:
    """A trial, and its repeats with other seeds.

    Attributes:
        accuracy: The mean of the repeats, without the trial itself, which was chosen because it was lucky; without any
            repeats that of the trial.
    """

    trial: Result
    repeats: tuple[Result, ...]
    accuracy: Accuracy

    @property
    def margin(self) -> float:
        return margin_of_error(self.accuracy)

    def above(self, other: "Repeated") -> Difference:
        """Returns by how many points this one is above another."""
        points = self.accuracy.percent - other.accuracy.percent
        return Difference(points, margin_of_error(self.accuracy, other.accuracy))


def read_trials(search: Search) -> list[Result]:
    """Returns the trials of a search by their numbers, a pruned and promoted one as one."""
    begun = [trial for trial in search.trials() if trial.params or trial.state == TrialState.FAIL]
    return [_result(trial) for trial in latest(begun)]


def ranked(space: Space, results: Sequence[Result]) -> list[Result]:
    """Returns the finished trials, the best value of the first metric first."""
    sign = -1 if space.directions[0] == "maximize" else 1
    return sorted(
        (result for result in results if result.is_finished),
        key=lambda result: (sign * result.objectives[0], result.number),
    )


def pareto_front(search: Search, results: Sequence[Result]) -> list[Result]:
    """Returns the finished trials of which no other is better in one metric and as good in the other, cheapest first."""
    numbers = {root_of(trial) for trial in search.study.best_trials}
    return sorted((result for result in results if result.number in numbers), key=lambda result: result.objectives[-1])


def repeats_of(space: Space, best: Sequence[Result], count: int, results: Sequence[Result] = ()) -> Space:
    """Returns the space of the repeats: each of the `best` trials with `count` other seeds.

    `results` are all trials: repeats of what was among the best earlier may still be waiting.
    """
    first = space.source.values.get("seed", 0)
    axes = (
        Repeats("trial", {each.number: space.changes(each.values) for each in (*results, *best) if each.is_finished}),
        Range("seed", "search.py", 0, 2**32 - 1),
    )
    points = tuple(
        {"trial": result.number, "seed": (first + number) % 2**32} for number in range(1, count + 1) for result in best
    )
    return replace(
        space, name=f"{space.name}-repeats", axes=axes, metrics=space.metrics[:1], points=points, trials=None, hours=None,
        pruning=None,
    )  # fmt: skip


def judge(space: Space, best: Sequence[Result], repeats: Sequence[Result]) -> list[Repeated]:
    """Returns the `best` trials with their repeats, the best mean of the metric first.

    The spread between seeds is pooled over all of them. Without repeats it is not known, and the intervals are those of other
    images alone.
    """
    groups = {
        trial.number: tuple(
            repeat for repeat in repeats if repeat.is_finished and repeat.values["trial"] == trial.number
        )
        for trial in best
    }
    spread = pooled_spread([[100 * repeat.accuracy for repeat in group] for group in groups.values()])
    judged = []
    for trial in best:
        runs = groups[trial.number] or (trial,)
        percent = statistics.mean(100 * run.accuracy for run in runs)
        accuracy = Accuracy(percent, trial.valid_images, len(runs), spread or UNKNOWN_SPREAD)
        judged.append(Repeated(trial, groups[trial.number], accuracy))
    sign = -1 if space.directions[0] == "maximize" else 1

    def mean(each: Repeated) -> float:
        return statistics.mean(run.objectives[0] for run in each.repeats or (each.trial,))

    return sorted(judged, key=lambda each: (not each.repeats, sign * mean(each), each.trial.number))


def _result(trial: FrozenTrial) -> Result:
    names = ("accuracy", "epochs", "seconds", "num_params", "valid_images", "test_images", "run", REASON)
    facts = {name: trial.user_attrs[name] for name in names if name in trial.user_attrs}
    return Result(root_of(trial), STATES[trial.state], dict(trial.params), tuple(trial.values or ()), **facts)
