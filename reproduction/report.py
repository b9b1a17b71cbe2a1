"""Writes the comparison: tables as CSV, all of it as Markdown, and a picture."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from reproduction.batch_means import largest_difference
from reproduction.comparison import Comparison, compare, experiment_rows, pair_rows, published_spread
from reproduction.figure import draw_comparison
from reproduction.order import Order
from reproduction.published import IMAGES, REPEATS, Published, Section
from reproduction.results import Measured
from utils.files import write_csv, write_text
from utils.runs.comparison import format_table
from utils.runs.summary import duration

TABLE, PAIRS, TEXT, PICTURE = "comparison.csv", "pairs.csv", "comparison.md", "comparison.png"
NONE = "–"
STUDY_BATCH = 64
MARK = " \\*"
ORDER = "Did the order of the variants hold?"
RULE = """## How to read it

Published is the best validation accuracy of any epoch of one run, as a mean over batches; measured is that of this project,
as a mean over images, with the standard deviation between seeds behind ± where there is more than one. In both, the
validation photos also chose the epoch and ended the training. A difference in brackets is that of two different tasks: other
photos, or other settings.

\\* marks a difference that is larger than chance allows, two-sided at 95 %: larger than t times the root of the sum, over both
figures, of p(1 − p) / N, for the N validation photos, and of s² / n, for n seeds. s is the standard deviation between seeds,
pooled over all experiments of the same condition. The photos are the same for both, which the sum does not take into account,
so that the mark is rather missing than wrong. The published spread between runs is that of {repeats}, which had the
same settings: s = {spread:.2f} points.{stand_in} Two variants are called inverted only where both the published and the
measured difference are marked, and point in opposite directions. τ is Kendall's rank correlation.
"""


def write_report(folder: Path, measured: Sequence[Measured], published: Mapping[str, Published]) -> list[Comparison]:
    """Writes the comparison of `measured` with `published` into `folder`.

    Raises:
        RunError: The folder cannot be written.
    """
    comparisons = compare(measured, published)
    rows = [list(experiment_rows(comparison, published)) for comparison in comparisons]
    write_csv(folder / TABLE, [row for part in rows for row in part])
    write_csv(folder / PAIRS, [row for comparison in comparisons for row in pair_rows(comparison)])
    figures = {str(comparison.condition): comparison.figures for comparison in comparisons}
    draw_comparison(figures, published, folder / PICTURE)
    spread = published_spread(published).variance ** 0.5
    lacking = not all(comparison.is_repeated for comparison in comparisons)
    stand_in = " Where no experiment has more than one seed, it stands in for that of the seeds." if lacking else ""
    parts = [
        "# Published and measured\n\nWritten by `python reproduce.py --report`.\n\n"
        f"![published against measured accuracy]({PICTURE})\n",
        *(_condition_part(comparison, part) for comparison, part in zip(comparisons, rows, strict=True)),
        RULE.format(repeats=", ".join(REPEATS), spread=spread, stand_in=stand_in),
        _batch_part(measured),
    ]
    write_text(folder / TEXT, "\n".join(parts))
    return comparisons


def summary_text(comparisons: Sequence[Comparison], published: Mapping[str, Published], *, width: int) -> str:
    """Returns the tables and the verdicts on the order for a terminal, in lines of at most `width`."""
    parts = []
    for comparison in comparisons:
        columns = [["id"], ["published"], ["measured"], ["runs"], ["difference"], ["epochs"], ["time a run"]]
        for row in experiment_rows(comparison, published):
            cells = (
                row["experiment"], _number(row["published_percent"]), comparison.summaries[row["experiment"]].text,
                str(row["runs"]), _difference(row).replace(MARK, " *"), _number(row["epochs"], 0), duration(row["seconds"]),
            )  # fmt: skip
            for column, cell in zip(columns, cells, strict=True):
                column.append(cell)
        verdicts = [
            f"{section.name}, {order.group.name} ({order.measured} of {len(order.group.experiments)}): {order.verdict}"
            for section, order in _told(comparison)
        ]
        verdicts += [textwrap.fill(line, width) for line in untold(comparison)]
        note = "" if comparison.condition.is_published else "Not the published task: differences are in brackets.\n"
        parts.append("\n".join([f"On {comparison.condition}", note + format_table(columns, width=width), *verdicts]))
    return "\n\n".join(parts)


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Returns a Markdown table; columns whose name ends in ":" are aligned to the right."""
    heads = " | ".join(column.removesuffix(":") for column in columns)
    lines = " | ".join("---:" if column.endswith(":") else "---" for column in columns)
    cells = [" | ".join(str(cell).replace("|", "\\|") for cell in row) for row in rows]
    return "\n".join(f"| {line} |" for line in (heads, lines, *cells)) + "\n"


def _condition_part(comparison: Comparison, rows: Sequence[dict[str, Any]]) -> str:
    condition = comparison.condition
    task = (
        "The published task: the same photos and settings."
        if condition.is_published
        else "**Not the published task**: these figures can be set against each other, and their order against the published "
        "order, but none of them against its published counterpart."
    )
    columns = ("id", "what was tried", "published, %:", "measured, %:", "95 %, ±:", "runs:", "difference:",
               "epochs published:", "epochs:", "time a run:", "on", "device")  # fmt: skip
    table = markdown_table(
        columns,
        [
            (
                row["experiment"], row["description"], _number(row["published_percent"]),
                comparison.summaries[row["experiment"]].text, f"{row['chance']:.2f}", row["runs"], _difference(row),
                _number(row["published_epochs"], 0), _number(row["epochs"], 0), duration(row["seconds"]),
                condition.data_text + condition.caveat, row["device"],
            )
            for row in rows
        ],
    )  # fmt: skip
    return f"## On {condition}\n\n{task}\n\n{table}\n{_order_part(comparison)}"


