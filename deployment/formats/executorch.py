"""ExecuTorch files: https://docs.pytorch.org/executorch"""

import json
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from deployment.formats.session import METADATA, Metadata, Session

if TYPE_CHECKING:
    from torch import Tensor, nn


def write(model: "nn.Module", images: Iterable["Tensor"], metadata: Metadata, path: Path) -> None:
    """Writes an ExecuTorch file for one image at a time, run by XNNPACK; the metadata is a constant method, as JSON."""
    with warnings.catch_warnings(action="ignore"):  # it warns about its own parts, and that it is experimental
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower
        from torch import export

        program = to_edge_transform_and_lower(
            export.export(model, (next(iter(images)),)),
            partitioner=[XnnpackPartitioner()],
            constant_methods={METADATA: json.dumps(metadata)},
        ).to_executorch()
    path.write_bytes(program.buffer)


def load(path: Path, threads: int) -> Session:
    with warnings.catch_warnings(action="ignore"):
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime
        from torch import cat

        program = Runtime.get().load_program(path)
    if threads:
        portable_lib._unsafe_reset_threadpool(threads)
    method = program.load_method("forward")

    def run(images: "Tensor") -> "Tensor":
        return cat([method.execute([image[None].contiguous()])[0].clone() for image in images])

    return Session(run, json.loads(program.load_method(METADATA).execute([])[0]))
