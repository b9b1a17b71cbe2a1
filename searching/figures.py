"""Draws the trials of a search: the accuracy against each axis and against its cost."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reproduction.figures import GRAY, new_figure, save_figure
from searching.results import Repeated, Result
from searching.space import Range, Space
from utils.runs.curves import COLORS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, RED = COLORS[:2]
MAX_COLUMNS = 3
MAX_LABEL = 10  # characters that are not rotated
COSTS = {
    "multiply_adds": ("million multiply-adds", 1e-6),
    "num_params": ("million parameters", 1e-6),
    "latency": ("ms an image, one CPU thread", 1.0),
}


def draw_search(
    space: Space, results: Sequence[Result], judged: Sequence[Repeated], front: Sequence[Result], path: Path
) -> None:
    """Draws a panel for each axis of the space, and one of accuracy against cost.

    Args:
        space: The space.
        results: Its trials.
        judged: The best trials with their intervals.
        front: The Pareto front of a search with two metrics.
        path: The PNG file.

    Raises:
        RunError: The file cannot be written.
    """
    count = len(space.axes) + 1
    columns = 2 if count == 4 else min(count, MAX_COLUMNS)
    rows = -(-count // columns)
    figure = new_figure(4.2 * columns, 3.4 * rows + 0.5)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel in panels[count:]:
        panel.remove()
    for axis, panel in zip(space.axes, panels, strict=False):
        labels = None if isinstance(axis, Range) else list(axis.ends)
        _scatter(panel, space, results, judged, lambda result, axis=axis: result.values.get(axis.name), labels)
        panel.set_xlabel(axis.name)
        if isinstance(axis, Range) and axis.log:
            _scale(panel)
    cost = panels[count - 1]
    if len(space.metrics) > 1:
        label, factor = COSTS[space.metrics[1]]
        _scatter(cost, space, results, judged, lambda result: factor * result.objectives[-1], None)
        cost.plot(
            [factor * result.objectives[-1] for result in front], [_height(space, result) for result in front],
            color=RED, linewidth=1.2, drawstyle="steps-post", label="Pareto front",
        )  # fmt: skip
    else:
        label = "minutes of training"
        _scatter(cost, space, results, judged, lambda result: result.seconds / 60, None)
    cost.set_xlabel(label)
    for panel in panels[:count]:
        panel.set_ylabel(f"{space.metric}, %" if space.metric.endswith("acc") else space.metric)
    handles, labels = cost.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", frameon=False, fontsize=9, ncols=4)
    save_figure(figure, panels[:count], path)


def _scale(panel: "Axes") -> None:
    """Makes the horizontal axis logarithmic, with plain numbers that do not overlap."""
    from matplotlib.ticker import LogLocator, NullLocator

    panel.set_xscale("log")
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_major_formatter("{x:g}")
    panel.xaxis.set_minor_locator(NullLocator())


def _scatter(
    panel: "Axes",
    space: Space,
    results: Sequence[Result],
    judged: Sequence[Repeated],
    place: Callable[[Result], Any],
    labels: Sequence[str] | None,
) -> None:
    """Draws the trials, and the intervals of the judged ones; `labels` are the choices of an axis without numbers."""

    def position(result: Result) -> float:
        return place(result) if labels is None else labels.index(place(result))

    for state, style in (
        ("pruned", {"color": GRAY, "markerfacecolor": "white", "label": "pruned: the value so far"}),
        ("finished", {"color": BLUE, "label": "finished"}),
    ):
        if state == "pruned" and len(space.metrics) > 1:
            continue
        chosen = [r for r in results if r.state == state and r.objectives and place(r) is not None]
        panel.plot([position(r) for r in chosen], [_height(space, r) for r in chosen], "o", markersize=5, **style)
    if space.metric.endswith("acc"):
        text = "mean of other seeds" if any(each.repeats for each in judged) else "the best"
        panel.errorbar(
            [position(each.trial) for each in judged], [each.accuracy.percent for each in judged],
            yerr=[each.margin for each in judged], fmt="D", color=RED, markersize=4, linewidth=1, capsize=2,
            label=f"{text}, 95 % interval",
        )  # fmt: skip
    if labels is not None:
        panel.set_xticks(
            range(len(labels)), labels, fontsize=8, rotation=20 if max(map(len, labels)) > MAX_LABEL else 0
        )
        panel.set_xlim(-0.5, len(labels) - 0.5)


def _height(space: Space, result: Result) -> float:
    return 100 * result.objectives[0] if space.metric.endswith("acc") else result.objectives[0]
