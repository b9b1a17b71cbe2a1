"""Turns what ends a training from outside into one line that says what to do."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from utils.errors import RunError


@contextmanager
def explained(*, batch_size: int, num_workers: int) -> Iterator[None]:
    """Raises a RunError in the place of errors that a change of one key answers.

    Args:
        batch_size: Of the training within.
        num_workers: Of the training within.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise RunError(
            f"the device's memory is too small for batches of {batch_size} images; "
            f"try --set batch_size={max(2, batch_size // 2)}, or free the device of other programs"
        ) from error
    except RuntimeError as error:
        if isinstance(error, torch.distributed.DistBackendError) or "third_party/gloo" in str(error):
            reason = re.sub(r"^\[\S+\] ", "", str(error).splitlines()[0]).partition(". ")[0]
            raise RunError(
                f"another process of this training is gone or cannot be reached, see what it says for itself ({reason})"
            ) from error
        if re.search(r"DataLoader worker .*(exited unexpectedly|is killed by signal)", str(error)) is None:
            raise
        raise RunError(
            f"the system ended a process that reads photos, most often for lack of memory; try --set num_workers="
            f"{num_workers // 2}"
        ) from error
