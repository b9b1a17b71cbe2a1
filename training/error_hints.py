"""Turns what ends a training from outside into one line that says what to do."""

import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from training.signals import SignalHandler
from utils.errors import Interrupted, RunError

# Near the limit cuDNN tries one kernel after another, and then says only that none was left.
OUT_OF_MEMORY = ("CUDA error: out of memory", "unable to find an engine to execute this computation")


def is_out_of_memory(error: BaseException) -> bool:
    """Says whether the memory of the device was too small."""
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in OUT_OF_MEMORY)


@contextmanager
def error_hints(
    *,
    batch_size: int,
    num_workers: int,
    find_max_batch_size: Callable[[BaseException], int | None],
    signals: SignalHandler,
) -> Iterator[None]:
    """Raises a RunError in the place of errors that a change of one key answers.

    Args:
        batch_size: Of the training within.
        num_workers: Of the training within.
        find_max_batch_size: Says, after the device's memory was too small, how many images do fit; None where it cannot.
        signals: Tells whether a signal has come, which may have ended the processes that read photos as well.
    """
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            fits = find_max_batch_size(error)
            advice = f"--set batch_size={fits} fits" if fits else "set a smaller batch_size or image_size"
            raise RunError(
                f"the device's memory is too small for batches of {batch_size} images; in a new run {advice}, or free "
                "the device of other programs"
            ) from error
        if _is_of_compiler(error):
            raise RunError(f"compile is not possible here: {_reason(error)}. Set compile: null") from error
        if isinstance(error, torch.linalg.LinAlgError) and "lstsq" in str(error):
            raise RunError(
                "RandomPerspective has folded a photo into a line, of which torchvision cannot compute the map; set a smaller "
                "distortion_scale"
            ) from error
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
        if signals.received:
            number = signals.signal_number
            raise Interrupted(
                f"{signal.Signals(number).name} ended the training and the processes that read its photos",
                signal_number=number,
            ) from error
        raise RunError(
            f"the system ended a process that reads photos, most often for lack of memory; try --set num_workers="
            f"{num_workers // 2}"
        ) from error


def _is_of_compiler(error: Exception) -> bool:
    """Says whether compiling failed: of the network or of its gradients, at the first step, or of the augmentations."""
    loaded = sys.modules.get("torch._dynamo.exc")  # takes seconds to import
    return loaded is not None and isinstance(error, loaded.TorchDynamoException)


def _reason(error: Exception) -> str:
    """Returns the line of what went wrong at the bottom of it, without torch's advice to developers."""
    inner: BaseException = getattr(error, "inner_exception", None) or error
    lines = [line.strip() for line in str(inner).splitlines() if line.strip()]
    return (lines or [type(inner).__name__])[0].rstrip(".:")
