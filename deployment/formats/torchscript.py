"""TorchScript files: deprecated by PyTorch, still in use."""

import json
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from deployment.formats.session import METADATA, Metadata, Session

if TYPE_CHECKING:
    from torch import Tensor, nn


@contextmanager
def _deprecated_torchscript() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit\..* is deprecated")
        yield


def write(model: "nn.Module", images: Iterable["Tensor"], metadata: Metadata, path: Path) -> None:
    """Writes a TorchScript file for batches of any size; the metadata is an extra file, as JSON."""
    import torch

    image = next(iter(images))
    with _deprecated_torchscript(), torch.no_grad():
        traced = torch.jit.freeze(torch.jit.trace(model, torch.cat([image, image])))
        torch.jit.save(traced, path, _extra_files={METADATA: json.dumps(metadata)})


def load(path: Path, threads: int) -> Session:
    """Loads a TorchScript file; it computes with torch's own threads, which the caller sets."""
    import torch

    extra_files = {METADATA: ""}
    with _deprecated_torchscript():
        module = torch.jit.load(path, map_location="cpu", _extra_files=extra_files)

    def run(images: "Tensor") -> "Tensor":
        with torch.inference_mode():
            return module(images)

    return Session(run, json.loads(extra_files[METADATA]))
