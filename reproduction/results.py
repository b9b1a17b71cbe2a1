"""What was measured: a row for each finished run, and the means over the seeds of an experiment."""

import csv
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from reproduction.jobs import RunIndex, changes_of, data_set_of
from reproduction.published import IMAGES, place
from reproduction.training import read_facts
from utils.config import read_config_file
from utils.errors import ConfigError
from utils.files import write_csv
from utils.runs.folder import CONFIG, has_ended, read_record


class Condition(NamedTuple):
    """Under what an experiment was run; only figures of the same condition can be set against each other.

    Attributes:
        data: Name of the data set.
        data_digest: Of its annotations.
        train_photos, valid_photos: How many it has.
        changes: How the settings differ from the experiment's file; "" for those that were published.
    """

    data: str
    data_digest: str
    train_photos: int
    valid_photos: int
    changes: str

    @property
    def is_published(self) -> bool:
        """Says whether it is the published task: all photos of the published splits, and the published settings."""
        return (self.train_photos, self.valid_photos) == IMAGES and not self.changes

    @property
    def caveat(self) -> str:
        """Returns what has to stand behind the name of the data; nothing for the published task."""
        return "" if self.is_published else ": another task"

    @property
    def data_text(self) -> str:
        return f"{self.data}, {self.train_photos:,} / {self.valid_photos:,}"

    def __str__(self) -> str:
        return f"{self.data_text}; {self.changes or 'settings as published'}"


@dataclass(frozen=True)
class Measured:
    """A finished run, as a row of experiments/measured.csv; each figure is the best of any epoch.

    Attributes:
        min_valid_loss, min_train_loss: None where no loss was finite.
        checkpoint_acc_percent, over_batches_acc_percent: Of best.ckpt: over images, and as a mean of batch means; None
            where that was not computed.
    """

    experiment: str
    seed: int
    data: str
    train_photos: int
    valid_photos: int
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
    def condition(self) -> Condition:
        return Condition(self.data, self.data_digest, self.train_photos, self.valid_photos, self.changes)

    @property
    def key(self) -> tuple[str, int, str, str]:
        """Tells its row from others; not by the digest of its settings, which a key that is added later changes."""
        return self.experiment, self.seed, self.data_digest, self.changes


@dataclass(frozen=True)
class Summary:
    """An experiment under one condition, over its seeds; accuracies in percent."""

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

    def mean_of(self, figure: str) -> float:
        """Returns the mean of another figure of `Measured`."""
        return statistics.mean(getattr(run, figure) for run in self.runs)


def read_results(folder: Path, names: Iterable[str]) -> tuple[list[Measured], list[str]]:
    """Returns the finished runs in `folder` of the experiments `names`, and a line for each that is not finished."""
    wanted = set(names)
    measured, unfinished = [], []
    for key, runs in sorted(RunIndex(folder).runs().items(), key=lambda item: (place(item[0].experiment), item[0])):
        if key.experiment not in wanted:
            continue
        record = read_record(runs[0])
        if has_ended(runs[0]):
            measured.append(_measured(key, runs[0], record))
        else:
            unfinished.append(f"{key.experiment} with seed {key.seed}: {record.get('status')}, {runs[0]}")
    return measured, unfinished


def by_condition(measured: Sequence[Measured]) -> dict[Condition, dict[str, Summary]]:
    """Returns the summaries of each condition by experiment; the condition with the most runs comes first."""
    conditions: dict[Condition, dict[str, list[Measured]]] = {}
    for run in measured:
        conditions.setdefault(run.condition, {}).setdefault(run.experiment, []).append(run)
    ordered = sorted(conditions.items(), key=lambda item: (-sum(map(len, item[1].values())), item[0]))
    return {
        condition: {name: Summary(name, tuple(runs[name])) for name in sorted(runs, key=place)}
        for condition, runs in ordered
    }


def read_measured(path: Path) -> list[Measured]:
    """Reads the rows of measured.csv; none where there is no such file.

    Raises:
        ConfigError: It is not such a file.
    """
    if not path.exists():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [
                Measured(**{field.name: _value(row[field.name], field.type) for field in fields(Measured)})
                for row in csv.DictReader(file)
            ]
    except (KeyError, ValueError, TypeError) as error:
        raise ConfigError(f"{path} is not what this command wrote ({error!r}); restore it") from error


def write_measured(path: Path, rows: Iterable[Measured]) -> None:
    """Writes measured.csv; of rows of the same run the last one counts."""
    unique = {row.key: row for row in rows}
    ordered = sorted(unique.values(), key=lambda row: (place(row.experiment), row.key))
    write_csv(path, [asdict(row) for row in ordered], [field.name for field in fields(Measured)])


def _measured(key: Any, run: Path, record: dict[str, Any]) -> Measured:
    data, facts, best = data_set_of(record), read_facts(run), record["best"]
    values = read_config_file(run / CONFIG).values
    return Measured(
        experiment=key.experiment,
        seed=key.seed,
        data=data.name,
        train_photos=record["train_photos"],
        valid_photos=record["valid_photos"],
        data_digest=key.data,
        settings_digest=key.settings,
        changes=changes_of(values, key.experiment),
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
    return float(text) if text else None
