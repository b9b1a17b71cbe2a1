"""Writes the comparison: tables as CSV, all of it as Markdown, and a figure."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from reproduction.comparison import Comparison, Difference, Order, compare, experiment_rows, pair_rows, published_spread
from reproduction.evaluation import max_difference
from reproduction.figures import draw_comparison
from reproduction.published import IMAGES, REPEATS, Published, Section
from reproduction.results import Measured
from utils.files import write_csv, write_text
from utils.runs.comparison import format_table
from utils.runs.summary import duration

TABLE, PAIRS, TEXT, PICTURE = "comparison.csv", "pairs.csv", "comparison.md", "comparison.png"
NONE = "–"
STUDY_BATCH = 64
MARK = " \\*"
RULE = """## How to read it

Published: the best validation accuracy of any epoch of one run, as a mean over batches. Measured: that of this project, as a
mean over images, ± the standard deviation between seeds if there are several. In both, the validation images also chose the
epoch and stopped the training. A difference in brackets compares two different tasks: other images or other settings.

\\* marks a significant difference, two-sided at 95 %: larger than t times the square root of the sum, over both results, of
p(1 − p) / N for the N validation images, and of s² / n for n seeds. s is the standard deviation between seeds, pooled over all
experiments of the same setup. Both results come from the same images, which this sum ignores, so a mark is missing rather than
wrong. The published spread between runs is that of {repeats}, which had the same settings: s = {spread:.2f} points.{fallback}
Two variants are called reversed only if the published and the measured difference are both significant and have opposite
signs. τ is Kendall's rank correlation.
"""
FALLBACK = " It also serves for the measured results of setups in which no experiment has several seeds."


def write_report(folder: Path, measured: Sequence[Measured], published: Mapping[str, Published]) -> list[Comparison]:
    """Writes the comparison of `measured` with `published` into `folder`.

    Raises:
        RunError: The folder cannot be written.
    """
    comparisons = compare(measured, published)
    rows = [list(experiment_rows(comparison, published)) for comparison in comparisons]
    write_csv(folder / TABLE, [row for part in rows for row in part])
    write_csv(folder / PAIRS, [row for comparison in comparisons for row in pair_rows(comparison)])
    names = setup_names(comparisons)
    accuracies = {name: comparison.accuracies for name, comparison in zip(names, comparisons, strict=True)}
    draw_comparison(accuracies, published, folder / PICTURE)
    fallback = "" if all(comparison.is_repeated for comparison in comparisons) else FALLBACK
    parts = [
        "# Published and measured\n\nWritten by `python reproduce.py --report`.\n\n"
        f"![published against measured accuracy]({PICTURE})\n",
        *(_setup_part(*each) for each in zip(names, comparisons, rows, strict=True)),
        RULE.format(repeats=", ".join(REPEATS), spread=published_spread(published).variance ** 0.5, fallback=fallback),
        _batch_part(measured),
    ]
    write_text(folder / TEXT, "\n".join(parts))
    return comparisons


def summary_text(comparisons: Sequence[Comparison], published: Mapping[str, Published], *, width: int) -> str:
    """Returns the tables and the verdicts on the order for a terminal, in lines of at most `width`."""
    parts = []
    for name, comparison in zip(setup_names(comparisons), comparisons, strict=True):
        columns = [["id"], ["published"], ["measured"], ["runs"], ["difference"], ["epochs"], ["time per run"]]
        for row in experiment_rows(comparison, published):
            cells = (
                row["experiment"], _number(row["published_percent"]), comparison.summaries[row["experiment"]].text,
                str(row["runs"]), _row_difference(row).replace(MARK, " *"), _number(row["epochs"], 0), duration(row["seconds"]),
            )  # fmt: skip
            for column, cell in zip(columns, cells, strict=True):
                column.append(cell)
        lines = [
            f"{section.name}, {order.group.name} ({order.measured} of {len(order.group.experiments)}): {order.verdict}"
            for section, order in _comparable(comparison)
        ]
        lines += [
            f"{second} against {first}: {difference.points:+.2f} ± {difference.margin:.2f}"
            + (" *" if difference.is_significant else "")
            for first, second, difference in comparison.other_pairs
        ]
        lines += [textwrap.fill(line, width) for line in incomparable(comparison)]
        note = "" if comparison.setup.is_published else "Not the published task: differences are in brackets.\n"
        parts.append("\n".join([f"On {name}", note + format_table(columns, width=width), *lines]))
    return "\n\n".join(parts)


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Returns a Markdown table. Columns whose name ends in ":" are aligned to the right."""
    heads = " | ".join(column.removesuffix(":") for column in columns)
    lines = " | ".join("---:" if column.endswith(":") else "---" for column in columns)
    cells = [" | ".join(str(cell).replace("|", "\\|") for cell in row) for row in rows]
    return "\n".join(f"| {line} |" for line in (heads, lines, *cells)) + "\n"


