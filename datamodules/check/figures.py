"""Draws the results of a data check: images per class, their sizes, and samples as the model will see them."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from datamodules.images import box_within, read_image
from datamodules.readers.records import BoundingBox
from utils.files import make_folder, replacing
from utils.runs.curves import COLORS, escape_dollars, shortened

if TYPE_CHECKING:  # matplotlib takes half a second to import
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

    from datamodules.check.report import CheckedImage

DPI = 110
SPLITS = {"train": "training", "valid": "validation", "test": "test"}
STYLES = {"train": COLORS[0], "valid": COLORS[3], "test": COLORS[2]}
MODEL = COLORS[1]
MAX_CLASSES_PER_COLUMN = 49  # 196 make four columns
SHEET_IMAGES, SHEET_COLUMNS, SHEET_THUMBNAIL = 24, 6, 140  # of a contact sheet
RATIOS = {  # what becomes of images whose aspect ratio is not that of the resized ones
    "squash": "left of the line widened, right of it narrowed",
    "crop": "left of the line top and bottom are lost, right of it the sides",
    "pad": "left of the line padded at the sides, right of it above and below",
}
MAX_NAME = 40  # characters of a name in a picture
THUMBNAIL = 320  # pixels of the longer side


@dataclass(frozen=True)
class SampleRow:
    """An image, its box, file name and label, and what the model sees in each epoch: (H, W, 3) in [0, 1]."""

    image: Image.Image
    bounding_box: BoundingBox | None
    name: str
    label: int
    draws: list[np.ndarray]


@dataclass(frozen=True)
class MixedSample:
    """What the model sees of an image of a mixed batch, (H, W, 3) in [0, 1], and its labels with their shares."""

    image: np.ndarray
    shares: list[tuple[int, float]]


def draw_class_balance(counts: Mapping[str, Sequence[int]], class_names: Sequence[str], path: Path) -> None:
    """Draws the number of images of each class in each split, the class with most training images first.

    Raises:
        RunError: The picture cannot be written.
    """
    from matplotlib.figure import Figure

    order = sorted(range(len(class_names)), key=lambda label: (-counts["train"][label], class_names[label].casefold()))
    columns = math.ceil(len(order) / MAX_CLASSES_PER_COLUMN)
    length = math.ceil(len(order) / columns)
    figure = Figure(figsize=(max(8, 5.2 * columns), 1.3 + 0.1 * len(counts) * length), layout="constrained")
    most = max(max(values) for values in counts.values())
    for number, axes in enumerate(figure.subplots(1, columns, squeeze=False)[0]):
        labels = order[number * length : (number + 1) * length]
        for row, (split, all_values) in enumerate(counts.items()):
            values = [all_values[label] for label in labels]
            places = np.arange(len(labels)) + 0.8 * ((row + 0.5) / len(counts) - 0.5)
            bars = axes.barh(places, values, height=0.72 / len(counts), color=STYLES[split], label=SPLITS[split])
            axes.bar_label(bars, [str(value) for value in values], padding=2, fontsize=5.5, color="#555555")
            for place in places[np.equal(values, 0)]:
                axes.plot(0, place, "x", color=MODEL, markersize=4, clip_on=False)
        axes.set_yticks(range(len(labels)), [_short(class_names[label]) for label in labels], fontsize=7.5)
        axes.set(xlim=(0, 1.08 * most), ylim=(length - 0.4, -0.6))
        axes.tick_params(axis="y", length=0)
        _finish(axes)
    handles, names = axes.get_legend_handles_labels()
    totals = [f"{name}: {sum(values):,} images" for name, values in zip(names, counts.values(), strict=True)]
    figure.legend(handles, totals, loc="outside upper right", ncols=len(counts), frameon=False, fontsize=10)
    figure.suptitle(f"images of each of {len(order):,} classes", fontsize=12, x=0.01, ha="left")
    _save(figure, path)


def draw_sizes(
    sizes: Mapping[str, Sequence[tuple[int, int]]], image_size: tuple[int, int], path: Path, *, aspect: str = "squash"
) -> None:
    """Draws width against height, and number of pixels and aspect ratio relative to the resized images.

    Raises:
        RunError: The picture cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.8), layout="constrained")
    plane, area, ratio = figure.subplots(1, 3)
    height, width = image_size
    present = {split: np.array(values) for split, values in sizes.items() if values}
    for split, values in present.items():
        style = {"color": STYLES[split], "label": f"{SPLITS[split]}: {len(values):,} images"}
        plane.plot(*values.T, "o", markersize=4, alpha=0.5, markeredgewidth=0, **style)
    plane.plot(width, height, "s", color=MODEL, markersize=7, label=f"resized to {width}×{height}")
    plane.set(xlabel="width, pixels", ylabel="height, pixels", xscale="log", yscale="log")
    plane.set_title("size", fontsize=11)
    for handle in plane.legend(fontsize=9, loc="lower right").legend_handles:
        handle.set(alpha=1, markersize=7)
    for axes, measured, title, label in (
        (area, lambda values: values.prod(axis=1) / (width * height), "left of the line enlarged, right of it shrunk",
         "pixels of an image ÷ pixels of the resized image"),
        (ratio, lambda values: values[:, 0] / values[:, 1] * height / width, RATIOS[aspect],
         "width ÷ height of an image, ÷ that of the resized image"),
    ):  # fmt: skip
        measures = {split: measured(values) for split, values in present.items()}
        low = min(1.0, *(values.min() for values in measures.values()))
        high = max(1.0, *(values.max() for values in measures.values()))
        edges = np.geomspace(0.97 * low, 1.03 * high, 60)
        axes.hist(list(measures.values()), edges, stacked=True, color=[STYLES[split] for split in measures])
        axes.axvline(1, color=MODEL, linewidth=1.4)
        axes.set(xlabel=label, ylabel="images", xscale="log")
        axes.set_title(title, fontsize=11)
    for axes in (plane, area, ratio):
        for axis in (axes.xaxis, axes.yaxis) if axes is plane else (axes.xaxis,):
            _plain_logarithmic(axis)
        _finish(axes, both=True)
    _save(figure, path)


