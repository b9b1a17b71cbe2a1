"""What tests of the reproduction share: jobs, the folders of runs, and stand-ins of trainings."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

from reproduction.jobs import DataSet, Job, plan
from reproduction.published import (
    EXPERIMENTS,
)
from utils.config import load_config

DATA = DataSet("cars", "0123abcd")


def jobs_for(
    folder: Path, *names: str, overrides: tuple[str, ...] = (), repeat: int = 1, data: DataSet = DATA
) -> list[Job]:
    return plan(names, overrides=overrides, repeat=repeat, folder=folder, data=data)


def write_run(
    job: Job, *, acc: float = 0.5, status: str = "completed", epochs: int = 2, photos: tuple[int, int] = (20, 8)
) -> Path:
    """Writes the folder that train.py leaves behind, without training; returns it."""
    job.folder.mkdir(parents=True, exist_ok=True)
    folder = job.folder / f"ghost_{len(list(job.folder.iterdir()))}"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.ckpt").touch()
    config = load_config(EXPERIMENTS / f"{job.key.experiment}.yml", overrides=job.overrides)
    (folder / "config.yml").write_text(config.as_yaml())
    (folder / "speed.csv").write_text(
        "epoch,seconds,images_per_second\n" + "".join(f"{e},10.0,2.0\n" for e in range(epochs))
    )
    best = {"valid_acc": acc, "train_acc": 0.9, "valid_loss": 2.0, "train_loss": 1.0, "valid_top5_acc": 1.0}
    record = {
        "status": status, "tags": config.tags, "best": {f"best_{name}": value for name, value in best.items()},
        "train_photos": photos[0], "valid_photos": photos[1], "epochs": epochs, "seconds": 90.0,
        "parameters": {"num_params": 3_041_412}, "versions": {"torch": "2.11.0"}, "commit": "abc",
        "started": "2026-11-23T05:00:00+00:00",
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(record))
    return folder


class Ended:
    """In place of a process that has trained already."""

    def __init__(self, exitcode: int = 0) -> None:
        self.pid = os.getpid()
        self.exitcode = exitcode


class Sleeping:
    """In place of a process that trains for long: a real process that does nothing."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(60)"], stderr=subprocess.DEVNULL
        )
        self.pid = self.process.pid

    @property
    def exitcode(self) -> int | None:
        return self.process.poll()

    def join(self, timeout: float | None = None) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(None if timeout is None else min(timeout, 0.1))

    def terminate(self) -> None:
        self.process.terminate()
