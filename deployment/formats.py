"""Writes a network in the formats that phones and servers run, and runs such a file; each format's library is optional.

ONNX: https://onnx.ai  ExecuTorch: https://docs.pytorch.org/executorch  TorchScript: deprecated by PyTorch, still asked for.
"""

import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from utils.errors import RunError

Run = Callable[[Tensor], Tensor]  # images (N, C, H, W) → logits (N, classes), both on the CPU
Facts = dict[str, Any]

INPUT, OUTPUT = "image", "logits"
FACTS = "facts"  # name of the facts in a TorchScript or ExecuTorch file
ONNX_PACKAGES = "onnx onnxscript onnxruntime"
INT8 = "onnx-int8"  # an ONNX file as well, made from one of 32 bits


class Opened(NamedTuple):
    """An exported file, ready to run on one core, and the facts that travel in it."""

    run: Run
    facts: Facts


class Format(NamedTuple):
    """How a format is written and run.

    Attributes:
        write: Takes a network on the CPU in evaluation mode, one image (1, C, H, W), the facts, and where to.
        open: Takes a file and the number of threads.
    """

    write: Callable[[nn.Module, Tensor, Facts, Path], None]
    open: Callable[[Path, int], Opened]


@contextmanager
def needing(packages: str) -> Iterator[None]:
    """Turns a missing import within into an error that says what to install."""
    try:
        yield
    except ImportError as error:
        raise RunError(f"this needs {error.name or packages}: pip install {packages}") from error


def write_onnx(model: nn.Module, image: Tensor, facts: Facts, path: Path) -> None:
    """Writes an ONNX file that takes any number of images at once; each fact is an entry of its metadata, as JSON."""
    with needing(ONNX_PACKAGES):
        import onnx
        import onnxscript  # noqa: F401  what torch exports by
    images = torch.cat([image, image])  # two, for torch takes a batch of one for a constant
    # What the exporter says of its own parts is of no use to those who export.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            program = torch.onnx.export(
                model, (images,), dynamo=True, verbose=False, input_names=[INPUT], output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )  # fmt: skip
    except torch.onnx.errors.OnnxExporterError as error:
        raise RunError(f"{type(model).__name__} cannot be written as ONNX: {str(error).splitlines()[0]}") from error
    proto = program.model_proto
    onnx.helper.set_model_props(proto, _texts(facts))
    onnx.save(proto, path)


def write_int8(onnx_path: Path, images: Iterable[Tensor], facts: Facts, path: Path) -> None:
    """Writes an ONNX file with weights and activations of 8 bits (QDQ, signed, weights scaled channel by channel).

    Args:
        onnx_path: A file of `write_onnx`.
        images: Batches (N, C, H, W) that show the range of every activation.
        facts: As for `write_onnx`.
        path: Where to.
    """
    with needing(ONNX_PACKAGES):
        import onnx
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(images)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {INPUT: batch.numpy()}

    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder, "prepared.onnx")
        quant_pre_process(onnx_path, prepared)
        quantization.quantize_static(prepared, path, Reader(), per_channel=True)
    proto = onnx.load(path)
    onnx.helper.set_model_props(proto, _texts(facts))
    onnx.save(proto, path)


def open_onnx(path: Path, threads: int) -> Opened:
    """Opens an ONNX file; `threads` 0 means all cores."""
    with needing(ONNX_PACKAGES):
        import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {INPUT: images.numpy()})[0])

    facts = session.get_modelmeta().custom_metadata_map
    return Opened(run, {name: json.loads(text) for name, text in facts.items()})


@contextmanager
def _deprecated_torchscript() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit\..* is deprecated")
        yield


def write_torchscript(model: nn.Module, image: Tensor, facts: Facts, path: Path) -> None:
    """Writes a TorchScript file that takes any number of images; the facts are its extra file, JSON."""
    with _deprecated_torchscript(), torch.no_grad():
        traced = torch.jit.freeze(torch.jit.trace(model, torch.cat([image, image])))
        torch.jit.save(traced, path, _extra_files={FACTS: json.dumps(facts)})


def open_torchscript(path: Path, threads: int) -> Opened:
    """Opens a TorchScript file; its threads are torch's own, which the caller sets."""
    extra_files = {FACTS: ""}
    with _deprecated_torchscript():
        module = torch.jit.load(path, map_location="cpu", _extra_files=extra_files)

    def run(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return module(images)

    return Opened(run, json.loads(extra_files[FACTS]))


def write_executorch(model: nn.Module, image: Tensor, facts: Facts, path: Path) -> None:
    """Writes an ExecuTorch file for one image at a time, computed by XNNPACK; the facts are its method `facts`, JSON."""
    with warnings.catch_warnings(action="ignore"):  # it warns of its own parts, and of being experimental
        with needing("executorch"):
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower
        program = to_edge_transform_and_lower(
            torch.export.export(model, (image,)),
            partitioner=[XnnpackPartitioner()],
            constant_methods={FACTS: json.dumps(facts)},
        ).to_executorch()
    path.write_bytes(program.buffer)


def open_executorch(path: Path, threads: int) -> Opened:
    """Opens an ExecuTorch file; `threads` 0 means its own choice."""
    with warnings.catch_warnings(action="ignore"):
        with needing("executorch"):
            from executorch.extension.pybindings import portable_lib
            from executorch.runtime import Runtime
        program = Runtime.get().load_program(path)
    if threads:
        portable_lib._unsafe_reset_threadpool(threads)
    method = program.load_method("forward")

    def run(images: Tensor) -> Tensor:
        return torch.cat([method.execute([image[None].contiguous()])[0].clone() for image in images])

    return Opened(run, json.loads(program.load_method(FACTS).execute([])[0]))


def _texts(facts: Facts) -> dict[str, str]:
    return {name: json.dumps(value, ensure_ascii=False) for name, value in facts.items()}


FORMATS = {
    "onnx": Format(write_onnx, open_onnx),
    "executorch": Format(write_executorch, open_executorch),
    "torchscript": Format(write_torchscript, open_torchscript),
}
