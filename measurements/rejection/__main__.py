"""How often a trained model accepts images it should reject: python -m measurements.rejection RUN [--negatives FOLDER]….

Compares three scores: the probability of the top-1 prediction, its margin over the second, and the energy (Liu et al.,
"Energy-based Out-of-distribution Detection", NeurIPS 2020). Temperature and thresholds are fitted on one half of the
validation images, drawn at random; all figures are of the other half, and of images without a car that the model knows:
made of that half (black, noise, blurred, upside down, the background beside the boxes), and those of the folders.
"""

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from datamodules import ImageRecord
from datamodules.images import read_image
from deployment.calibration import NEVER, RATE, SCORES, choose_threshold, fit_temperature
from deployment.evaluation.evaluation import load_split
from deployment.export import evenly_spaced
from deployment.prediction import find_images
from deployment.trained import TrainedModel, load_trained
from measurements.measuring import at_least, best_device, build_parser, conditions, print_conditions, write_report
from utils.cli import run_command
from utils.progress import progress_bar

BATCH_SIZE = 32
BLUR = 1 / 12  # standard deviation, of the shorter side
MIN_BACKGROUND = 0.1  # of the image
KEPT = 0.95  # share of known images that the second threshold accepts


def background(image: Image.Image, record: ImageRecord) -> Image.Image | None:
    """Returns the largest strip beside the box of the car, or None without a box or enough room."""
    if record.bounding_box is None:
        return None
    (x1, y1, x2, y2), (width, height) = record.bounding_box, image.size
    strips = [(0, 0, x1, height), (x2, 0, width, height), (0, 0, width, y1), (0, y2, width, height)]
    strip = max(strips, key=lambda box: (box[2] - box[0]) * (box[3] - box[1]))
    area = (strip[2] - strip[0]) * (strip[3] - strip[1])
    return image.crop(strip) if area >= MIN_BACKGROUND * width * height else None


MADE: dict[str, Callable[[Image.Image, ImageRecord], Image.Image | None]] = {
    "black": lambda image, _: Image.new("RGB", image.size),
    "noise": lambda image, _: Image.fromarray(
        np.random.default_rng(image.size).integers(0, 256, (image.height, image.width, 3), dtype=np.uint8)
    ),
    "blurred": lambda image, _: image.filter(ImageFilter.GaussianBlur(BLUR * min(image.size))),
    "upside down": lambda image, _: image.rotate(180),
    "background": background,
}


def compute_logits(trained: TrainedModel, images: Iterator[Image.Image | None], *, name: str, count: int) -> Tensor:
    """Returns the logits (N, classes) of all images that are not None."""
    rows, batch = [torch.empty(0, len(trained.class_names))], []
    for image in progress_bar(images, description=name, unit=" images", total=count):
        if image is not None:
            batch.append(trained.transform(image))
        if len(batch) == BATCH_SIZE:
            rows.append(trained.logits(torch.stack(batch)))
            batch = []
    return torch.cat([*rows, *([trained.logits(torch.stack(batch))] if batch else [])])


def compute_scores(logits: Tensor, temperature: float) -> dict[str, Tensor]:
    """Returns each score (N,) of logits (N, classes)."""
    probabilities = (logits / temperature).softmax(dim=1)
    return {name: score(probabilities) for name, score in SCORES.items()} | {"energy": logits.logsumexp(dim=1)}


def compare(
    fitting: tuple[Tensor, Tensor], judging: tuple[Tensor, Tensor], negatives: dict[str, Tensor], rate: float
) -> list[dict[str, Any]]:
    """Returns a row for each kind of image and score.

    Args:
        fitting, judging: Logits (N, classes) and labels (N,) of known images.
        negatives: Logits of each kind of image that should be rejected.
        rate: Share of right answers among the known images that the first threshold accepts.
    """
    temperature = fit_temperature(*fitting)
    fitted, judged = (compute_scores(logits, temperature) for logits, _ in (fitting, judging))
    right, judged_right = (logits.argmax(dim=1) == labels for logits, labels in (fitting, judging))
    others = [(kind, compute_scores(logits, temperature)) for kind, logits in negatives.items() if len(logits)]
    rows = []
    for name, score in fitted.items():
        threshold, lax = choose_threshold(score, right, rate), float(score.quantile(1 - KEPT))
        if threshold == NEVER:
            threshold = math.inf  # an energy may be larger
        for kind, scores in (("known", judged), *others):
            accepted = scores[name] >= threshold
            row = {"score": name, "kind": kind, "images": len(accepted)}
            if scores is judged:
                row["right"] = _share(judged_right[accepted])
            rows.append(row | {"accepted": _share(accepted), "accepted by 95 %": _share(scores[name] >= lax)})
    return rows


