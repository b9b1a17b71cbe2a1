"""Summarizes a finished run in a few lines."""

from pathlib import Path

from utils.runs.folder import BEST, CURVES, LAST, METRICS, read_record
from utils.runs.metrics import read_rows

ACCURACIES = {
    "best validation accuracy": "valid_acc",
    "best validation top-5": "valid_top5_acc",
    "best training accuracy": "train_acc",
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
        if epoch is None:
            lines.append(f"  {title:<26}       –     it was NaN or infinite in every epoch")
            continue
        value = best[f"best_{metric}"]
        line = f"{100 * value:8.2f} %   in" if metric.endswith("acc") else f"{value:8.4f}     in"
        lines.append(f"  {title:<26}{line} epoch {epoch}")
        if metric == "valid_loss":
            accuracy = next(row["valid_acc"] for row in rows if row["epoch"] == epoch)
            lines[-1] += f", with {100 * accuracy:.2f} % accuracy: {BEST.name}"
    trained = folder if (folder / BEST).exists() else folder / LAST
    files = [str(name) for name in (CURVES, METRICS, BEST, LAST) if (folder / name).exists()]
    lines += [
        f"  {'chance level':<26}{100 / record['num_classes']:8.2f} %",
        f"  files in {folder}: {', '.join(files)}",
        "  The validation images also chose the checkpoint, as in the study: expect slightly lower accuracy on new images.",
        f"  next: python evaluate.py {trained}, or compare runs: python compare.py, python dashboard.py",
    ]
    return "\n".join(lines)
