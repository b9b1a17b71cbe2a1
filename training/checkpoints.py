"""Writes and reads checkpoints: whole or not at all, and nothing in them is ever executed."""

import logging
import os
import pickle
import signal
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor

from training.signals import SignalHandler
from utils.errors import ConfigError, DamagedCheckpoint, Interrupted, UserError
from utils.files import replacing
from utils.runs.folder import BEST, LAST

logger = logging.getLogger(__name__)

FORMAT = 1  # raised when a reader of older checkpoints has to do something
LONGEST_WAIT = 3.0  # seconds that a signal waits for the end of a validation; closing takes its time too
ABOUT = "cars"  # key under which a checkpoint says what it is: format, config, class_names
RENAMED = {"StanfordCars": "CarsDataModule"}  # parts of a checkpoint that Lightning names after our classes, old → new
ZIP, PICKLE = b"PK\x03\x04", b"\x80"  # first bytes of what torch writes, now and before 2020


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lets Lightning write checkpoints beside their place and rename them, and read only what nothing in is executed of.

    A thread writes while training goes on, one checkpoint at a time: on a fast device or a slow disk the device would wait
    for a good part of each epoch. Whoever needs the file, or an end of that thread, calls `wait` before.
    """

    def __init__(self) -> None:
        super().__init__()
        self.writing: Future[None] | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Begins to write a checkpoint as it is now.

        Args:
            checkpoint: Tensors and plain values.
            path: Where to.
            storage_options: {"second_name": a path} that is to be the same file.

        Raises:
            RunError: The one before could not be written.
        """
        self.wait()
        thread = ThreadPoolExecutor(1)
        self.writing = thread.submit(_write, _on_host(checkpoint), Path(path), **(storage_options or {}))
        thread.shutdown(wait=False)  # it ends with its work: where processes are forked, no other thread should run

    def wait(self) -> None:
        """Waits until what was begun is on the disk.

        Raises:
            RunError: It could not be written; the file is as it was.
        """
        writing, self.writing = self.writing, None
        if writing is not None:
            writing.result()

    def teardown(self) -> None:
        self.wait()

    def load_checkpoint(self, path: Any, *_: Any, **__: Any) -> dict[str, Any]:
        return read_checkpoint(Path(path))


def _write(checkpoint: dict[str, Any], path: Path, second_name: Path | None = None) -> None:
    with replacing(path) as partial:
        try:
            torch.save(checkpoint, partial)
        except RuntimeError as error:  # how torch says that the disk is full
            raise OSError(f"{error}".splitlines()[0]) from error
    if second_name is not None:
        _link(path, second_name)


def _link(path: Path, second_name: Path) -> None:
    """Gives a file a second name: both are replaced later, never written to."""
    with replacing(second_name) as partial:
        try:
            os.link(path, partial)
        except OSError:  # a file system without links
            partial.write_bytes(path.read_bytes())


