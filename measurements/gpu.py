"""All measurements of a GPU, part by part, each with its own time limit, so that finished parts are kept.

    python -m measurements.gpu -d CROPS --output FOLDER [--parts throughput start_up growth run generated] [--compile MODE]

Each part is a process that is stopped when its time is up. It writes <part>.json, after each of its rounds, and <part>.log
into the folder; gpu.json summarizes the parts so far. Where a command may last ten minutes only, run `--parts throughput
start_up growth`, then `--parts run generated` into another folder. Training on an H200 is bounded by memory traffic, in 16
bit: 22,700 images/s with eager kernels, 34,600 with fused ones.

throughput   input, training and waiting, with and without compilation
start_up     from the command to the first step
growth       1×, 10× and 100× the images
run          130 epochs at 227×227 on the crops, from the command to its end, with its cache built in it
generated    the same with 8,144 + 8,041 generated images as large as those of Stanford Cars
"""

import argparse
import csv
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import assembly
from measurements.generated import write_data_set
from measurements.measuring import (
    at_least,
    best_device,
    command,
    conditions,
    data_override,
    new_folder,
    positive_seconds,
    settings,
    write_report,
)
from utils.cli import run_command
from utils.config import load_config
from utils.errors import RunError
from utils.files import write_text
from utils.machine import PROJECT
from utils.progress import progress_bar
from utils.runs.folder import RECORD, SPEED, read_record

BOUNDS = {"eager, images/s": 22_700, "fused kernels, images/s": 34_600}  # of training, on an H200
GOALS = {"images/s": 16_000, "seconds of 130 epochs on 8,144 + 8,041 images": 120}
EPOCHS = 130
IMAGES = (8144, 8041)  # training, validation
# Seconds. Writing the generated images is not included.
TIME_LIMITS = {"throughput": 220, "start_up": 80, "growth": 100, "run": 190, "generated": 320}
MODULES = {name: f"measurements.{name}" for name in ("throughput", "start_up")} | {
    "growth": "measurements.proofs.growth"
}
PLAIN = ("trackers=[]", "early_stopping_patience=null", "checkpoint_interval=null")
TERMINATION_SECONDS = 5.0


class Parts:
    """The parts; each method runs one and returns its entry in gpu.json."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.data = str(Path(arguments.data).resolve())
        self.output: Path = arguments.output.resolve()
        self.scratch = Path()  # of the current part
        self.compile: str | None = arguments.compile
        self.set: list[str] = [f"precision={arguments.precision}", *arguments.set]
        self.epochs, self.images = arguments.epochs, arguments.images
        self.time_limits = {name: arguments.time_limit or seconds for name, seconds in TIME_LIMITS.items()}

    def throughput(self) -> dict[str, Any]:
        modes = ["--compile", self.compile] if self.compile else []
        return self._measure("throughput", "-d", self.data, "--rounds", "2", "--seconds", "2", *modes)

    def start_up(self) -> dict[str, Any]:
        return self._measure("start_up", "-d", self.data, "--rounds", "1")

    def growth(self) -> dict[str, Any]:
        return self._measure("growth", "--images", "200", "--rounds", "1", "--folder", str(self.scratch))

    def run(self) -> dict[str, Any]:
        return self._run("run", self.data)

    def generated(self) -> dict[str, Any]:
        folder = self.scratch / "generated"
        started = time.perf_counter()
        sizes = write_data_set(folder, train_images=self.images[0], valid_images=self.images[1])
        written = round(time.perf_counter() - started, 1)
        return self._run("generated", str(folder)) | sizes | {"seconds_to_generate": written, "images": self.images}

    def _measure(self, name: str, *words: str) -> dict[str, Any]:
        report = self.output / f"{name}.json"
        report.unlink(missing_ok=True)
        line = command("-m", MODULES[name], *words, *settings(self.set), "--output", str(report))
        how = self._run_limited(name, line)
        return how | (json.loads(report.read_text()) if report.exists() else {"rows": None})

    def _run(self, name: str, data: str) -> dict[str, Any]:
        """Trains from the command line with an empty cache, and returns the durations."""
        runs = self.scratch / name
        changes = [
            *PLAIN,
            f"num_epochs={self.epochs}",
            f"output_path={runs}",
            f"cache_path={runs / 'cache'}",
            *self.set,
        ]
        if self.compile:
            changes.append(f"compile={self.compile}")
        how = self._run_limited(name, command("train.py", "-d", data, *settings(changes)))
        found: dict[str, Any] = {"compile": self.compile, "epochs_wanted": self.epochs, "changes": changes}
        for record in runs.glob(f"*/{RECORD}"):
            folder = record.parent
            for path in (record, folder / SPEED, folder / "metrics.csv"):
                if path.exists():
                    shutil.copy(path, self.output / f"{name}-{path.name}")
            found |= {"best": read_record(folder).get("best")}
            if (folder / SPEED).exists():
                found |= _speeds(list(csv.DictReader((folder / SPEED).read_text().splitlines())), how["seconds"])
        write_text(self.output / f"{name}.json", json.dumps(how | found, indent=2) + "\n")
        return how | found

    def _run_limited(self, name: str, line: list[str]) -> dict[str, Any]:
        """Runs a command within its time limit, with its output in <name>.log."""
        started = time.perf_counter()
        with (self.output / f"{name}.log").open("w") as log:
            process = subprocess.Popen(line, cwd=PROJECT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
            try:
                code = process.wait(self.time_limits[name])
            except subprocess.TimeoutExpired:
                code = None
            finally:
                _kill_group(process)
        return {
            "seconds": round(time.perf_counter() - started, 2), "exit_code": code, "timed_out": code is None,
            "command": " ".join(line[1:]),
        }  # fmt: skip


def _kill_group(process: subprocess.Popen) -> None:
    """Stops a part and the processes that it started: they form a process group."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, number)
            try:
                process.wait(TERMINATION_SECONDS)
            except subprocess.TimeoutExpired:
                continue


