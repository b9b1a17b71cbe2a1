"""Sets what was measured beside what was published, once for each condition that runs were made under."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reproduction.noise import Figure, Spread, allowed_difference, pooled_spread
from reproduction.order import Order, order_of
from reproduction.published import IMAGES, REPEATS, Published, Section, describe, read_sections
from reproduction.results import Condition, Measured, Summary, by_condition


@dataclass(frozen=True)
class Comparison:
    """All that was measured under one condition, beside what was published.

    Attributes:
        summaries: By experiment.
        figures: The same, as accuracies that chance has a part in.
        is_repeated: Whether any experiment has more than one seed; else the spread of the published repeats stands in.
        orders: Of each section's groups.
    """

    condition: Condition
    summaries: dict[str, Summary]
    figures: dict[str, Figure]
    is_repeated: bool
    orders: list[tuple[Section, list[Order]]]


def compare(measured: Sequence[Measured], published: Mapping[str, Published]) -> list[Comparison]:
    """Returns the comparison for each condition; the one with the most runs comes first."""
    known = published_figures(published)
    comparisons = []
    for condition, summaries in by_condition(measured).items():
        spread = pooled_spread(summary.accuracies for summary in summaries.values())
        figures = {
            name: Figure(summary.mean, condition.valid_photos, len(summary.runs), spread or published_spread(published))
            for name, summary in summaries.items()
        }
        orders = [
            (section, [order_of(group, known, figures) for group in section.groups]) for section in read_sections()
        ]
        comparisons.append(Comparison(condition, summaries, figures, spread is not None, orders))
    return comparisons


def published_spread(published: Mapping[str, Published]) -> Spread:
    """Returns the spread between the four published runs that had the same settings."""
    accuracies = [published[name].valid_acc_percent for name in REPEATS]
    return Spread(statistics.variance(accuracies), len(REPEATS) - 1)


def published_figures(published: Mapping[str, Published]) -> dict[str, Figure]:
    """Returns the published accuracies, of one run each, as figures that chance has a part in."""
    spread = published_spread(published)
    return {name: Figure(each.valid_acc_percent, IMAGES[1], 1, spread) for name, each in published.items()}


def experiment_rows(comparison: Comparison, published: Mapping[str, Published]) -> Iterator[dict[str, Any]]:
    """Yields a row for each experiment: published, measured, and how far apart they are; None where that is unknown."""
    condition, known = comparison.condition, published_figures(published)
    for name, summary in comparison.summaries.items():
        figure, counterpart = comparison.figures[name], known.get(name)
        difference = None if counterpart is None else figure.percent - counterpart.percent
        # Of other photos or other settings the difference is that of two tasks, which chance has nothing to do with.
        is_same = condition.is_published and counterpart is not None
        allowed = allowed_difference(figure, counterpart) if is_same else None
        yield {
            "experiment": name,
            "description": describe(name, published),
            "data": condition.data,
            "train_photos": condition.train_photos,
            "valid_photos": condition.valid_photos,
            "changes": condition.changes,
            "same_task": "yes" if condition.is_published else "no",
            "published_percent": published[name].valid_acc_percent if name in published else None,
            "measured_percent": round(figure.percent, 4),
            "deviation": None if summary.deviation is None else round(summary.deviation, 4),
            "runs": figure.runs,
            "chance": round(allowed_difference(figure), 4),
            "difference": None if difference is None else round(difference, 4),
            "allowed_difference": None if allowed is None else round(allowed, 4),
            "beyond_chance": None if allowed is None else "yes" if abs(difference) > allowed else "no",
            "published_epochs": published[name].epochs if name in published else None,
            "epochs": summary.mean_of("epochs"),
            "seconds": round(summary.mean_of("seconds"), 1),
            "num_params": summary.runs[-1].num_params,
            "device": "; ".join(dict.fromkeys(run.device for run in summary.runs)),
        }


def pair_rows(comparison: Comparison) -> Iterator[dict[str, Any]]:
    """Yields a row for each two variants of a group: their differences, and which are larger than chance allows."""
    for section, orders in comparison.orders:
        for order in orders:
            for pair in order.pairs:
                yield {
                    "data": comparison.condition.data,
                    "changes": comparison.condition.changes,
                    "section": section.name,
                    "group": order.group.name,
                    "first": pair.first,
                    "second": pair.second,
                    "published_difference": round(pair.published, 4),
                    "published_allowed": round(pair.published_allowed, 4),
                    "published_beyond_chance": "yes" if pair.published_counts else "no",
                    "measured_difference": round(pair.measured, 4),
                    "measured_allowed": round(pair.measured_allowed, 4),
                    "measured_beyond_chance": "yes" if pair.measured_counts else "no",
                    "inverted": "yes" if pair.is_inverted else "no",
                }
