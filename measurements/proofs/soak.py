"""Trains for hundreds of epochs and measures whether memory, open files or threads grow.

    python -m measurements.proofs.soak [--epochs 300] [--output FILE]

Runs `python train.py` on drawn cars, with MLflow and two workers per split, and reads its processes after each epoch: RSS,
open files, threads, and PSS, which shares out pages that processes have in common. PSS grows for a while, when Python's
garbage collector touches pages that workers share with the main process. The slope is a least-squares fit over the epochs
after the first tenth, in which caches fill, without the last, after which curves are drawn; its standard error takes the
samples as independent.
"""

import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from datamodules.demo import write_demo_data
from measurements.measuring import at_least, build_parser, command
from utils.cli import run_command, set_options
from utils.errors import RunError
from utils.files import write_text
from utils.machine import PROJECT, available_cores
from utils.progress import progress_bar
from utils.runs.folder import METRICS
from utils.runs.metrics import read_rows
from utils.runs.provenance import versions

IMAGES = {"training_photos": 4, "validation_photos": 1}  # of each of 15 models
WORKERS = 2  # of the training; those of the validation end with it
POLL_SECONDS = 0.05
MAX_EPOCH_SECONDS = 120.0
WARM_UP = 0.1  # share of the epochs

Sample = dict[str, float]


def start(folder: Path, epochs: int) -> subprocess.Popen:
    """Starts the training on the data in `folder`."""
    changes = [
        "image_size=[32, 32]", "batch_size=16", f"num_epochs={epochs}", f"num_workers={WORKERS}", "width_multiplier=0.35",
        "early_stopping_patience=null", "accelerator=cpu", "trackers=[mlflow]", f"data_path={folder / 'data'}",
        f"output_path={folder / 'output'}", f"cache_path={folder / 'cache'}",
    ]  # fmt: skip
    words = command("train.py", *set_options(changes))
    with (folder / "log.txt").open("w") as log:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(words, cwd=PROJECT, stdout=log, stderr=subprocess.STDOUT, env=environment)


def sample(main: psutil.Process, epoch: int) -> Sample:
    """Reads the memory, in kB, the open files and the threads of a training and of its workers."""
    workers = main.children(recursive=True)
    own, others = main.memory_full_info(), [process.memory_full_info() for process in workers]
    return {
        "epoch": epoch,
        "main_kB": own.rss / 1000,
        "main_files": main.num_fds(),
        "main_threads": main.num_threads(),
        "workers": len(workers),
        "workers_kB": sum(each.rss for each in others) / 1000,
        "all_pss_kB": (own.pss + sum(each.pss for each in others)) / 1000,
        "workers_files": sum(process.num_fds() for process in workers),
    }


def watch(training: subprocess.Popen, folder: Path, epochs: int) -> list[Sample]:
    """Takes a sample after each epoch, until the training ends.

    Raises:
        RunError: It fails or hangs.
    """
    main, samples, epoch, since = psutil.Process(training.pid), [], 0, time.monotonic()
    with progress_bar(description="training", unit=" epochs", total=epochs) as bar:
        while training.poll() is None:
            found = sum(len(read_rows(path)) for path in folder.glob(f"output/*/{METRICS}"))
            if found > epoch:
                bar.update(found - epoch)
                epoch, since = found, time.monotonic()
                with suppress(psutil.Error):  # a process that has just ended
                    samples.append(sample(main, epoch))
            if time.monotonic() - since > MAX_EPOCH_SECONDS:
                training.kill()
            time.sleep(POLL_SECONDS)
    if training.returncode:
        lines = (folder / "log.txt").read_text(encoding="utf-8").splitlines()
        raise RunError(f"the training ended with exit code {training.returncode}: {' '.join(lines[-3:])}")
    return [each for each in samples if each["workers"] == WORKERS]


def slope(samples: Sequence[Sample], key: str) -> tuple[float, float]:
    """Returns the change of `key` per epoch by least squares, and its standard error."""
    epochs, values = [each["epoch"] for each in samples], [each[key] for each in samples]
    line = statistics.linear_regression(epochs, values)
    errors = [value - line.intercept - line.slope * epoch for epoch, value in zip(epochs, values, strict=True)]
    center = statistics.fmean(epochs)
    spread = sum((epoch - center) ** 2 for epoch in epochs)
    return line.slope, (sum(error**2 for error in errors) / max(1, len(errors) - 2) / spread) ** 0.5


def main(argv: Sequence[str] | None = None) -> dict[str, object]:
    parser = build_parser(__doc__, data=False, overrides=False)
    parser.add_argument("--epochs", type=at_least(1), default=300)
    options = parser.parse_args(argv)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak_") as temporary:
        folder = Path(temporary)
        write_demo_data(folder / "data", **IMAGES)
        training = start(folder, options.epochs)
        try:
            samples = watch(training, folder, options.epochs)
        finally:
            training.kill()
            training.wait()
    measured = [each for each in samples if WARM_UP * options.epochs < each["epoch"] < options.epochs]
    if len(measured) < 3:
        raise RunError(f"{len(measured)} samples are too few for a slope; use more --epochs")
    slopes = {}
    for key in ("main_kB", "workers_kB", "all_pss_kB", "main_files", "workers_files", "main_threads"):
        value, error = slope(measured, key)
        first, last = measured[0][key], measured[-1][key]
        slopes[key] = {"per_epoch": round(value, 4), "standard_error": round(error, 4), "first": first, "last": last}
        print(f"{key:<14}{value:>10.3f} ± {error:.3f} per epoch, from {first:,.0f} to {last:,.0f}")
    result = {
        "conditions": {
            "date": str(datetime.date.today()), "cores": available_cores(), "versions": versions(), "epochs": options.epochs,
            "images": IMAGES, "models": 15, "workers": WORKERS, "from_epoch": measured[0]["epoch"],
            "minutes": round((time.monotonic() - began) / 60, 1), "memory": "RSS, and PSS of all",
        },
        "slopes": slopes,
        "samples": samples,
    }  # fmt: skip
    if options.output:
        write_text(options.output, json.dumps(result, indent=1) + "\n")
    return result


if __name__ == "__main__":
    sys.exit(run_command(main))
