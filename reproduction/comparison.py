"""Compares measured with published results, and says which differences are larger than chance.

An accuracy varies for two reasons. First, other validation images would have given another one: for a share p of N images, the
binomial variance is p(1 − p) / N. It does not shrink with the number of seeds, as all of them meet the same images. Second,
another seed would have given another one: the variance between seeds, divided by their number. Two experiments meet the same
images and tend to be right on the same ones, so the sum of both binomial variances is more than the true variance of their
difference: the rule errs on the side of "no difference".
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from reproduction.published import IMAGES, REPEATS, Group, Published, Section, describe, experiment_files, read_sections
from reproduction.results import Measured, Setup, Summary, by_setup

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Spread:
    """The variance between runs that differ in their seeds only, in (percentage points)².

    Attributes:
        variance: The estimate.
        degrees: Its degrees of freedom.
    """

    variance: float
    degrees: int


@dataclass(frozen=True)
class Accuracy:
    """An accuracy in percent, the mean of `runs` runs on the same `images`."""

    percent: float
    images: int
    runs: int
    spread: Spread

    @property
    def binomial_variance(self) -> float:
        return self.percent * (100 - self.percent) / self.images


@dataclass(frozen=True)
class Difference:
    """By how many percentage points one accuracy is above another."""

    points: float
    margin: float

    @property
    def is_significant(self) -> bool:
        return abs(self.points) > self.margin


@dataclass(frozen=True)
class Pair:
    """Two variants, and how far `second` is above `first`.

    They are reversed only if the published and the measured difference are both significant and have opposite signs.
    """

    first: str
    second: str
    published: Difference
    measured: Difference

    @property
    def is_opposite(self) -> bool:
        return self.published.points * self.measured.points < 0

    @property
    def is_same(self) -> bool:
        return self.published.points * self.measured.points > 0

    @property
    def is_reversed(self) -> bool:
        return self.is_opposite and self.published.is_significant and self.measured.is_significant

    @property
    def is_confirmed(self) -> bool:
        return self.is_same and self.published.is_significant and self.measured.is_significant


@dataclass(frozen=True)
class Order:
    """The order of a group's variants, published and measured.

    Attributes:
        is_published: Whether two or more of them have a published result.
        measured: Number of variants that have both results.
        pairs: All pairs of these.
    """

    group: Group
    is_published: bool
    measured: int
    pairs: tuple[Pair, ...]

    @property
    def tau(self) -> float | None:
        """Kendall's rank correlation: 1 for the same order, −1 for the reverse; None without pairs."""
        if not self.pairs:
            return None
        return statistics.mean(pair.is_same - pair.is_opposite for pair in self.pairs)

    @property
    def verdict(self) -> str:
        if not self.pairs:
            return "too few variants measured" if self.is_published else "no order was published"
        if backwards := [pair for pair in self.pairs if pair.is_reversed]:
            return "reversed: " + ", ".join(f"{pair.first} and {pair.second}" for pair in backwards)
        others = sum(not pair.is_same for pair in self.pairs)
        order = (
            f"not contradicted, {others} of {len(self.pairs)} pairs differ within chance" if others else "same order"
        )
        significant = sum(pair.published.is_significant for pair in self.pairs)
        if not significant:
            return f"{order}; no published difference is significant"
        confirmed = sum(pair.is_confirmed for pair in self.pairs)
        return f"{order}; {confirmed} of {significant} significant published differences confirmed"


@dataclass(frozen=True)
class Comparison:
    """All measured results of one setup, beside the published ones.

    Attributes:
        summaries: By experiment.
        accuracies: By experiment.
        is_repeated: Whether any experiment has several seeds. If not, the spread is that of the published repeats.
        orders: Of the groups of each section.
    """

    setup: Setup
    summaries: dict[str, Summary]
    accuracies: dict[str, Accuracy]
    is_repeated: bool
    orders: list[tuple[Section, list[Order]]]

    @property
    def other_pairs(self) -> list[tuple[str, str, Difference]]:
        """All pairs whose second is not an experiment of the study, and how far it is above the first."""
        study = experiment_files()
        return [
            (first, second, _difference(self.accuracies[second], self.accuracies[first]))
            for first, second in combinations(self.accuracies, 2)
            if second not in study
        ]


def margin_of_error(*accuracies: Accuracy) -> float:
    """Returns the 95 % margin of the difference of two accuracies, or of one accuracy, in percentage points.

    The degrees of freedom of the sum of variances are those of Welch and Satterthwaite; the binomial variances have
    infinitely many.
    """
    from scipy.stats import t  # takes a second

    between_seeds: dict[Spread, float] = defaultdict(float)
    for accuracy in accuracies:
        between_seeds[accuracy.spread] += accuracy.spread.variance / accuracy.runs
    total = sum(accuracy.binomial_variance for accuracy in accuracies) + sum(between_seeds.values())
    uncertainty = sum(variance**2 / spread.degrees for spread, variance in between_seeds.items())
    degrees = total**2 / uncertainty if uncertainty else math.inf
    return float(t.ppf((1 + CONFIDENCE) / 2, degrees)) * math.sqrt(total)


