"""Draws published against measured accuracy."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from reproduction.noise import Figure, allowed_difference
from reproduction.published import WRONG_BOXES, Published, place
from utils.files import replacing
from utils.runs.curves import COLOURS

if TYPE_CHECKING:  # matplotlib takes half a second that a typo need not wait for
    from matplotlib.axes import Axes

DPI = 110
ROW = 0.235  # inches
MOST_LABELLED = 16  # points of the right panel; the names of more would hide each other
LABEL_WIDTH, LABEL_HEIGHT = 7.0, 2.4  # percent points
LONGEST_CONDITION = 90  # characters


def draw_comparison(
    conditions: Mapping[str, Mapping[str, Figure]], published: Mapping[str, Published], path: Path
) -> None:
    """Draws a row for each experiment, with its published and its measured accuracy, and both against each other.

    Args:
        conditions: By a line for the legend, the figures by experiment.
        published: Figures by experiment.
        path: The PNG to write.

    Raises:
        RunError: The picture cannot be written.
    """
    from matplotlib.figure import Figure as Canvas

    names = sorted({name for figures in conditions.values() for name in figures}, key=place)
    accuracies = {name: published[name].valid_acc_percent for name in names if name in published}
    canvas = Canvas(figsize=(15, max(6.5, ROW * len(names) + 1.2) + 0.2 * len(conditions)), layout="constrained")
    rows, plane = canvas.subplots(1, 2, width_ratios=(1.25, 1))
    height = {name: -index for index, name in enumerate(names)}
    rows.plot(
        list(accuracies.values()), [height[name] for name in accuracies],
        "o", markersize=7, markerfacecolor="none", color="black", label="published, Stanford Cars, 8,144 / 8,041",
    )  # fmt: skip
    taken: list[tuple[float, float]] = []
    for number, (label, figures) in enumerate(conditions.items()):
        style = {"fmt": "o", "markersize": 4.5, "color": COLOURS[number % len(COLOURS)], "elinewidth": 1.1}
        chances = {name: allowed_difference(figure) for name, figure in figures.items()}
        lower = 0.5 * (number - (len(conditions) - 1) / 2) / (len(conditions) + 1)
        rows.errorbar(
            [figure.percent for figure in figures.values()], [height[name] - lower for name in figures],
            xerr=list(chances.values()), label=_shortened(label), **style,
        )  # fmt: skip
        points = {name: (accuracies[name], figures[name].percent) for name in figures if name in accuracies}
        xs, ys = zip(*points.values(), strict=True) if points else ((), ())
        plane.errorbar(xs, ys, yerr=[chances[name] for name in points], **style)
        if len(points) <= MOST_LABELLED:
            _write_names(plane, points, style["color"], taken)
    rows.set_yticks(list(height.values()), list(map(_short, height)), fontsize=8)
    rows.set_ylim(-len(names) + 0.3, 0.7)
    rows.set(xlabel="validation accuracy, %", xlim=(0, 100))
    plane.plot([0, 100], [0, 100], color="0.6", linewidth=1, linestyle="--", zorder=0)
    plane.set(xlabel="published, %", ylabel="measured, %", xlim=(0, 100), ylim=(0, 100))
    plane.set_title("dashed: equal, to be expected of the same photos and settings alone", fontsize=9, color="0.35")
    plane.set_aspect("equal", anchor="N")
    for axes in (rows, plane):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    canvas.legend(
        loc="outside upper left", frameon=False, fontsize=9.5, alignment="left",
        title="bars: 95 % intervals, for other photos and other seeds; *: cut by the boxes of other photos",
    )  # fmt: skip
    with replacing(path) as partial:
        canvas.savefig(partial, dpi=DPI, format="png")


def _write_names(
    axes: "Axes", points: Mapping[str, tuple[float, float]], colour: str, taken: list[tuple[float, float]]
) -> None:
    """Writes names to the right of their points, to the left where another stands there, or not at all; rightmost first.

    The centres of the names are added to `taken`.
    """
    for name, (x, y) in sorted(points.items(), key=lambda item: -item[1][0]):
        for side, offset in (("left", 5), ("right", -5)):
            if all(abs(x + offset - left) > LABEL_WIDTH or abs(y - top) > LABEL_HEIGHT for left, top in taken):
                axes.annotate(
                    _short(name), (x, y), (offset, 3), textcoords="offset points", ha=side, fontsize=8, color=colour
                )
                taken.append((x + offset, y))
                break


def _short(name: str) -> str:
    return name.replace(WRONG_BOXES, " *")


def _shortened(condition: str) -> str:
    cut = condition if len(condition) <= LONGEST_CONDITION else condition[: LONGEST_CONDITION - 1] + "…"
    return cut.replace("$", r"\$")  # else two of them enclose a formula
