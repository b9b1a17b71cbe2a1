"""The metrics of a run: one row per epoch, read from CSV, and the best of them."""

import csv
import math
from pathlib import Path

Row = dict[str, float]

METRICS = ("train_loss", "train_acc", "valid_loss", "valid_acc", "lr")  # as the study logged them
TOP5_METRICS = ("train_top5_acc", "valid_top5_acc")
OTHER_METRICS = (*TOP5_METRICS, "valid_mean_class_acc")  # the last one: the mean of the accuracies of the classes
COLUMNS = ("epoch", *METRICS, *OTHER_METRICS)
SPEED_COLUMNS = ("epoch", "seconds", "images_per_second")


def read_rows(path: Path) -> list[Row]:
    """Reads the rows of a CSV file of numbers up to the first incomplete one; returns [] if the file is missing."""
    rows: list[Row] = []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if row.get(OTHER_METRICS[-1]) == "":  # an epoch of a version that did not have it
                    del row[OTHER_METRICS[-1]]
                rows.append({"epoch": int(row["epoch"]), **{k: float(v) for k, v in row.items() if k != "epoch"}})
    except (OSError, ValueError, TypeError, KeyError):
        pass
    return rows


def best(rows: list[Row], metric: str) -> tuple[float, int] | None:
    """Returns the best finite value of `metric`, the lowest loss or the highest of other metrics, and its first epoch."""
    known = [(row[metric], int(row["epoch"])) for row in rows if metric in row and math.isfinite(row[metric])]
    sign = 1 if metric.endswith("loss") else -1
    return min(known, key=lambda pair: (sign * pair[0], pair[1]), default=None)


def best_values(rows: list[Row]) -> dict[str, float | int]:
    """Returns each metric's best value, as in `best_valid_acc`, and its epoch, as in `best_valid_acc_epoch`."""
    values: dict[str, float | int] = {}
    for metric in (*METRICS[:-1], *OTHER_METRICS):
        if (found := best(rows, metric)) is not None:
            values[f"best_{metric}"], values[f"best_{metric}_epoch"] = found
    return values
