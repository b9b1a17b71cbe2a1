"""Turns what ends a training from outside into one line that says what to do."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from utils.errors import RunError


@contextmanager
def explained(
    *, batch_size: int, num_workers: int, fitting_batch_size: Callable[[BaseException], int | None]
) -> Iterator[None]:
    """Raises a RunError in the place of errors that a change of one key answers.

    Args:
        batch_size: Of the training within.
        num_workers: Of the training within.
        fitting_batch_size: Says, after the device's memory was too small, how many images do fit; None where it cannot.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        fits = fitting_batch_size(error)
        advice = f"--set batch_size={fits} fits" if fits else "set a smaller batch_size or image_size"
        raise RunError(
            f"the device's memory is too small for batches of {batch_size} images; in a new run {advice}, or free the "
            "device of other programs"
        ) from error
    except RuntimeError as error:
        if isinstance(error, torch.distributed.DistBackendError) or "third_party/gloo" in str(error):
            reason = re.sub(r"^\[\S+\] ", "", str(error).splitlines()[0]).partition(". ")[0]
            raise RunError(
                f"another process of this training is gone or cannot be reached, see what it says for itself ({reason})"
            ) from error
        if (undetermined := re.match(r"(\w+) does not have a deterministic implementation", str(error))) is not None:
            raise RunError(
                f"deterministic: True is not possible here: {undetermined[1]} of this network has no deterministic kernel on "
                "this device; choose another architecture, or set deterministic: False"
            ) from error
        if re.search(r"DataLoader worker .*(exited unexpectedly|is killed by signal)", str(error)) is None:
            raise
        raise RunError(
            f"the system ended a process that reads photos, most often for lack of memory; try --set num_workers="
            f"{num_workers // 2}"
        ) from error