def order_text(comparison: Comparison) -> str:
    """Returns the verdicts on the order of each group as a Markdown table, and the groups without one."""
    verdicts = [
        (
            section.name, order.group.name, f"{order.measured} of {len(order.group.experiments)}", len(order.pairs),
            sum(pair.is_opposite for pair in order.pairs), sum(pair.is_reversed for pair in order.pairs),
            f"{order.tau:.2f}", order.verdict,
        )
        for section, order in _comparable(comparison)
    ]  # fmt: skip
    columns = ("question", "variants", "measured:", "pairs:", "opposite:", "reversed:", "τ:", "verdict")
    table = [markdown_table(columns, verdicts)] if verdicts else []
    return "\n".join(table + [f"{line}\n" for line in incomparable(comparison)])


def incomparable(comparison: Comparison) -> list[str]:
    """Returns a line for each reason why groups have no order. A section without its groups stands for all of them."""
    names: dict[str, list[str]] = {}
    for section, orders in comparison.orders:
        for verdict in dict.fromkeys(order.verdict for order in orders if not order.pairs):
            groups = [order.group.name for order in orders if order.verdict == verdict]
            which = "" if len(groups) == len(orders) else f" ({'; '.join(groups)})"
            names.setdefault(verdict, []).append(section.name + which)
    return [f"{verdict.capitalize()}: {', '.join(sections)}." for verdict, sections in names.items()]


def batch_sentence(measured: Sequence[Measured]) -> str:
    """Returns how far the mean over images and the mean over batches are apart in these runs, and how far they can be."""
    known = [run for run in measured if run.over_batches_acc_percent is not None]
    if not known:
        return "No run has an accuracy as a mean over batches yet.\n"
    run = max(known, key=lambda run: abs(_batch_difference(run)))
    return (
        f"The mean over images and the mean over batches of the same checkpoint differ by at most "
        f"{abs(_batch_difference(run)):.2f} percentage points ({run.experiment}, seed {run.seed}; {len(known)} runs). Up to "
        f"{_bound(run.valid_images, run.batch_size)} are possible there, {_bound(IMAGES[1], STUDY_BATCH)} on the published "
        "images.\n"
    )


def _comparable(comparison: Comparison) -> list[tuple[Section, Order]]:
    return [(section, order) for section, orders in comparison.orders for order in orders if order.pairs]


def setup_names(comparisons: Sequence[Comparison]) -> list[str]:
    """Returns a name for each setup, with the digest of its data where only that is different, as after a corrected label."""
    texts = [str(comparison.setup) for comparison in comparisons]
    return [
        text if texts.count(text) == 1 else f"{text}; data {comparison.setup.data_digest}"
        for text, comparison in zip(texts, comparisons, strict=True)
    ]


