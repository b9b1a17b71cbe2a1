"""neptune-client 1.14, https://docs-legacy.neptune.ai, tamed: quiet, bounded in time, harmless to the process it runs in.

It is imported only when a run is opened. Its methods named with an underscore are used and replaced below; it is the
last of its kind and will not change.
"""

import functools
import logging
import os
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

CONNECT_SECONDS = 3
ANSWER_SECONDS = 10
STOP_SECONDS = 10
# Read by the client at its import; its own values, 60 s and 600 s, hold up the start and the end of a run.
LIMITS = {"NEPTUNE_RETRIES_TIMEOUT": "3", "NEPTUNE_REQUEST_TIMEOUT": "30"}

logger = logging.getLogger(__name__)
Result = TypeVar("Result")


class NoServer(Exception):
    """A run cannot be logged to a server; the message says why."""


@functools.cache
def tamed_run() -> type:
    """Returns the client's class of runs with what this project adds to it and keeps it from."""
    limits = {name: value for name, value in LIMITS.items() if name not in os.environ}
    with environment(**limits), warnings.catch_warnings(record=True):
        warnings.simplefilter("ignore")  # the import warns of its own age, and through its libraries of theirs
        import neptune
        from neptune.core.components.queue.disk_queue import DiskQueue
        from neptune.internal.operation import Operation
        from neptune.internal.utils.ping_background_job import PingBackgroundJob
        from neptune.types import File

    # It prints a dozen lines a run; what it says of errors belongs among the training's own messages.
    client_logger = logging.getLogger("neptune")
    client_logger.handlers.clear()
    client_logger.propagate = True
    client_logger.setLevel(logging.ERROR)
    client_logger.addFilter(_is_news)

    class Run(neptune.Run):
        """A run that tells `on_broken_delivery` when its thread ends with an error, not only the terminal."""

        def __init__(self, *, on_broken_delivery: Callable[[Exception], None], **options: Any) -> None:
            self._on_broken_delivery = on_broken_delivery
            super().__init__(**options)

        @property
        def id(self) -> str:
            return self._id

        @property
        def folder(self) -> Path:
            return self._op_processor.data_path

        def upload_content(self, name: str, path: Path) -> None:
            # Not by its path: the folder can be carried to another machine before it is delivered.
            self[name].upload(File.from_content(path.read_bytes(), extension=path.suffix.removeprefix(".")))

        def take_over(self, folder: Path) -> None:
            """Logs what another run's folder holds undelivered, and removes the folder."""
            if (folder / "upload_path").is_dir():
                shutil.copytree(folder / "upload_path", self.folder / "upload_path", dirs_exist_ok=True)
            with DiskQueue(folder, lambda entry: entry.to_dict(), Operation.from_dict, threading.RLock()) as queue:
                while batch := queue.get_batch(1000):
                    for element in batch:
                        self._op_processor.enqueue_operation(element.obj, wait=False)
            self.wait(disk_only=True)
            shutil.rmtree(folder)

        def start(self) -> None:
            if consumer := getattr(self._op_processor, "_consumer", None):
                consumer.run = functools.partial(self._deliver, consumer.run)
            super().start()

        def _deliver(self, run: Callable[[], None]) -> None:
            try:
                run()
            except Exception as error:  # of whatever class, it ends the thread, and stop() would report success
                self._on_broken_delivery(error)

        def ping(self) -> None:
            try:
                super().ping()
            except Exception as error:  # of whatever class, all it does is that the server shows the run as idle
                logger.debug("Neptune: ping failed (%s)", type(error).__name__)

        def _get_background_jobs(self) -> list[Any]:
            # Without the listener for the web app's stop button, which kills the process and its workers at once.
            return [PingBackgroundJob()]

        # The client pauses its threads before a fork, so that a DataLoader with workers waits for as long as a server is
        # away. No worker logs, and the project flushes whatever it logs, so that nothing is written twice.
        def _before_fork(self) -> None:
            pass

        def _handle_fork_in_parent(self) -> None:
            pass

        def _handle_fork_in_child(self) -> None:
            pass

        def _shutdown_hook(self) -> None:
            self.stop(seconds=STOP_SECONDS)

    return Run


def _is_news(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("Unexpected error occurred in Neptune background thread")


def check_server(address: str) -> None:
    """Sees whether Neptune's server answers at `address`, where the client itself might wait for ever.

    Raises:
        NoServer: If it does not.
    """
    import requests  # comes with the client
    from neptune.internal.backends.utils import ssl_verify

    url = f"{address.rstrip('/')}/api/backend/swagger.json"
    try:
        answer = requests.get(url, timeout=(CONNECT_SECONDS, ANSWER_SECONDS), verify=ssl_verify())
        answer.raise_for_status()
        answer.json()
    except requests.exceptions.JSONDecodeError:
        raise NoServer(f"{address} is no Neptune server: its answer is not JSON") from None
    except requests.exceptions.HTTPError:
        raise NoServer(f"{address} is no Neptune server: it answers {answer.status_code} {answer.reason}") from None
    except requests.exceptions.Timeout:
        raise NoServer(f"{address} does not answer in time") from None
    except requests.exceptions.RequestException as error:
        raise NoServer(f"{address} cannot be reached ({type(error).__name__})") from None


def entries_left(folder: Path) -> int:
    """Returns how many entries of a client's folder no server has acknowledged."""
    counts = [folder / "last_put_version", folder / "last_ack_version"]
    put, acknowledged = (int(path.read_text(encoding="utf-8") or 0) if path.exists() else 0 for path in counts)
    return put - acknowledged


def within(
    seconds: float, call: Callable[[], Result], *, late: Callable[[Result], None] = lambda result: None
) -> Result:
    """Returns what `call` returns, or raises TimeoutError; what it returns too late is given to `late`."""
    future: Future[Result] = Future()

    def work() -> None:
        result, error = None, None
        try:
            result = call()
        except Exception as raised:  # handed to the caller, who knows what may be raised
            error = raised
        if not future.set_running_or_notify_cancel():
            if error is None:
                late(result)
        elif error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        return future.result(timeout=seconds)
    except TimeoutError:
        if future.cancel():
            raise TimeoutError(f"no answer within {seconds} s") from None
        return future.result()


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Sets environment variables for as long as the `with` block lasts."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
