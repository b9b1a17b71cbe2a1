"""Predicts the car models in images: python predict.py --help."""

import argparse
import csv
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from utils.cli import run_command
from utils.errors import RunError
from utils.logs import start_logging

if TYPE_CHECKING:
    from deployment.prediction import Prediction

logger = logging.getLogger(__name__)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Predicts the five most probable car models of each image.")
    parser.add_argument("trained", metavar="RUN|CHECKPOINT", help="a run's folder or name, 'last', or a checkpoint")
    parser.add_argument("images", metavar="IMAGE|FOLDER", nargs="+", help="images, folders of images, and data sets")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON instead of a table")
    form.add_argument("--csv", action="store_true", help="print CSV instead of a table")
    parser.add_argument(
        "--explain", metavar="FOLDER", type=Path, help="write Grad-CAM overlays to this folder (needs captum)"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> list["Prediction"]:
    """Predicts, prints and returns the predictions.

    Raises:
        RunError: Images could not be read; the predictions of all others are printed first.
    """
    arguments = parse_arguments(argv)
    start_logging("WARNING")

    # Torch takes seconds to import: wrong arguments are reported before.
    import torch

    from deployment.explanation import Explainer
    from deployment.prediction import find_images, predict
    from deployment.trained import load_trained

    paths = find_images(arguments.images)
    trained = load_trained(arguments.trained)
    trained.classifier.to("cuda" if torch.cuda.is_available() else "cpu")
    explainer = Explainer(trained, arguments.explain) if arguments.explain else None
    predictions = []
    for prediction in predict(trained, paths):
        predictions.append(prediction)
        if prediction.error:
            logger.error("%s", prediction.error)
        elif explainer:
            explainer.write(prediction)
    if arguments.json:
        print_json(predictions)
    elif arguments.csv:
        print_csv(predictions)
    else:
        print_table(predictions)
    summary = sys.stderr if arguments.json or arguments.csv else sys.stdout
    print(f"images: {len(predictions):,}; model: {trained.path}, {len(trained.class_names)} classes", file=summary)
    if trained.calibration is None:
        print(
            f"  not calibrated: python evaluate.py {quote(str(trained.path))} fits when to say not sure", file=summary
        )
    if explainer:
        print(f"  Grad-CAM overlays: {arguments.explain}", file=summary)
    elif any(prediction.error is None for prediction in predictions):
        print("  next: --explain FOLDER shows what each prediction is based on", file=summary)
    if failed := sum(prediction.error is not None for prediction in predictions):
        raise RunError(f"{failed} of {len(predictions)} images could not be read")
    return predictions


def print_table(predictions: list["Prediction"]) -> None:
    for prediction in predictions:
        print(prediction.path)
        if prediction.error:
            print("            not read")
        if prediction.sure is False:
            print("            not sure")
        for name, probability in prediction.classes:
            print(f"  {100 * probability:7.2f} %  {name}")


def print_json(predictions: list["Prediction"]) -> None:
    entries = [
        {"image": str(prediction.path), "error": prediction.error}
        if prediction.error
        else {
            "image": str(prediction.path),
            "sure": prediction.sure,
            "classes": [{"name": name, "probability": probability} for name, probability in prediction.classes],
        }
        for prediction in predictions
    ]
    print(json.dumps(entries, indent=2, ensure_ascii=False))


def print_csv(predictions: list["Prediction"]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["image", "rank", "class", "probability", "sure", "error"])
    for prediction in predictions:
        if prediction.error:
            writer.writerow([prediction.path, "", "", "", "", prediction.error])
        for rank, (name, probability) in enumerate(prediction.classes, start=1):
            sure = "" if prediction.sure is None else int(prediction.sure)
            writer.writerow([prediction.path, rank, name, probability, sure, ""])


if __name__ == "__main__":
    sys.exit(run_command(main))
