"""Finds the checkpoint of a run from which another run is branched."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.errors import ConfigError
from utils.runs.folder import BEST, KEPT, KEPT_BEST, LAST, METRICS, read_record
from utils.runs.metrics import read_rows
from utils.runs.resolve import resolve_run


@dataclass(frozen=True)
class Trunk:
    """A run after some of its epochs.

    Attributes:
        folder: The run's folder.
        epochs: Number of its epochs until then.
        checkpoint: Of the end of the last of them.
        best: The best checkpoint until then; the file may be missing.
    """

    folder: Path
    epochs: int
    checkpoint: Path
    best: Path

    def origin(self) -> dict[str, Any]:
        """Returns where a branch comes from, for its record."""
        run_id = read_record(self.folder).get("run_id")
        return {"run": self.folder.name, "run_id": run_id, "path": str(self.folder.resolve()), "epochs": self.epochs}


def find_trunk(name: str, epochs: int, output_path: Path) -> Trunk:
    """Returns the run `name`, as every command finds it, after `epochs` epochs.

    Raises:
        ConfigError: There is no such run, or it has no checkpoint of that epoch.
    """
    folder = resolve_run(name, output_path)
    if (checkpoint := folder / KEPT.format(epochs)).is_file():
        return Trunk(folder, epochs, checkpoint, folder / KEPT_BEST.format(epochs))
    trained = len(read_rows(folder / METRICS))
    if trained == epochs and (folder / LAST).is_file():
        return Trunk(folder, epochs, folder / LAST, folder / BEST)
    names = (re.fullmatch(r"epoch_(\d+)\.ckpt", path.name) for path in (folder / LAST).parent.glob("epoch_*.ckpt"))
    there = {int(match[1]) for match in names if match} | ({trained} if (folder / LAST).is_file() else set())
    have = f"it has those after {', '.join(map(str, sorted(there)))}" if there - {0} else "it has none"
    raise ConfigError(
        f"--at {epochs}: {folder} has no checkpoint after {epochs} epochs; {have}. To have one, train it with "
        f"keep_checkpoints: [{epochs}]"
    )