def _setup_part(name: str, comparison: Comparison, rows: Sequence[dict[str, Any]]) -> str:
    setup = comparison.setup
    task = (
        "The published task: the published images, and the settings of the experiments' files."
        if setup.is_published
        else "**Not the published task**: these results can be compared with each other, and their order with the published "
        "order, but none of them with its published counterpart."
    )
    columns = ("id", "what was tried", "published, %:", "measured, %:", "95 %, ±:", "runs:", "difference:",
               "epochs published:", "epochs:", "time per run:", "on", "device")  # fmt: skip
    table = markdown_table(
        columns,
        [
            (
                row["experiment"], row["description"], _number(row["published_percent"]),
                comparison.summaries[row["experiment"]].text, f"{row['margin']:.2f}", row["runs"], _row_difference(row),
                _number(row["published_epochs"], 0), _number(row["epochs"], 0), duration(row["seconds"]),
                setup.data_text + setup.note, row["device"],
            )
            for row in rows
        ],
    )  # fmt: skip
    parts = [f"## On {name}\n\n{task}\n", table, f"### Did the order hold?\n\n{order_text(comparison)}"]
    variants = [
        (section.name, pair.second, pair.first, _marked(pair.published), _marked(pair.measured), f"{pair.measured.margin:.2f}")
        for section, order in _comparable(comparison)
        for pair in order.pairs
        if pair.first == order.pairs[0].first
    ]  # fmt: skip
    if variants:
        columns = ("question", "variant", "against", "published difference:", "measured difference:", "95 %, ±:")
        parts.append(f"Each variant against the first of its group:\n\n{markdown_table(columns, variants)}")
    if comparison.other_pairs:
        columns = ("configuration", "against", "measured difference:", "95 %, ±:")
        others = [
            (second, first, _marked(each), f"{each.margin:.2f}") for first, second, each in comparison.other_pairs
        ]
        parts.append(f"### Configurations outside the study\n\n{markdown_table(columns, others)}")
    return "\n".join(parts)


def _batch_part(measured: Sequence[Measured]) -> str:
    bounds = [_bound(images, STUDY_BATCH) for images in IMAGES]
    parts = [
        "## Mean over images, mean over batches\n",
        "The published accuracy is the mean of the batch accuracies, in which the images of a smaller last batch weigh more. "
        f"With batches of {STUDY_BATCH}, it can differ by at most {bounds[1]} percentage points from the mean over the "
        f"{IMAGES[1]:,} validation images, which is given here, and by {bounds[0]} from that over the {IMAGES[0]:,} training "
        "images.\n",
        batch_sentence(measured),
    ]
    known = [run for run in measured if run.over_batches_acc_percent is not None]
    columns = ("id", "seed:", "on", "over images, %:", "over batches, %:", "difference:", "at most, ±:")
    rows = [
        (
            run.experiment, run.seed, run.setup.data_text, f"{run.checkpoint_acc_percent:.2f}",
            f"{run.over_batches_acc_percent:.2f}", f"{_batch_difference(run):+.3f}",
            _bound(run.valid_images, run.batch_size),
        )
        for run in known
    ]  # fmt: skip
    return "\n".join([*parts, *([markdown_table(columns, rows)] if rows else [])])


def _batch_difference(run: Measured) -> float:
    return run.over_batches_acc_percent - run.checkpoint_acc_percent


def _bound(images: int, batch_size: int) -> str:
    return f"{100 * max_difference(images, batch_size):.2f}"


def _row_difference(row: Mapping[str, Any]) -> str:
    if row["difference"] is None:
        return NONE
    if row["same_task"] == "no":
        return f"({row['difference']:+.2f})"
    return _marked(Difference(row["difference"], row["difference_margin"]))


def _marked(difference: Difference) -> str:
    return f"{difference.points:+.2f}{MARK if difference.is_significant else ''}"


def _number(value: float | None, digits: int = 2) -> str:
    return NONE if value is None else f"{value:.{digits}f}"
