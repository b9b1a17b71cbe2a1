"""Plots loss, accuracy and learning rate by epoch, like the figures of the study."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from utils.files import replacing
from utils.runs.metrics import Row, best

if TYPE_CHECKING:  # importing matplotlib takes half a second
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FACTORS = {"loss": 1.0, "acc": 100.0, "lr": 1.0}
TITLES = {"loss": "loss", "acc": "top-1 accuracy, %", "lr": "learning rate"}
SPLITS = {"valid": "validation", "train": "training"}
COLORS = ("#1b6ca8", "#d1495b", "#2e8b57", "#edae49", "#6a4c93", "#00798c", "#8d5524", "#5c5c5c")
LEGEND_LINES = 30  # per column of the legend, which has two
MAX_NUMBERED = 24  # curves; more numbers at their ends would overlap


def draw_curves(runs: Mapping[str, list[Row]], path: Path, *, title: str = "") -> None:
    """Plots the metrics of one or several runs as a PNG.

    For one run, training and validation share a panel. Several runs have one panel for each split and a numbered legend.
    Missing, NaN and infinite values are omitted.

    Args:
        runs: The rows of each run by its name in the legend; a run without rows keeps its number and its legend entry.
        path: The PNG to write.
        title: The title above the panels.

    Raises:
        RunError: The file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.8 if len(runs) == 1 else 9.2), layout="constrained" if len(runs) > 1 else None)
    if len(runs) == 1:
        _draw_one(figure, *runs.values())
        figure.subplots_adjust(left=0.04, right=0.985, bottom=0.11, top=0.86, wspace=0.14)  # half the time of a layout
    else:
        _draw_several(figure, runs)
    figure.suptitle(escape_dollars(title), fontsize=12)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=110, format="png")


def _draw_one(figure: "Figure", rows: list[Row]) -> None:
    for axes, metric in zip(figure.subplots(1, 3), TITLES, strict=True):
        if metric == "lr":
            _plot(axes, rows, metric, color=COLORS[0])
        else:
            labels, found = dict(SPLITS), best(rows, f"valid_{metric}")
            if found is not None:  # in the legend, where the text hides no curve
                value, epoch = FACTORS[metric] * found[0], found[1]
                figures = f"{value:.4f}" if metric == "loss" else f"{value:.2f} %"
                labels["valid"] += f": {figures} in epoch {epoch}"
            for split, label in labels.items():
                style = {"linestyle": "--", "alpha": 0.7} if split == "train" else {}
                _plot(axes, rows, f"{split}_{metric}", label=label, color=COLORS[split == "train"], **style)
            if found is not None:
                axes.plot(epoch, value, "o", color=COLORS[0], markersize=6)
            axes.legend(frameon=False)  # at the emptiest place
        _finish(axes, [rows], metric, title=TITLES[metric])


def _draw_several(figure: "Figure", runs: Mapping[str, list[Row]]) -> None:
    import matplotlib

    grid = figure.subplots(2, 3, sharex=True)
    if len(runs) <= len(COLORS):
        colors = list(COLORS)
    else:
        rainbow = [matplotlib.colormaps["turbo"](0.04 + 0.92 * index / (len(runs) - 1)) for index in range(len(runs))]
        colors = [tuple(0.85 * part for part in color[:3]) for color in rainbow]  # darker, for yellow on white
    width = 1.6 if len(runs) <= len(COLORS) else 1.1
    panels = {("valid", "loss"): grid[0, 0], ("valid", "acc"): grid[0, 1], ("train", "loss"): grid[1, 0]}
    panels |= {("train", "acc"): grid[1, 1], ("", "lr"): grid[1, 2]}
    for (split, metric), axes in panels.items():
        name = f"{split}_{metric}" if split else metric
        # The first run is drawn last, on top.
        for number, (rows, color) in reversed(list(enumerate(zip(runs.values(), colors, strict=False), start=1))):
            end = _plot(axes, rows, name, color=color, linewidth=width)
            if split == "valid" and (found := best(rows, name)) is not None:
                axes.plot(found[1], FACTORS[metric] * found[0], "o", color=color, markersize=5)
                if len(runs) <= MAX_NUMBERED:
                    axes.annotate(
                        str(number), end, (6, 0), textcoords="offset points", va="center", color=color, fontsize=8,
                        annotation_clip=True,
                    )  # fmt: skip
        _finish(axes, list(runs.values()), metric, title=f"{SPLITS.get(split, '')} {TITLES[metric]}".strip())
    for column in (0, 1):
        limits = [axes.get_ylim() for axes in grid[:, column]]
        for axes in grid[:, column]:
            axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    _draw_legend(grid[0, 2], list(runs), colors)


def _draw_legend(axes: "Axes", names: list[str], colors: list) -> None:
    from matplotlib.lines import Line2D

    shown = min(len(names), 2 * LEGEND_LINES)
    lines = [Line2D([], [], color=color, linewidth=2.4) for color in colors[:shown]]
    room = 60 if shown <= LEGEND_LINES else 40  # characters
    labels = [
        f"{number}  {escape_dollars(shortened(name, room))}" for number, name in enumerate(names[:shown], start=1)
    ]
    if shown < len(names):
        labels[-1] += f"   … and {len(names) - shown} more"
    axes.axis("off")
    axes.legend(
        lines, labels, title="the dot is the best epoch", loc="upper left", alignment="left", frameon=False,
        ncols=1 + (shown > LEGEND_LINES), fontsize=10 if shown <= 14 else 8 if shown <= LEGEND_LINES else 6.5,
        labelspacing=0.4, handlelength=1.2, columnspacing=1, borderaxespad=0,
    )  # fmt: skip


def _plot(axes: "Axes", rows: list[Row], name: str, **style: object) -> tuple[float, float]:
    """Plots one metric and returns its last finite point."""
    factor = FACTORS[name.rpartition("_")[2]]
    points = [(row["epoch"], factor * row.get(name, math.nan)) for row in rows]
    known = [point for point in points if math.isfinite(point[1])]
    axes.plot(
        [epoch for epoch, _ in points], [value if math.isfinite(value) else math.nan for _, value in points],
        marker="." if len(known) == 1 else "", drawstyle="steps-mid" if name == "lr" else "default",
        **{"linewidth": 1.6, **style},
    )  # fmt: skip
    return known[-1] if known else (0, 0)


def _finish(axes: "Axes", runs: list[list[Row]], metric: str, *, title: str) -> None:
    axes.set(xlabel="epoch")
    axes.grid(alpha=0.25)
    axes.margins(y=0.08)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes.tick_params(labelbottom=True)
    highest = axes.dataLim.y1
    if metric == "acc":
        axes.set_ylim(0, min(1.08 * highest, 102) if highest > 0 else 1)
    elif metric == "lr" and highest > 0:
        axes.set_yscale("log")
    elif metric == "loss":
        # An untrained model is at chance level; a few far worse epochs would flatten all curves.
        starts = [rows[0].get("train_loss", math.nan) for rows in runs if rows]
        limit = 1.4 * max((start for start in starts if math.isfinite(start)), default=math.inf)
        if highest > limit > 0:
            axes.set_ylim(0, limit)
            title += " (higher values are cut off)"
    axes.set_title(title, fontsize=11)


def shortened(text: str, room: int) -> str:
    """Returns `text` without its middle where it has more than `room` characters."""
    return text if len(text) <= room else f"{text[: room // 2]}…{text[-((room - 1) // 2) :]}"


def escape_dollars(text: str) -> str:
    """Returns `text` for matplotlib, which typesets what stands between two dollar signs as a formula."""
    return text.replace("$", r"\$")
