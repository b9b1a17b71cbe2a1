"""Summarizes a finished run in a few lines."""

from pathlib import Path
from shlex import quote
from typing import Any

from utils.runs.folder import BEST, CURVES, LAST, METRICS, read_record
from utils.runs.metrics import OTHER_METRICS, read_rows

ACCURACIES = {
    "best validation accuracy": "valid_acc",
    "best validation top-5": "valid_top5_acc",
    "best mean over classes": "valid_mean_class_acc",
    "best training accuracy": "train_acc",
}
SOURCES = {
    "test": " (the data set's test split, as in the study)",
    "valid": " (the data set's validation split)",
    "train": " (split off from the training images)",
}
LOSSES = {"lowest validation loss": "valid_loss", "lowest training loss": "train_loss"}


def duration(seconds: float) -> str:
    """Returns seconds as 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def summarize(folder: Path) -> str:
    """Returns the best metrics of the run in `folder`, its duration, and where its files are."""
    record, rows = read_record(folder), read_rows(folder / METRICS)
    best = record["best"]
    if not rows:
        return f"{folder}: no epoch was completed"
    lines = [f"{record['status']} after {len(rows)} epoch{'s' * (len(rows) != 1)} in {duration(record['seconds'])}"]
    for title, metric in (ACCURACIES | LOSSES).items():
        epoch = best.get(f"best_{metric}_epoch")
        if epoch is None and metric == OTHER_METRICS[-1]:
            continue  # a run of a version that did not have it
        if epoch is None:
            lines.append(f"  {title:<26}       –     it was NaN or infinite in every epoch")
            continue
        value = best[f"best_{metric}"]
        line = f"{100 * value:8.2f} %   in" if metric.endswith("acc") else f"{value:8.4f}     in"
        lines.append(f"  {title:<26}{line} epoch {epoch}")
        if metric == record.get("best_metric", "valid_loss"):
            row = next(row for row in rows if row["epoch"] == epoch)
            lines[-1] += f", with {100 * row['valid_acc']:.2f} % accuracy" if metric == "valid_loss" else ""
            lines[-1] += f": {BEST.name}"
    trained = quote(str(folder if (folder / BEST).exists() else folder / LAST))
    files = [str(name) for name in (CURVES, METRICS, BEST, LAST) if (folder / name).exists()]
    lines += [
        f"  {'chance level':<26}{100 / record['num_classes']:8.2f} %",
        f"  files in {folder}: {', '.join(files)}",
        f"  The validation images{SOURCES.get(record.get('valid_from'), '')} also chose the checkpoint: expect slightly lower "
        "accuracy on new images.",
        f"  next: python evaluate.py {trained}{_test(record)}, or compare runs: python compare.py, python dashboard.py",
    ]
    return "\n".join(lines)


def _test(record: dict[str, Any]) -> str:
    return f" --split test ({count:,} images that chose nothing)" if (count := record.get("test_photos")) else ""