def draw_samples(rows: Sequence[SampleRow], class_names: Sequence[str], path: Path, *, title: str) -> None:
    """Draws a row for each image: the image with its box, then what the model will see of it in each epoch.

    Raises:
        RunError: The picture cannot be written.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    columns = 1 + len(rows[0].draws)
    height, width = rows[0].draws[0].shape[:2]
    cell = 1.9  # inches
    tall = cell * min(max(height / width, 0.5), 2)
    figure = Figure(figsize=(cell * (columns + 0.6), 0.6 + (tall + 0.2) * len(rows)), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0, hspace=0)
    grid = figure.subplots(len(rows), columns, squeeze=False, width_ratios=[1.6, *[1] * (columns - 1)])
    for line, (row, places) in enumerate(zip(rows, grid, strict=True)):
        factor = THUMBNAIL / max(row.image.size)
        thumbnail = row.image.resize([max(1, round(factor * side)) for side in row.image.size], Image.Resampling.BOX)
        places[0].imshow(thumbnail)
        if row.bounding_box is not None:
            x1, y1, x2, y2 = (factor * side for side in box_within(row.image, row.bounding_box))
            style = {"fill": False, "edgecolor": COLORS[3], "linewidth": 1.6}
            places[0].add_patch(Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1, clip_on=False, **style))
        caption = places[0].set_title(f"{_short(class_names[row.label])}\n{_short(row.name)}", fontsize=8, pad=3)
        caption.set_in_layout(False)  # there is room for it between the rows
        for epoch, (axes, draw) in enumerate(zip(places[1:], row.draws, strict=True)):
            axes.imshow(draw, interpolation="antialiased")
            if line == 0:
                axes.set_title(f"epoch {epoch}", fontsize=10)
        for axes in places:
            axes.axis("off")
    boxes = " with their boxes" if any(row.bounding_box for row in rows) else ""
    figure.suptitle(
        f"training images{boxes}, and what the model will see of them: {escape_dollars(title)}", fontsize=12
    )
    _save(figure, path)


def draw_mixed(rows: Sequence[Sequence[MixedSample]], class_names: Sequence[str], path: Path) -> None:
    """Draws a row for each of the first training batches: some of its images, with the shares of their labels.

    Raises:
        RunError: The picture cannot be written.
    """
    from matplotlib.figure import Figure

    columns = max(map(len, rows))
    height, width = rows[0][0].image.shape[:2]
    cell = 1.9  # inches
    tall = cell * min(max(height / width, 0.5), 2)
    figure = Figure(figsize=(cell * columns, 0.6 + (tall + 0.35) * len(rows)), layout="constrained")
    for number, (row, places) in enumerate(zip(rows, figure.subplots(len(rows), columns, squeeze=False), strict=True)):
        for axes in places:
            axes.axis("off")
        for axes, sample in zip(places, row, strict=False):
            axes.imshow(sample.image, interpolation="antialiased")
            names = [f"{100 * share:.0f} % {_short(class_names[label])}" for label, share in sample.shares]
            axes.set_title("\n".join(names), fontsize=6, pad=3)
        places[0].text(
            -0.06, 0.5, f"batch {number}", transform=places[0].transAxes, rotation=90, va="center", ha="right"
        )
    figure.suptitle("images of the first training batches, mixed as the model will see them", fontsize=12)
    _save(figure, path)


def draw_contact_sheets(
    images: Sequence["CheckedImage"], class_names: Sequence[str], folder: Path, *, upright: bool
) -> None:
    """Draws up to `SHEET_IMAGES` images of each class, evenly taken from all splits, with their names.

    Raises:
        RunError: A picture cannot be written.
    """
    make_folder(folder)
    caption = SHEET_THUMBNAIL // 7
    for label, name in enumerate(class_names):
        own = [image for image in images if image.label == label]
        count = min(SHEET_IMAGES, len(own))
        if not count:
            continue
        columns = min(count, SHEET_COLUMNS)
        rows = -(-count // columns)
        sheet = Image.new("RGB", (columns * SHEET_THUMBNAIL, rows * (SHEET_THUMBNAIL + caption) + caption), "white")
        draw = ImageDraw.Draw(sheet)
        draw.text((4, 2), f"{shortened(name, MAX_NAME)}: {count} of {len(own)} images", fill="black")
        for place in range(count):
            image = own[place * len(own) // count]
            thumbnail = read_image(image.path, size=SHEET_THUMBNAIL, upright=upright)
            thumbnail = ImageOps.contain(thumbnail, (SHEET_THUMBNAIL - 4, SHEET_THUMBNAIL - 4))
            x, y = place % columns * SHEET_THUMBNAIL, caption + place // columns * (SHEET_THUMBNAIL + caption)
            sheet.paste(thumbnail, (x + 2, y + SHEET_THUMBNAIL - 4 - thumbnail.height))
            style = {"fill": "black" if image.split == "train" else STYLES[image.split]}
            draw.text((x + 3, y + SHEET_THUMBNAIL - 2), image.path.name[-20:], **style)
        safe = re.sub(r"[^\w .-]", "_", name)[:60]
        with replacing(folder / f"{label:03d} {safe}.jpg") as partial:
            sheet.save(partial, "JPEG", quality=88)


def _short(name: str) -> str:
    return escape_dollars(shortened(name, MAX_NAME))


def _plain_logarithmic(axis: "Axis") -> None:
    """Labels a logarithmic axis by 0.5, 1, 2, 300 instead of powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = axis.get_view_interval()
    steps = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0) if high / low < 20 else (1.0, 2.0, 5.0) if high / low < 500 else (1.0,)
    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_locator(NullLocator())


def _finish(axes: "Axes", *, both: bool = False) -> None:
    axes.grid(alpha=0.25, axis="both" if both else "x")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _save(figure: "Figure", path: Path) -> None:
    with replacing(path) as partial:
        figure.savefig(partial, dpi=DPI, format="png")
