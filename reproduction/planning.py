"""Plans the trainings of a command and recognizes their run folders.

A run is identified by its experiment, its seed, and the digests of its settings and of its data set, so that a run with other
settings or other images is never taken for the same one. All four come from the run folder: the settings from config.yml, the
data set from a tag. A folder can therefore be copied to another machine.
"""

import hashlib
import json
import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from datamodules import DataSplits, read_splits
from utils.cli import set_options
from utils.config import LOCAL_KEYS, Config, load_config, local_overrides, overridden_key, read_config_file
from utils.config.expressions import compress_time
from utils.config.loading import DEFAULTS
from utils.errors import ConfigError
from utils.runs.folder import CONFIG, LAST, RECORD, has_ended, read_record

FOLDER = "reproduction"  # in output_path
# batch_size counts images per device, and the published runs had one device. They computed in 32 bits.
AS_PUBLISHED = {"devices": 1, "precision": "32-true"}
DATA_TAG = re.compile(r"data (.+) ([0-9a-f]{8})")
SCALE_TAG = re.compile(r"(?:epochs / |shortened )(\d+)")  # "shortened": written by earlier versions
# The seed is a part of the key of its own, and num_nodes is part of devices.
NOT_SETTINGS = {*LOCAL_KEYS, "seed", "num_nodes"}
OWN_KEYS = {"experiment_id": "it names the experiment", "output_path": "use --output"}
# What decides on the images of a data set, beside the seed of its split.
DATA_KEYS = ("data_path", "raw_data_path", "extract_path", "dataset", "table_params", "exif_orientation",
             "validation_fraction", "test_fraction", "near_duplicate_distance")  # fmt: skip
# Parameters of torch.optim.lr_scheduler that count epochs.
EPOCH_COUNTS = ("milestones", "patience", "cooldown", "step_size", "step_size_up", "step_size_down", "T_max", "T_0",
                "total_iters", "total_steps", "epochs")  # fmt: skip

logger = logging.getLogger(__name__)


class Key(NamedTuple):
    """Identifies a run; its text is a file name."""

    experiment: str
    seed: int
    settings: str
    data: str

    @property
    def name(self) -> str:
        return f"{self.experiment} with seed {self.seed}"

    def __str__(self) -> str:
        experiment = re.sub(r"[^\w.-]+", "_", self.experiment)
        return f"{experiment}_seed-{self.seed}_{self.settings}-{self.data}"


class DataSet(NamedTuple):
    """A data set: the name of its folder, and the digest of its annotations."""

    name: str
    digest: str

    @property
    def tag(self) -> str:
        return f"data {self.name} {self.digest}"


@dataclass(frozen=True)
class Job:
    """One training: an experiment with a seed.

    Attributes:
        key: Identifies its run.
        file: The experiment's configuration file.
        num_epochs: Maximum number of epochs.
        overrides: Changes to the file, as of `--set`.
        folder: Where its run folder is created.
    """

    key: Key
    file: Path
    num_epochs: int
    overrides: tuple[str, ...]
    folder: Path

    def arguments(self, run: Path | None) -> list[str]:
        """Returns the arguments of train.py that start this training, or that resume `run`."""
        if run is None:
            source, overrides = ["--config", str(self.file)], self.overrides
        else:
            source = ["--resume", str(run)]
            overrides = local_overrides(self.overrides)
        return [*source, *set_options(overrides)]


