"""Says in a few lines what came out of a run."""

from pathlib import Path

from utils.runs.folder import BEST, CURVES, LAST, METRICS, read_record
from utils.runs.metrics import read_rows


def duration(seconds: float) -> str:
    """Returns seconds as 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def summarise(folder: Path) -> str:
    """Returns what a person wants to know of a run that ended: how good, how long, and where everything is."""
    record, rows = read_record(folder), read_rows(folder / METRICS)
    best = record["best"]
    if not best:
        return f"{folder}: no epoch was completed"
    chosen = next(row for row in rows if row["epoch"] == best["best_valid_loss_epoch"])
    lines = [
        f"{record['status']} after {len(rows)} epoch{'s' * (len(rows) != 1)} in {duration(record['seconds'])}",
        *(
            f"  {title:<26}{100 * best[f'best_{metric}']:8.2f} %   in epoch {best[f'best_{metric}_epoch']}"
            for title, metric in (
                ("best validation accuracy", "valid_acc"),
                ("best validation top-5", "valid_top5_acc"),
                ("best training accuracy", "train_acc"),
            )
        ),
        f"  {'lowest validation loss':<26}{best['best_valid_loss']:8.4f}     in epoch {best['best_valid_loss_epoch']}"
        f", with {100 * chosen['valid_acc']:.2f} % accuracy: {BEST.name}",
        f"  {'lowest training loss':<26}{best['best_train_loss']:8.4f}     in epoch {best['best_train_loss_epoch']}",
        f"  {'accuracy of a guess':<26}{100 / record['num_classes']:8.2f} %",
        f"  all of it is in {folder}: {CURVES}, {METRICS}, {BEST}, {LAST}",
        "  The validation photos also chose the checkpoint, as in the study: expect a little less on other photos.",
        f"  next: python evaluate.py {folder}   or, beside other runs: python compare.py, python dashboard.py",
    ]
    return "\n".join(lines)
