"""Makes the most of some minutes on a GPU: tests, throughput, then whole trainings, in order of worth.

    python -m measurements.gpu_visit --minutes 9 -d DATA --output FOLDER [--lite0 FILE] [--parts tests throughput …]

tests        the tests that need CUDA
throughput   C-50 at 227×227, beside the loaders of timm and torchvision
compiled     the same compiled, and as CUDA graphs, which takes minutes to begin
c50          C-50 with its whole schedule at 227×227
long         C-50 with a longer schedule, experiments/beyond/long.yml
lite0        experiments/beyond/finetune-lite0-224.yml; needs --lite0, a file of models.finetuning.lite0_weights

Each part is a process that is stopped when its time or the visit's is up, or the visit itself is stopped. After each part,
visit.json has its result; visit.log has all output. A training leaves its metrics as <part>.csv, its speed as
<part>_speed.csv and its best weights as <part>.ckpt, which every command that takes a checkpoint can read. --set is for all
parts but the tests.

On an H100 the tests take 2 minutes, C-50 9 seconds an epoch, lite0 4 minutes, and the first batch of a network 40 seconds, in
which cuDNN chooses its kernels. So a visit of 12 minutes measures; to train: --parts c50 --minutes 25 or
--parts lite0 --lite0 FILE --minutes 6.

It takes the packages of requirements.txt except the trackers, and for the tests pytest and pytest-xdist.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import assembly
from measurements.measuring import (
    best_device,
    command,
    conditions,
    data_override,
    duration,
    existing_folder,
    new_folder,
    write_report,
)
from models.classifier import RAW
from training.checkpoints import read_checkpoint
from utils.cli import run_command, set_options
from utils.config import load_config
from utils.errors import ConfigError, RunError, UserError
from utils.files import replacing
from utils.machine import PROJECT
from utils.processes import end_with_parent
from utils.runs.folder import BEST, METRICS, RECORD, SPEED, read_record

# With xdist, an installed pytest-benchmark warns, and warnings are errors here.
PYTEST = ("-m", "pytest", "-p", "no:benchmark", "-o", "addopts=", "--import-mode=importlib", "-q", "-n", "8",
          "-m", "cuda")  # fmt: skip
CUDA_MARK = re.compile(r"needs_cuda|mark\.cuda")
THROUGHPUT = {"throughput": ("--rounds", "2"),
              "compiled": ("--rounds", "1", "--compile", "default", "reduce-overhead", "--variants", "compile")}  # fmt: skip
TRAININGS = {"c50": "experiments/C-50.yml", "long": "experiments/beyond/long.yml",
             "lite0": "experiments/beyond/finetune-lite0-224.yml"}  # fmt: skip
PARTS = ("tests", *THROUGHPUT, *TRAININGS)
MAX_SECONDS = {"tests": 180.0, "throughput": 240.0, "compiled": 240.0}  # the others take what is left
MAX_MINUTES = 24 * 60
GRACE_SECONDS = 20.0  # in which a training that is stopped writes its checkpoint; kept free at the end
ONLY_TRAINING = ("optimizer_states", "lr_schedulers", RAW)  # of a checkpoint: up to three quarters of it


class Visit:
    """Runs the parts one after another until the time is up."""

    def __init__(self, arguments: argparse.Namespace, scratch: Path) -> None:
        self.data: Path = arguments.data.resolve()
        self.lite0: Path | None = arguments.lite0 and arguments.lite0.resolve()
        self.output: Path = arguments.output.resolve()
        self.changes: list[str] = arguments.set
        self.scratch = scratch
        self.deadline = time.monotonic() + 60 * arguments.minutes - GRACE_SECONDS

    def run(self, name: str) -> dict[str, Any]:
        """Runs a part, and returns its result."""
        if self.deadline <= time.monotonic():
            return {"part": name, "skipped": "no time was left"}
        if name == "lite0" and self.lite0 is None:
            return {"part": name, "skipped": "no weights: --lite0 FILE"}
        if name == "tests":
            # Only the files that have such tests: others import what is missing where nothing but torch is installed.
            files = [
                path for path in sorted((PROJECT / "tests").rglob("test_*.py")) if CUDA_MARK.search(path.read_text())
            ]
            return self._run_limited(name, command(*PYTEST, *(str(path.relative_to(PROJECT)) for path in files)))
        if name in THROUGHPUT:
            report = self.scratch / f"{name}.json"
            words = ("-d", str(self.data), "--seconds", "2", *THROUGHPUT[name])
            line = command("-m", "measurements.throughput", *words, *set_options(self.changes), "--output", str(report))
            found = self._run_limited(name, line)
            return found | ({"rows": json.loads(report.read_text())["rows"]} if report.is_file() else {})
        return self._train(name)

    def _train(self, name: str) -> dict[str, Any]:
        runs = self.scratch / name
        changes = ["trackers=[]", f"output_path={runs}", f"cache_path={self.scratch / 'cache'}"]
        if name == "lite0":
            changes.append(f"pretrained={self.lite0}")
        words = ("--config", TRAININGS[name], "-d", str(self.data), *set_options([*changes, *self.changes]))
        try:
            found = self._run_limited(name, command("train.py", *words))
        finally:
            kept = self._keep(name, runs)
        return found | kept

    def _keep(self, name: str, runs: Path) -> dict[str, Any]:
        """Copies what a training has into the results, and returns its record."""
        kept: dict[str, Any] = {}
        for record in runs.glob(f"*/{RECORD}"):
            folder, values = record.parent, read_record(record.parent)
            kept = {key: values.get(key) for key in ("status", "epochs", "best", "precision")}
            for source, copy in ((METRICS, f"{name}.csv"), (SPEED, f"{name}_speed.csv")):
                if (folder / source).is_file():
                    shutil.copy(folder / source, self.output / copy)
            if (folder / BEST).is_file():
                checkpoint = read_checkpoint(folder / BEST)
                with replacing(self.output / f"{name}.ckpt") as file:
                    torch.save({key: value for key, value in checkpoint.items() if key not in ONLY_TRAINING}, file)
        return kept

    def _run_limited(self, name: str, line: list[str]) -> dict[str, Any]:
        """Runs a command until its time or the visit's is up."""
        started = time.monotonic()
        limit = min(MAX_SECONDS.get(name, float("inf")), self.deadline - started)
        with (self.output / "visit.log").open("a") as log:
            log.write(f"\n$ {' '.join(line[1:])}\n")
            log.flush()
            process = subprocess.Popen(
                line, cwd=PROJECT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                env=os.environ | {"TMPDIR": str(self.scratch)}, preexec_fn=partial(end_with_parent, signal.SIGTERM),
            )  # fmt: skip
            try:
                code = process.wait(limit)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                _end_group(process)
        seconds = round(time.monotonic() - started, 1)
        return {"part": name, "seconds": seconds, "exit_code": code, "command": " ".join(line[1:])}