def _on_host(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Returns a copy of the checkpoint that training does not change, on the CPU, from a device all tensors at once.

    torch.save waits for each of more than a thousand by itself, and the device with it, at the end of every epoch.
    """
    devices: set[torch.device] = set()

    def copy(tensor: Tensor) -> Tensor:
        devices.add(tensor.device)
        return tensor.detach().to("cpu", non_blocking=True, copy=True)

    copied = apply_to_collection(checkpoint, Tensor, copy)  # makes lists and dicts anew
    for device in devices:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return copied


class Checkpoints(Checkpoint):
    """Writes last.ckpt at the end of each epoch, and every `interval` minutes in between, and best.ckpt.

    best.ckpt is the epoch of the lowest validation loss, as in the study.

    After a signal it writes last.ckpt and ends the training. It waits for the file of an epoch before the next one is
    validated, so that no epoch is recorded of which the one before could not be written.

    Args:
        folder: The run's folder.
        about: What every checkpoint says of itself beside the weights, as plain values: config and class_names.
        interval: Minutes between two checkpoints within an epoch; None for none.
        signals: Tells whether a signal has come.
    """

    def __init__(self, folder: Path, about: dict[str, Any], *, interval: float | None, signals: SignalHandler) -> None:
        self.folder = folder
        self.about = about
        self.interval = interval
        self.signals = signals
        self.lowest = float("inf")
        self.written = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        return {"lowest": self.lowest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.lowest = state["lowest"]

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[ABOUT] = {"format": FORMAT, "metrics": module.epoch_metrics, **self.about}

    def on_load_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        first = trainer.strategy.broadcast(self.folder.name)
        if self.folder.name != first:  # "last" may become another run while processes start
            raise ConfigError(
                f"--resume: one process found {first}, another {self.folder.name}; give the name of the run"
            )
        for callback in trainer.callbacks:  # some of what they take over is used only when the run ends
            found = checkpoint["callbacks"].get(callback.state_key)
            for name, value in callback.state_dict().items() if found is not None else ():
                if isinstance(value, (int, float)) and not isinstance(found[name], (int, float)):
                    raise TypeError(f"its {name} is {found[name]!r:.60}, not a number")

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.signals.install()  # from Lightning, which speaks to other processes from within its handler

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        if trainer.is_last_batch:
            return  # what comes next is validation, and then the epoch's own checkpoint
        due = self.interval is not None and time.monotonic() - self.written >= 60 * self.interval
        if self._agreed(trainer, due or self.signals.received):
            self.save(trainer, LAST)
            self._end_if(trainer, self.signals.received)

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        trainer.strategy.checkpoint_io.wait()

    def on_validation_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        # Validation that takes long is given up; what was trained since the last checkpoint is trained again.
        self._end_if(trainer, self.signals.seconds_since > LONGEST_WAIT)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        valid_loss = module.epoch_metrics["valid_loss"]
        lowest = valid_loss < self.lowest
        self.lowest = min(self.lowest, valid_loss) if lowest else self.lowest
        if lowest:
            # First: a run that is killed before last.ckpt is there trains this epoch again, and has its best one again.
            self.save(trainer, BEST, second_name=LAST)
        else:
            self.save(trainer, LAST)
        self._end_if(trainer, self.signals.received)

    def save(self, trainer: Trainer, name: Path, *, second_name: Path | None = None) -> None:
        """Begins to write a checkpoint, unless the network has been spoiled by a loss that was not finite."""
        trainer.lightning_module.check_finite()
        also = {"second_name": self.folder / second_name} if second_name else None
        trainer.save_checkpoint(self.folder / name, weights_only=False, storage_options=also)
        self.written = time.monotonic()

    def _agreed(self, trainer: Trainer, wish: bool) -> bool:
        """Whether one of the processes wishes it: they wait for each other, so that all of them must do it or none."""
        return wish if trainer.world_size == 1 else trainer.strategy.reduce_boolean_decision(wish, all=False)

    def _end_if(self, trainer: Trainer, wish: bool) -> None:
        if not self._agreed(trainer, wish):
            return
        number = self.signals.signal_number or signal.SIGTERM
        raise Interrupted(
            f"{signal.Signals(number).name} ended the training in epoch {trainer.current_epoch}", signal_number=number
        )


@contextmanager
def resume_guard(path: Path | None) -> Iterator[None]:
    """Raises a DamagedCheckpoint for whatever a checkpoint of wrong content breaks, until training within has replaced it.

    Args:
        path: The checkpoint that a run goes on from; None for a run that begins, whose errors are left as they are.
    """

    def version() -> tuple[int, int] | None:
        return (path.stat().st_ino, path.stat().st_mtime_ns) if path is not None and path.is_file() else None

    before = version()
    try:
        yield
    except DamagedCheckpoint as error:
        best = path and path.with_name(BEST.name)
        if not best or not best.is_file() or (path.is_file() and best.samefile(path)):
            raise
        raise DamagedCheckpoint(f"{error}; or copy {best.name} over it, to go on from the best epoch") from error
    except UserError:
        raise
    except Exception as error:  # Lightning and torch believe what a checkpoint says and trip over it anywhere
        if before is None or version() != before:
            raise
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise DamagedCheckpoint(f"{path}: the training cannot go on from this checkpoint ({reason})") from error


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint of this project onto the CPU.

    Raises:
        DamagedCheckpoint: The file is missing, damaged, of another program, or holds anything but tensors and plain values.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise DamagedCheckpoint(f"{path}: there is no such checkpoint") from error
    except Exception as error:  # torch answers damaged bytes with errors of a dozen kinds
        raise DamagedCheckpoint(f"{path} {_why_not_loaded(path, error)}") from error
    about = checkpoint.get(ABOUT) if isinstance(checkpoint, dict) else None
    if not isinstance(about, dict) or "state_dict" not in checkpoint:
        raise DamagedCheckpoint(
            f"{path} is no checkpoint of this project: its part '{ABOUT}' (config, class_names) is missing"
        )
    if not isinstance(found := about.get("format"), int) or found != FORMAT:
        raise DamagedCheckpoint(f"{path} has checkpoint format {found!r:.60}; this version reads {FORMAT}")
    return {RENAMED.get(key, key): value for key, value in checkpoint.items()}


def _is_whole(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # its end is there, and says what cannot be
        return False


def _why_not_loaded(path: Path, error: Exception) -> str:
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as unreadable:
        return f"cannot be read: {unreadable.strerror}"
    if not start.startswith((ZIP, PICKLE)):
        return "is no checkpoint; name a run, or a file that a training wrote, such as checkpoints/best.ckpt"
    if start.startswith(ZIP) and not _is_whole(path):
        return "is damaged or no checkpoint: its end is missing or damaged; copy it again"
    if isinstance(error, pickle.UnpicklingError):
        return "holds more than tensors and plain values, or is no checkpoint at all, and is not loaded"
    reason = str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
    return f"is damaged or no checkpoint: {reason}"
