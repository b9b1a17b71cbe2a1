"""Evaluates a trained model on labeled images: python evaluate.py --help."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.cli import run_command
from utils.logs import start_logging


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Evaluates a trained model: top-1 and top-5 accuracy, loss, per-class accuracy, confusion."
    )
    parser.add_argument("trained", metavar="RUN|CHECKPOINT", help="a run's folder or name, 'last', or a checkpoint")
    parser.add_argument("-d", "--data", metavar="FOLDER", type=Path, help="another data set, in any supported layout")
    parser.add_argument(
        "--split", choices=("valid", "train", "test", "all"), default="valid", help="split to evaluate (default: valid)"
    )
    parser.add_argument("--output", metavar="FOLDER", type=Path, help="report folder, instead of the run's evaluation/")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Evaluates, writes a report, and returns its loss and accuracies, named as validation metrics."""
    arguments = parse_arguments(argv)
    start_logging("WARNING")

    # Torch takes seconds to import: wrong arguments are reported before.
    from deployment.evaluation.evaluation import evaluate, load_split
    from deployment.evaluation.report import write_report
    from deployment.trained import load_trained

    trained = load_trained(arguments.trained)
    images, splits = load_split(trained, arguments.data, arguments.split)
    evaluation = evaluate(trained, images, splits)
    print(write_report(trained, evaluation, data=arguments.data, split=arguments.split, output=arguments.output))
    return evaluation.metrics


if __name__ == "__main__":
    sys.exit(run_command(main))
