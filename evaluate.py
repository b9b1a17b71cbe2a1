"""Judges a trained network on photos with labels: python evaluate.py --help."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.cli import run_command
from utils.logs import start_logging


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Judges a trained network: top-1, top-5, loss, each class, what is confused with what."
    )
    parser.add_argument("trained", metavar="RUN|CHECKPOINT", help="a run's folder or name, 'last', or a checkpoint")
    parser.add_argument("-d", "--data", metavar="FOLDER", type=Path, help="another data set, of any published layout")
    parser.add_argument(
        "--split", choices=("valid", "train", "all"), default="valid", help="which of its photos (default: valid)"
    )
    parser.add_argument("--output", metavar="FOLDER", type=Path, help="where to, instead of the run's evaluation/")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Evaluates, and returns valid_loss, valid_acc and valid_top5_acc of the photos in question."""
    arguments = parse_arguments(argv)
    start_logging("WARNING")

    # Torch takes seconds to import: a wrong argument has been answered by now.
    from deployment.evaluation.evaluation import evaluate, read_photos
    from deployment.evaluation.report import write_report
    from deployment.trained import load_trained

    trained = load_trained(arguments.trained)
    photos, annotations = read_photos(trained, arguments.data, arguments.split)
    evaluation = evaluate(trained, photos, annotations)
    print(write_report(trained, evaluation, data=arguments.data, split=arguments.split, output=arguments.output))
    return evaluation.metrics


if __name__ == "__main__":
    sys.exit(run_command(main))
