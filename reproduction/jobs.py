"""What is to be trained, and which run folders are of it already.

A run is known by its experiment, its seed, the digest of its settings and the digest of its data, so that changed settings or
other photos are never taken for the same run. All of it can be read from the run's folder, wherever that is copied to: the
settings from its config.yml, the data set from a tag.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from datamodules import DataSplits, read_data
from reproduction.published import EXPERIMENTS
from reproduction.shortening import TAG, factor_of, shortened
from utils.config import LOCAL_KEYS, RESUMABLE_KEYS, Config, load_config, read_config_file
from utils.errors import ConfigError
from utils.runs.folder import CONFIG, LAST, RECORD, has_ended, read_record

FOLDER = "reproduction"  # in output_path
# batch_size is for each device, and the published runs had one; they computed in 32 bits, which a GPU does on request.
AS_PUBLISHED = ("devices=1", "precision=32-true")
DATA_TAG = "data "
# May change in a run that goes on, but make another result.
OTHER_RESULT = ("num_epochs", "early_stopping_patience", "stop_on_nonfinite_loss")
# Its seed stands beside the settings, and its devices of all machines are counted together.
NOT_SETTINGS = {*LOCAL_KEYS, "seed", "num_nodes"}
OWN_KEYS = {"experiment_id": "it is the experiment's name", "output_path": "use --output"}
# A configuration that was written before a key was added lacks it.
DEFAULTS = {name: field.default for name, field in Config.model_fields.items() if not field.is_required()}

logger = logging.getLogger(__name__)


class Key(NamedTuple):
    """Tells a run from all others; as a text it is the name of a file."""

    experiment: str
    seed: int
    settings: str
    data: str

    def __str__(self) -> str:
        return f"{self.experiment}_seed-{self.seed}_{self.settings}-{self.data}"


class DataSet(NamedTuple):
    """A data set: the name of its folder, and what its annotations say, wherever they lie."""

    name: str
    digest: str

    @property
    def tag(self) -> str:
        return f"{DATA_TAG}{self.name} {self.digest}"


@dataclass(frozen=True)
class Job:
    """One training: an experiment with a seed.

    Attributes:
        key: Tells it from all others.
        num_epochs: How many it has at most.
        overrides: What `--set` has to change of the experiment's file.
        folder: Where its run's folder is made.
    """

    key: Key
    num_epochs: int
    overrides: tuple[str, ...]
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.key.experiment} with seed {self.key.seed}"

    def arguments(self, run: Path | None) -> list[str]:
        """Returns the arguments of train.py that start it, or that let `run` go on."""
        if run is None:
            source, overrides = ["--config", str(EXPERIMENTS / f"{self.key.experiment}.yml")], self.overrides
        else:
            source = ["--resume", str(run)]
            overrides = [
                each for each in self.overrides if _key(each) in RESUMABLE_KEYS and _key(each) not in OTHER_RESULT
            ]
        return [*source, *(word for each in overrides for word in ("--set", each))]


class RunIndex:
    """The runs in a folder by their keys; each configuration is read once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keys: dict[Path, Key | None] = {}

    def runs(self) -> dict[Key, list[Path]]:
        """Returns the folders of all runs that belong to a job, those that ended first."""
        found: dict[Key, list[Path]] = {}
        for path in self.folder.glob(f"*/{RECORD}"):
            run = path.parent
            if run not in self.keys:
                self.keys[run] = _key_of(run)
            if self.keys[run] is not None:
                found.setdefault(self.keys[run], []).append(run)
        return {key: sorted(runs, key=lambda run: (not has_ended(run), run.name)) for key, runs in found.items()}

    def ended(self, key: Key) -> bool:
        """Says whether the training of `key` came to its end."""
        return any(has_ended(run) for run in self.runs().get(key, []))

    def broken_off(self, key: Key) -> Path | None:
        """Returns the run of `key` that can go on: the one with the newest checkpoint."""
        runs = [run for run in self.runs().get(key, []) if (run / LAST).is_file()]
        return max(runs, key=lambda run: (run / LAST).stat().st_mtime, default=None)


