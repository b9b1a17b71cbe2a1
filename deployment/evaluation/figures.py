"""Draws what a network confuses: the whole confusion matrix, and a sheet of the photos behind the most confused pairs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import ImageOps
from torch import Tensor

from datamodules import ImageRecord
from datamodules.images import read_image
from deployment.evaluation.evaluation import Evaluation, confused_pairs
from utils.files import replacing

PAIRS = 10  # rows of the sheet
PHOTOS = 4  # of each direction of a pair
THUMBNAIL = (240, 173)  # pixels
MOST_NUMBERED = 30  # classes up to which each cell says its number
DPI = 100


def draw_confusion_matrix(evaluation: Evaluation, class_names: Sequence[str], path: Path, *, title: str) -> None:
    """Draws the matrix with classes in alphabetical order, so that the models of a make lie side by side.

    A cell is the share of its row's photos, blue where they are right and red where not; every row and column is named on
    both sides, also with 196 classes.
    """
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

    order = sorted(range(len(class_names)), key=lambda label: class_names[label].casefold())
    confusion = evaluation.confusion[order][:, order]
    shares = (confusion / confusion.sum(dim=1, keepdim=True).clamp(min=1)).numpy()
    count = len(order)
    cell = max(13, min(60, 900 // count))  # pixels; 13 hold a line of the smallest type that can be read
    size, margin, header = count * cell, 330, 60
    width, height = size + 2 * margin, size + 2 * margin + header
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    axes = figure.add_axes((margin / width, margin / height, size / width, size / height))
    is_right = np.eye(count, dtype=bool)
    for index, (label, colours, shown) in enumerate((("right", "Blues", is_right), ("wrong", "Reds", ~is_right))):
        # Pale tones are left out, so that one photo of many can still be seen.
        colours = ListedColormap(colormaps[colours](np.linspace(0.25, 1, 256)))
        values = np.ma.masked_where(~shown | (shares == 0), shares)
        image = axes.imshow(values, cmap=colours, vmin=0, vmax=1, interpolation="nearest")
        bar = figure.add_axes((30 / width, 1 - (header + 90 + 70 * index) / height, 220 / width, 14 / height))
        figure.colorbar(image, cax=bar, orientation="horizontal").set_label(f"share of the row: {label}", fontsize=9)
    type_size = max(6.5, min(10.0, 0.5 * cell))
    names = [class_names[label] for label in order]
    axes.set_xticks(range(count), names, rotation=90, fontsize=type_size)
    axes.set_yticks(range(count), names, fontsize=type_size)
    axes.tick_params(top=True, labeltop=True, right=True, labelright=True, length=2)
    edges = np.arange(count + 1) - 0.5
    for lines in (axes.hlines, axes.vlines):
        lines(edges, edges[0], edges[-1], colors="#e4e4e4", linewidth=0.4)
    if count <= MOST_NUMBERED:
        for row, column in confusion.nonzero().tolist():
            colour = "white" if shares[row, column] > 0.5 else "black"
            number = int(confusion[row, column])
            axes.text(column, row, number, ha="center", va="center", color=colour, fontsize=type_size)
    lines = f"{title}\nrow: what the photo shows; column: what it was taken for"
    figure.text(12 / width, 1 - 12 / height, lines, va="top", fontsize=11, linespacing=1.6)
    with replacing(path) as partial:
        figure.savefig(partial, format="png")


def draw_confused_pairs(evaluation: Evaluation, class_names: Sequence[str], path: Path, *, title: str) -> None:
    """Draws a row for each of the most confused pairs: left photos of one class taken for the other, right the reverse.

    Where the reverse never happened, photos of the other class stand for comparison. The most certain mistakes come first.
    """
    from matplotlib.figure import Figure

    pairs = confused_pairs(evaluation.confusion)[:PAIRS]
    row_height, header = 1.95, 0.5  # inches
    height = row_height * len(pairs) + header
    figure = Figure(figsize=(15, height), dpi=DPI)
    figure.suptitle(title, fontsize=12, y=1 - 0.12 / height, va="top")
    probabilities = evaluation.logits.softmax(dim=1)
    photo_width, photo_height = 0.12, 1.3 / height
    for row, pair in enumerate(pairs):
        bottom = 1 - (header + row_height * (row + 1) - 0.2) / height
        for left, (label, other) in ((0.008, (pair.first, pair.second)), (0.508, (pair.second, pair.first))):
            photos, heading = _photos_of(evaluation, probabilities, label, other, class_names)
            figure.text(left, bottom + photo_height + 0.05 / height, heading, fontsize=9, va="bottom")
            for column, (photo, caption) in enumerate(photos):
                axes = figure.add_axes((left + column * (photo_width + 0.002), bottom, photo_width, photo_height))
                axes.axis("off")
                axes.imshow(ImageOps.pad(read_image(photo.path), THUMBNAIL, color="white"))
                axes.text(0.5, -0.02, caption, transform=axes.transAxes, ha="center", va="top", fontsize=7)
    with replacing(path) as partial:
        figure.savefig(partial, format="png")


def _photos_of(
    evaluation: Evaluation, probabilities: Tensor, label: int, other: int, class_names: Sequence[str]
) -> tuple[list[tuple[ImageRecord, str]], str]:
    """Returns photos of `label` that were taken for `other`, each with its caption, and what to write above them."""
    labels, predicted = evaluation.labels, evaluation.ranking[:, 0]
    own = labels == label
    chosen = (own & (predicted == other)).nonzero()[:, 0]
    if not len(chosen):
        photos = [evaluation.photos[index] for index in own.nonzero()[:PHOTOS, 0].tolist()]
        heading = f"{class_names[label]}\nfor comparison: none of {int(own.sum())} was taken for the other"
        return [(photo, photo.path.name) for photo in photos], heading
    heading = f"{class_names[label]}\ntaken for {class_names[other]}: {len(chosen)} of {int(own.sum())}"
    certainty = probabilities[chosen, other]
    captioned = [
        (
            evaluation.photos[chosen[index]],
            f"{evaluation.photos[chosen[index]].path.name}  {100 * certainty[index]:.0f} %",
        )
        for index in torch.argsort(certainty, descending=True, stable=True)[:PHOTOS].tolist()
    ]
    return captioned, heading
