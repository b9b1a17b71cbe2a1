"""Marks of tests that need a device."""

from collections.abc import Callable

import pytest


def needs_cuda(test: Callable) -> Callable:
    """Marks a test as `cuda`, and skips it where there is no such device."""
    import torch  # after the number of its threads has been set: conftest.py imports this folder

    skip = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
    return pytest.mark.cuda(skip(test))
