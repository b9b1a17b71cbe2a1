"""The folder of a run: how it is named, what lies in it, how it is found again.

output/ghost_20261123101500/
├── config.yml        the resolved configuration
├── run.json          status, best values, duration, versions, commit, the parameters of the study
├── metrics.csv       a row for each epoch, counted from 0 as in the study
├── speed.csv         seconds and images per second of each epoch
├── curves.png        loss, accuracy and learning rate
├── train.log         what was said
└── checkpoints/      last.ckpt and best.ckpt, the epoch of the lowest validation loss
"""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from utils.errors import ConfigError, RunError
from utils.files import remove_partial, write_text
from utils.processes import is_first_process

CONFIG = "config.yml"
RECORD = "run.json"
METRICS = "metrics.csv"
SPEED = "speed.csv"
CURVES = "curves.png"
LOG = "train.log"
LAST = Path("checkpoints", "last.ckpt")
BEST = Path("checkpoints", "best.ckpt")
# Of what is read back from run.json to go on with a run; a value of another type was not written here.
RECORD_TYPES = {"run_id": str, "status": str, "started": str, "seconds": (int, float), "resumed": int, "best": dict}


def make_run_folder(output_path: Path, architecture: str) -> Path:
    """Makes the folder `<architecture>_<timestamp>`, with a number behind it where that is taken.

    Only the first of several processes makes it; the others, which write nothing, get the mere name of one.
    """
    name = f"{architecture.replace('/', '_')}_{datetime.now():%Y%m%d%H%M%S}"
    if not is_first_process():
        return output_path / name
    try:
        output_path.mkdir(parents=True, exist_ok=True)
        for parts in ("*", f"*/{LAST.parent}"):  # of runs that were killed in their first epoch and never go on
            for folder in output_path.glob(parts):
                remove_partial(folder)
        for number in range(1, 1000):
            folder = output_path / (name if number == 1 else f"{name}_{number}")
            try:
                folder.mkdir()
            except FileExistsError:
                continue  # started in the same second
            (folder / LAST.parent).mkdir()
            return folder
    except OSError as error:
        raise RunError(
            f"output_path {output_path} cannot be written: {error.strerror}; make room, or set another output_path"
        ) from error
    raise RunError(f"{output_path} has a thousand runs of this second")


def find_run(name: str, output_path: Path) -> Path:
    """Returns the folder of the run `name`: a path, a folder in `output_path`, or "last" for the newest checkpoint.

    Raises:
        ConfigError: There is no such run, or it has no checkpoint yet.
    """
    if name == "last":
        checkpoints = sorted(output_path.glob(f"*/{LAST}"), key=lambda path: path.stat().st_mtime)
        if not checkpoints:
            raise ConfigError(
                f"--resume last: no run in {output_path} has a checkpoint yet; start one: python train.py"
            )
        return checkpoints[-1].parents[1]
    for folder in (Path(name), output_path / name):
        if (folder / LAST).is_file():
            return folder
    known = sorted(path.parents[1].name for path in output_path.glob(f"*/{LAST}"))
    raise ConfigError(
        f"--resume {name}: no checkpoint at {output_path / name / LAST}; runs that have one: {', '.join(known) or 'none'}"
    )


def read_record(folder: Path) -> dict[str, Any]:
    """Reads `run.json` without what is not of its type, or an empty record where it is missing or damaged."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(record, dict):
        return {}
    return {key: value for key, value in record.items() if isinstance(value, RECORD_TYPES.get(key, object))}


def has_ended(folder: Path) -> bool:
    """Says whether the run in `folder` came to its end, by number of epochs or by early stopping."""
    return read_record(folder).get("status") in ("completed", "early-stopped")


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Writes `run.json`."""
    write_text(folder / RECORD, json.dumps(record, indent=2) + "\n")
