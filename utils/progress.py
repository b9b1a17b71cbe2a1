"""Progress bars that read well in a terminal, in a notebook and in a log file."""

import sys
from collections.abc import Iterable

from tqdm.auto import tqdm

LOG_FILE_INTERVAL = 30.0  # seconds between two lines where nobody watches the bar move


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
    watched = sys.stderr.isatty() or "ipykernel" in sys.modules
    return tqdm(
        iterable,
        desc=description,
        unit=unit,
        total=total,
        unit_scale=unit_scale,
        mininterval=0.1 if watched else LOG_FILE_INTERVAL,
        dynamic_ncols=watched,
        leave=False,
    )
