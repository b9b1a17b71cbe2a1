"""Whether the variants of an experiment came out in the published order.

Two variants are inverted only where both differences, the published and the measured one, are larger than chance allows
and point in opposite directions. All else cannot be told from chance.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

from reproduction.noise import Figure, allowed_difference
from reproduction.published import Group


@dataclass(frozen=True)
class Pair:
    """Two variants: by how many percent points `second` is above `first`, and by how many it could be by chance."""

    first: str
    second: str
    published: float
    published_allowed: float
    measured: float
    measured_allowed: float

    @property
    def published_counts(self) -> bool:
        return abs(self.published) > self.published_allowed

    @property
    def measured_counts(self) -> bool:
        return abs(self.measured) > self.measured_allowed

    @property
    def is_opposite(self) -> bool:
        return self.published * self.measured < 0

    @property
    def is_same(self) -> bool:
        return self.published * self.measured > 0

    @property
    def is_inverted(self) -> bool:
        return self.is_opposite and self.published_counts and self.measured_counts

    @property
    def is_confirmed(self) -> bool:
        return self.is_same and self.published_counts and self.measured_counts


@dataclass(frozen=True)
class Order:
    """The order of a group's variants.

    Attributes:
        is_published: Whether two of them or more have a published figure.
        measured: How many of them that have one were measured.
        pairs: All pairs of those.
    """

    group: Group
    is_published: bool
    measured: int
    pairs: tuple[Pair, ...]

    @property
    def tau(self) -> float | None:
        """Returns Kendall's rank correlation: 1 for the same order, −1 for the reverse; None for fewer than two."""
        if not self.pairs:
            return None
        return (sum(pair.is_same for pair in self.pairs) - sum(pair.is_opposite for pair in self.pairs)) / len(
            self.pairs
        )

    @property
    def inverted(self) -> list[Pair]:
        return [pair for pair in self.pairs if pair.is_inverted]

    @property
    def verdict(self) -> str:
        if not self.pairs:
            return "not enough was measured" if self.is_published else "no order was published"
        if self.inverted:
            return "inverted: " + ", ".join(f"{pair.first} and {pair.second}" for pair in self.inverted)
        other = sum(not pair.is_same for pair in self.pairs)
        telling = sum(pair.published_counts for pair in self.pairs)
        order = (
            f"not refuted: {other} of {len(self.pairs)} pairs not in this order, within chance"
            if other
            else "same order"
        )
        if not telling:
            return f"{order}; no published difference is larger than chance"
        confirmed = sum(pair.is_confirmed for pair in self.pairs)
        return f"{order}; {confirmed} of the {telling} published differences beyond chance confirmed"


def order_of(group: Group, published: Mapping[str, Figure], measured: Mapping[str, Figure]) -> Order:
    """Compares every two variants of `group` for which there are figures of both kinds."""
    members = tuple(name for name in group.experiments if name in published and name in measured)
    pairs = tuple(
        Pair(
            first,
            second,
            published=published[second].percent - published[first].percent,
            published_allowed=allowed_difference(published[first], published[second]),
            measured=measured[second].percent - measured[first].percent,
            measured_allowed=allowed_difference(measured[first], measured[second]),
        )
        for first, second in combinations(members, 2)
    )
    return Order(group, sum(name in published for name in group.experiments) > 1, len(members), pairs)
