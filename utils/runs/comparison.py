"""Reads run folders in any state and compares their settings and results.

It needs neither a tracker nor torch: it reads only `config.yml`, `run.json`, `metrics.csv` and `speed.csv` of each run.
"""

import math
import os
import re
import textwrap
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from shlex import quote
from typing import Any

import yaml

from utils.config import read_config_file
from utils.errors import ConfigError
from utils.files import write_csv
from utils.runs.curves import draw_curves, shortened
from utils.runs.folder import CONFIG, LAST, LOG, METRICS, RECORD, SPEED, read_record
from utils.runs.lock import LOCK, is_held
from utils.runs.metrics import Row, best_values, read_rows
from utils.runs.resolve import list_runs, resolve_run
from utils.runs.summary import duration

RANKED = (
    "valid_acc",
    "valid_loss",
    "train_acc",
    "train_loss",
    "valid_top5_acc",
    "train_top5_acc",
    "valid_mean_class_acc",
)
SORTS = (*RANKED, "epochs", "parameters", "duration")
PHOTOS = {  # of run.json
    "num_classes": "the number of classes", "train_photos": "the training images", "valid_photos": "the validation images",
    "valid_from": "the source of the validation images", "split_digest": "the split",
}  # fmt: skip
MIN_INTERVAL, FIRST_EPOCH = 10, 60  # minutes
MISSING = object()  # stands for a value that a run does not have
UNKNOWN = "–"
NARROW, WIDE = 28, 48  # characters per cell; longer text is shortened in its middle
GAP = "  "
FOOTER = (
    "Each value is the best of its run; 'epoch', counted from 0, is that of valid_acc. valid_acc and valid_loss are of "
    "the validation split, which also chose the checkpoint: expect slightly lower accuracy on new images."
)


@dataclass(frozen=True)
class Run:
    """One run, as far as its folder can be read.

    Attributes:
        record: The content of run.json; empty if it cannot be read.
        settings: The resolved configuration; empty if it cannot be read.
        rows: The metrics of each epoch.
        status: As in run.json, but "killed?" if run.json says "running" and no process on this machine trains the run,
            "unknown" without a readable run.json, "empty" before any file was written.
        epochs: The number of completed epochs.
        best: The best value of each metric and its epoch, named as by `utils.runs.metrics.best_values`.
        num_params: Trainable parameters.
        seconds: The duration of its training.
        problems: One line for each file that could not be read, with advice.
    """

    folder: Path
    name: str
    record: dict[str, Any]
    settings: dict[str, Any]
    rows: list[Row]
    status: str
    experiment_id: str | None
    epochs: int
    best: dict[str, float]
    num_params: int | None
    seconds: float | None
    problems: list[str]

    def value(self, sort: str) -> float | None:
        """Returns the value of one of `SORTS`: accuracies as fractions, durations in seconds; None if unknown."""
        counts = {"epochs": self.epochs, "parameters": self.num_params, "duration": self.seconds}
        return counts[sort] if sort in counts else self.best.get(f"best_{sort}")


def find_runs(names: Sequence[str], output_path: Path) -> list[Path]:
    """Returns the folders of the runs `names`, as `resolve_run` takes them, each once; without names, all in `output_path`.

    Raises:
        ConfigError: A name is not a run's, there are no runs, or the folder cannot be read.
    """
    if names:
        return list({(run := resolve_run(name, output_path)).resolve(): run for name in names}.values())
    if not (runs := list_runs(output_path)):
        raise ConfigError(f"{output_path} has no runs yet; start one: python train.py, or python train.py --demo")
    return runs