def _share(values: Tensor) -> float | None:
    return float(values.double().mean()) if len(values) else None


def print_table(rows: list[dict[str, Any]]) -> None:
    """Prints a Markdown table: a row for each kind of image, two columns for each score."""
    names = list(dict.fromkeys(row["score"] for row in rows))
    cells = {(row["kind"], row["score"]): row for row in rows}
    print(f"| | images | {' | '.join(names)} |\n|---|---:|{'---:|' * len(names)}")
    for kind in dict.fromkeys(row["kind"] for row in rows):
        own = [cells[kind, name] for name in names]
        shown = [f"{100 * row['accepted']:.1f} %; {100 * row['accepted by 95 %']:.1f} %" for row in own]
        print(f"| {kind} | {own[0]['images']:,} | {' | '.join(shown)} |")
    right = [cells["known", name]["right"] for name in names]
    print(f"| right of those | | {' | '.join('–' if share is None else f'{100 * share:.1f} %' for share in right)} |")


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    parser = build_parser(__doc__, data=False, overrides=False)
    parser.add_argument("trained", metavar="RUN|CHECKPOINT")
    parser.add_argument("-d", "--data", metavar="FOLDER", type=Path, help="data set, instead of the training's")
    parser.add_argument(
        "--negatives", metavar="FOLDER", action="append", default=[], help="images to reject, a row; repeatable"
    )
    parser.add_argument("--images", type=at_least(2), default=1000, help="of each kind, at most (1,000)")
    parser.add_argument("--rate", type=rate, default=RATE, help="share of right answers to accept, 0 … 1 (0.95)")
    arguments = parser.parse_args(argv)
    trained = load_trained(arguments.trained)
    records, splits = load_split(trained, arguments.data, "valid")
    records = evenly_spaced(records, arguments.images)
    order = torch.randperm(len(records), generator=torch.Generator().manual_seed(0)).tolist()
    halves = [[records[index] for index in order[start::2]] for start in (0, 1)]

    def opened(half: list[ImageRecord]) -> Iterator[Image.Image]:
        return (read_image(record.path, upright=splits.upright) for record in half)

    known = [
        (
            compute_logits(trained, opened(half), name="known", count=len(half)),
            torch.tensor([each.label for each in half]),
        )
        for half in halves
    ]
    judged = halves[1]
    negatives = {
        kind: compute_logits(trained, map(make, opened(judged), judged), name=kind, count=len(judged))
        for kind, make in MADE.items()
    }
    for folder in arguments.negatives:
        paths = evenly_spaced(find_images([folder]), arguments.images)
        images = (read_image(path, upright=True) for path in paths)
        kind = Path(folder).name
        kind = folder if kind in {*negatives, "known"} else kind
        negatives[kind] = compute_logits(trained, images, name=kind, count=len(paths))
    rows = compare(*known, negatives, arguments.rate)
    stated = conditions(best_device(), run=trained.folder.name, model=trained.config.architecture, rate=arguments.rate)
    write_report(arguments.output, stated, rows)
    print_table(rows)
    print(
        f"accepted at the threshold of {arguments.rate:.0%} right answers; at the one that accepts {KEPT:.0%} of the known"
    )
    print_conditions(stated)
    return rows


def rate(text: str) -> float:
    """Parses a share between 0 and 1."""
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number between 0 and 1")
    return share


if __name__ == "__main__":
    sys.exit(run_command(main))
