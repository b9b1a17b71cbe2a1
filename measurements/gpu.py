"""All that is to be measured on a GPU, part by part, each with its own time box, so that what is done survives.

    python -m measurements.gpu -d CROPS --output FOLDER [--parts throughput start_up growth run generated] [--compile MODE]

Each part is a process of its own that is ended when its time is up, and writes <part>.json, after each of its rounds, and
<part>.log into the folder; gpu.json sums up what there is after each part. Where a command may last ten minutes only, run
`--parts throughput start_up growth`, then `--parts run generated` into another folder. Beside the training's photos per
second stand its bounds on an H200, by memory traffic in 16 bit: 22,700 with eager kernels, 34,600 with fused ones.

throughput   input, training and waiting share, with and without compilation
start_up     from the command to the first step
growth       photos 1×, 10×, 100×
run          130 epochs at 227×227 on the crops, from the command to its end, the cache built in it
generated    the same with 8,144 + 8,041 generated photos that are as large as those of Stanford Cars
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
from measurements.arguments import at_least, new_folder, some_seconds
from measurements.generated import write_data_set
from measurements.measuring import best_device, command, conditions, data_override, settings, write_report
from utils.cli import run_command
from utils.config import load_config
from utils.errors import RunError
from utils.files import write_text
from utils.machine import PROJECT
from utils.progress import progress_bar
from utils.runs.folder import RECORD, SPEED, read_record

BOUNDS = {"eager, photos/s": 22_700, "fused kernels, photos/s": 34_600}  # of training, on an H200
AIMS = {"photos/s": 16_000, "seconds of 130 epochs on 8,144 + 8,041 photos": 120}
EPOCHS = 130
PHOTOS = (8144, 8041)
# Seconds: 400 for what is measured in turns, 510 for the two trainings; writing the generated photos comes on top.
BOXES = {"throughput": 220, "start_up": 80, "growth": 100, "run": 190, "generated": 320}
PLAIN = ("trackers=[]", "early_stopping_patience=null", "checkpoint_interval=null")
ENDING = 5.0  # seconds that an interrupted part has to end by itself


class Parts:
    """What each part runs; every one returns what gpu.json says of it."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.data = str(Path(arguments.data).resolve())
        self.output: Path = arguments.output.resolve()
        self.scratch = Path()  # of the part that runs now
        self.compile: str | None = arguments.compile
        self.set: list[str] = [f"precision={arguments.precision}", *arguments.set]
        self.epochs, self.photos = arguments.epochs, arguments.photos
        self.boxes = {name: arguments.box or seconds for name, seconds in BOXES.items()}

    def throughput(self) -> dict[str, Any]:
        modes = ["--compile", self.compile] if self.compile else []
        return self._benchmark("throughput", "-d", self.data, "--rounds", "2", "--seconds", "2", *modes)

    def start_up(self) -> dict[str, Any]:
        return self._benchmark("start_up", "-d", self.data, "--rounds", "1")

    def growth(self) -> dict[str, Any]:
        return self._benchmark("growth", "--photos", "200", "--rounds", "1", "--folder", str(self.scratch))

    def run(self) -> dict[str, Any]:
        return self._run("run", self.data)

    def generated(self) -> dict[str, Any]:
        folder = self.scratch / "generated"
        started = time.perf_counter()
        sizes = write_data_set(folder, training_photos=self.photos[0], validation_photos=self.photos[1])
        written = round(time.perf_counter() - started, 1)
        return self._run("generated", str(folder)) | sizes | {"seconds_to_generate": written, "photos": self.photos}

    def _benchmark(self, name: str, *words: str) -> dict[str, Any]:
        report = self.output / f"{name}.json"
        report.unlink(missing_ok=True)
        line = command("-m", f"benchmarks.{name}", *words, *settings(self.set), "--output", str(report))
        how = self._boxed(name, line)
        return how | (json.loads(report.read_text()) if report.exists() else {"rows": None})

    def _run(self, name: str, data: str) -> dict[str, Any]:
        """Trains from the command line, with an empty cache, and returns how long what took."""
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
        how = self._boxed(name, command("train.py", "-d", data, *settings(changes)))
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

    def _boxed(self, name: str, line: list[str]) -> dict[str, Any]:
        """Runs a command for at most its time, all that it says in <name>.log."""
        started = time.perf_counter()
        with (self.output / f"{name}.log").open("w") as log:
            process = subprocess.Popen(line, cwd=PROJECT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
            try:
                code = process.wait(self.boxes[name])
            except subprocess.TimeoutExpired:
                code = None
            finally:
                _end_group(process)
        return {
            "seconds": round(time.perf_counter() - started, 2), "exit_code": code, "ended_by_its_box": code is None,
            "command": " ".join(line[1:]),
        }  # fmt: skip


def _end_group(process: subprocess.Popen) -> None:
    """Ends a part and the processes that it started, which form a group of their own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, number)
            try:
                process.wait(ENDING)
            except subprocess.TimeoutExpired:
                continue


def _speeds(rows: list[dict[str, str]], seconds: float) -> dict[str, Any]:
    """Returns medians of the epochs, the first left out, and what of the wall time none of them explains."""
    epochs = [float(row["seconds"]) for row in rows]
    later = rows[1:] or rows
    return {
        "epochs": len(rows),
        "training_photos_per_second": statistics.median(float(row["images_per_second"]) for row in later),
        "epoch_seconds": round(statistics.median(float(row["seconds"]) for row in later), 3),
        "first_epoch_seconds": epochs[0],
        "outside_epochs_seconds": round(seconds - sum(epochs), 1),
    }


def summary(name: str, found: dict[str, Any]) -> str:
    """Returns one line on a part; the rest is in its own files."""
    text = f"{name:<12}{found.get('seconds', 0):>8.1f} s"
    if found.get("error") or found.get("exit_code"):
        return f"{text}   failed: {found.get('error') or f'see {name}.log'}"
    if found.get("ended_by_its_box"):
        text += "   its time was up;"
    if "training_photos_per_second" in found:
        text += (
            f"   {found['epochs']}/{found['epochs_wanted']} epochs, {found['epoch_seconds']:.2f} s each,"
            f" training {found['training_photos_per_second']:,.0f} photos/s"
        )
    return text


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-d", "--data", required=True, help="folder of the crops")
    parser.add_argument("--output", type=new_folder, required=True, help="folder of the results")
    parser.add_argument("--parts", nargs="+", choices=list(BOXES), default=list(BOXES))
    parser.add_argument("--compile", metavar="MODE", help="of the trainings and of one more row of throughput")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="as of train.py, for all parts")
    parser.add_argument("--epochs", type=at_least(1), default=EPOCHS)
    parser.add_argument(
        "--photos", type=at_least(1), nargs=2, default=PHOTOS, metavar=("TRAINING", "VALIDATION"), help="generated"
    )
    parser.add_argument("--box", type=some_seconds, help=f"seconds of each part, instead of {BOXES}")
    arguments = parser.parse_args(argv)
    parts = Parts(arguments)
    changes = [*parts.set, *([f"compile={parts.compile}"] if parts.compile else [])]
    config = load_config(overrides=[*changes, data_override(parts.data)])
    if set(arguments.parts) & {"throughput", "start_up", "run"}:
        assembly.load_annotations(config)  # what is wrong is answered now, not in each part
    device = best_device()
    stated = conditions(device, data=Path(parts.data).name, bounds=BOUNDS, aims=AIMS, compile=parts.compile)
    found: dict[str, Any] = {}
    for name in progress_bar(arguments.parts, description="measuring", unit=" parts"):
        part: Callable[[], dict[str, Any]] = getattr(parts, name)
        with tempfile.TemporaryDirectory() as scratch:
            parts.scratch = Path(scratch)
            try:
                found[name] = part()
            # A part that cannot be done is told, and the others are done all the same.
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
