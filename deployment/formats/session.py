"""What all formats share: the names within their files, and a file that is loaded."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

Run = Callable[["Tensor"], "Tensor"]  # images (N, C, H, W) → logits (N, classes), both on the CPU
Metadata = dict[str, Any]

INPUT, OUTPUT = "image", "logits"
METADATA = "facts"  # entry of files of several formats; files that are in use have this name


class Session(NamedTuple):
    """An exported file, loaded on the CPU, and the metadata it carries; `run` is None where its runtime does not exist."""

    run: Run | None
    metadata: Metadata
