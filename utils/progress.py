"""Progress bars for a terminal, a notebook and a log file."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tqdm.auto import tqdm

LOG_FILE_INTERVAL = 30.0  # seconds between two lines of a bar in a log file

Item = TypeVar("Item")
Result = TypeVar("Result")


def is_watched() -> bool:
    """Returns whether stderr is a terminal or a notebook."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def progress_bar(
    iterable: Iterable | None = None, *, description: str, unit: str, total: int | None = None, unit_scale: bool = False
) -> tqdm:
    """Returns a tqdm bar on stderr that moves in a terminal or a notebook and prints a line every 30 s to a log file.

    Args:
        iterable: The items to iterate over; None for a bar that is advanced by `update`.
        description: The activity, such as "extracting car_ims.tgz".
        unit: The unit of the count, such as " images"; "B" with `unit_scale` for bytes.
        total: The number of items, if `iterable` has no length.
        unit_scale: Whether to print 1.2k for 1200.
    """
    settings = {"desc": description, "unit": unit, "total": total, "unit_scale": unit_scale, "leave": False}
    if is_watched():
        return tqdm(iterable, dynamic_ncols=True, **settings)
    interval = {"mininterval": LOG_FILE_INTERVAL, "maxinterval": LOG_FILE_INTERVAL, "delay": LOG_FILE_INTERVAL}
    return tqdm(iterable, file=_Lines(), **interval, **settings)


def in_threads(
    function: Callable[[Item], Result], items: Sequence[Item], *, threads: int, description: str, unit: str = " images"
) -> Iterator[Result]:
    """Yields what `function` returns for each item, in their order, behind a progress bar; so many threads call it."""
    pool = ThreadPoolExecutor(threads)
    try:
        yield from progress_bar(pool.map(function, items), description=description, unit=unit, total=len(items))
    finally:
        pool.shutdown(cancel_futures=True)  # an error or Ctrl-C does not wait for the others


def total_bar(*, unit: str, total: int, done: float) -> tqdm:
    """Returns a bar over work that takes hours, of which `done` was finished before; `show_total` moves it."""
    bar = progress_bar(description="", unit=unit, total=total)
    bar.bar_format = "{percentage:3.0f}%|{bar}| {desc}, {remaining} left"
    bar.smoothing = 0  # the mean speed, not the most recent one
    bar.n = bar.initial = done
    return bar


def show_total(bar: tqdm, description: str, done: float) -> None:
    """Shows what is being done and how much is finished."""
    bar.set_description_str(description, refresh=False)
    bar.update(done - bar.n)
    if is_watched():
        bar.refresh()


class _Lines:
    """Prints each state of a bar as a line of its own; work shorter than the interval prints none."""

    def write(self, text: str) -> None:
        if line := text.strip("\r\n "):
            print(line, file=sys.stderr, flush=True)

    def flush(self) -> None:
        sys.stderr.flush()
