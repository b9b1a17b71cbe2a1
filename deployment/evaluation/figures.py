"""Draws the confusion matrix, and the images behind the most confused pairs of classes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import ImageOps
from torch import Tensor

from datamodules import ImageRecord
from datamodules.images import read_image
from deployment.calibration import Reliability, calibration_bins, risk_coverage
from deployment.evaluation.evaluation import Evaluation, confused_pairs
from utils.files import replacing
from utils.runs.curves import escape_dollars

MAX_PAIRS = 10
MAX_IMAGES = 4  # of each direction of a pair
THUMBNAIL = (240, 173)  # width and height, pixels
MAX_NUMBERED_CLASSES = 30  # cells of larger matrices show no numbers
DPI = 100


def draw_confusion_matrix(evaluation: Evaluation, class_names: Sequence[str], path: Path, *, title: str) -> None:
    """Draws the confusion matrix with classes in alphabetical order, so that models of one make are neighbors.

    A cell shows its share of the row, blue on the diagonal and red elsewhere. Rows and columns are labeled on both
    sides, for up to 196 classes and more.
    """
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

    order = sorted(range(len(class_names)), key=lambda label: class_names[label].casefold())
    confusion = evaluation.confusion[order][:, order]
    shares = (confusion / confusion.sum(dim=1, keepdim=True).clamp(min=1)).numpy()
    count = len(order)
    cell = max(13, min(60, 900 // count))  # pixels; 13 fit the smallest legible font
    size, margin, header = count * cell, 330, 60
    width, height = size + 2 * margin, size + 2 * margin + header
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    axes = figure.add_axes((margin / width, margin / height, size / width, size / height))
    is_right = np.eye(count, dtype=bool)
    for index, (label, name, shown) in enumerate((("correct", "Blues", is_right), ("wrong", "Reds", ~is_right))):
        # Without the palest tones, so that one image of many is visible.
        colors = ListedColormap(colormaps[name](np.linspace(0.25, 1, 256)))
        values = np.ma.masked_where(~shown | (shares == 0), shares)
        image = axes.imshow(values, cmap=colors, vmin=0, vmax=1, interpolation="nearest")
        bar = figure.add_axes((30 / width, 1 - (header + 90 + 70 * index) / height, 220 / width, 14 / height))
        figure.colorbar(image, cax=bar, orientation="horizontal").set_label(f"share of the row, {label}", fontsize=9)
    font_size = max(6.5, min(10.0, 0.5 * cell))
    names = [escape_dollars(class_names[label]) for label in order]
    axes.set_xticks(range(count), names, rotation=90, fontsize=font_size)
    axes.set_yticks(range(count), names, fontsize=font_size)
    axes.tick_params(top=True, labeltop=True, right=True, labelright=True, length=2)
    edges = np.arange(count + 1) - 0.5
    for lines in (axes.hlines, axes.vlines):
        lines(edges, edges[0], edges[-1], colors="#e4e4e4", linewidth=0.4)
    if count <= MAX_NUMBERED_CLASSES:
        for row, column in confusion.nonzero().tolist():
            color = "white" if shares[row, column] > 0.5 else "black"
            number = int(confusion[row, column])
            axes.text(column, row, number, ha="center", va="center", color=color, fontsize=font_size)
    lines = f"{escape_dollars(title)}\nrow: true class; column: top-1 prediction"
    figure.text(12 / width, 1 - 12 / height, lines, va="top", fontsize=11, linespacing=1.6)
    with replacing(path) as partial:
        figure.savefig(partial, format="png")


def draw_confused_pairs(evaluation: Evaluation, class_names: Sequence[str], path: Path, *, title: str) -> None:
    """Draws a row for each of the most confused pairs: left, images of one class predicted as the other; right, the reverse.

    The most confident mistakes come first. Without any mistake in one direction, correct images of that class are shown.
    """
    from matplotlib.figure import Figure

    pairs = confused_pairs(evaluation.confusion)[:MAX_PAIRS]
    row_height, header = 1.95, 0.5  # inches
    height = row_height * len(pairs) + header
    figure = Figure(figsize=(15, height), dpi=DPI)
    figure.suptitle(escape_dollars(title), fontsize=12, y=1 - 0.12 / height, va="top")
    probabilities = evaluation.logits.softmax(dim=1)
    image_width, image_height = 0.12, 1.3 / height
    for row, pair in enumerate(pairs):
        bottom = 1 - (header + row_height * (row + 1) - 0.2) / height
        for left, (label, other) in ((0.008, (pair.first, pair.second)), (0.508, (pair.second, pair.first))):
            images, heading = _examples(evaluation, probabilities, label, other, class_names)
            figure.text(left, bottom + image_height + 0.05 / height, escape_dollars(heading), fontsize=9, va="bottom")
            for column, (image, caption) in enumerate(images):
                axes = figure.add_axes((left + column * (image_width + 0.002), bottom, image_width, image_height))
                axes.axis("off")
                axes.imshow(ImageOps.pad(read_image(image.path, upright=True), THUMBNAIL, color="white"))
                axes.text(
                    0.5, -0.02, escape_dollars(caption), transform=axes.transAxes, ha="center", va="top", fontsize=7
                )
    with replacing(path) as partial:
        figure.savefig(partial, format="png")


def draw_calibration(reliability: Reliability, path: Path, *, title: str) -> None:
    """Draws the reliability diagram, and the error rate of the answers that are accepted, by their share."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), dpi=DPI, layout="constrained")
    figure.suptitle(escape_dollars(title), fontsize=11)
    left, right = figure.subplots(1, 2)
    left.plot([0, 1], [0, 1], color="#c4c4c4", linewidth=1, linestyle="--", label="perfect")
    curves = [("temperature 1", reliability.raw_confidence, "#8a6d3b")]
    if not torch.equal(reliability.raw_confidence, reliability.confidence):
        curves.append(("with temperature", reliability.confidence, "#0b57a4"))
    for name, confidence, color in curves:
        means, accuracies, counts = zip(*calibration_bins(confidence, reliability.correct), strict=True)
        left.plot(means, accuracies, color=color, linewidth=1.2, label=name)
        left.scatter(means, accuracies, s=[10 + 300 * count / sum(counts) for count in counts], color=color, alpha=0.6)
    left.set(xlabel="mean probability of the top-1 prediction", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    left.set_title("reliability; area: share of the images", fontsize=10)
    left.legend(frameon=False)
    _, count, risk = risk_coverage(reliability.score, reliability.correct)
    right.plot(count / len(reliability.score), risk, color="#0b57a4")
    accepted = reliability.accepted
    if accepted is not None and accepted.any():
        point = float(accepted.double().mean()), float(1 - reliability.correct[accepted].double().mean())
        right.plot(*point, "o", color="#0b57a4", label="threshold")
        right.legend(frameon=False)
    right.set(xlabel="coverage: share of the images that are answered", ylabel="risk: error rate", xlim=(0, 1))
    right.set_ylim(bottom=0)
    right.set_title("risk against coverage", fontsize=10)
    for axes in (left, right):
        axes.grid(alpha=0.25)
    with replacing(path) as partial:
        figure.savefig(partial, format="png")


def _examples(
    evaluation: Evaluation, probabilities: Tensor, label: int, other: int, class_names: Sequence[str]
) -> tuple[list[tuple[ImageRecord, str]], str]:
    """Returns images of `label` that were predicted as `other`, each with a caption, and the heading above them."""
    own = evaluation.labels == label
    confused = (own & (evaluation.ranking[:, 0] == other)).nonzero()[:, 0]
    if not len(confused):
        images = [evaluation.images[index] for index in own.nonzero()[:MAX_IMAGES, 0].tolist()]
        heading = f"{class_names[label]}\nfor comparison: none of {int(own.sum())} predicted as the other"
        return [(image, image.path.name) for image in images], heading
    ranked = sorted(confused.tolist(), key=lambda index: -float(probabilities[index, other]))[:MAX_IMAGES]
    images = [evaluation.images[index] for index in ranked]
    captions = [
        f"{image.path.name}  {100 * probabilities[index, other]:.0f} %"
        for image, index in zip(images, ranked, strict=True)
    ]
    heading = f"{class_names[label]}\npredicted as {class_names[other]}: {len(confused)} of {int(own.sum())}"
    return list(zip(images, captions, strict=True)), heading