def plan(
    names: Sequence[str],
    *,
    overrides: Sequence[str],
    repeat: int,
    folder: Path,
    shorten: int = 1,
    data: DataSet | None = None,
) -> list[Job]:
    """Returns the trainings of the experiments `names`, each with `repeat` seeds; all of a seed before the next one.

    Args:
        names: Experiments.
        overrides: As in `load_config`.
        repeat: How many seeds each gets: the configured one and those that follow it.
        folder: Where the run folders are made.
        shorten: What the schedules' counts of epochs are divided by, before `overrides`.
        data: The data set; None to read it.

    Raises:
        ConfigError: A configuration is wrong, or changes what this command sets itself.
        DataError: The data set is wrong.
    """
    for override in overrides:
        if _key(override) in OWN_KEYS:
            raise ConfigError(
                f"--set {override}: this command sets {_key(override)} itself; {OWN_KEYS[_key(override)]}"
            )
    changes = {name: (*_base(name, shorten), *overrides) for name in names}
    configs = {name: _load(name, changes[name]) for name in names}
    marks = [f"{TAG}{shorten}"] * (shorten > 1)
    if any(config.devices == "auto" for config in configs.values()):
        raise ConfigError(
            "--set devices=auto: how many that is, and so the result, depends on the machine; give a number"
        )
    data = data or read_data_set(next(iter(configs.values())))
    jobs = []
    for number in range(repeat):
        for name, config in configs.items():
            seed = config.seed + number
            tags = [*config.tags, *marks, data.tag]
            own = (f"seed={seed}", _override("output_path", str(folder)), _override("tags", tags))
            key = Key(name, seed, digest(settings_of(config.plain())), data.digest)
            jobs.append(Job(key, config.num_epochs, (*changes[name], *own), folder))
    return jobs


def read_data_set(config: Config) -> DataSet:
    """Returns the data set of `config`; reads its annotations, not its photos.

    Raises:
        DataError: The data set is missing, incomplete or damaged.
    """
    annotations = read_data(config.data_path, raw_path=config.raw_data_path)
    return DataSet(config.data_path.resolve().name, digest_of_annotations(annotations))


def digest_of_annotations(annotations: DataSplits) -> str:
    """Returns the digest of names, boxes and labels of all photos in their order, and of the names of the classes."""
    splits = [
        [[photo.path.name, [int(edge) for edge in photo.bounding_box], photo.label] for photo in split]
        for split in (annotations.train, annotations.valid)
    ]
    return digest([annotations.class_names, splits])


def settings_of(values: dict[str, Any]) -> dict[str, Any]:
    """Returns what of a configuration shapes the result. A key that it does not have, being older, has its default."""
    settings = {name: value for name, value in {**DEFAULTS, **values}.items() if name not in NOT_SETTINGS}
    devices = values["devices"]
    settings["devices"] = values["num_nodes"] * (len(devices) if isinstance(devices, list) else devices)
    return settings


def changes_of(values: dict[str, Any], experiment: str) -> str:
    """Returns how a run's configuration differs from its experiment's file, as `--set` would write it; "" if it does not."""
    factor = factor_of(values.get("tags"))
    own = _flat(settings_of(_load(experiment, _base(experiment, factor)).plain()))
    run = _flat(settings_of(values))
    lead = [f"counts of epochs / {factor}"] * (factor > 1)
    changed = [f"{key}={run.get(key, 'removed')}" for key in sorted({*own, *run}) if own.get(key) != run.get(key)]
    return "; ".join(lead + changed)


def digest(value: Any) -> str:
    """Returns 8 hexadecimal digits of a plain value; only of augmentations the order of keys matters."""
    if isinstance(value, dict):
        value = {
            key: list(each.items()) if key.endswith("_augmentations") and each else each for key, each in value.items()
        }
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def data_set_of(record: dict[str, Any]) -> DataSet | None:
    """Returns the data set that the record of a run names, None for a run that this command did not start."""
    for tag in record.get("tags") or []:
        if tag.startswith(DATA_TAG):
            return DataSet(*tag.removeprefix(DATA_TAG).rsplit(" ", 1))
    return None


def _key_of(run: Path) -> Key | None:
    data = data_set_of(read_record(run))
    if data is None:
        return None
    try:
        values = read_config_file(run / CONFIG).values
        return Key(values["experiment_id"], values["seed"], digest(settings_of(values)), data.digest)
    except (ConfigError, KeyError, TypeError) as error:
        logger.warning("%s is damaged or of another version and does not count: %s", run, error)
        return None


def _base(name: str, factor: int) -> tuple[str, ...]:
    """Returns what this command itself changes of an experiment's file."""
    return (*AS_PUBLISHED, *shortened(_load(name, ()), factor))


def _load(name: str, overrides: Sequence[str]) -> Config:
    try:
        return load_config(EXPERIMENTS / f"{name}.yml", overrides=overrides)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error


def _key(override: str) -> str:
    return override.partition("=")[0].strip()


def _override(key: str, value: Any) -> str:
    return f"{key}={json.dumps(value)}"


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Returns the settings by dotted keys, each value as a text."""
    flat = {}
    for key, value in settings.items():
        if isinstance(value, dict) and value and not key.endswith("_augmentations"):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = json.dumps(value)
    return flat
