"""How far apart two accuracies must be before chance can be ruled out, two-sided at 95 %.

An accuracy varies for two reasons. Other validation photos would have given another one: for a share p of N photos the
binomial variance is p(1 − p) / N. It does not shrink with the number of seeds, as all of them meet the same photos. And
another seed would have given another one: the variance between seeds, divided by their number. Both experiments meet the
same photos, and tend to be right on the same ones, so that the sum of both binomial variances is more than the truth: the
rule errs on the side of "no difference".
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Spread:
    """The variance between runs that differ in nothing but their seeds, in (percent points)².

    Attributes:
        variance: As estimated.
        degrees: Degrees of freedom of the estimate.
    """

    variance: float
    degrees: int


@dataclass(frozen=True)
class Figure:
    """An accuracy in percent, the mean of `runs` runs on the same `photos`."""

    percent: float
    photos: int
    runs: int
    spread: Spread

    @property
    def binomial_variance(self) -> float:
        return self.percent * (100 - self.percent) / self.photos


def pooled_spread(groups: Iterable[Sequence[float]]) -> Spread | None:
    """Returns the variance within groups of accuracies that differ in their seeds alone; None if all have only one."""
    repeated = [group for group in groups if len(group) > 1]
    degrees = sum(len(group) - 1 for group in repeated)
    if not degrees:
        return None
    return Spread(sum((len(group) - 1) * statistics.variance(group) for group in repeated) / degrees, degrees)


def allowed_difference(*figures: Figure) -> float:
    """Returns how far apart two figures may be by chance; of one figure, how far it may be from its own true value.

    The degrees of freedom of the sum of variances are those of Welch and Satterthwaite; the binomial ones have infinitely
    many.

    Returns:
        Percent points.
    """
    from scipy.stats import t  # takes a second

    between_seeds: dict[Spread, float] = defaultdict(float)
    for figure in figures:
        between_seeds[figure.spread] += figure.spread.variance / figure.runs
    total = sum(figure.binomial_variance for figure in figures) + sum(between_seeds.values())
    uncertainty = sum(variance**2 / spread.degrees for spread, variance in between_seeds.items())
    degrees = total**2 / uncertainty if uncertainty else math.inf
    return t.ppf((1 + CONFIDENCE) / 2, degrees) * math.sqrt(total)
