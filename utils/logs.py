"""Sends messages to the terminal and to the run's log file, and keeps other libraries' noise out of both."""

import logging
import os
import sys
import warnings
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

from utils.errors import RunError
from utils.processes import is_first_process

# Said by the libraries to those who write programs with them, of no use to those who run this one.
NOISE = (
    r".*does not have many workers.*",
    r".*is smaller than the logging interval.*",
    r".*exists and is not empty.*",
    r".*dataloader is not resumable.*",
    r".*Trying to infer the `batch_size`.*",
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",
    r".*lr_scheduler.step\(\).*before.*optimizer.step\(\).*",
    r".*GPU available but not used.*",  # it was configured so
    r".*Please use the new API settings to control TF32.*",  # to Lightning, which asks for them
    r".*TensorFloat32 tensor cores.*",  # precision is a key
    r".*when logging on epoch level in distributed setting.*",  # the metrics that are logged are those of all processes
)


# Their DEBUG messages hold what they send, API tokens too.
TALKATIVE = ("bravado", "bravado_core", "swagger_spec_validator", "requests_oauthlib", "oauthlib")
SECRETS = ("NEPTUNE_API_TOKEN", "WANDB_API_KEY")  # environment variables


def without_secrets(text: str) -> str:
    """Returns `text` with the name of each secret of the environment in its place."""
    for name in SECRETS:
        if secret := os.environ.get(name, "").strip():
            text = text.replace(secret, f"<{name}>")
    return text


class _Formatter(logging.Formatter):
    """Writes messages, whoever they are of, without the secrets of the environment."""

    def format(self, record: logging.LogRecord) -> str:
        return without_secrets(super().format(record))


class _Terminal(logging.Handler):
    """Writes to stderr above a moving progress bar; information stands alone, anything graver after its level."""

    def emit(self, record: logging.LogRecord) -> None:
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        tqdm.write(level + self.format(record), file=sys.stderr)


class _File(logging.FileHandler):
    """Writes to the run's log; a disk that is full is said once, and nothing but the log suffers from it."""

    failed = False

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self.failed:
            tqdm.write(f"warning: {self.baseFilename} cannot be written: {error.strerror}", file=sys.stderr)
        self.failed = True

    def close(self) -> None:
        with suppress(OSError):
            super().close()


def start_logging(level: str) -> None:
    """Shows messages of at least `level` in the terminal; may be called again. All but the first process tell errors alone."""
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, (_Terminal, logging.FileHandler))]:
        root.removeHandler(handler)
        handler.close()
    terminal = _Terminal()
    terminal.setFormatter(_Formatter())
    terminal.setLevel(logging.NOTSET if is_first_process() else logging.ERROR)
    root.addHandler(terminal)
    root.setLevel(level)
    logging.captureWarnings(True)
    for message in NOISE:
        warnings.filterwarnings("ignore", message=message)
    for library in (
        "pytorch_lightning",
        "lightning_fabric",
        "lightning",
        "matplotlib",
        "PIL",
        "urllib3",
        "git",
        "alembic",
    ):
        logging.getLogger(library).setLevel(max(logging.WARNING, logging.getLevelName(level)))
    for noisy in (
        "pytorch_lightning.utilities.rank_zero",
        "pytorch_lightning.trainer.connectors.signal_connector",
        "lightning_fabric.utilities.distributed",
        *TALKATIVE,
    ):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def log_to_file(path: Path) -> None:
    """Writes messages to the file `path` too, with their times; only the first process does.

    Raises:
        RunError: The file cannot be written.
    """
    if not is_first_process():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = _File(path, encoding="utf-8")
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror}; make room, or set another folder") from error
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    logging.getLogger().addHandler(handler)