def pooled_spread(groups: Iterable[Sequence[float]]) -> Spread | None:
    """Returns the variance within groups of accuracies that differ in their seeds only; None if all have only one."""
    repeated = [group for group in groups if len(group) > 1]
    degrees = sum(len(group) - 1 for group in repeated)
    if not degrees:
        return None
    return Spread(sum((len(group) - 1) * statistics.variance(group) for group in repeated) / degrees, degrees)


def published_spread(published: Mapping[str, Published]) -> Spread:
    """Returns the spread of the four published runs that had the same settings."""
    accuracies = [published[name].valid_acc_percent for name in REPEATS]
    return Spread(statistics.variance(accuracies), len(REPEATS) - 1)


def published_accuracies(published: Mapping[str, Published]) -> dict[str, Accuracy]:
    """Returns the published accuracies, each of one run."""
    spread = published_spread(published)
    return {name: Accuracy(each.valid_acc_percent, IMAGES[1], 1, spread) for name, each in published.items()}


def order_of(group: Group, published: Mapping[str, Accuracy], measured: Mapping[str, Accuracy]) -> Order:
    """Compares all pairs of variants of `group` that have both results."""
    members = tuple(name for name in group.experiments if name in published and name in measured)
    pairs = tuple(
        Pair(
            first,
            second,
            _difference(published[second], published[first]),
            _difference(measured[second], measured[first]),
        )
        for first, second in combinations(members, 2)
    )
    return Order(group, sum(name in published for name in group.experiments) > 1, len(members), pairs)


def compare(measured: Sequence[Measured], published: Mapping[str, Published]) -> list[Comparison]:
    """Returns a comparison for each setup. The one with the most runs comes first."""
    known = published_accuracies(published)
    comparisons = []
    for setup, summaries in by_setup(measured).items():
        spread = pooled_spread(summary.accuracies for summary in summaries.values())
        accuracies = {
            name: Accuracy(summary.mean, setup.valid_images, len(summary.runs), spread or published_spread(published))
            for name, summary in summaries.items()
        }
        orders = [
            (section, [order_of(group, known, accuracies) for group in section.groups]) for section in read_sections()
        ]
        comparisons.append(Comparison(setup, summaries, accuracies, spread is not None, orders))
    return comparisons


def experiment_rows(comparison: Comparison, published: Mapping[str, Published]) -> Iterator[dict[str, Any]]:
    """Yields a row for each experiment: published, measured, and their difference; None where one is missing."""
    setup, known = comparison.setup, published_accuracies(published)
    for name, summary in comparison.summaries.items():
        accuracy, counterpart = comparison.accuracies[name], known.get(name)
        difference = None if counterpart is None else _difference(accuracy, counterpart)
        # With other images or settings the two are different tasks: chance does not explain their difference.
        is_comparable = setup.is_published and difference is not None
        yield {
            "experiment": name,
            "description": describe(name, published) or summary.runs[-1].description,
            "data": setup.data,
            "train_images": setup.train_images,
            "valid_images": setup.valid_images,
            "changes": setup.changes,
            "same_task": _yes(setup.is_published and counterpart is not None),
            "published_percent": published[name].valid_acc_percent if name in published else None,
            "measured_percent": round(accuracy.percent, 4),
            "deviation": None if summary.deviation is None else round(summary.deviation, 4),
            "runs": accuracy.runs,
            "margin": round(margin_of_error(accuracy), 4),
            "difference": None if difference is None else round(difference.points, 4),
            "difference_margin": round(difference.margin, 4) if is_comparable else None,
            "significant": _yes(difference.is_significant) if is_comparable else None,
            "published_epochs": published[name].epochs if name in published else None,
            "epochs": summary.mean_of("epochs"),
            "seconds": round(summary.mean_of("seconds"), 1),
            "num_params": summary.runs[-1].num_params,
            "device": "; ".join(dict.fromkeys(run.device for run in summary.runs)),
        }


def pair_rows(comparison: Comparison) -> Iterator[dict[str, Any]]:
    """Yields a row for each pair of variants in a group, and each pair with a configuration outside the study."""
    setup = {"data": comparison.setup.data, "changes": comparison.setup.changes}
    for section, orders in comparison.orders:
        for order in orders:
            for pair in order.pairs:
                yield {
                    **setup, "section": section.name, "group": order.group.name, "first": pair.first, "second": pair.second,
                    **_columns("published", pair.published), **_columns("measured", pair.measured),
                    "reversed": _yes(pair.is_reversed),
                }  # fmt: skip
    for first, second, difference in comparison.other_pairs:
        yield {
            **setup, "section": None, "group": None, "first": first, "second": second,
            **_columns("published", None), **_columns("measured", difference), "reversed": None,
        }  # fmt: skip


def _columns(kind: str, difference: Difference | None) -> dict[str, Any]:
    known = difference is not None
    return {
        f"{kind}_difference": round(difference.points, 4) if known else None,
        f"{kind}_margin": round(difference.margin, 4) if known else None,
        f"{kind}_significant": _yes(difference.is_significant) if known else None,
    }


def _difference(first: Accuracy, second: Accuracy) -> Difference:
    return Difference(first.percent - second.percent, margin_of_error(first, second))


def _yes(value: bool) -> str:
    return "yes" if value else "no"
