"""Trains for hundreds of epochs and measures whether memory or open files grow: python -m measurements.soak [--epochs 300].

The training is `python train.py` itself on small drawn cars, with MLflow and two processes for each split that read its
photos. After each epoch its memory (RSS) and its open files are read from outside; PSS, which shares out the pages that the
processes have in common, is noted too: it grows for a while, when Python's garbage collector touches what workers have from
the main process. The slope is that of the line of least squares over the epochs after the first tenth, in which caches fill;
its standard error takes the samples as independent. The last epoch, after which curves are drawn, is left out.
"""

import argparse
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
from measurements.arguments import at_least, report
from utils.cli import run_command
from utils.errors import RunError
from utils.files import write_text
from utils.machine import PROJECT, available_cores, versions
from utils.progress import progress_bar
from utils.runs.folder import METRICS
from utils.runs.metrics import read_rows

PHOTOS = {"training_photos": 4, "validation_photos": 1}  # of each of 15 models
WORKERS = 2  # of each split: they stay from epoch to epoch
POLL_SECONDS = 0.05
LONGEST = 120.0  # seconds without a new epoch
WARM_UP = 0.1  # part of the epochs

Sample = dict[str, float]


def start(folder: Path, epochs: int) -> subprocess.Popen:
    """Starts the training; the data lies in `folder`."""
    settings = [
        "image_size=[32, 32]", "batch_size=16", f"num_epochs={epochs}", f"num_workers={WORKERS}", "width_multiplier=0.35",
        "early_stopping_patience=null", "accelerator=cpu", "trackers=[mlflow]", f"data_path={folder / 'data'}",
        f"output_path={folder / 'output'}", f"cache_path={folder / 'cache'}",
    ]  # fmt: skip
    command = [sys.executable, "train.py", *(word for setting in settings for word in ("--set", setting))]
    with (folder / "said.txt").open("w") as said:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, cwd=PROJECT, stdout=said, stderr=subprocess.STDOUT, env=environment)


def sample(main: psutil.Process, epoch: int) -> Sample:
    """Reads the memory, in kB, and the open files of a training and of the processes that it has started."""
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
        RunError: It ends with an error, or stands still.
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
            if time.monotonic() - since > LONGEST:
                training.kill()
            time.sleep(POLL_SECONDS)
    if training.returncode:
        lines = (folder / "said.txt").read_text(encoding="utf-8").splitlines()
        raise RunError(f"the training ended with exit code {training.returncode}: {' '.join(lines[-3:])}")
    return [each for each in samples if each["workers"] == 2 * WORKERS]


def slope(samples: Sequence[Sample], key: str) -> tuple[float, float]:
    """Returns the change of `key` an epoch by least squares, and its standard error."""
    epochs, values = [each["epoch"] for each in samples], [each[key] for each in samples]
    line = statistics.linear_regression(epochs, values)
    errors = [value - line.intercept - line.slope * epoch for epoch, value in zip(epochs, values, strict=True)]
    centre = statistics.fmean(epochs)
    spread = sum((epoch - centre) ** 2 for epoch in epochs)
    return line.slope, (sum(error**2 for error in errors) / max(1, len(errors) - 2) / spread) ** 0.5


def main(argv: Sequence[str] | None = None) -> dict[str, object]:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--epochs", type=at_least(1), default=300)
    parser.add_argument("--output", type=report, default="measurements/soak.json")
    options = parser.parse_args(argv)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak_") as temporary:
        folder = Path(temporary)
        write_demo_data(folder / "data", **PHOTOS)
        training = start(folder, options.epochs)
        try:
            samples = watch(training, folder, options.epochs)
        finally:
            training.kill()
            training.wait()
    measured = [each for each in samples if WARM_UP * options.epochs < each["epoch"] < options.epochs]
    if len(measured) < 3:
        raise RunError(f"{len(measured)} samples are too few for a slope; train for more epochs: --epochs N")
    slopes = {}
    for key in ("main_kB", "workers_kB", "all_pss_kB", "main_files", "workers_files", "main_threads"):
        value, error = slope(measured, key)
        first, last = measured[0][key], measured[-1][key]
        slopes[key] = {"an_epoch": round(value, 4), "standard_error": round(error, 4), "first": first, "last": last}
        print(f"{key:<14}{value:>10.3f} ± {error:.3f} an epoch, {first:,.0f} at first, {last:,.0f} at last")
    result = {
        "conditions": {
            "date": str(datetime.date.today()), "cores": available_cores(), "versions": versions(), "epochs": options.epochs,
            "photos": PHOTOS, "models": 15, "workers": WORKERS, "from_epoch": measured[0]["epoch"],
            "minutes": round((time.monotonic() - began) / 60, 1), "memory": "RSS, and PSS of all",
        },
        "slopes": slopes,
        "samples": samples,
    }  # fmt: skip
    write_text(options.output, json.dumps(result, indent=1) + "\n")
    return result


if __name__ == "__main__":
    sys.exit(run_command(main))
