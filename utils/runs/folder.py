"""A run's folder: its name and its files.

output/ghost_20261123101500/
├── config.yml        the resolved configuration
├── run.json          status, best values, duration, versions, commit, the parameters of the study
├── metrics.csv       one row per epoch, counted from 0 as in the study
├── speed.csv         seconds and images per second of each epoch
├── curves.png        loss, accuracy and learning rate
├── train.log         all messages with their times
├── calibration.json  temperature and threshold of the checkpoints, by evaluate.py
└── checkpoints/      last.ckpt and best.ckpt, the epoch with the lowest validation loss; epoch_17.ckpt with keep_checkpoints
"""

import json
from pathlib import Path
from typing import Any

from utils.files import make_folder, make_timestamped_folder, remove_partial, timestamped, write_text
from utils.processes import is_first_process

CONFIG = "config.yml"
RECORD = "run.json"
METRICS = "metrics.csv"
SPEED = "speed.csv"
CURVES = "curves.png"
LOG = "train.log"
LAST = Path("checkpoints", "last.ckpt")
BEST = Path("checkpoints", "best.ckpt")
KEPT = "checkpoints/epoch_{}.ckpt"  # after so many epochs, with keep_checkpoints
KEPT_BEST = "checkpoints/epoch_{}_best.ckpt"  # the best checkpoint until then
ABOUT = "cars"  # key of what a checkpoint holds beside Lightning's: format, config, class_names, metrics
# Types of the values that a resumed run reads from run.json; a value of another type is ignored.
RECORD_TYPES = {
    "run_id": str, "status": str, "started": str, "seconds": (int, float), "resumed": int, "best": dict, "branch": dict,
    "teachers": dict,
}  # fmt: skip


def make_run_folder(output_path: Path, architecture: str) -> Path:
    """Creates the folder `<architecture>_<timestamp>`, numbered where that name is taken.

    Only the first of several processes creates it; the others write nothing and get a path alone.
    """
    name = architecture.replace("/", "_")
    if not is_first_process():
        return output_path / timestamped(name)
    make_folder(output_path)
    for pattern in ("*", f"*/{LAST.parent}"):  # runs that were killed in their first epoch and are never resumed
        for folder in output_path.glob(pattern):
            remove_partial(folder)
    folder = make_timestamped_folder(output_path, name)
    make_folder(folder / LAST.parent)
    return folder


def is_run(folder: Path) -> bool:
    """Returns whether `folder` is a run's, even if the run ended before it wrote a file."""
    return any((folder / name).exists() for name in (RECORD, METRICS, CONFIG, LAST.parent))


def read_record(folder: Path) -> dict[str, Any]:
    """Reads `run.json` without the values of a wrong type; returns {} if it is missing or damaged."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(record, dict):
        return {}
    return {key: value for key, value in record.items() if isinstance(value, RECORD_TYPES.get(key, object))}


def has_ended(folder: Path) -> bool:
    """Returns whether the run in `folder` reached its last epoch or stopped early."""
    return read_record(folder).get("status") in ("completed", "early-stopped")


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Writes `run.json`."""
    write_text(folder / RECORD, json.dumps(record, indent=2) + "\n")
