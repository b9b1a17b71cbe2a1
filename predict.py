"""Names the car models that photos most probably show: python predict.py --help."""

import argparse
import csv
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils.cli import run_command
from utils.errors import RunError
from utils.logs import start_logging

if TYPE_CHECKING:
    from deployment.prediction import Prediction

logger = logging.getLogger(__name__)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Names the five car models that each photo most probably shows.")
    parser.add_argument("trained", metavar="RUN|CHECKPOINT", help="a run's folder or name, 'last', or a checkpoint")
    parser.add_argument("photos", metavar="PHOTO|FOLDER", nargs="+", help="photos, and folders of photos")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON instead of a table")
    form.add_argument("--csv", action="store_true", help="print CSV instead of a table")
    parser.add_argument(
        "--explain", metavar="FOLDER", type=Path, help="write there where the network looked (Grad-CAM, needs captum)"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> list["Prediction"]:
    """Predicts, prints, and returns what was printed.

    Raises:
        RunError: Photos could not be read; all others have been printed by then.
    """
    arguments = parse_arguments(argv)
    start_logging("WARNING")

    # Torch takes seconds to import: a wrong argument has been answered by now.
    import torch

    from deployment.explanation import Explainer
    from deployment.prediction import find_photos, predict
    from deployment.trained import load_trained

    paths = find_photos(arguments.photos)
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
    said = sys.stderr if arguments.json or arguments.csv else sys.stdout
    print(
        f"photos: {len(predictions):,}, by {trained.path}, which knows {len(trained.class_names)} car models", file=said
    )
    if explainer:
        print(f"  where the network looked: {arguments.explain}", file=said)
    else:
        print("  next: --explain FOLDER shows where the network looked", file=said)
    if failed := sum(prediction.error is not None for prediction in predictions):
        raise RunError(f"{failed} of {len(predictions)} photos could not be read")
    return predictions


def print_table(predictions: list["Prediction"]) -> None:
    for prediction in predictions:
        print(prediction.path)
        if prediction.error:
            print("            not read")
        for name, probability in prediction.classes:
            print(f"  {100 * probability:7.2f} %  {name}")


def print_json(predictions: list["Prediction"]) -> None:
    entries = [
        {"photo": str(prediction.path), "error": prediction.error}
        if prediction.error
        else {
            "photo": str(prediction.path),
            "classes": [{"name": name, "probability": probability} for name, probability in prediction.classes],
        }
        for prediction in predictions
    ]
    print(json.dumps(entries, indent=2, ensure_ascii=False))


def print_csv(predictions: list["Prediction"]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["photo", "rank", "class", "probability"])
    for prediction in predictions:
        for rank, (name, probability) in enumerate(prediction.classes, start=1):
            writer.writerow([prediction.path, rank, name, probability])


if __name__ == "__main__":
    sys.exit(run_command(main))
