"""Shared by the measurements: arguments, turns, spread, and the conditions that are reported with each result."""

import argparse
import datetime
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from utils.files import write_text
from utils.machine import available_cores
from utils.runs.provenance import commit, versions

Step = Callable[[Tensor, Tensor], None]
WARM_UP_BATCHES = 3  # while the processes of a loader fill their queues


def at_least(minimum: int) -> Callable[[str], int]:
    """Returns a parser of integers from `minimum` on."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = minimum - 1
        if number < minimum:
            raise argparse.ArgumentTypeError(f"{text!r}: expected an integer of at least {minimum}")
        return number

    return parse


def duration(unit: str, *, above: float, at_most: int) -> Callable[[str], float]:
    """Returns a parser of durations in a unit, such as "seconds"."""

    def parse(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = above
        if not above < number <= at_most:
            raise argparse.ArgumentTypeError(f"{text!r}: expected {unit} above {above:.2g}, at most {at_most}")
        return number

    return parse


def output_file(text: str) -> Path:
    """Parses the path of a report, so that a wrong one is an error before the measurement."""
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r}: expected a file in an existing folder")
    return path


def existing_folder(text: str) -> Path:
    """Parses the path of an existing folder."""
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r}: expected an existing folder")
    return Path(text)


def new_folder(text: str) -> Path:
    """Parses the path of a folder and creates it."""
    try:
        Path(text).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a folder ({error.strerror})") from error
    return Path(text)


def build_parser(doc: str, *, data: bool = True, overrides: bool = True) -> argparse.ArgumentParser:
    """Returns a parser with the arguments that most measurements share.

    Args:
        doc: Docstring of the module; its first line is the description.
        data: Whether to add -d.
        overrides: Whether to add --set.
    """
    parser = argparse.ArgumentParser(description=doc.partition("\n")[0])
    if data:
        parser.add_argument("-d", "--data", required=True, help="folder of the data set")
    if overrides:
        parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="as of train.py")
    parser.add_argument("--output", metavar="FILE", type=output_file, help="write a JSON report; default: print only")
    return parser


class Turn(NamedTuple):
    """One measurement: images per second, and the share of the time spent waiting for batches."""

    images_per_second: float
    data_wait: float


def best_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_batches(
    batches: Iterable[tuple[Tensor, Tensor]], device: torch.device, seconds: float, step: Step | None
) -> Turn:
    """Iterates over `batches` repeatedly, for `seconds` after the warm-up batches.

    Args:
        batches: Images and labels.
        device: The device to copy them to.
        seconds: Duration of the measurement.
        step: What to do with a batch; None for nothing.
    """
    count, data_wait, started, warm_up = 0, 0.0, None, WARM_UP_BATCHES
    while started is None or time.perf_counter() - started < seconds:
        iterator = iter(batches)
        while True:
            requested = time.perf_counter()
            batch = next(iterator, None)
            if batch is None:
                break
            images, labels = (part.to(device, non_blocking=True) for part in batch)
            data_wait += time.perf_counter() - requested
            if step is not None:
                step(images, labels)
            if started is None:
                warm_up -= 1
                if warm_up == 0:
                    synchronize(device)
                    started, data_wait = time.perf_counter(), 0.0
                continue
            count += len(labels)
            if time.perf_counter() - started >= seconds:
                break
    synchronize(device)
    elapsed = time.perf_counter() - started
    return Turn(count / elapsed, data_wait / elapsed)


def spread(values: Sequence[float], digits: int = 1) -> dict[str, float]:
    """Returns the median, minimum and maximum, rounded."""
    return {
        "median": round(statistics.median(values), digits),
        "min": round(min(values), digits),
        "max": round(max(values), digits),
    }


def conditions(device: torch.device, **more: Any) -> dict[str, Any]:
    """Returns what a result depends on, apart from what it measures."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return {
        "date": str(datetime.date.today()), "device": name, "cores": available_cores(),
        "threads": torch.get_num_threads(), "versions": versions(), "commit": commit(), **more,
    }  # fmt: skip


def write_report(path: Path | None, conditions: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Writes the rows as JSON, where a file was named; called after each round, so that a stop loses little."""
    if path is not None:
        write_text(path, json.dumps({"conditions": conditions, "rows": rows}, indent=2, ensure_ascii=False) + "\n")


def print_conditions(conditions: dict[str, Any]) -> None:
    versions = conditions["versions"]
    print(
        f"{conditions['date']}, {conditions['device']}, {conditions['cores']} cores, Python {versions['python']}, torch "
        f"{versions['torch']}, commit {(conditions['commit'] or 'unknown')[:8]}"
    )


def command(*words: str) -> list[str]:
    """Returns the command line of a script of this project."""
    return [sys.executable, *words]


def data_override(folder: str) -> str:
    """Returns the override that names the folder of the data set."""
    return f"data_path={json.dumps(folder)}"