def order_text(comparison: Comparison) -> str:
    """Returns the verdicts on the order of each group's variants as a Markdown table, and the groups without one."""
    verdicts = markdown_table(
        ("question", "variants", "measured:", "pairs:", "opposite:", "inverted:", "τ:", "verdict"),
        [
            (
                section.name,
                order.group.name,
                f"{order.measured} of {len(order.group.experiments)}",
                len(order.pairs),
                sum(pair.is_opposite for pair in order.pairs),
                len(order.inverted),
                f"{order.tau:.2f}",
                order.verdict,
            )
            for section, order in _told(comparison)
        ],
    )
    return "\n".join([verdicts] * bool(_told(comparison)) + [f"{line}\n" for line in untold(comparison)])


def untold(comparison: Comparison) -> list[str]:
    """Returns a line for each reason why groups have no order to compare; a section alone stands for all of its groups."""
    names: dict[str, list[str]] = {}
    for section, orders in comparison.orders:
        for verdict in dict.fromkeys(order.verdict for order in orders if not order.pairs):
            groups = [order.group.name for order in orders if order.verdict == verdict]
            which = "" if len(groups) == len(orders) else f" ({'; '.join(groups)})"
            names.setdefault(verdict, []).append(section.name + which)
    return [f"{verdict.capitalize()}: {', '.join(sections)}." for verdict, sections in names.items()]


def _told(comparison: Comparison) -> list[tuple[Section, Order]]:
    return [(section, order) for section, orders in comparison.orders for order in orders if order.pairs]


def _order_part(comparison: Comparison) -> str:
    text = f"### {ORDER}\n\n{order_text(comparison)}"
    variants = [row for section, order in _told(comparison) for row in _variant_rows(section.name, order)]
    if not variants:
        return text
    columns = ("question", "variant", "against", "published difference:", "measured difference:", "chance, ±:")
    return f"{text}\nEach variant against the first of its group:\n\n{markdown_table(columns, variants)}"


def _variant_rows(section: str, order: Order) -> list[tuple[str, ...]]:
    return [
        (
            section,
            pair.second,
            pair.first,
            f"{pair.published:+.2f}{MARK if pair.published_counts else ''}",
            f"{pair.measured:+.2f}{MARK if pair.measured_counts else ''}",
            f"{pair.measured_allowed:.2f}",
        )
        for pair in order.pairs
        if pair.first == order.pairs[0].first
    ]


def batch_sentence(measured: Sequence[Measured]) -> str:
    """Returns how far the mean over images and the mean over batches are apart in these runs, and how far they can be."""
    known = [run for run in measured if run.over_batches_acc_percent is not None]
    if not known:
        return "The mean over batches has been computed of no run yet.\n"
    run = max(known, key=lambda run: abs(_over_batches(run)))
    return (
        f"Mean over images and mean over batches of the same checkpoint are at most {abs(_over_batches(run)):.2f} percent "
        f"points apart ({run.experiment}, seed {run.seed}; runs: {len(known)}); {_bound(run.valid_photos, run.batch_size)} "
        f"are possible there, {_bound(IMAGES[1], STUDY_BATCH)} on the published photos.\n"
    )


def _over_batches(run: Measured) -> float:
    return run.over_batches_acc_percent - run.checkpoint_acc_percent


def _bound(images: int, batch_size: int) -> str:
    return f"{100 * largest_difference(images, batch_size):.2f}"


def _batch_part(measured: Sequence[Measured]) -> str:
    bounds = [_bound(images, STUDY_BATCH) for images in IMAGES]
    lines = [
        "## Mean over images, mean over batches\n",
        "The published accuracy is the mean of the batches' accuracies, in which the images of a smaller last batch weigh "
        f"more. In batches of {STUDY_BATCH}, it can be at most {bounds[1]} percent points from the mean over the "
        f"{IMAGES[1]:,} validation images, which is given here, and {bounds[0]} from that over the {IMAGES[0]:,} training "
        "images.\n",
        batch_sentence(measured),
    ]
    known = [run for run in measured if run.over_batches_acc_percent is not None]
    if not known:
        return "\n".join(lines)
    table = markdown_table(
        ("id", "seed:", "on", "over images, %:", "over batches, %:", "difference:", "at most, ±:"),
        [
            (
                run.experiment, run.seed, run.condition.data_text, f"{run.checkpoint_acc_percent:.2f}",
                f"{run.over_batches_acc_percent:.2f}",
                f"{_over_batches(run):+.3f}",
                _bound(run.valid_photos, run.batch_size),
            )
            for run in known
        ],
    )  # fmt: skip
    return "\n".join([*lines, table])


def _difference(row: Mapping[str, Any]) -> str:
    if row["difference"] is None:
        return NONE
    text = f"{row['difference']:+.2f}"
    return (text + (MARK if row["beyond_chance"] == "yes" else "")) if row["same_task"] == "yes" else f"({text})"


def _number(value: float | None, digits: int = 2) -> str:
    return NONE if value is None else f"{value:.{digits}f}"
