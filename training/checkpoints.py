"""Reads and writes checkpoint files: whole or not at all, and never executing anything in them."""

import os
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor

from losses.auxiliary import GROUPS_CHANGED
from utils.errors import ConfigError, DamagedCheckpoint, UserError
from utils.files import replacing
from utils.runs.folder import ABOUT, BEST

FORMAT = 1  # raised when older checkpoints cannot be read as they are
RENAMED = {"StanfordCars": "CarsDataModule"}  # keys that are names of our classes, old: new
ZIP, PICKLE = b"PK\x03\x04", b"\x80"  # first bytes of torch's formats, the present one and that of before 2020


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically (temporary file, then rename) and loads them with `weights_only=True`.

    A thread writes one checkpoint at a time while training continues: a fast device would wait for a slow disk for a good
    part of each epoch. Call `wait` before the file is needed, and before processes are forked.

    Args:
        first: The checkpoint that is loaded first, whatever the file holds: that of a branch.
    """

    def __init__(self, first: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.first = first
        self.writing: Future[None] | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Starts to write a checkpoint as it is now.

        Args:
            checkpoint: Tensors and plain values.
            path: The file.
            storage_options: {"links": {a second name: its file}}, made when the checkpoint is written.

        Raises:
            RunError: The one before could not be written.
        """
        self.wait()
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.writing = self.thread.submit(write_checkpoint, _on_host(checkpoint), Path(path), **(storage_options or {}))

    def wait(self) -> None:
        """Waits until the last checkpoint is on the disk.

        Raises:
            RunError: It could not be written; the file is as it was.
        """
        writing, self.writing = self.writing, None
        if writing is not None:
            self.thread.shutdown()  # until it has ended: no thread should run where processes are forked
            writing.result()

    def teardown(self) -> None:
        self.wait()

    def load_checkpoint(self, path: Any, *_: Any, **__: Any) -> dict[str, Any]:
        checkpoint, self.first = self.first, None
        return checkpoint or read_checkpoint(Path(path))


def write_checkpoint(checkpoint: dict[str, Any], path: Path, links: Mapping[Path, Path] | None = None) -> None:
    """Writes a checkpoint, and then gives files second names."""
    with replacing(path) as partial:
        try:
            torch.save(checkpoint, partial)
        except RuntimeError as error:  # torch's error for a full disk
            raise OSError(f"{error}".splitlines()[0]) from error
    for second_name, file in (links or {}).items():
        if file.is_file():
            _link(file, second_name)


def _link(path: Path, second_name: Path) -> None:
    """Gives a file a second name. Both names are later replaced, never written to."""
    with replacing(second_name) as partial:
        try:
            os.link(path, partial)
        except OSError:  # a file system without links
            partial.write_bytes(path.read_bytes())


def _on_host(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Returns a copy of the checkpoint in host memory, which training does not change.

    All tensors of a device are copied at once: torch.save would wait for each of more than a thousand by itself.
    """
    devices: set[torch.device] = set()

    def copy(tensor: Tensor) -> Tensor:
        devices.add(tensor.device)
        return tensor.detach().to("cpu", non_blocking=True, copy=True)

    copied = apply_to_collection(checkpoint, Tensor, copy)  # makes new lists and dicts
    for device in devices:
        if device.type != "cpu":
            torch.accelerator.synchronize(device)  # until then the copies are incomplete
    return copied


@contextmanager
def resume_guard(path: Path | None, last: Path) -> Iterator[None]:
    """Raises a DamagedCheckpoint for any error that a checkpoint with wrong content causes, until training has written one.

    Args:
        path: The checkpoint that is loaded; None for a new run, whose errors pass unchanged.
        last: The checkpoint that training writes; `path` itself for a run that is resumed.
    """
    before = file_version(last)
    try:
        yield
    except DamagedCheckpoint as error:
        best = path and path.with_name(BEST.name)
        if not best or not best.is_file() or (path.is_file() and best.samefile(path)):
            raise
        raise DamagedCheckpoint(f"{error}; or copy {best.name} over it to resume from the best epoch") from error
    except UserError:
        raise
    except Exception as error:  # Lightning and torch trust a checkpoint, and wrong content fails anywhere
        if path is None or file_version(last) != before:
            raise
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise DamagedCheckpoint(f"{path}: this checkpoint cannot be resumed ({reason})") from error


def file_version(path: Path) -> tuple[int, int] | None:
    """Returns what changes whenever a file is replaced or written; None without one."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint of this project onto the CPU.

    Raises:
        DamagedCheckpoint: The file is missing, damaged or of another program, or holds more than tensors and plain values.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise DamagedCheckpoint(f"{path}: there is no such checkpoint") from error
    except UserError:  # a signal
        raise
    except Exception as error:  # torch raises a dozen kinds of errors for damaged bytes
        raise DamagedCheckpoint(f"{path} {_why_not_loaded(path, error)}") from error
    about = checkpoint.get(ABOUT) if isinstance(checkpoint, dict) else None
    if not isinstance(about, dict) or "state_dict" not in checkpoint:
        raise DamagedCheckpoint(
            f"{path} is not a checkpoint of this project: its part '{ABOUT}' (config, class_names) is missing"
        )
    if not isinstance(found := about.get("format"), int) or found != FORMAT:
        raise DamagedCheckpoint(f"{path} has checkpoint format {found!r:.60}; this version reads {FORMAT}")
    return {RENAMED.get(key, key): value for key, value in checkpoint.items()}


def check_targets(found: dict[str, Any], about: dict[str, Any]) -> None:
    """Checks that a run that is resumed or branched keeps its classes, its teachers and its auxiliary targets.

    Args:
        found: Part `ABOUT` of its checkpoint.
        about: The same part of the checkpoints that will be written.

    Raises:
        ConfigError: It does not.
    """
    if found.get("class_names") != about["class_names"]:
        raise ConfigError(
            "data_path: its classes, or their order, are not those that this run was trained on; train a new run, with "
            "pretrained: RUN, which keeps what it knows of the classes of the same name"
        )
    before, now = (part.get("teachers", {}) for part in (found, about))
    if sorted(before.values()) != sorted(now.values()):
        taught, given = (", ".join(each) or "no teacher" for each in (before, now))
        raise ConfigError(
            f"teacher: this run began with {taught}, and has {given} now, with other weights. A run keeps its teacher; "
            "--set teacher=PATH names the same checkpoint in another place"
        )
    if found.get("auxiliary_targets") != about.get("auxiliary_targets"):
        raise ConfigError(GROUPS_CHANGED)


def _is_whole(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # its end is there, with impossible content
        return False


def _why_not_loaded(path: Path, error: Exception) -> str:
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as unreadable:
        return f"cannot be read: {unreadable.strerror}"
    if not start.startswith((ZIP, PICKLE)):
        return "is not a checkpoint; name a run, or a file that a training wrote, such as checkpoints/best.ckpt"
    if start.startswith(ZIP) and not _is_whole(path):
        return "is damaged or not a checkpoint: its end is missing or damaged; copy it again"
    if isinstance(error, pickle.UnpicklingError):
        return "holds more than tensors and plain values, or is not a checkpoint, and is not loaded"
    reason = str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
    return f"is damaged or not a checkpoint: {reason}"
