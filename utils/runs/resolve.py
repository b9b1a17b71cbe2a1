"""Finds the run or the checkpoint that a command line names. All commands accept the same names."""

import difflib
from datetime import datetime
from pathlib import Path

from utils.errors import ConfigError, RunError
from utils.runs.folder import BEST, LAST, METRICS, is_run, read_record
from utils.runs.metrics import read_rows

NEWEST = "last"
MAX_SUGGESTIONS = 3
WEIGHTS = (".ckpt", ".pt", ".pth", ".safetensors")  # endings of files with weights


def list_runs(output_path: Path) -> list[Path]:
    """Returns the folders of all runs in `output_path`, by name.

    Raises:
        ConfigError: The folder cannot be read.
    """
    try:
        return sorted(path for path in output_path.iterdir() if is_run(path)) if output_path.is_dir() else []
    except OSError as error:
        raise ConfigError(f"{error.filename} cannot be read: {error.strerror}") from error


def resolve_run(name: str, output_path: Path) -> Path:
    """Returns the folder of a run. It always has a name of its own, even if `name` is `.`.

    Args:
        name: The run's folder, its name in `output_path`, one of its checkpoint files, or "last": the run that was
            started last, by the start time in its run.json, else by the modification time of its folder.
        output_path: The folder of the runs.

    Raises:
        ConfigError: There is no such run or file.
    """
    runs = list_runs(output_path)
    if name == NEWEST and runs:
        return max(runs, key=_age_key)
    try:
        for path in (Path(name), output_path / name):
            folder = path if path.name not in ("", "..") else path.resolve()
            if path.is_file():
                folder = path.resolve().parent.parent
            if is_run(folder):
                return folder
    except OSError as error:
        raise ConfigError(f"{error.filename} cannot be read: {error.strerror}") from error
    exists = Path(name).exists()
    if not exists and Path(name).suffix in WEIGHTS:
        raise ConfigError(f"{name}: no such file")
    problem = f"{name} is not a run's" if exists else f"{name}: no such run"
    if not runs:
        raise ConfigError(f"{problem}; {output_path} has no runs yet. Start one: python train.py")
    close = difflib.get_close_matches(Path(name).name, [run.name for run in runs], n=MAX_SUGGESTIONS, cutoff=0)
    raise ConfigError(f"{problem}; nearest in {output_path}: {', '.join(close)}")


def resolve_checkpoint(name: str, output_path: Path, *, which: Path = BEST) -> Path:
    """Returns the checkpoint file `name`, or one checkpoint of the run that `resolve_run` finds for `name`.

    Args:
        name: A checkpoint file, or any name of a run.
        output_path: The folder of the runs.
        which: The checkpoint of a run, `BEST` or `LAST`.

    Raises:
        ConfigError: There is no such file or run.
        RunError: The run does not have this checkpoint yet.
    """
    for path in (Path(name), output_path / name):
        if path.is_file():
            return path.resolve()
    folder = resolve_run(name, output_path)
    if (folder / which).is_file():
        return folder / which
    if (folder / LAST).is_file():
        rows = read_rows(folder / METRICS)
        reason = "no epoch had a finite validation loss" if rows else "no epoch has finished yet"
        raise RunError(f"{folder} has no {which}: {reason}; name {folder / LAST} to use it")
    others = [run for run in list_runs(output_path) if (run / which).is_file()]
    advice = f"; the newest run with one: {max(others, key=_age_key).name}" if others else ""
    raise RunError(f"{folder} has no checkpoint yet{advice}")


def _age_key(folder: Path) -> tuple[float, int, str]:
    try:
        started = datetime.fromisoformat(read_record(folder)["started"]).timestamp()
    except (KeyError, ValueError):
        started = folder.stat().st_mtime
    return started, len(folder.name), folder.name  # of two runs of the same second the second one ends in _2
