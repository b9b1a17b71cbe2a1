"""Draws published against measured accuracy, and published accuracy against the epoch of the first drop."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from reproduction.comparison import Accuracy, margin_of_error
from reproduction.published import WRONG_BOXES, FirstDrop, Line, Published, sort_key
from utils.files import replacing
from utils.runs.curves import COLORS, escape_dollars

if TYPE_CHECKING:  # importing matplotlib takes half a second
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 110
ROW_INCHES = 0.235
MAX_LABELED = 16  # points in the right panel; more labels would overlap
MAX_SETUP_LENGTH = 90  # characters
LABEL_WIDTH, LABEL_HEIGHT = 7.0, 2.4  # percentage points
GRAY = "0.6"


def draw_comparison(
    setups: Mapping[str, Mapping[str, Accuracy]], published: Mapping[str, Published], path: Path
) -> None:
    """Draws a row for each experiment with its published and its measured accuracy, and one against the other.

    Args:
        setups: Accuracies by experiment, by a line for the legend.
        published: Results by experiment.
        path: The PNG file.

    Raises:
        RunError: The file cannot be written.
    """
    names = sorted({name for accuracies in setups.values() for name in accuracies}, key=sort_key)
    known = {name: published[name].valid_acc_percent for name in names if name in published}
    figure = new_figure(15, max(6.5, ROW_INCHES * len(names) + 1.2) + 0.2 * len(setups))
    rows, plane = figure.subplots(1, 2, width_ratios=(1.25, 1))
    height = {name: -index for index, name in enumerate(names)}
    rows.plot(
        list(known.values()), [height[name] for name in known],
        "o", markersize=7, markerfacecolor="none", color="black", label="published, Stanford Cars, 8,144 / 8,041",
    )  # fmt: skip
    taken: list[tuple[float, float]] = []
    for number, (setup, accuracies) in enumerate(setups.items()):
        style = {"fmt": "o", "markersize": 4.5, "color": COLORS[number % len(COLORS)], "elinewidth": 1.1}
        margins = {name: margin_of_error(accuracy) for name, accuracy in accuracies.items()}
        offset = 0.5 * (number - (len(setups) - 1) / 2) / (len(setups) + 1)
        rows.errorbar(
            [accuracy.percent for accuracy in accuracies.values()], [height[name] - offset for name in accuracies],
            xerr=list(margins.values()), label=_legend_text(setup), **style,
        )  # fmt: skip
        points = {name: (known[name], accuracies[name].percent) for name in accuracies if name in known}
        xs, ys = zip(*points.values(), strict=True) if points else ((), ())
        plane.errorbar(xs, ys, yerr=[margins[name] for name in points], **style)
        if len(points) <= MAX_LABELED:
            _label_points(plane, points, style["color"], taken)
    rows.set_yticks(list(height.values()), [_short(name) for name in height], fontsize=8)
    rows.set_ylim(-len(names) + 0.3, 0.7)
    rows.set(xlabel="validation accuracy, %", xlim=(0, 100))
    plane.plot([0, 100], [0, 100], color=GRAY, linewidth=1, linestyle="--", zorder=0)
    plane.set(xlabel="published, %", ylabel="measured, %", xlim=(0, 100), ylim=(0, 100))
    plane.set_title("dashed: equal, as expected for the same images and settings only", fontsize=9, color="0.35")
    plane.set_aspect("equal", anchor="N")
    figure.legend(
        loc="outside upper left", frameon=False, fontsize=9.5, alignment="left",
        title="bars: 95 % intervals over images and seeds; *: cut by the boxes of other images",
    )  # fmt: skip
    save_figure(figure, [rows, plane], path)


def draw_first_drops(drops: Sequence[FirstDrop], others: Sequence[FirstDrop], line: Line, path: Path) -> None:
    """Draws best accuracy against the epoch of the first drop of the learning rate.

    Args:
        drops: The runs that `line` was fitted to.
        others: Runs to show in gray.
        line: The fitted line.
        path: The PNG file.

    Raises:
        RunError: The file cannot be written.
    """
    figure = new_figure(10, 6)
    axes = figure.subplots()
    decays = sorted({drop.weight_decay for drop in others})
    axes.plot(
        [drop.epoch for drop in others], [drop.accuracy for drop in others], "o", color=GRAY, markersize=5,
        label=f"weight decay {decays[0]} to {decays[-1]}",
    )  # fmt: skip
    for is_plateau, text in ((True, "chosen by ReduceLROnPlateau"), (False, "fixed by a milestone")):
        chosen = [drop for drop in drops if drop.is_plateau == is_plateau]
        axes.plot(
            [drop.epoch for drop in chosen], [drop.accuracy for drop in chosen], "o", color=COLORS[0], markersize=7,
            markerfacecolor="white" if is_plateau else COLORS[0],
            label=f"weight decay {min(drop.weight_decay for drop in drops)} or more, drop {text}",
        )  # fmt: skip
    ends = (min(drop.epoch for drop in drops), max(drop.epoch for drop in drops))
    axes.plot(
        ends, [line.at(epoch) for epoch in ends], color=COLORS[1], linewidth=1.3, zorder=0,
        label=f"{line.intercept:.1f} + {line.slope:.3f} × epoch, r = {line.correlation:.3f}, {len(drops)} runs",
    )  # fmt: skip
    for drop in (*drops, *others):
        above = drop in drops and drop.accuracy > line.at(drop.epoch)
        axes.annotate(
            drop.name, drop.point, (0, 6 if above else -6), textcoords="offset points", rotation=60, fontsize=8.5,
            ha="center", va="bottom" if above else "top", color=COLORS[0] if drop in drops else "0.4",
        )  # fmt: skip
    axes.margins(0.05, 0.12)
    axes.set(xlabel="epoch of the first drop of the learning rate", ylabel="best validation accuracy, published, %")
    axes.legend(loc="lower right", frameon=False, fontsize=9.5)
    save_figure(figure, [axes], path)


def new_figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: "Figure", panels: Sequence["Axes"], path: Path) -> None:
    for axes in panels:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    with replacing(path) as partial:
        # Without the version of matplotlib in the file, the same data give the same bytes.
        figure.savefig(partial, dpi=DPI, format="png", metadata={"Software": None})


def _label_points(
    axes: "Axes", points: Mapping[str, tuple[float, float]], color: str, taken: list[tuple[float, float]]
) -> None:
    """Labels points on their right, on their left if another label is there, or not at all; rightmost points first.

    The centers of the new labels are added to `taken`.
    """
    for name, (x, y) in sorted(points.items(), key=lambda item: -item[1][0]):
        for side, offset in (("left", 5), ("right", -5)):
            if all(abs(x + offset - left) > LABEL_WIDTH or abs(y - top) > LABEL_HEIGHT for left, top in taken):
                axes.annotate(
                    _short(name), (x, y), (offset, 3), textcoords="offset points", ha=side, fontsize=8, color=color
                )
                taken.append((x + offset, y))
                break


def _short(name: str) -> str:
    return name.replace(WRONG_BOXES, " *")


def _legend_text(setup: str) -> str:
    return escape_dollars(setup if len(setup) <= MAX_SETUP_LENGTH else setup[: MAX_SETUP_LENGTH - 1] + "…")
