"""Passes what it reads from stdin to neptune-client, https://docs-legacy.neptune.ai; see `neptune.py`.

stdin: JSON lines; the first has the options, each of the others a list of operations, and null ends the run, as does the end
of stdin when the training is killed.
stdout: JSON lines [kind, text]: "offline" with the reason, or "error".
"""

import json
import os
import shutil
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

EXIT_SECONDS = 5  # the longest that the client may take beyond the time that it was given
DATA = Path(".neptune")  # in the current folder, the run's
# Read by the client at import. Its own values, 60 s and 600 s, would delay the start and the end of a run.
LIMITS = {"NEPTUNE_RETRIES_TIMEOUT": "3", "NEPTUNE_REQUEST_TIMEOUT": "10"}
REASONS = {
    "NeptuneInvalidApiTokenException": "the API token is not valid; check that it was copied whole",
    "InsecureTransportError": "the server's address is not https; to allow that, set OAUTHLIB_INSECURE_TRANSPORT=1",
}


def report(kind: str, text: str) -> None:
    text = text.replace(os.environ.get("NEPTUNE_API_TOKEN") or "\0", "<token>")
    with suppress(OSError):  # the training has ended and reads no more
        print(json.dumps([kind, text]), file=REPORTS, flush=True)


def describe(error: BaseException) -> str:
    # Most of the client's own messages are pages long; then the class says it best.
    name, text = type(error).__name__, str(error).strip()
    return REASONS.get(name) or (name if not text or "\n" in text else f"{name}: {text[:300]}")


def open_run(options: dict[str, Any]) -> Any:
    """Opens the run on the server, or offline where the server does not open it in time."""
    import neptune

    settings = dict.fromkeys(
        ("capture_stdout", "capture_stderr", "capture_hardware_metrics", "capture_traceback", "git_ref"), False
    ) | {"custom_run_id": options["run_id"], "name": options["name"], "source_files": []}
    if not options["offline"]:
        opened: list[Any] = []

        def open_online() -> None:
            try:
                opened.append(neptune.init_run(project=options["project"], mode="async", **settings))
            except Exception as error:  # the client raises what the libraries below it raise
                opened.append(error)

        thread = threading.Thread(target=open_online, daemon=True)
        thread.start()
        thread.join(options["open_seconds"])
        if opened and not isinstance(opened[0], Exception):
            return opened[0]
        report("offline", f"the server did not open the run ({describe(opened[0]) if opened else 'no answer'})")
    return neptune.init_run(mode="offline", **settings)


def execute(run: Any, operations: list[list[Any]]) -> None:
    from neptune.types import File

    for name, *arguments in operations:
        match name:
            case "assign":
                path, value = arguments
                run[path] = value
            case "append":
                path, value, step = arguments
                run[path].append(value, step=step)
            case "tags":
                run["sys/tags"].add(arguments[0])
            case "upload":
                # The content, not the path: the file may change before it is delivered.
                path, file = arguments[0], Path(arguments[1])
                run[path].upload(File.from_content(file.read_bytes(), extension=file.suffix.removeprefix(".")))
    run.wait(disk_only=True)


def main() -> None:
    options = json.loads(sys.stdin.readline())
    earlier = list(DATA.glob("*/run__*"))
    try:
        run = open_run(options)
        for part in earlier:  # everything in it is logged again
            shutil.rmtree(part)
        if run.exists("metrics"):
            del run["metrics"]  # a server accepts no second point for an epoch, such as one trained again after a kill
        for line in sys.stdin:
            if (operations := json.loads(line)) is None:
                break
            execute(run, operations)
        watchdog = threading.Timer(options["stop_seconds"] + EXIT_SECONDS, leave)
        watchdog.daemon = True
        watchdog.start()
        run.stop(seconds=options["stop_seconds"])
    except Exception as error:  # the client raises what the libraries below it raise
        report("error", f"logging stopped ({describe(error)})")
        for _ in sys.stdin:
            pass  # the training can go on writing
    else:
        leave()
    os._exit(1)


def leave() -> None:
    """Ends the process without the client's exit handlers, which may wait for the server."""
    if any(DATA.glob("async/run__*")):
        report("error", "not everything was delivered")
    os._exit(0)


if __name__ == "__main__":
    REPORTS = sys.stdout
    sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115  the client prints a dozen lines a run
    os.environ.update({name: limit for name, limit in LIMITS.items() if name not in os.environ})
    main()
