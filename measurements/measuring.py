"""What the benchmarks share: turns, spread, and the conditions that stand beside every figure."""

import datetime
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from utils.files import write_text
from utils.machine import available_cores, commit, versions

Step = Callable[[Tensor, Tensor], None]
UNCOUNTED = 3  # batches, while the processes of a loader fill their queues


class Turn(NamedTuple):
    """What one measurement gave: photos per second, and the share of the time that went by waiting for a batch."""

    photos_per_second: float
    blocked: float


def best_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def wait_for(device: torch.device) -> None:
    """Waits until the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def walk(batches: Iterable[tuple[Tensor, Tensor]], device: torch.device, seconds: float, step: Step | None) -> Turn:
    """Walks through `batches`, over and over, for `seconds` after the first, uncounted ones.

    Args:
        batches: Images and labels.
        device: Where they are brought.
        seconds: How long.
        step: What is done with a batch; None: nothing.
    """
    count, blocked, started, uncounted = 0, 0.0, None, UNCOUNTED
    while started is None or time.perf_counter() - started < seconds:
        iterator = iter(batches)
        while True:
            asked = time.perf_counter()
            batch = next(iterator, None)
            if batch is None:
                break
            images, labels = (part.to(device, non_blocking=True) for part in batch)
            blocked += time.perf_counter() - asked
            if step is not None:
                step(images, labels)
            if started is None:
                uncounted -= 1
                if uncounted == 0:
                    wait_for(device)
                    started, blocked = time.perf_counter(), 0.0
                continue
            count += len(labels)
            if time.perf_counter() - started >= seconds:
                break
    wait_for(device)
    passed = time.perf_counter() - started
    return Turn(count / passed, blocked / passed)


def spread(values: Sequence[float], digits: int = 1) -> dict[str, float]:
    """Returns median, least and most of `values`."""
    return {
        "median": round(statistics.median(values), digits),
        "least": round(min(values), digits),
        "most": round(max(values), digits),
    }


def conditions(device: torch.device, **more: Any) -> dict[str, Any]:
    """Returns what a figure depends on besides what it measures."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return {
        "date": str(datetime.date.today()), "device": name, "cores": available_cores(),
        "threads": torch.get_num_threads(), "versions": versions(), "commit": commit(), **more,
    }  # fmt: skip


def write_report(path: Path, conditions: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Writes a benchmark's rows as JSON; one that has rounds does so after each, so that what is done survives."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({"conditions": conditions, "rows": rows}, indent=2, ensure_ascii=False) + "\n")


def say_where(path: Path, conditions: dict[str, Any]) -> None:
    """Ends a benchmark's table."""
    print(f"on {conditions['device']}, {conditions['cores']} cores: {path}")


def command(*words: str) -> list[str]:
    """Returns the command line of a script of this project."""
    return [sys.executable, *words]


def data_override(folder: str) -> str:
    """Returns the override that names the folder of the data set."""
    return f"data_path={json.dumps(folder)}"


def settings(overrides: Iterable[str]) -> list[str]:
    """Returns overrides as words of a command line."""
    return [word for override in overrides for word in ("--set", override)]


def end(process: subprocess.Popen) -> None:
    """Ends a process that this program started, if it still runs."""
    if process.poll() is None:
        process.kill()
    process.wait()
