"""Measured results: a row for each finished run, and the means over the seeds of an experiment."""

import csv
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_args

from reproduction.evaluation import read_facts
from reproduction.planning import Key, RunIndex, changes_of, data_set_of
from reproduction.published import IMAGES, sort_key
from utils.config import read_config_file
from utils.errors import ConfigError
from utils.files import write_csv
from utils.runs.folder import CONFIG, has_ended, read_record

Row = TypeVar("Row")


class Setup(NamedTuple):
    """The data and the changed settings of a run. Only results of the same setup can be compared.

    Attributes:
        data: Name of the data set.
        data_digest: Digest of its annotations.
        train_images, valid_images: Size of its splits.
        changes: How the settings differ from the experiment's file; "" if they do not.
    """

    data: str
    data_digest: str
    train_images: int
    valid_images: int
    changes: str

    @property
    def is_published(self) -> bool:
        """Whether this is the published task: splits of the published size, and the settings of the experiment's file."""
        return (self.train_images, self.valid_images) == IMAGES and not self.changes

    @property
    def note(self) -> str:
        """What must follow the name of the data: nothing for the published task."""
        return "" if self.is_published else ", different task"

    @property
    def data_text(self) -> str:
        return f"{self.data}, {self.train_images:,} / {self.valid_images:,}"

    def __str__(self) -> str:
        return f"{self.data_text}; {self.changes or 'no settings changed'}"


@dataclass(frozen=True)
class Measured:
    """A finished run, a row of experiments/measured.csv. Each result is the best of any epoch.

    Attributes:
        min_valid_loss, min_train_loss: None if no loss was finite.
        checkpoint_acc_percent, over_batches_acc_percent: Accuracy of best.ckpt over images, and as a mean of batch means;
            None if it was not evaluated.
    """

    experiment: str
    description: str
    seed: int
    data: str
    train_images: int
    valid_images: int
    data_digest: str
    settings_digest: str
    changes: str
    valid_acc_percent: float
    train_acc_percent: float
    min_valid_loss: float | None
    min_train_loss: float | None
    valid_top5_acc_percent: float
    checkpoint_acc_percent: float | None
    over_batches_acc_percent: float | None
    batch_size: int
    epochs: int
    num_params: int
    seconds: float
    device: str
    precision: str
    torch: str
    commit: str
    date: str
    run: str

    @property
    def setup(self) -> Setup:
        return Setup(self.data, self.data_digest, self.train_images, self.valid_images, self.changes)

    @property
    def key(self) -> tuple[str, int, str, str]:
        """Identifies the row. Without the digest of the settings, which changes when a new setting is introduced."""
        return self.experiment, self.seed, self.data_digest, self.changes


@dataclass(frozen=True)
class Summary:
    """The runs of an experiment in one setup, which differ in their seeds; accuracies in percent."""

    experiment: str
    runs: tuple[Measured, ...]

    @property
    def accuracies(self) -> list[float]:
        return [run.valid_acc_percent for run in self.runs]

    @property
    def mean(self) -> float:
        return statistics.mean(self.accuracies)

    @property
    def deviation(self) -> float | None:
        return statistics.stdev(self.accuracies) if len(self.runs) > 1 else None

    @property
    def text(self) -> str:
        deviation = self.deviation
        return f"{self.mean:.2f}" if deviation is None else f"{self.mean:.2f} ± {deviation:.2f}"

    def mean_of(self, column: str) -> float:
        """Returns the mean of another column of `Measured`."""
        return statistics.mean(getattr(run, column) for run in self.runs)


def read_results(folder: Path, files: Mapping[str, Path]) -> tuple[list[Measured], list[str]]:
    """Returns the finished runs in `folder` of the experiments `files`, and a line for each run that is not counted."""
    measured, not_counted, others = [], [], []
    for key, runs in sorted(RunIndex(folder).runs().items(), key=lambda item: (sort_key(item[0].experiment), item[0])):
        record = read_record(runs[0])
        if key.experiment not in files:
            others.append(key.experiment)
        elif has_ended(runs[0]):
            measured.append(_measured(key, runs[0], record, files[key.experiment]))
        else:
            not_counted.append(f"not finished: {key.name}: {record.get('status')}, {runs[0]}")
    if others:
        not_counted.append(f"not asked for: runs of {', '.join(dict.fromkeys(others))}")
    return measured, not_counted


def by_setup(measured: Sequence[Measured]) -> dict[Setup, dict[str, Summary]]:
    """Returns the summaries of each setup by experiment: of the most images first, of as many that with the most runs."""
    setups: dict[Setup, dict[str, list[Measured]]] = {}
    for run in measured:
        setups.setdefault(run.setup, {}).setdefault(run.experiment, []).append(run)
    ordered = sorted(
        setups.items(), key=lambda item: (-item[0].train_images, -sum(map(len, item[1].values())), item[0])
    )
    return {
        setup: {name: Summary(name, tuple(runs[name])) for name in sorted(runs, key=sort_key)}
        for setup, runs in ordered
    }


def read_table(path: Path, kind: type[Row]) -> list[Row]:
    """Reads a CSV file of this project whose rows are dataclasses of this kind; no rows if there is no such file.

    Raises:
        ConfigError: The file is not valid.
    """
    if not path.exists():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [
                kind(**{field.name: _value(row[field.name], field.type) for field in fields(kind)})
                for row in csv.DictReader(file)
            ]
    except (KeyError, ValueError, TypeError) as error:
        raise ConfigError(f"{path} is damaged ({error!r}); restore it from git") from error


def write_measured(path: Path, rows: Iterable[Measured]) -> None:
    """Writes measured.csv. Of several rows of the same run, the last one counts."""
    unique = {row.key: row for row in rows}
    ordered = sorted(unique.values(), key=lambda row: (sort_key(row.experiment), row.key))
    write_csv(path, [asdict(row) for row in ordered], [field.name for field in fields(Measured)])


def _measured(key: Key, run: Path, record: dict[str, Any], file: Path) -> Measured:
    data, facts, best = data_set_of(record), read_facts(run), record["best"]
    values = read_config_file(run / CONFIG).values
    return Measured(
        experiment=key.experiment,
        description=record.get("description") or "",
        seed=key.seed,
        data=data.name,
        train_images=record["train_photos"],
        valid_images=record["valid_photos"],
        data_digest=key.data,
        settings_digest=key.settings,
        changes=changes_of(values, key.experiment, file),
        valid_acc_percent=_percent(best["best_valid_acc"]),
        train_acc_percent=_percent(best["best_train_acc"]),
        min_valid_loss=_rounded(best.get("best_valid_loss")),
        min_train_loss=_rounded(best.get("best_train_loss")),
        valid_top5_acc_percent=_percent(best["best_valid_top5_acc"]),
        checkpoint_acc_percent=_percent(facts.get("checkpoint_acc")),
        over_batches_acc_percent=_percent(facts.get("checkpoint_acc_over_batches")),
        batch_size=values["batch_size"],
        epochs=record["epochs"],
        num_params=record["parameters"]["num_params"],
        seconds=record["seconds"],
        device=facts.get("device", "unknown"),
        precision=values["precision"],
        torch=record["versions"]["torch"],
        commit=record["commit"] or "unknown",
        date=record["started"][:10],
        run=run.name,
    )


def _percent(share: float | None) -> float | None:
    return _rounded(None if share is None else 100 * share)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _value(text: str, kind: Any) -> Any:
    if kind in (str, int, float):
        return kind(text)
    return get_args(kind)[0](text) if text else None  # of int | None or float | None
