"""Progress bars that read well in a terminal, in a notebook and in a log file."""

import sys
from collections.abc import Iterable

from tqdm.auto import tqdm

LOG_FILE_INTERVAL = 30.0  # seconds between two lines where nobody watches the bar move


def is_watched() -> bool:
    """Says whether stderr is a terminal or a notebook."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def progress_bar(
    iterable: Iterable | None = None,
    *,
    description: str,
    unit: str,
    total: int | None = None,
    unit_scale: bool = False,
) -> tqdm:
    """Returns a tqdm bar on stderr: moving in a terminal or a notebook, a line every 30 s in a log file.

    Args:
        iterable: What to walk through; None for a bar that is moved by `update`.
        description: What is being done, such as "extracting car_ims.tgz".
        unit: What is counted, such as " photos"; "B" with `unit_scale` for bytes.
        total: How many, where `iterable` does not tell.
        unit_scale: Whether to print 1.2k for 1200.
    """
    settings = {"desc": description, "unit": unit, "total": total, "unit_scale": unit_scale, "leave": False}
    if is_watched():
        return tqdm(iterable, dynamic_ncols=True, **settings)
    interval = {"mininterval": LOG_FILE_INTERVAL, "maxinterval": LOG_FILE_INTERVAL, "delay": LOG_FILE_INTERVAL}
    return tqdm(iterable, file=_Lines(), **interval, **settings)


class _Lines:
    """Writes each state of a bar as a line of its own; what takes less than the interval leaves none."""

    def write(self, text: str) -> None:
        if line := text.strip("\r\n "):
            print(line, file=sys.stderr, flush=True)

    def flush(self) -> None:
        sys.stderr.flush()
