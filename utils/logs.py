"""Logs to the terminal and to the run's log file, without secrets and without the noise of libraries."""

import logging
import os
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from tqdm import tqdm

from utils.files import make_folder, not_writable
from utils.processes import is_first_process

# Warnings of libraries that are meant for programmers, not for the users of this project.
IGNORED_WARNINGS = (
    r".*does not have many workers.*",
    r".*is smaller than the logging interval.*",
    r".*exists and is not empty.*",
    r".*dataloader is not resumable.*",
    r".*Trying to infer the `batch_size`.*",
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",
    r".*lr_scheduler.step\(\).*before.*optimizer.step\(\).*",
    r".*callbacks used to create the checkpoint need to be provided.*",  # the run was resumed without early stopping
    r".*GPU available but not used.*",  # as configured
    r".*Please use the new API settings to control TF32.*",  # caused by Lightning
    r".*TensorFloat32 tensor cores.*",  # the configuration has a key for it
    r".*when logging on epoch level in distributed setting.*",  # the metrics are already reduced over all processes
)
QUIET_LIBRARIES = (
    "pytorch_lightning", "lightning_fabric", "lightning", "matplotlib", "PIL", "urllib3", "git", "alembic",
)  # fmt: skip
VERBOSE_LOGGERS = (
    "pytorch_lightning.utilities.rank_zero", "pytorch_lightning.trainer.connectors.signal_connector",
    "lightning_fabric.utilities.distributed",
    "bravado", "bravado_core", "swagger_spec_validator", "requests_oauthlib", "oauthlib",  # these log API tokens at DEBUG
)  # fmt: skip
# Environment variables; of MLFLOW_TRACKING_URI, the password in it, or the token that stands there alone.
SECRETS = (
    "NEPTUNE_API_TOKEN", "WANDB_API_KEY", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_URI",
)  # fmt: skip


def without_secrets(text: str) -> str:
    """Returns `text` with each secret of the environment replaced by its name."""
    for name in SECRETS:
        secret = os.environ.get(name, "").strip()
        if name == "MLFLOW_TRACKING_URI":
            try:
                uri = urlsplit(secret)
                secret = uri.password or uri.username or ""
            except ValueError:  # no address: all of it may be a secret
                pass
        if secret:
            text = text.replace(secret, f"<{name}>")
    return text


class _Formatter(logging.Formatter):
    """Formats messages without the secrets of the environment."""

    def format(self, record: logging.LogRecord) -> str:
        return without_secrets(super().format(record))


class _Terminal(logging.Handler):
    """Writes to stderr above a progress bar, with the level in front of warnings and errors."""

    def emit(self, record: logging.LogRecord) -> None:
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        try:
            tqdm.write(level + self.format(record), file=sys.stderr)
        except Exception:
            self.handleError(record)


class _File(logging.FileHandler):
    """Writes the run's log. A full disk is reported once and does not stop the run."""

    failed = terminal_lost = False

    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)
        # Set by the streams of utils.cli, which drop text without a reader.
        if (reason := getattr(sys.stderr, "lost", None)) and not self.terminal_lost:
            self.terminal_lost = True
            message = f"stderr cannot be written ({reason}): process {os.getpid()} continues, logging to this file only"
            super().emit(logging.makeLogRecord({"levelno": logging.WARNING, "levelname": "WARNING", "msg": message}))

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
    """Shows messages from `level` on in the terminal, of other processes than the first only errors; may be called again."""
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
    for message in IGNORED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    for library in QUIET_LIBRARIES:
        logging.getLogger(library).setLevel(max(logging.WARNING, logging.getLevelName(level)))
    for name in VERBOSE_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)


def log_to_file(path: Path, *, key: str = "output_path") -> None:
    """Also writes messages to the file `path`, of the configured folder `key`, with their times, in the first process only.

    Raises:
        RunError: The file cannot be written.
    """
    if not is_first_process():
        return
    make_folder(path.parent, key=key)
    try:
        handler = _File(path, encoding="utf-8")
    except OSError as error:
        raise not_writable(path, error, key) from error
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    logging.getLogger().addHandler(handler)
