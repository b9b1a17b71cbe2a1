"""Measures the cost of a model: multiply-adds, and the duration of calls."""

import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from utils.progress import progress_bar

WARM_UP_CALLS = 2  # at the start of each turn

Name = TypeVar("Name", bound=Hashable)


class Seconds(NamedTuple):
    """The duration of a call: median and quartiles."""

    median: float
    low: float
    high: float


def spread(times: list[float]) -> Seconds:
    """Returns the median and the quartiles of at least two durations."""
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return Seconds(median, low, high)


@contextmanager
def restored_threads() -> Iterator[None]:
    """Restores torch's number of threads on exit."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def interleaved(
    calls: Mapping[Name, Callable[[], object]],
    *,
    rounds: int,
    seconds: float,
    min_calls: int = 3,
    description: str = "measuring",
) -> dict[Name, list[float]]:
    """Times `calls` in turns, so that a temporary disturbance of the machine affects all of them.

    Args:
        calls: The functions to time.
        rounds: Turns of each function.
        seconds: Minimum duration of a turn.
        min_calls: Minimum number of calls in a turn.
        description: Of the progress bar.

    Returns:
        The duration of every call, in seconds, without the warm-up calls of each turn.
    """
    times: dict[Name, list[float]] = {name: [] for name in calls}
    for name, call in progress_bar(list(calls.items()) * rounds, description=description, unit=" turns"):
        for _ in range(WARM_UP_CALLS):
            call()
        end, count = time.perf_counter() + seconds, 0
        while count < min_calls or time.perf_counter() < end:
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
            count += 1
    return times


def count_multiply_adds(model: nn.Module, image: Tensor) -> int:
    """Returns the multiply-adds of one image (1, C, H, W): half of what `torch.utils.flop_counter` counts.

    Convolutions and matrix products are counted. Tensors on the meta device are accepted.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    return counter.get_total_flops() // 2
