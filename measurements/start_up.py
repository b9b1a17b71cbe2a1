"""Seconds from the command to the first training step, and to the error of a wrong configuration.

    python -m measurements.start_up -d FOLDER [--rounds 3] [--set KEY=VALUE]

Runs `train.py` with an existing cache, a cache to be built, no cache, and a typo, in turns. The first step is done when
the first checkpoint exists: one is written after every step, and its writing is included.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import assembly
from measurements.measuring import (
    at_least,
    best_device,
    build_parser,
    command,
    conditions,
    data_override,
    print_conditions,
    spread,
    write_report,
)
from utils.cli import run_command, set_options
from utils.config import load_config
from utils.errors import RunError
from utils.machine import PROJECT
from utils.progress import progress_bar
from utils.runs.folder import LAST

POLL_SECONDS = 0.005
MAX_SECONDS = 600
TYPO = "optimizer=AdmaW"
ALWAYS = ("num_epochs=1", "trackers=[]", "checkpoint_interval=1.0e-9")


def time_first_step(data: str, overrides: Sequence[str], folder: Path) -> float:
    """Starts a training in `folder`, kills it after its first step, and returns the seconds until then."""
    words = ["train.py", "-d", data, *set_options([*ALWAYS, f"output_path={folder}", *overrides])]
    with tempfile.TemporaryFile("w+") as log:
        started = time.perf_counter()
        process = subprocess.Popen(command(*words), cwd=PROJECT, stdout=log, stderr=subprocess.STDOUT)
        try:
            while not (found := list(folder.glob(f"*/{LAST}"))):
                if process.poll() is not None or time.perf_counter() - started > MAX_SECONDS:
                    break
                time.sleep(POLL_SECONDS)
            seconds = time.perf_counter() - started
        finally:
            process.kill()
            process.wait()
        if not found:
            log.seek(0)
            raise RunError(f"train.py did not reach its first step: {log.read().strip()[-2000:]}")
    return seconds


def time_error(data: str) -> float:
    """Returns the seconds until a wrong configuration is reported."""
    started = time.perf_counter()
    words = command("train.py", "-d", data, "--set", TYPO)
    done = subprocess.run(words, cwd=PROJECT, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode != 2 or "AdmaW" not in done.stderr:
        raise RunError(f"train.py accepted {TYPO}: {done.stderr.strip()[-2000:]}")
    return seconds


def main(argv: Sequence[str] | None = None) -> list[dict[str, object]]:
    parser = build_parser(__doc__)
    parser.add_argument("--rounds", type=at_least(1), default=3)
    arguments = parser.parse_args(argv)
    data = str(Path(arguments.data).resolve())
    assembly.load_annotations(load_config(overrides=[*arguments.set, data_override(data)]))
    stated = conditions(best_device(), data=Path(data).name, rounds=arguments.rounds, changes=arguments.set)
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        time_first_step(data, [*arguments.set, f"cache_path={folder / 'cache'}"], folder / "warm-up")
        for number in progress_bar(range(arguments.rounds), description="starting", unit=" rounds"):
            run = folder / str(number)
            caches = {"existing cache": folder / "cache", "cache to be built": run / "cache", "no cache": "null"}
            for variant, cache in caches.items():
                seconds = time_first_step(data, [*arguments.set, f"cache_path={cache}"], run / variant)
                found.setdefault(variant, []).append(seconds)
            found.setdefault("wrong configuration", []).append(time_error(data))
            rows = [{"variant": variant, "seconds": spread(seconds, 2)} for variant, seconds in found.items()]
            write_report(arguments.output, stated, rows)
    for row in rows:
        print(
            f"{row['variant']:<22}{row['seconds']['median']:>8.2f} s   ({row['seconds']['min']} … {row['seconds']['max']})"
        )
    print_conditions(stated)
    return rows


if __name__ == "__main__":
    sys.exit(run_command(main))
