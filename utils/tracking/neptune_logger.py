"""A Lightning logger for Neptune that neither stops, stalls nor loses a training.

It logs to a Neptune server of one's own; without one, or without a token, into files in the run's folder, which
`neptune sync` delivers to a server later.
"""

import base64
import importlib.util
import json
import logging
import math
import os
import re
import shlex
import shutil
import sys
import uuid
from collections.abc import Callable
from contextlib import suppress
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only

from utils.errors import ConfigError
from utils.tracking import neptune_client
from utils.tracking.neptune_client import NoServer, check_server, entries_left, environment, tamed_run, within

logger = logging.getLogger(__name__)

OPEN_SECONDS = 60
# What the client would ignore, cut or drop without a word.
LONGEST_CUSTOM_ID = 36
LONGEST_TEXT = 16_384
INTEGERS = range(-(2**31), 2**31)
UNENCRYPTED = "OAUTHLIB_INSECURE_TRANSPORT"  # without it, the client speaks to no address of http://


class NeptuneLogger(Logger):
    """Logs a run to Neptune as parameters/…, metrics/…, summary/… and files.

    Nothing is imported or opened before the first value is logged, and only the process of rank zero logs. Whatever goes
    wrong is said in one warning, and the training goes on. A resumed run first takes over what its earlier parts left
    undelivered in the folder: it stays one run, with its points in order.

    Args:
        project: "workspace/name"; None logs offline.
        api_token: Neptune's API token, which holds the server's address too; None logs offline.
        run_folder: Existing folder of the run; the client's files lie in its `.neptune`.
        run_name: What Neptune shows.
        run_id: The same for a run and all that resume it.

    Attributes:
        begins: Whether, once opened, Neptune gets a new run, with nothing of what earlier parts of this one trained.
        left_behind: Whether an earlier part, logged offline, was delivered by itself: the client made a run without this
            `run_id` of it, which nothing can continue.

    Raises:
        ConfigError: If neptune-client is not installed.
    """

    def __init__(
        self, *, project: str | None, api_token: str | None, run_folder: Path, run_name: str, run_id: str
    ) -> None:
        super().__init__()
        if importlib.util.find_spec("neptune") is None:
            raise ConfigError("log_to_neptune: neptune-client is not installed; run `pip install neptune-client`")
        self._project = project
        self._api_token = api_token
        self._run_folder = run_folder.resolve()
        self._data = self._run_folder / ".neptune"
        self._server_run = self._data / "server_run"
        self._run_name = run_name
        self._run_id = run_id
        self._run: Any = None
        self.begins = False
        self.left_behind = False
        self._online = False
        self._silent = False
        self._process = os.getpid()

    @property
    def name(self) -> str:
        return self._run_name

    @property
    def version(self) -> str:
        return self._run_id

    @property
    def sync_command(self) -> str:
        """The command that delivers what lies in the run's folder, with the token from NEPTUNE_API_TOKEN."""
        # The client's own script imports pkg_resources, which setuptools no longer has since version 82.
        script = ["neptune", "sync"]
        if importlib.util.find_spec("pkg_resources") is None:
            script = ["python", "-c", "from neptune.cli import sync; sync()"]
        command = shlex.join([*script, "--path", str(self._run_folder), "-p", self._project or "WORKSPACE/PROJECT"])
        return f"{UNENCRYPTED}=1 {command}" if self._is_unencrypted() else command

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any]) -> None:
        """Logs each parameter as parameters/<name>: numbers and truth values as such, all else as its text."""
        self._use(lambda run: self._assign(run, "parameters", params))

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Adds a point to each series metrics/<name>; NaN and infinity as text to metrics/<name>_nonfinite."""

        def log(run: Any) -> None:
            for name, value in metrics.items():
                if math.isfinite(value):
                    run[f"metrics/{name}"].append(float(value), step=step)
                else:
                    text = f"{value}" if step is None else f"epoch {step}: {value}"
                    run[f"metrics/{name}_nonfinite"].append(text, step=step)

        self._use(log)

    @rank_zero_only
    def log_summary(self, values: dict[str, Any]) -> None:
        """Logs each value as summary/<name>, but `tags` (a list) and `description` where Neptune has its own."""
        own = {name: values[name] for name in ("tags", "description") if values.get(name)}
        rest = {name: value for name, value in values.items() if name not in ("tags", "description")}

        def log(run: Any) -> None:
            if tags := own.pop("tags", None):
                run["sys/tags"].add([str(tag) for tag in tags])
            self._assign(run, "sys", own)
            self._assign(run, "summary", rest)

        self._use(log)

    @rank_zero_only
    def log_file(self, name: str, path: Path) -> None:
        """Logs the content that the file has now as `name`."""
        self._use(lambda run: run.upload_content(name, path))

    def finalize(self, status: str) -> None:
        """Does nothing: each value is on disk as soon as it is logged, and Lightning calls this more than once."""

    @rank_zero_only
    def close(self) -> None:
        """Ends the run, within some ten seconds, and says what was not delivered; nothing is logged from then on."""
        run, self._run, self._silent = self._run, None, True
        if run is None or os.getpid() != self._process:
            return
        limit = neptune_client.STOP_SECONDS
        try:
            within(limit + 5, lambda: run.stop(seconds=limit))
            if not self._online:
                self._address(run.folder)
            left = sum(entries_left(folder) for folder in self._parts())
        except Exception as error:  # of whatever class, as in _use
            self._warn(f"the run did not end properly ({self._describe(error)}). To deliver what may be left of it")
            return
        if left and self._online:
            self._warn(f"{left} entries were not delivered, they lie in {self._data}. To deliver them")
        elif left:
            logger.info("Neptune: %d entries lie in %s. To deliver them: %s", left, self._data, self.sync_command)

    def __getstate__(self) -> dict[str, Any]:
        # A copy beside an open run is silent, and none carries the token to where it might be kept.
        return {**self.__dict__, "_run": None, "_api_token": None, "_silent": self._silent or self._run is not None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _api_token=os.environ.get("NEPTUNE_API_TOKEN"), _process=os.getpid())

    def _use(self, log: Callable[[Any], None]) -> None:
        if self._silent or os.getpid() != self._process:
            return
        try:
            if self._run is None:
                self._run = self._open()
            log(self._run)
            self._run.wait(disk_only=True)
        # The client lets through whatever its many libraries raise, from requests' errors to KeyError: no narrower
        # class holds them all, and none of them may end a training.
        except Exception as error:
            self._silent = True
            self._warn(f"logging stopped ({self._describe(error)}), the training goes on. To deliver what was logged")

    def _open(self) -> Any:
        run_class = tamed_run()
        offline = self._data / "offline"
        begins = not self._server_run.exists() and not any(offline.glob("run__*"))
        left_behind = begins and offline.is_dir()
        address = ""
        try:
            address = self._address_in_token()
            if not self._project:
                raise NoServer("there is no project, neptune_username and neptune_project_name are not both set")
            within(neptune_client.CONNECT_SECONDS + neptune_client.ANSWER_SECONDS, lambda: check_server(address))
            run = within(
                OPEN_SECONDS,
                lambda: self._start(run_class, "async"),
                late=lambda run: run.stop(seconds=neptune_client.STOP_SECONDS),
            )
        except NoServer as error:
            run = self._open_offline(run_class, str(error))
        except Exception as error:  # of whatever class, as in _use
            reason = self._describe(error)
            if type(error).__name__ == "InsecureTransportError" and self._is_unencrypted():
                reason = f"it is not encrypted; if that is as it should be, set {UNENCRYPTED}=1"
            run = self._open_offline(run_class, f"{address} did not open the run ({reason})")
        else:
            self._online = True
            self._server_run.write_text(run.id, encoding="utf-8")
        for part in self._parts():
            if part != run.folder and begins:
                shutil.rmtree(
                    part
                )  # the rest of a delivery that broke off; it is another run's, and all is logged anew
            elif part != run.folder:
                self._take_over(run, part)
        self.begins, self.left_behind = begins, left_behind
        return run

    def _open_offline(self, run_class: type, reason: str) -> Any:
        run = self._start(run_class, "offline")
        self._warn(f"offline, {reason}. The run is logged into {self._data}. To deliver it to a server later")
        return run

    def _is_unencrypted(self) -> bool:
        with suppress(NoServer):
            return self._address_in_token().lower().startswith("http://")
        return False

    def _address_in_token(self) -> str:
        if not self._api_token:
            raise NoServer("there is no API token, NEPTUNE_API_TOKEN is not set")
        try:
            content = json.loads(base64.b64decode(self._api_token))
            address = content.get("api_url") or content["api_address"]
            return address if "://" in address else f"https://{address}"
        except (ValueError, KeyError, AttributeError, TypeError):
            raise NoServer("the API token is not one of Neptune's, perhaps it was not copied whole") from None

    def _start(self, run_class: type, mode: str) -> Any:
        short = len(self._run_id) <= LONGEST_CUSTOM_ID
        with environment(NEPTUNE_DATA_DIRECTORY=str(self._data)):
            return run_class(
                on_broken_delivery=self._delivery_broke,
                project=self._project,
                api_token=self._api_token if mode == "async" else None,
                custom_run_id=self._run_id if short else str(uuid.uuid5(uuid.NAMESPACE_OID, self._run_id)),
                mode=mode,
                name=self._run_name,
                source_files=[],
                git_ref=False,
                capture_stdout=False,
                capture_stderr=False,
                capture_hardware_metrics=False,
                capture_traceback=False,
            )

    def _parts(self) -> list[Path]:
        """Returns the client's folders of parts of this run that were not delivered whole, the oldest first."""
        return sorted(self._data.glob("*/run__*"), key=lambda folder: folder.stat().st_mtime)

    def _take_over(self, run: Any, part: Path) -> None:
        try:
            run.take_over(part)
        except Exception as error:  # of whatever class, as in _use; the part stays where it is
            self._warn(f"{part} could not be taken over ({self._describe(error)}). To deliver it by itself")

    def _address(self, part: Path) -> None:
        """Addresses a part logged offline to the server's run that it continues, lest it become one of its own."""
        if self._server_run.exists():
            server_run = self._server_run.read_text(encoding="utf-8")
            addressed = self._data / "async" / re.sub(r"^run__[^_]+", f"run__{server_run}", part.name)
            addressed.parent.mkdir(exist_ok=True)
            part.rename(addressed)

    def _assign(self, run: Any, namespace: str, values: dict[str, Any]) -> None:
        for name, value in values.items():
            run[f"{namespace}/{name}"] = self._storable(value)

    def _storable(self, value: Any) -> bool | int | float | str:
        if isinstance(value, bool):
            return value
        if isinstance(value, Integral) and int(value) in INTEGERS:
            return int(value)
        if isinstance(value, Real) and abs(value) <= sys.float_info.max and float(value) == value:
            return float(value)
        return self._without_token(str(value))[:LONGEST_TEXT]

    def _delivery_broke(self, error: Exception) -> None:
        if not self._silent:
            self._warn(f"delivery broke off ({self._describe(error)}), all is kept in {self._data}. To deliver it")

    def _warn(self, text: str) -> None:
        logger.warning("Neptune: %s: %s", text, self.sync_command)

    def _describe(self, error: Exception) -> str:
        # The client's own messages are pages of text; the name of the class says the same.
        text = str(error).strip()
        name = type(error).__name__
        return name if not text or "\n" in text else self._without_token(f"{name}: {text}")[:300]

    def _without_token(self, text: str) -> str:
        return text.replace(self._api_token, "<token>") if self._api_token else text