def read_run(folder: Path) -> Run:
    """Reads the run in `folder`; missing or damaged files are named in `problems`."""
    problems = []
    record, lines, rows = read_record(folder), _count_lines(folder / METRICS), read_rows(folder / METRICS)
    if not 1 <= lines <= len(rows) + 1:  # an epoch may have been added in between
        problems.append(f"{folder / METRICS} is damaged: {len(rows)} epochs can be read")
    settings = {}
    if (folder / CONFIG).exists():
        try:
            settings = read_config_file(folder / CONFIG).values
        except ConfigError as error:
            problems.append(f"{error}; its settings are unknown")
    status, seconds = record.get("status"), _number(record.get("seconds"))
    if status == "running":
        epoch_seconds = [row.get("seconds", 0.0) for row in read_rows(folder / SPEED)]
        seconds = sum(epoch_seconds)  # run.json has only the seconds before the last start
        interval = max(MIN_INTERVAL, _number(settings.get("checkpoint_interval")) or FIRST_EPOCH)
        written = [folder / name for name in (RECORD, METRICS, LOG, LAST) if (folder / name).exists()]
        silence = time.time() - max(path.stat().st_mtime for path in written)
        # Without a lock, as in old versions, only the time since its last write shows that the process has ended.
        has_lock = os.access(folder / LOCK, os.W_OK)  # nor can the lock of another user's run be tried
        if not is_held(folder) if has_lock else silence > 2 * max([60 * interval, *epoch_seconds]):
            status = "killed?"
            advice = f"; to resume: python train.py --resume {quote(str(folder))}" if (folder / LAST).is_file() else ""
            problems.append(f"{folder} was running at its last write, {duration(silence)} ago{advice}")
    elif not isinstance(status, str):
        status = "unknown" if any((folder / name).exists() for name in (RECORD, METRICS, CONFIG)) else "empty"
        if status == "unknown":
            problems.append(f"{folder / RECORD} is missing or damaged: status, parameters and duration are unknown")
    identity = record.get("experiment_id") or settings.get("experiment_id")
    recorded = {name: value for name, value in _mapping(record.get("best")).items() if _number(value) is not None}
    return Run(
        folder=folder,
        name=folder.resolve().name,
        record=record,
        settings=settings,
        rows=rows,
        status=status,
        experiment_id=str(identity) if identity else None,
        epochs=len(rows) or int(_number(record.get("epochs")) or 0),
        best=best_values(rows) or recorded,  # during a training, metrics.csv is ahead of run.json
        num_params=_number(_mapping(record.get("parameters")).get("num_params")),
        seconds=seconds,
        problems=problems,
    )


def sort_runs(runs: Sequence[Run], by: str) -> list[Run]:
    """Returns `runs` by one of `SORTS`: accuracies from the highest, other values from the lowest, unknown values last."""
    sign = -1 if by.endswith("acc") else 1
    return sorted(runs, key=lambda run: (run.value(by) is None, sign * (run.value(by) or 0), run.name))


def differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Returns the values of each setting that differs between `runs`, except experiment_id, by its dotted key.

    The values are in the order of `runs`, MISSING for a run without this setting. Runs without any settings do not count.
    """
    found = {}
    for key, values in _differences("", [run.settings for run in runs if run.settings]):
        remaining = iter(values)
        found[key] = [next(remaining) if run.settings else MISSING for run in runs]
    found.pop("experiment_id", None)
    return found


def describe_runs(runs: Sequence[Run], *, width: int, sort: str = RANKED[0]) -> str:
    """Returns the table of `runs`, their differing settings and notes, in lines of at most `width` characters."""
    numbers = [str(number) for number in range(1, len(runs) + 1)]
    columns = [["#", *numbers], ["run", *(run.name for run in runs)]]
    if any(run.experiment_id for run in runs):
        columns.append(["id", *(run.experiment_id or UNKNOWN for run in runs)])
    columns.append(["status", *(run.status for run in runs)])
    for name in dict.fromkeys(("epochs", "valid_acc", "valid_loss", "train_acc", sort, "parameters", "duration")):
        columns.append([name, *(_figure(name, run.value(name)) for run in runs)])
        if name == "valid_acc":
            columns.append(["epoch", *(_text(run.best.get("best_valid_acc_epoch", MISSING)) for run in runs)])
    parts = [format_table(columns, width=width)]
    differing = differences(runs)
    if differing:
        table = [["#", *numbers], *([name, *map(_text, differing[key])] for key, name in _short(differing).items())]
        room = (width - max(len(cells[0]) for cells in table)) // len(runs) - len(GAP)
        if len(differing) > len(runs) and room >= NARROW:  # side by side
            table = [list(row) for row in zip(*table, strict=True)]
        parts.append("Differing settings:\n" + format_table(table, width=width, widest=max(room, NARROW)))
    elif len(runs) > 1 and all(run.settings for run in runs):
        parts.append("All settings are equal.")
    parts.append(textwrap.fill(FOOTER, width))
    other = [
        what for key, what in PHOTOS.items() if len({_text(run.record[key]) for run in runs if key in run.record}) > 1
    ]
    if other:
        note = f"These runs differ in {', '.join(other)}: their accuracies cannot be compared."
        parts.append(textwrap.fill(note, width))
    return "\n\n".join(parts)


def format_table(columns: Sequence[Sequence[str]], *, width: int, widest: int = WIDE) -> str:
    """Returns columns, each with its heading first, as lines of at most `width` characters.

    Columns that do not fit continue below, after a repeated first column. A cell longer than `widest` is shortened in
    its middle.
    """
    widest = max(6, min(widest, WIDE, (width - len(GAP)) // 2))
    first, *others = [_column(cells, widest) for cells in columns]
    blocks = [[first]]
    for column in others:
        if len(blocks[-1]) > 1 and sum(len(cells[0] + GAP) for cells in blocks[-1]) + len(column[0]) > width:
            blocks.append([first])
        blocks[-1].append(column)
    return "\n\n".join("\n".join(GAP.join(row).rstrip() for row in zip(*block, strict=True)) for block in blocks)


def write_table(runs: Sequence[Run], path: Path) -> None:
    """Writes a CSV file of `runs`: unrounded best values and the differing settings; raises RunError if it cannot."""
    differing = differences(runs)
    attributes = ("name", "folder", "experiment_id", "status", "epochs", "num_params", "seconds")
    bests = [f"best_{metric}{what}" for metric in RANKED for what in ("", "_epoch")]
    rows = []
    for index, run in enumerate(runs):
        settings = {key: values[index] for key, values in differing.items()}
        settings = {key: "" if value is MISSING else _text(value) for key, value in settings.items()}
        rows.append(run.record | settings | run.best | {name: getattr(run, name) for name in attributes})
    write_csv(path, rows, [*attributes, *bests, *PHOTOS, *differing])


def draw_runs(runs: Sequence[Run], path: Path) -> None:
    """Draws the curves of `runs`, numbered in their order, as a PNG; raises RunError if it cannot be written."""
    labels: dict[str, list[Row]] = {}
    for run in runs:
        name = f"{run.experiment_id}: {run.name}" if run.experiment_id else run.name
        label = f"{name}, {_figure('valid_acc', run.value('valid_acc'))}"
        labels[label if label not in labels else f"{run.folder}"] = run.rows
    draw_curves(labels, path, title=next(iter(labels)) if len(runs) == 1 else "")


def _differences(key: str, values: list[Any]) -> Iterator[tuple[str, list[Any]]]:
    # For a key that takes a mapping, null means an empty one.
    filled = [{} if value is None else value for value in values]
    mappings = all(isinstance(value, dict) for value in filled) and any(filled)
    # Augmentations are applied in order; the order of other mappings has no meaning.
    reordered = mappings and key.endswith("_augmentations") and any(
        [name for name in one if name in other] != [name for name in other if name in one]
        for one, other in combinations(filled, 2)
    )  # fmt: skip
    if mappings and not reordered:
        for name in dict.fromkeys(name for value in filled for name in value):
            yield from _differences(f"{key}.{name}" if key else name, [value.get(name, MISSING) for value in filled])
    elif reordered or any(value != values[0] for value in values):
        yield key, values


def _short(keys: Iterable[str]) -> dict[str, str]:
    """Returns each dotted key without its first part, where that is unambiguous."""
    short = {key: key.partition(".")[2] or key for key in keys}
    return {key: name if list(short.values()).count(name) == 1 else key for key, name in short.items()}


def _column(cells: Sequence[str], width: int) -> list[str]:
    cut = [shortened("".join(sign if sign.isprintable() else " " for sign in cell), width) for cell in cells]
    widest = max(map(len, cut))
    numeric = all(cell == UNKNOWN or re.fullmatch(r"-?\d[\d.,:e+-]*( %)?", cell) for cell in cut[1:])
    return [cell.rjust(widest) if numeric else cell.ljust(widest) for cell in cut]


def _figure(name: str, value: float | None) -> str:
    if value is None:
        return UNKNOWN
    if name.endswith("acc"):
        return f"{100 * value:.2f} %"
    return duration(value) if name == "duration" else f"{value:.4f}" if name.endswith("loss") else f"{value:,.0f}"


def _text(value: Any) -> str:
    """Returns a setting as one line of YAML."""
    if value is MISSING:
        return UNKNOWN
    if not isinstance(value, (dict, list)):
        return "null" if value is None else str(value)
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=math.inf).strip()


def _number(value: Any) -> float | None:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) else None


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _count_lines(path: Path) -> int:
    try:
        return len(path.read_bytes().splitlines())
    except OSError:
        return 0 if path.exists() else 1  # a missing file counts as a header without epochs
