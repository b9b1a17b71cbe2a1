"""Draws accuracy, or size, against latency."""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox

from deployment.profiling.benchmark import Profile
from utils.files import replacing
from utils.runs.curves import escape_dollars

POINTS_PER_INCH = 72
NOTE_WIDTH = 170  # characters
MIN_DECADES = 0.3  # of a logarithmic axis with logarithmic ticks
MAX_UNCONNECTED = 10  # points; labels farther from their dot get a line to it
# Candidate offsets of a label from its dot, in points, nearest first: (x, y, horizontal alignment).
PLACES = [
    (x * distance, y * distance, {1: "left", 0: "center", -1: "right"}[x])
    for distance in (6, 10, 15, 22, 30)
    for x, y in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
]


def draw(profiles: Sequence[Profile], path: Path, *, title: str) -> None:
    """Draws accuracy against latency in onnxruntime on one thread; parameters where no model has an accuracy.

    Where some models have an accuracy, those without are listed below the plot.
    """
    omitted = [profile.name for profile in profiles if profile.accuracy is None]
    trained = len(omitted) < len(profiles)
    if trained:
        profiles = [profile for profile in profiles if profile.accuracy is not None]
    times = [1e3 * profile.seconds["onnxruntime", 1].median for profile in profiles]
    heights = [100 * profile.accuracy if trained else profile.parameters / 1e6 for profile in profiles]
    areas = [25 + 4 * profile.parameters / 1e6 for profile in profiles]  # square points
    figure = Figure(figsize=(11, 7), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.set_xlabel("latency of one image, onnxruntime, one thread, ms")
    axes.set_ylabel("validation accuracy, %" if trained else "parameters, millions")
    for index, family in enumerate(sorted({_family(profile) for profile in profiles})):
        members = [i for i, profile in enumerate(profiles) if _family(profile) == family]
        axes.scatter(
            [times[i] for i in members], [heights[i] for i in members], s=[areas[i] for i in members],
            color=f"C{index % 10}", alpha=0.8, zorder=3,
        )  # fmt: skip
    axes.margins(0.12)
    _plain_numbers(axes.xaxis)
    if not trained:
        axes.set_yscale("log")
        _plain_numbers(axes.yaxis)
    elif omitted:
        note = f"without accuracy: {', '.join(omitted)}"
        figure.supxlabel(textwrap.fill(note, NOTE_WIDTH), fontsize=8.5, x=0.01, ha="left", color="#555555")
    axes.grid(alpha=0.25, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"{escape_dollars(title)}\nlarger dots have more parameters", fontsize=10)
    figure.draw_without_rendering()
    _label(
        figure,
        axes,
        [escape_dollars(profile.name) for profile in profiles],
        list(zip(times, heights, strict=True)),
        areas,
    )
    with replacing(path) as partial:
        figure.savefig(partial, format="png")


def _plain_numbers(axis: Axis) -> None:
    """Labels a logarithmic axis with 0.5 or 20 instead of powers of ten, between the decades too if it spans few."""
    axis.set_major_formatter("{x:g}")
    low, high = axis.get_view_interval()
    decades = math.log10(high / low)
    if decades < MIN_DECADES:  # no or one power of ten
        axis.set_major_locator(MaxNLocator(6))
        axis.set_minor_locator(NullLocator())
        return
    digits = "23456789" if decades < 1 else "25" if decades < 3 else ""
    axis.set_minor_locator(LogLocator(subs=range(2, 10)))
    axis.set_minor_formatter(FuncFormatter(lambda x, _: f"{x:g}" if f"{x:e}"[0] in digits else ""))


def _family(profile: Profile) -> str:
    return profile.architecture.partition("/")[0].partition("_")[0]


def _label(
    figure: Figure,
    axes: Axes,
    names: Sequence[str],
    points: Sequence[tuple[float, float]],
    areas: Sequence[float],
) -> None:
    """Places each name beside its dot, with the least overlap with dots, other names and the frame."""
    renderer = figure.canvas.get_renderer()
    taken = []
    for (x, y), area in zip(axes.transData.transform(points), areas, strict=True):
        side = math.sqrt(area) * figure.dpi / POINTS_PER_INCH
        taken.append(Bbox.from_bounds(x - side / 2, y - side / 2, side, side))
    frame = axes.get_window_extent()
    for name, point in zip(names, points, strict=True):
        text = axes.annotate(
            name, point, PLACES[0][:2], textcoords="offset points", va="center", fontsize=8.5, zorder=4
        )
        costs = []
        for x, y, alignment in PLACES:
            text.set(position=(x, y), ha=alignment)
            box = text.get_window_extent(renderer)
            outside = box.width * box.height - _overlap(box, frame)
            costs.append(outside + sum(_overlap(box, other) for other in taken))
        x, y, alignment = PLACES[costs.index(min(costs))]
        text.set(position=(x, y), ha=alignment)
        taken.append(text.get_window_extent(renderer))
        if max(abs(x), abs(y)) > MAX_UNCONNECTED:
            line = {"arrowstyle": "-", "linewidth": 0.5, "color": "#777777"}
            axes.annotate("", point, (x, y), textcoords="offset points", arrowprops=line)


def _overlap(first: Bbox, second: Bbox) -> float:
    """Returns the area of the intersection."""
    shared = Bbox.intersection(first, second)
    return 0.0 if shared is None else shared.width * shared.height