class RunIndex:
    """Finds the runs in a folder by their keys. Reads each configuration once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keys: dict[Path, Key | None] = {}

    def runs(self) -> dict[Key, list[Path]]:
        """Returns the run folders of each key, finished runs first."""
        found: dict[Key, list[Path]] = {}
        for path in self.folder.glob(f"*/{RECORD}"):
            run = path.parent
            if run not in self.keys:
                self.keys[run] = _key_of(run)
            if self.keys[run] is not None:
                found.setdefault(self.keys[run], []).append(run)
        return {key: sorted(runs, key=lambda run: (not has_ended(run), run.name)) for key, runs in found.items()}

    def finished(self, key: Key) -> Path | None:
        """Returns the finished run of `key`."""
        return next((run for run in self.runs().get(key, []) if has_ended(run)), None)

    def resumable(self, key: Key) -> Path | None:
        """Returns the run of `key` with the newest checkpoint."""
        runs = [run for run in self.runs().get(key, []) if (run / LAST).is_file()]
        return max(runs, key=lambda run: (run / LAST).stat().st_mtime, default=None)


def plan(
    files: Mapping[str, Path],
    *,
    overrides: Sequence[str],
    repeat: int,
    folder: Path,
    divisor: int = 1,
) -> list[Job]:
    """Plans `repeat` trainings of each experiment: all experiments with one seed before any gets the next.

    Args:
        files: Configuration file of each experiment.
        overrides: As in `load_config`.
        repeat: Number of seeds: the configured one and those that follow it.
        folder: Where the run folders are created.
        divisor: Divides all epoch counts of the schedule. `overrides` come after it.

    Raises:
        ConfigError: A configuration is invalid, or `overrides` change a key that this command sets.
        DataError: The data set is missing, incomplete or damaged.
    """
    for override in overrides:
        if reason := OWN_KEYS.get(key := overridden_key(override)):
            raise ConfigError(f"--set {override}: {key} cannot be changed here: {reason}")
    changes = {name: (*_base_changes(name, file, divisor), *overrides) for name, file in files.items()}
    configs = {name: _load(name, file, changes[name]) for name, file in files.items()}
    if any(config.devices == "auto" for config in configs.values()):
        raise ConfigError(
            "--set devices=auto: the number of devices, and so the result, would depend on the machine; give a number"
        )
    sets: dict[str, DataSet] = {}  # those of most experiments are the same
    scale_tag = [f"epochs / {divisor}"] * (divisor > 1)
    jobs = []
    for number in range(repeat):
        for name, config in configs.items():
            seed, settings = config.seed + number, settings_of(config.plain())
            source = str([getattr(config, each) for each in DATA_KEYS] + [settings["split_seed"]])
            if source not in sets:
                sets[source] = read_data_set(config)
            own = {
                "experiment_id": name, "seed": seed, "output_path": str(folder), "split_seed": settings["split_seed"],
                "tags": [*config.tags, *scale_tag, sets[source].tag],
            }  # fmt: skip
            key = Key(name, seed, digest(settings), sets[source].digest)
            jobs.append(Job(key, files[name], config.num_epochs, (*changes[name], *_overrides(own)), folder))
    return jobs


def scale_schedule(config: Config, divisor: int) -> tuple[str, ...]:
    """Returns the overrides that make the schedule of `config` `divisor` times as fast.

    For machines on which 56 runs of some hundred epochs would take weeks. It is a different task from the published one: the
    model sees each image less often.
    """
    if divisor == 1:
        return ()
    patience = config.stopping_patience
    changes = {
        "num_epochs": _divide(config.num_epochs, divisor),
        "early_stopping_patience": patience and _divide(patience, divisor),
    }
    for name, value in (config.lr_scheduler_params or {}).items():
        if name in EPOCH_COUNTS:
            changes[f"lr_scheduler_params.{name}"] = _divide(value, divisor)
        elif name == "lr_lambda":
            changes[f"lr_scheduler_params.{name}"] = compress_time(value, divisor)
        elif name == "gamma" and config.lr_scheduler == "ExponentialLR":  # the only one that multiplies every epoch
            changes[f"lr_scheduler_params.{name}"] = value**divisor
    changes |= {
        name: _divide(epochs, divisor)
        for name in ("freeze_epochs", "mix_off_epochs")
        if (epochs := getattr(config, name))
    }
    if config.warmup_epochs:
        changes["warmup_epochs"] = config.warmup_epochs / divisor
    if config.keep_checkpoints:
        changes["keep_checkpoints"] = None
    return tuple(_overrides(changes))


def read_data_set(config: Config) -> DataSet:
    """Reads the annotations of the data set, not its images.

    Raises:
        DataError: The data set is missing, incomplete or damaged.
    """
    splits = read_splits(config)
    return DataSet(config.data_path.resolve().name, digest_of_data(splits))


def digest_of_data(splits: DataSplits) -> str:
    """Returns the digest of the class names and of each image's name, box and label, in their order."""
    records = [
        [
            [image.path.name, image.bounding_box and [int(edge) for edge in image.bounding_box], image.label]
            for image in split
        ]
        for split in (splits.train, splits.valid)
    ]
    return digest([splits.class_names, records])


