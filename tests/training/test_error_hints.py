"""Known failures of torch become one line that says what to change. Where a CPU can, the failure is a real one."""

import shutil
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision import transforms

from training.failures.error_hints import error_hints, is_out_of_memory
from training.signals import SignalHandler
from utils.errors import Interrupted, RunError


def hinted(fail, *, fits: int | None = None, signals: SignalHandler | None = None):
    with error_hints(
        batch_size=64,
        num_workers=lambda: 4,
        find_max_batch_size=lambda error: fits,
        signals=signals or SignalHandler(),
    ):
        fail()


def raising(error: Exception):
    def fail():
        raise error

    return fail


def fold_image():
    """Maps an image onto a line, as RandomPerspective may with a distortion_scale near 1."""
    corners = [[0, 0], [9, 0], [9, 9], [0, 9]]
    transforms.functional.perspective(Image.new("RGB", (10, 10)), corners, [[0, 0]] * 4)


def fill_shared_memory():
    torch.UntypedStorage._new_shared(shutil.disk_usage("/dev/shm").total + 2**30)


REAL = {
    "memory of the host": (
        lambda: torch.empty(10**15),
        "the memory of this machine is too small for batches of 64 images; in a new run set a smaller batch_size",
    ),
    "degenerate transform": (
        fold_image,
        "RandomPerspective drew a degenerate transform; set a smaller distortion_scale",
    ),
    "shared memory": (
        fill_shared_memory,
        "/dev/shm is too small .*; in Docker: docker run --shm-size=2g, or --set num_workers=0",
    ),
}


@pytest.mark.parametrize("what", REAL)
def test_a_real_failure_gets_its_hint(what):
    fail, message = REAL[what]
    if what == "shared memory" and not Path("/dev/shm").is_dir():
        pytest.skip("Linux alone has /dev/shm")
    with pytest.raises(RunError, match=message) as caught:
        hinted(fail)
    assert "\n" not in str(caught.value) and caught.value.__cause__ is not None


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("MPS backend out of memory (MPS allocated: 17.95 GB, max allowed: 18.13 GB)"),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("GET was unable to find an engine to execute this computation"),
    ],
    ids=lambda error: str(error)[:24],
)  # fmt: skip
def test_every_device_that_is_out_of_memory_names_the_batch_that_fits(error):
    with pytest.raises(RunError, match=r"the memory of the device is too small .* --set batch_size=16 fits"):
        hinted(raising(error), fits=16)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_another_error_passes_unchanged():
    with pytest.raises(RuntimeError, match=r"^of the program itself$"):
        hinted(raising(RuntimeError("of the program itself")))


def test_workers_that_a_signal_to_all_processes_has_ended_are_not_blamed():
    signals = SignalHandler()
    signals.signal_number = signal.SIGTERM
    error = RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly")
    with pytest.raises(Interrupted, match="SIGTERM ended the training and the processes that load its images"):
        hinted(raising(error), signals=signals)
    with pytest.raises(RunError, match=r"the system ended a process that loads images, .* --set num_workers=2"):
        hinted(raising(error))