def _speeds(rows: list[dict[str, str]], seconds: float) -> dict[str, Any]:
    """Returns medians over the epochs but the first, and the time outside of epochs."""
    epochs = [float(row["seconds"]) for row in rows]
    later = rows[1:] or rows
    return {
        "epochs": len(rows),
        "train_images_per_second": statistics.median(float(row["images_per_second"]) for row in later),
        "epoch_seconds": round(statistics.median(float(row["seconds"]) for row in later), 3),
        "first_epoch_seconds": epochs[0],
        "outside_epochs_seconds": round(seconds - sum(epochs), 1),
    }


def summary(name: str, found: dict[str, Any]) -> str:
    """Returns one line about a part."""
    text = f"{name:<12}{found.get('seconds', 0):>8.1f} s"
    if found.get("error") or found.get("exit_code"):
        return f"{text}   failed: {found.get('error') or f'see {name}.log'}"
    if found.get("timed_out"):
        text += "   timed out;"
    if "train_images_per_second" in found:
        text += (
            f"   {found['epochs']}/{found['epochs_wanted']} epochs, {found['epoch_seconds']:.2f} s each,"
            f" training {found['train_images_per_second']:,.0f} images/s"
        )
    return text


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-d", "--data", required=True, help="folder of the crops")
    parser.add_argument("--output", type=new_folder, required=True, help="folder of the results")
    parser.add_argument("--parts", nargs="+", choices=list(TIME_LIMITS), default=list(TIME_LIMITS))
    parser.add_argument("--compile", metavar="MODE", help="of the trainings and of one more variant of throughput")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="as of train.py, for all parts")
    parser.add_argument("--epochs", type=at_least(1), default=EPOCHS)
    parser.add_argument(
        "--images", type=at_least(1), nargs=2, default=IMAGES, metavar=("TRAINING", "VALIDATION"), help="generated"
    )
    parser.add_argument("--time-limit", type=positive_seconds, help=f"seconds of each part, instead of {TIME_LIMITS}")
    arguments = parser.parse_args(argv)
    parts = Parts(arguments)
    changes = [*parts.set, *([f"compile={parts.compile}"] if parts.compile else [])]
    config = load_config(overrides=[*changes, data_override(parts.data)])
    if set(arguments.parts) & {"throughput", "start_up", "run"}:
        assembly.load_annotations(config)  # errors are reported now, not in each part
    device = best_device()
    stated = conditions(device, data=Path(parts.data).name, bounds=BOUNDS, goals=GOALS, compile=parts.compile)
    found: dict[str, Any] = {}
    for name in progress_bar(arguments.parts, description="measuring", unit=" parts"):
        part: Callable[[], dict[str, Any]] = getattr(parts, name)
        with tempfile.TemporaryDirectory() as scratch:
            parts.scratch = Path(scratch)
            try:
                found[name] = part()
            # The other parts run even if one fails.
            except (OSError, ValueError, RuntimeError) as error:
                found[name] = {"error": f"{type(error).__name__}: {error}"}
        print(summary(name, found[name]), flush=True)
        rows = [{"part": part, **values} for part, values in found.items()]
        write_report(parts.output / "gpu.json", stated, rows)
    for what, bound in BOUNDS.items():
        print(f"bound {what}: {bound:,}")
    if failed := [name for name, values in found.items() if values.get("error") or values.get("exit_code")]:
        raise RunError(f"{' and '.join(failed)} failed; see {parts.output}")
    return found


if __name__ == "__main__":
    sys.exit(run_command(main))
