"""Finds the checkpoints of a training's teachers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.config import Config, Problems, read_config_file
from utils.config.yaml_source import SET
from utils.errors import ConfigError, UserError
from utils.files import file_digest
from utils.runs.folder import CONFIG, read_record
from utils.runs.resolve import resolve_checkpoint


@dataclass(frozen=True)
class TeacherFile:
    """A teacher's checkpoint, as records and checkpoints name it."""

    path: str
    sha256: str


def find_teachers(config: Config, run: Path | None) -> list[TeacherFile]:
    """Returns the checkpoints of the configured teachers.

    Args:
        config: The configuration.
        run: The folder of the run that is resumed or branched, which knows where its teachers were; None for a new run.

    Raises:
        ConfigError: There is no such run, or it has no checkpoint.
    """
    names = [config.teacher] if isinstance(config.teacher, str) else config.teacher or []
    if run is not None and config.source.place(("teacher",)) != SET and config.teacher == _of_run(run):
        known = [Path(path) for path in read_record(run).get("teachers", {})]
        # By now a name may be another run, such as "last".
        names = [str(path) for path in known] if known and all(path.is_file() for path in known) else names
    problems, found = Problems(config), []
    with problems.of("teacher"):
        for name in names:
            path = _checkpoint(name, config.output_path, is_new=run is None)
            found.append(TeacherFile(str(path.resolve()), file_digest(path)))
        if len({file.path for file in found}) < len(found):
            raise ConfigError("it names one run twice")
    problems.raise_any()
    return found


def _of_run(run: Path) -> Any:
    return read_config_file(run / CONFIG).values.get("teacher")


def digests(teachers: Sequence[TeacherFile]) -> dict[str, str]:
    """Returns path → digest."""
    return {each.path: each.sha256 for each in teachers}


def _checkpoint(name: str, output_path: Path, *, is_new: bool) -> Path:
    try:
        return resolve_checkpoint(name, output_path)
    except UserError as error:
        hint = "" if is_new else ". --set teacher=PATH names the same checkpoint in another place"
        raise ConfigError(f"{error}{hint}") from error
