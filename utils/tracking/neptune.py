"""Logs a run to Neptune: to a self-hosted server, or into the run folder for `neptune sync` to deliver later.

The client runs in a process of its own, `neptune_process.py`. Within the training it could block it: it waits without limit
for a silent server when it opens a run, when it exits, and before each fork, so that no DataLoader worker would start.
"""

import importlib.util
import json
import logging
import math
import os
import shlex
import subprocess
import sys
import threading
from contextlib import suppress
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from utils.config import Config
from utils.errors import RunError
from utils.runs.folder import METRICS
from utils.runs.metrics import best_values, read_rows

OPEN_SECONDS = 15  # the longest that a server may take to open the run
STOP_SECONDS = 10  # the longest to wait for undelivered values when the run ends
MAX_TEXT_LENGTH = 16_384  # characters; the client cuts longer texts without a warning
INT32 = range(-(2**31), 2**31)  # the client drops other integers without a warning

logger = logging.getLogger(__name__)


class NeptuneTracker:
    """Logs the run in `folder` as parameters/…, metrics/…, summary/… and files/….

    A resumed run is logged whole, from metrics.csv. On a server it replaces what the run has there, as both have the same
    custom id; offline it replaces the earlier offline part.
    """

    def __init__(self, config: Config, folder: Path, run_id: str) -> None:
        self.folder = folder.resolve()
        self.known_epochs: set[int] = set()
        names = config.neptune_username, config.neptune_project_name
        self.project = "/".join(names) if all(names) else None
        token = os.environ.get("NEPTUNE_API_TOKEN") or config.neptune_api_token
        reason = None if token else "NEPTUNE_API_TOKEN is not set"
        if reason is None and not self.project:
            reason = "neptune_username and neptune_project_name are not both set"
        if reason is not None:
            self._warn_offline(reason)
        self.process = subprocess.Popen(
            # -P: this folder, which has a neptune.py, is not searched for modules
            [sys.executable, "-P", str(Path(__file__).with_name("neptune_process.py"))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, encoding="utf-8",
            cwd=self.folder, env=os.environ | ({"NEPTUNE_API_TOKEN": token} if token else {}),
            start_new_session=True,  # Ctrl-C ends the training, which then ends this process in order
        )  # fmt: skip
        self.reports = threading.Thread(target=self._read_reports, daemon=True)
        self.reports.start()
        self._send({
            "project": self.project, "run_id": run_id, "name": folder.name, "offline": reason is not None,
            "open_seconds": OPEN_SECONDS, "stop_seconds": STOP_SECONDS,
        })  # fmt: skip

    def start(self, name: str, parameters: dict[str, Any], facts: dict[str, Any], files: list[Path]) -> None:
        self._send([["assign", f"parameters/{key}", _storable(value)] for key, value in parameters.items()])
        self._log(facts, files)

    def log_epoch(self, metrics: dict[str, float], epoch: int) -> None:
        self._log_history(until=epoch)
        self._log_points(metrics, epoch)

    def end(self, facts: dict[str, Any], files: list[Path]) -> None:
        self._log_history(until=math.inf)
        self._log(facts, files)
        self._send(None)
        self._close()

    def _log_history(self, *, until: float) -> None:
        """Logs the epochs before `until` that this process has not logged: a resumed run's earlier ones."""
        rows = read_rows(self.folder / METRICS)
        for index, row in enumerate(rows, start=1):
            if row["epoch"] < until and row["epoch"] not in self.known_epochs:
                values = row | best_values(rows[:index])
                self._log_points({name: value for name, value in values.items() if name != "epoch"}, int(row["epoch"]))

    def _log_points(self, metrics: dict[str, float], epoch: int) -> None:
        self.known_epochs.add(epoch)
        # The client drops NaN and infinite points without a warning.
        self._send([
            ["append", f"metrics/{name}", float(value), epoch] if math.isfinite(value)
            else ["append", f"metrics/{name}_nonfinite", f"epoch {epoch}: {value}", epoch]
            for name, value in metrics.items()
        ])  # fmt: skip

    def _log(self, facts: dict[str, Any], files: list[Path]) -> None:
        own = {"description": "sys/description"}
        operations = [
            ["assign", own.get(name, f"summary/{name}"), _storable(value)]
            for name, value in facts.items()
            if name != "tags"
        ]
        operations += [["tags", facts["tags"]]] if facts.get("tags") else []
        self._send(operations + [["upload", f"files/{path.stem}", str(path.resolve())] for path in files])

    def _send(self, message: Any) -> None:
        try:
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()
        except OSError as error:
            self._close()
            raise RunError("the client's process has ended") from error

    def _close(self) -> None:
        with suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(OPEN_SECONDS + STOP_SECONDS + 10)  # it ends earlier by itself
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.reports.join(1)

    def _read_reports(self) -> None:
        with self.process.stdout as lines:
            for line in lines:
                kind, text = json.loads(line)
                if kind == "offline":
                    self._warn_offline(text)
                    continue
                logger.warning(
                    "neptune: %s. To deliver what is left in %s: %s", text, self.folder / ".neptune", self._sync()
                )

    def _warn_offline(self, reason: str) -> None:
        logger.warning(
            "neptune: offline, because %s. The run is logged into %s. Neptune's hosted service closed in March 2026; "
            "to deliver the run to a self-hosted server: %s",
            reason, self.folder / ".neptune", self._sync("--offline-only"),
        )  # fmt: skip

    def _sync(self, *options: str) -> str:
        # The script `neptune` imports pkg_resources, which setuptools 82 removed.
        script = ["neptune", "sync"]
        if importlib.util.find_spec("pkg_resources") is None:
            script = ["python", "-c", "from neptune.cli import sync; sync()"]
        return shlex.join([*script, "--path", str(self.folder), "-p", self.project or "WORKSPACE/PROJECT", *options])


def _storable(value: Any) -> bool | int | float | str:
    """Returns the value as a type that Neptune stores: numbers and booleans as such, everything else as text."""
    if isinstance(value, bool):
        return value
    if isinstance(value, Integral) and int(value) in INT32:
        return int(value)
    if isinstance(value, Real) and abs(value) <= sys.float_info.max and float(value) == value:
        return float(value)
    return str(value)[:MAX_TEXT_LENGTH]
