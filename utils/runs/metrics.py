"""The metrics of a run, epoch by epoch: as rows, as a CSV file, and the best of them."""

import csv
import math
from pathlib import Path

Row = dict[str, float]

METRICS = ("train_loss", "train_acc", "valid_loss", "valid_acc", "lr")  # as the study logged them
COLUMNS = ("epoch", *METRICS, "train_top5_acc", "valid_top5_acc")
SPEED_COLUMNS = ("epoch", "seconds", "images_per_second")


def read_rows(path: Path) -> list[Row]:
    """Reads the rows of a CSV file of numbers; a line that is broken off ends them, a missing file has none."""
    rows: list[Row] = []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                rows.append({"epoch": int(row["epoch"]), **{k: float(v) for k, v in row.items() if k != "epoch"}})
    except (OSError, ValueError, TypeError, KeyError, UnicodeDecodeError):
        pass
    return rows


def best(rows: list[Row], metric: str) -> tuple[float, int] | None:
    """Returns the best value of `metric` and its epoch: the lowest loss, the highest of anything else; None without rows."""
    known = [(row[metric], int(row["epoch"])) for row in rows if metric in row and math.isfinite(row[metric])]
    if not known:
        return None
    sign = 1 if metric.endswith("loss") else -1
    return min(known, key=lambda pair: (sign * pair[0], pair[1]))


def best_values(rows: list[Row]) -> dict[str, float | int]:
    """Returns the best value of each metric, `best_valid_acc`, and its epoch, `best_valid_acc_epoch`."""
    values: dict[str, float | int] = {}
    for metric in (*METRICS[:-1], "train_top5_acc", "valid_top5_acc"):
        if (found := best(rows, metric)) is not None:
            values[f"best_{metric}"], values[f"best_{metric}_epoch"] = found
    return values
