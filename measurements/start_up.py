"""Seconds from the command to the first trained step, and to the answer to a wrong configuration.

    python -m measurements.start_up -d FOLDER [--rounds 3] [--set KEY=VALUE]

Runs `train.py` itself: with a cache that is there, with one that has to be built first, without any, and with a typo. The
first step has been taken when the first checkpoint lies in the run's folder, which is written after every step here; its
writing is counted. The ways take turns.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import assembly
from measurements.arguments import at_least, report
from measurements.measuring import (
    best_device,
    command,
    conditions,
    data_override,
    end,
    say_where,
    settings,
    spread,
    write_report,
)
from utils.cli import run_command
from utils.config import load_config
from utils.errors import RunError
from utils.machine import PROJECT
from utils.progress import progress_bar
from utils.runs.folder import LAST

PAUSE = 0.005  # seconds between two looks for the checkpoint
PATIENCE = 600  # seconds
WRONG = "optimizer=AdmaW"
ALWAYS = ("num_epochs=1", "trackers=[]", "checkpoint_interval=1.0e-9")


def first_step(data: str, overrides: Sequence[str], folder: Path) -> float:
    """Starts a training in `folder`, ends it after its first step, and returns the seconds until then."""
    words = ["train.py", "-d", data, *settings([*ALWAYS, f"output_path={folder}", *overrides])]
    with tempfile.TemporaryFile("w+") as said:
        started = time.perf_counter()
        process = subprocess.Popen(command(*words), cwd=PROJECT, stdout=said, stderr=subprocess.STDOUT)
        try:
            while not (found := list(folder.glob(f"*/{LAST}"))):
                if process.poll() is not None or time.perf_counter() - started > PATIENCE:
                    break
                time.sleep(PAUSE)
            seconds = time.perf_counter() - started
        finally:
            end(process)
        if not found:
            said.seek(0)
            raise RunError(f"train.py came to no first step: {said.read().strip()[-2000:]}")
    return seconds


def wrong_answer(data: str) -> float:
    """Returns the seconds that the answer to a wrong configuration takes."""
    started = time.perf_counter()
    words = command("train.py", "-d", data, "--set", WRONG)
    done = subprocess.run(words, cwd=PROJECT, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode != 2 or "AdmaW" not in done.stderr:
        raise RunError(f"train.py took {WRONG}: {done.stderr.strip()[-2000:]}")
    return seconds


def main(argv: Sequence[str] | None = None) -> list[dict[str, object]]:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-d", "--data", required=True, help="folder of the data set")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="as of train.py")
    parser.add_argument("--rounds", type=at_least(1), default=3)
    parser.add_argument("--output", type=report, default="measurements/start_up.json")
    arguments = parser.parse_args(argv)
    data = str(Path(arguments.data).resolve())
    assembly.load_annotations(load_config(overrides=[*arguments.set, data_override(data)]))
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first_step(data, [*arguments.set, f"cache_path={folder / 'cache'}"], folder / "warm-up")
        ways = ("cache there", "cache to be built", "no cache", "wrong configuration")
        turns = [(number, way) for number in range(arguments.rounds) for way in ways]
        stated = conditions(
            best_device(),
            data=Path(data).name,
            rounds=arguments.rounds,
            changes=arguments.set,
            until="first checkpoint",
        )
        for number, way in progress_bar(turns, description="starting", unit=" commands"):
            run = folder / f"{number} {way}"
            caches = {"cache there": folder / "cache", "cache to be built": run / "cache", "no cache": "null"}
            if way == "wrong configuration":
                seconds = wrong_answer(data)
            else:
                seconds = first_step(data, [*arguments.set, f"cache_path={caches[way]}"], run)
            found.setdefault(way, []).append(seconds)
            rows = [{"way": way, "seconds": spread(seconds, 2)} for way, seconds in found.items()]
            write_report(arguments.output, stated, rows)
    for way, seconds in found.items():
        print(f"{way:<22}{statistics.median(seconds):>8.2f} s   ({min(seconds):.2f} … {max(seconds):.2f})")
    say_where(arguments.output, stated)
    return rows


if __name__ == "__main__":
    sys.exit(run_command(main))
