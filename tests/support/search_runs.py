"""Searches without trainings: run folders as train.py leaves them, whose accuracy follows from the settings."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

import train
from tests.support.reproduction_runs import Ended
from utils.errors import UserError
from utils.files import write_csv, write_text
from utils.machine import PROJECT
from utils.runs.metrics import COLUMNS, read_rows

Accuracy = Callable[[dict[str, Any], int], float]  # of a configuration, after an epoch


def write_space(path: Path, **keys: Any) -> Path:
    """Writes a space of the demo, and returns its path."""
    base = os.path.relpath(PROJECT / "experiments" / "demo.yml", path.parent)
    path.write_text(yaml.safe_dump({"base": base, **keys}, sort_keys=False))
    return path


class Trainings:
    """In place of `start_process`: writes at once what a training leaves behind; `fail` returns why one fails."""

    def __init__(self, accuracy: Accuracy, fail: Callable[[dict[str, Any]], str] = lambda config: "") -> None:
        self.accuracy = accuracy
        self.fail = fail
        self.started: list[str] = []

    def __call__(self, arguments: Sequence[str], output: Path, environment: dict[str, str]) -> Ended:
        options = dict(zip(arguments[1::2], arguments[2::2], strict=True))
        self.started.append(output.stem)
        if "--resume" in options:
            run = Path(options["--resume"])
            config = yaml.safe_load((run / "config.yml").read_text())
        else:
            config = yaml.safe_load(Path(options["--config"]).read_text())
            run = Path(config["output_path"]) / f"ghost_{output.stem}_{len(self.started)}"
            (run / "checkpoints").mkdir(parents=True)
            (run / "config.yml").write_text(yaml.safe_dump(config))
        if reason := self.fail(config):
            output.write_text(f"run …\nerror: {reason}\n")
            return Ended(1)
        done, stop = len(read_rows(run / "metrics.csv")), int(options.get("--stop-after", config["num_epochs"]))
        assert done < stop
        rows = [
            dict.fromkeys(COLUMNS, 1.0) | {"epoch": epoch, "valid_acc": self.accuracy(config, epoch)}
            for epoch in range(stop)
        ]
        write_csv(run / "metrics.csv", rows, COLUMNS)
        (run / "checkpoints" / "last.ckpt").touch()
        record = {
            "status": "completed" if stop == config["num_epochs"] else "interrupted", "tags": config["tags"],
            "seconds": 10.0 * stop, "parameters": {"num_params": 3_041_412}, "valid_photos": 100, "test_photos": 0,
        }  # fmt: skip
        write_text(run / "run.json", json.dumps(record))
        return Ended()


def train_here(arguments: Sequence[str], output: Path, environment: dict[str, str]) -> Ended:
    """In place of `start_process`: trains in this process."""
    try:
        train.main(arguments[1:])
    except UserError as error:
        output.write_text(f"error: {error}\n")
        return Ended(error.exit_code)
    return Ended()