def _end_group(process: subprocess.Popen) -> None:
    """Ends a part; what it started belongs to its process group."""
    with suppress(subprocess.TimeoutExpired):
        if process.poll() is None:
            process.terminate()
            process.wait(GRACE_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def summary(result: dict[str, Any]) -> str:
    """Returns one line about a part."""
    if "skipped" in result:
        return f"{result['part']:<12} skipped: {result['skipped']}"
    code = result["exit_code"]
    text = f"{result['part']:<12}{result['seconds']:>7.1f} s   "
    text += "ended by the limit" if code is None else "completed" if code == 0 else f"failed with exit code {code}"
    if result.get("best"):
        text += f", {result['epochs']} epochs, best top-1 {100 * result['best']['best_valid_acc']:.2f} %"
    return text


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Makes SIGTERM an exception, so that what a part has is kept."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-d", "--data", metavar="FOLDER", type=existing_folder, required=True, help="Stanford Cars")
    parser.add_argument("--output", metavar="FOLDER", type=new_folder, required=True, help="folder of the results")
    minutes = duration("minutes", above=GRACE_SECONDS / 60, at_most=MAX_MINUTES)
    parser.add_argument("--minutes", type=minutes, default=9.0, help="of the whole visit (9)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all, in this order")
    parser.add_argument("--lite0", metavar="FILE", type=Path, help="weights of EfficientNet-Lite0")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="as of train.py, for all parts but the tests"
    )
    arguments = parser.parse_args(argv)
    if arguments.lite0 and not arguments.lite0.is_file():
        raise ConfigError(f"--lite0 {arguments.lite0}: no such file")
    # Errors of data and settings are reported now, not by each part.
    assembly.load_annotations(load_config(overrides=[*arguments.set, data_override(str(arguments.data))]))
    stated = conditions(best_device(), data=arguments.data.name, minutes=arguments.minutes, changes=arguments.set)
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch, _ended_by_sigterm():
        visit = Visit(arguments, Path(scratch))
        for name in arguments.parts:
            try:
                results.append(visit.run(name))
            except (OSError, UserError) as error:  # the other parts run even if one fails
                results.append({"part": name, "seconds": 0.0, "exit_code": 1, "error": str(error)})
            print(summary(results[-1]), flush=True)
            write_report(arguments.output / "visit.json", stated, results)
    print(f"results: {arguments.output}")
    if failed := [result["part"] for result in results if result.get("exit_code")]:
        raise RunError(f"{' and '.join(failed)} failed; see {arguments.output / 'visit.log'}")
    return results


if __name__ == "__main__":
    sys.exit(run_command(main))
