"""What tests of the reproduction share: jobs, run folders, two processes, and processes that have ended."""

import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from reproduction.planning import DataSet, Job, plan
from reproduction.published import choose_experiments
from utils.config import load_config
from utils.files import write_text

DATA = DataSet("cars", "0123abcd")


def jobs_for(
    folder: Path,
    *names: str,
    overrides: tuple[str, ...] = (),
    repeat: int = 1,
    divisor: int = 1,
    data: DataSet = DATA,
) -> list[Job]:
    """Plans experiments as if `data` were the data set of each."""
    with patch("reproduction.planning.read_data_set", return_value=data):
        return plan(choose_experiments(names), overrides=overrides, repeat=repeat, folder=folder, divisor=divisor)


def write_run(
    job: Job, *, acc: float = 0.5, status: str = "completed", epochs: int = 2, photos: tuple[int, int] = (20, 8)
) -> Path:
    """Writes the folder that train.py leaves behind, without training; returns it."""
    job.folder.mkdir(parents=True, exist_ok=True)
    folder = job.folder / f"ghost_{len(list(job.folder.iterdir()))}_{os.getpid()}"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.ckpt").touch()
    config = load_config(job.file, overrides=job.overrides)
    (folder / "config.yml").write_text(config.as_yaml())
    (folder / "speed.csv").write_text(
        "epoch,seconds,images_per_second\n" + "".join(f"{e},10.0,2.0\n" for e in range(epochs))
    )
    best = {"valid_acc": acc, "train_acc": 0.9, "valid_loss": 2.0, "train_loss": 1.0, "valid_top5_acc": 1.0}
    record = {
        "status": status, "tags": config.tags, "description": config.description,
        "best": {f"best_{name}": value for name, value in best.items()},
        "train_photos": photos[0], "valid_photos": photos[1], "epochs": epochs, "seconds": 90.0,
        "parameters": {"num_params": 3_041_412}, "versions": {"torch": "2.11.0"}, "commit": "abc",
        "started": "2026-11-23T05:00:00+00:00",
    }  # fmt: skip
    write_text(folder / "run.json", json.dumps(record))  # at once, as train.py does
    return folder


def write_facts(run: Path) -> None:
    """Writes what the evaluation of a finished run leaves behind."""
    facts = {"device": "A GPU", "checkpoint_acc": 0.5, "checkpoint_acc_over_batches": 0.501}
    (run / "reproduction.json").write_text(json.dumps(facts))


def run_in_two_processes(work: Callable[..., None], *arguments: Any) -> set[str]:
    """Calls `work` with the arguments and a barrier in two processes at once, and returns their ids."""
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(2)
    processes = [spawn.Process(target=work, args=(*arguments, barrier)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    return {str(process.pid) for process in processes}


class Ended:
    """In place of a process that has ended."""

    def __init__(self, returncode: int = 0) -> None:
        self.returncode = returncode

    def wait(self, timeout: float | None = None) -> int:
        return self.returncode

    def poll(self) -> int:
        return self.returncode