def settings_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings in a configuration that affect the result, missing ones with their defaults.

    The seed is not one of them; the seed of the split is.

    Raises:
        ConfigError: A key is unknown.
    """
    if unknown := sorted(set(values) - set(Config.model_fields)):
        raise ConfigError(f"unknown settings: {', '.join(unknown)}")
    # A configuration of an earlier version lacks the keys that were added since; each had the effect of its default.
    settings = {name: value for name, value in {**DEFAULTS, **values}.items() if name not in NOT_SETTINGS}
    devices = values["devices"]
    settings["devices"] = values["num_nodes"] * (len(devices) if isinstance(devices, list) else devices)
    if settings["validation_fraction"] is not None and settings["split_seed"] is None:
        settings["split_seed"] = values["seed"]  # so that repeats with other seeds have the same images
    return settings


def changes_of(values: Mapping[str, Any], name: str, file: Path) -> str:
    """Returns how a run's configuration differs from its experiment's file, as in `--set`; "" if it does not."""
    divisor = _divisor(values.get("tags"))
    config = _load(name, file, _base_changes(name, file, divisor)).plain()
    own, run = settings_of(config), settings_of(values)
    for settings in (own, run):  # the seed of the split is no change while it is the file's seed
        settings["split_seed"] = config["seed"] if settings["split_seed"] is None else settings["split_seed"]
    own, run = _flat(own), _flat(run)
    changes = [f"epoch counts / {divisor}"] * (divisor > 1)
    changes += [f"{key}={run.get(key, 'removed')}" for key in sorted({*own, *run}) if own.get(key) != run.get(key)]
    return "; ".join(changes)


def digest(value: Any) -> str:
    """Returns 8 hexadecimal digits for a plain value. The order of keys matters in augmentations only."""
    if isinstance(value, dict):
        value = {
            key: list(each.items()) if key.endswith("_augmentations") and each else each for key, each in value.items()
        }
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def data_set_of(record: Mapping[str, Any]) -> DataSet | None:
    """Returns the data set named in a run's record; None for a run that this command did not start."""
    found = (DATA_TAG.fullmatch(tag) for tag in reversed(record.get("tags") or []))  # the user's own tags come first
    return next((DataSet(*match.groups()) for match in found if match), None)


def _key_of(run: Path) -> Key | None:
    data = data_set_of(read_record(run))
    if data is None:
        return None
    try:
        values = read_config_file(run / CONFIG).values
        if values["experiment_id"] is None:
            return None
        return Key(values["experiment_id"], values["seed"], digest(settings_of(values)), data.digest)
    except (ConfigError, KeyError, TypeError) as error:
        logger.warning("%s is ignored: its %s is damaged or of another version (%s)", run, CONFIG, error)
        return None


def _base_changes(name: str, file: Path, divisor: int) -> tuple[str, ...]:
    """Returns the changes that this command itself makes to an experiment's file."""
    config = _load(name, file, ())
    fixed = {key: value for key, value in AS_PUBLISHED.items() if getattr(config, key) == "auto"}
    return (*_overrides(fixed), *scale_schedule(config, divisor))


def _divisor(tags: Iterable[str] | None) -> int:
    """Returns the divisor of epoch counts that a run's tags name, 1 without one."""
    found = (SCALE_TAG.fullmatch(tag) for tag in tags or ())
    return next((int(match[1]) for match in found if match), 1)


def _divide(epochs: int | list[int], divisor: int) -> int | list[int]:
    """Divides and rounds up, so that 1 epoch never becomes 0."""
    return [_divide(each, divisor) for each in epochs] if isinstance(epochs, list) else math.ceil(epochs / divisor)


def _load(name: str, file: Path, overrides: Sequence[str]) -> Config:
    try:
        return load_config(file, overrides=overrides)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error


def _overrides(changes: Mapping[str, Any]) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in changes.items()]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Returns the settings by dotted keys, each value as JSON."""
    flat = {}
    for key, value in settings.items():
        if isinstance(value, dict) and value and not key.endswith("_augmentations"):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = json.dumps(value)
    return flat
