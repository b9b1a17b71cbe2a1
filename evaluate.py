"""Evaluates a trained model on labeled images: python evaluate.py --help."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.cli import run_command
from utils.config.architectures import MAX_IMAGE_SIZE
from utils.errors import ConfigError
from utils.logs import start_logging


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Evaluates a trained model: top-1 and top-5 accuracy, loss, per-class accuracy, confusion, calibration."
    )
    parser.add_argument("trained", metavar="RUN|CHECKPOINT", help="a run's folder or name, 'last', or a checkpoint")
    parser.add_argument("-d", "--data", metavar="FOLDER", type=Path, help="another data set, in any supported layout")
    parser.add_argument(
        "--split", choices=("valid", "train", "test", "all"), default="valid", help="split to evaluate (default: valid)"
    )
    parser.add_argument("--output", metavar="FOLDER", type=Path, help="report folder, instead of the run's evaluation/")
    parser.add_argument(
        "--rate",
        type=rate,
        default=0.95,
        help="share of right answers among those it is sure of, above 0, at most 1 (0.95)",
    )
    parser.add_argument(
        "--image-size", metavar=("HEIGHT", "WIDTH"), type=int, nargs=2, help="in place of the run's test_image_size"
    )
    parser.add_argument("--flip", action="store_true", help="the mean over each image and its mirror image")
    return parser.parse_args(argv)


def rate(text: str) -> float:
    """Parses a share of right answers."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number above 0 and at most 1, such as 0.95")
    return value


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Evaluates, writes a report, and returns its loss and accuracies, named as validation metrics."""
    arguments = parse_arguments(argv)
    start_logging("WARNING")

    # Torch takes seconds to import: wrong arguments are reported before.
    from deployment.evaluation.evaluation import evaluate, load_split
    from deployment.evaluation.report import write_report
    from deployment.trained import load_trained

    if arguments.image_size and not all(1 <= side <= MAX_IMAGE_SIZE for side in arguments.image_size):
        raise ConfigError(f"--image-size {arguments.image_size}: expected 1 … {MAX_IMAGE_SIZE} pixels a side")
    trained = load_trained(arguments.trained, image_size=arguments.image_size, flip=arguments.flip)
    images, splits = load_split(trained, arguments.data, arguments.split)
    evaluation = evaluate(trained, images, splits)
    print(
        write_report(
            trained,
            evaluation,
            data=arguments.data,
            split=arguments.split,
            is_same_split=trained.split_digest in (None, splits.split_digest),
            output=arguments.output,
            rate=arguments.rate,
        )
    )
    return evaluation.metrics


if __name__ == "__main__":
    sys.exit(run_command(main))
