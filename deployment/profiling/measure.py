"""Measures how large and how fast a network is."""

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
    """How long a call takes: the median, and the quartiles around it."""

    median: float
    low: float
    high: float


def spread(times: list[float]) -> Seconds:
    """Returns median and quartiles of at least two durations."""
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return Seconds(median, low, high)


@contextmanager
def threads_restored() -> Iterator[None]:
    """Lets torch compute with as many threads as before, whatever is set within."""
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
    least_calls: int = 3,
    description: str = "measuring",
) -> dict[Name, list[float]]:
    """Times each of `calls` in turn, `rounds` times over, so that what disturbs the machine for a while meets all of them.

    Args:
        calls: What to time.
        rounds: How many turns each gets.
        seconds: How long a turn takes at least.
        least_calls: How many calls a turn has at least.
        description: Of the progress bar.

    Returns:
        The duration of every call, without those of the warm-up at the start of each turn.
    """
    times: dict[Name, list[float]] = {name: [] for name in calls}
    for name, call in progress_bar(list(calls.items()) * rounds, description=description, unit=" turns"):
        for _ in range(WARM_UP_CALLS):
            call()
        end, count = time.perf_counter() + seconds, 0
        while count < least_calls or time.perf_counter() < end:
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
            count += 1
    return times


def count_multiply_adds(model: nn.Module, image: Tensor) -> int:
    """Returns the multiply-adds of one image (1, C, H, W): half of what `torch.utils.flop_counter` counts.

    It counts convolutions and matrix products, which are nearly all of them, and takes tensors of the meta device too.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    return counter.get_total_flops() // 2
