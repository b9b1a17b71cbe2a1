"""Translates known training failures into one line that says what to change.

Where torch has a type for a failure, the type is matched; where it has none, the phrase that its source has had for years.
"""

import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from training.signals import SignalHandler
from utils.errors import Interrupted, RunError

HOST_OUT_OF_MEMORY = "DefaultCPUAllocator: can't allocate memory"
OUT_OF_MEMORY = (
    HOST_OUT_OF_MEMORY,
    "MPS backend out of memory",
    "CUDA error: out of memory",
    "ALLOC_FAILED",  # status of cuBLAS and cuDNN
    # Near the limit, cuDNN tries one kernel after another, and then only reports that none was left.
    "unable to find an engine to execute this computation",
)


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in OUT_OF_MEMORY)


@contextmanager
def error_hints(
    *,
    batch_size: int,
    num_workers: Callable[[], int],
    find_max_batch_size: Callable[[BaseException], int | None],
    signals: SignalHandler,
) -> Iterator[None]:
    """Raises a RunError with a hint for each failure that a change of the configuration or the machine cures.

    Args:
        batch_size: Of the training within.
        num_workers: Returns how many workers the training within had.
        find_max_batch_size: Given the error that ran out of memory, returns a batch size that fits; None if unknown.
        signals: Shows whether a signal came, which may have ended the workers too.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if is_out_of_memory(error):
            fits = find_max_batch_size(error)
            raise RunError(
                f"the memory of {'this machine' if HOST_OUT_OF_MEMORY in text else 'the device'} is too small for batches of "
                f"{batch_size} images; in a new run "
                f"{f'--set batch_size={fits} fits' if fits else 'set a smaller batch_size or image_size'}, or end other "
                "programs that use it"
            ) from error
        if _is_of_compiler(error):
            raise RunError(f"compile is not possible here: {_reason(error)}. Set compile: null") from error
        if isinstance(error, torch.linalg.LinAlgError) and "lstsq" in text:
            raise RunError("RandomPerspective drew a degenerate transform; set a smaller distortion_scale") from error
        if isinstance(error, torch.distributed.DistError) or "/gloo/" in text:
            reason = re.sub(r"^\[\S+\] ", "", text.partition("\n")[0]).partition(". ")[0]
            raise RunError(
                f"another process of this training ended or cannot be reached; see its messages ({reason})"
            ) from error
        if operation := re.match(r"(\w+) does not have a deterministic implementation", text):
            raise RunError(
                f"deterministic: True is not possible here: {operation[1]} of this model has no deterministic kernel on this "
                "device; choose another architecture, or set deterministic: False"
            ) from error
        worker_ended = re.search(r"DataLoader worker .*(exited unexpectedly|is killed by signal)", text)
        if "allocate shared memory" in text or (worker_ended and "Bus error" in text):
            raise RunError(
                "/dev/shm is too small for the batches of the processes that load images; in Docker: docker run "
                "--shm-size=2g, or --set num_workers=0",
                change="num_workers=0",
            ) from error
        if worker_ended and signals.signal_number is not None:
            raise Interrupted(
                f"{signal.Signals(signals.signal_number).name} ended the training and the processes that load its images",
                signal_number=signals.signal_number,
            ) from error
        if worker_ended:
            raise RunError(
                "the system ended a process that loads images, most often for lack of memory; try "
                f"--set num_workers={num_workers() // 2}"
            ) from error
        raise


def _is_of_compiler(error: Exception) -> bool:
    """Returns whether torch.compile failed, on the model or on the augmentations."""
    loaded = sys.modules.get("torch._dynamo.exc")  # takes seconds to import
    return loaded is not None and isinstance(error, loaded.TorchDynamoException)


def _reason(error: Exception) -> str:
    """Returns the first line of the innermost error, without torch's advice to developers."""
    inner: BaseException = getattr(error, "inner_exception", None) or error
    lines = [line.strip() for line in str(inner).splitlines() if line.strip()]
    return (lines or [type(inner).__name__])[0].rstrip(".:")
