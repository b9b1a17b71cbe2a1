"""Draws a run's accuracy by epoch beside the published curve of its experiment.

    python -m measurements.trainings.beside_published RUN CURVES

CURVES is a CSV file of the study's record: id, epoch, train_loss, train_acc, valid_loss, valid_acc, lr. Where sizes or data
differ, the shapes can be compared, not the heights.
"""

import argparse
import csv
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from measurements.measuring import output_file
from reproduction.figures import new_figure, save_figure
from reproduction.published import DROP
from reproduction.published import TASK as PUBLISHED_TASK
from utils.cli import run_command
from utils.config import load_config, read_config_file
from utils.errors import ConfigError
from utils.runs.curves import COLORS, SPLITS
from utils.runs.folder import CONFIG, METRICS, RECORD, read_record
from utils.runs.metrics import Row, best, read_rows
from utils.runs.resolve import resolve_run

COLUMNS = ("epoch", "train_acc", "valid_acc", "lr")
AROUND = 3  # epochs before and after a drop that are averaged
OUTPUT = Path("beside_published.png")


def main(argv: Sequence[str] | None = None) -> list[str]:
    """Draws the two curves, and returns a line for each that describes its shape."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("run", metavar="RUN", help="folder or name of a run")
    parser.add_argument("curves", metavar="CURVES", type=Path, help="CSV file of published curves")
    parser.add_argument(
        "--output", metavar="FILE", type=output_file, default=OUTPUT, help=f"PNG file; default: {OUTPUT}"
    )
    arguments = parser.parse_args(argv)
    folder = resolve_run(arguments.run, load_config().output_path)
    experiment = read_record(folder).get("experiment_id")
    if not experiment:
        raise ConfigError(f"{folder / RECORD} names no experiment_id, by which the published curve is found")
    curves = {"published": read_curve(arguments.curves, experiment), "measured": read_rows(folder / METRICS)}
    if not curves["measured"]:
        raise ConfigError(f"{folder} has no finished epoch")
    values = read_config_file(folder / CONFIG).values
    height, width = values["image_size"]
    tasks = {"published": PUBLISHED_TASK, "measured": f"{height}×{width}, {Path(values['data_path']).name}"}
    lines = [f"{experiment} {name}: {shape(rows)}" for name, rows in curves.items()]
    draw(experiment, {f"{name}, {tasks[name]}": rows for name, rows in curves.items()}, arguments.output)
    print("\n".join([*lines, f"picture: {arguments.output}"]))
    return lines


def read_curve(path: Path, experiment: str) -> list[Row]:
    """Returns the published rows of an experiment.

    Raises:
        ConfigError: The file cannot be read, or has none.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["id"] == experiment]
            found = [{key: float(row[key]) for key in COLUMNS} for row in rows]
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except (KeyError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{path}: expected a CSV file with numbers in the columns id, {', '.join(COLUMNS)}"
        ) from error
    if not found:
        raise ConfigError(f"{path} has no curve of '{experiment}', the run's experiment_id")
    return found


def shape(rows: Sequence[Row]) -> str:
    """Describes a curve: its best epoch, and the gain at the first drop of the learning rate."""
    accuracy, epoch = best(list(rows), "valid_acc") or (float("nan"), 0)
    text = f"best {100 * accuracy:.2f} % in epoch {epoch} of {len(rows)}"
    drop = first_drop(rows)
    if drop is None:
        return f"{text}; the learning rate never dropped"
    before, after = (
        statistics.mean(row["valid_acc"] for row in part)
        for part in (rows[max(0, drop - AROUND) : drop], rows[drop : drop + AROUND])
    )
    return (
        f"{text}, {abs(epoch - drop)} {'after' if epoch >= drop else 'before'} the first drop; mean of {AROUND} epochs before "
        f"it {100 * before:.2f} %, after it {100 * after:.2f} %"
    )


def first_drop(rows: Sequence[Row]) -> int | None:
    """Returns the first epoch with at most `DROP` of the learning rate of the epoch before; None without one."""
    return next((index for index in range(1, len(rows)) if rows[index]["lr"] <= DROP * rows[index - 1]["lr"]), None)


def draw(experiment: str, curves: dict[str, list[Row]], path: Path) -> None:
    figure = new_figure(10, 5)
    axes = figure.subplots()
    for (name, rows), color in zip(curves.items(), COLORS[1::-1], strict=True):
        for split, style in (("valid", "-"), ("train", ":")):
            axes.plot(
                [row["epoch"] for row in rows], [100 * row[f"{split}_acc"] for row in rows], style, color=color,
                linewidth=1.4 if split == "valid" else 1.0, label=f"{name}, {SPLITS[split]}",
            )  # fmt: skip
        if (drop := first_drop(rows)) is not None:
            axes.axvline(drop, color=color, linewidth=0.8, alpha=0.5)
    axes.set(
        xlabel="epoch",
        ylabel="top-1 accuracy, %",
        ylim=(0, 100),
        title=f"{experiment}; vertical line: first drop of the rate",
    )
    figure.legend(loc="outside upper left", frameon=False, fontsize=9.5, alignment="left", ncols=2)
    save_figure(figure, [axes], path)


if __name__ == "__main__":
    sys.exit(run_command(main))
