"""Writes a model in the formats that phones and servers run, and runs such files. Each format's library is optional.

Importing this module is fast: torch and the libraries are imported when a file is written or loaded.

ONNX: https://onnx.ai  ExecuTorch: https://docs.pytorch.org/executorch  TorchScript: deprecated by PyTorch, still in use.
"""

import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from deployment.agreement import Agreement, logit_problems, prediction_problems
from utils.errors import RunError

if TYPE_CHECKING:
    from torch import Tensor, nn

Run = Callable[["Tensor"], "Tensor"]  # images (N, C, H, W) → logits (N, classes), both on the CPU
Metadata = dict[str, Any]

INPUT, OUTPUT = "image", "logits"
METADATA = "facts"  # entry of TorchScript and ExecuTorch files; files that are in use have this name


class Session(NamedTuple):
    """An exported file, loaded on the CPU, and the metadata it carries."""

    run: Run
    metadata: Metadata


@dataclass(frozen=True)
class Format:
    """How a format is written, loaded and checked.

    Attributes:
        suffix: Of the file name, after the checkpoint's.
        packages: What `pip install` needs for it.
        hint: What to do with the file.
        writer: Writes to a path: a model on the CPU in evaluation mode, example images (1, C, H, W), metadata, path.
            Where `quantizes` is set it gets a file of that format instead of the model.
        loader: Loads a file for a number of threads; 0 leaves the number to the library.
        problems: Returns why a file is rejected.
        image_input: Whether the file can take whole images: `deployment.preprocessing`.
        quantizes: The format that this one is quantized from; all example images are used to calibrate.
        advice: What helps if a file is rejected.
    """

    suffix: str
    packages: str
    hint: str
    writer: Callable[[Any, Iterable["Tensor"], Metadata, Path], None]
    loader: Callable[[Path, int], Session]
    problems: Callable[[Agreement], list[str]] = logit_problems
    image_input: bool = False
    quantizes: str | None = None
    advice: str = ""

    def write(self, source: "nn.Module | Path", images: Iterable["Tensor"], metadata: Metadata, path: Path) -> None:
        """Calls `writer`.

        Raises:
            RunError: The format's library is not installed, or cannot express the model.
        """
        with self._packages():
            self.writer(source, images, metadata, path)

    def load(self, path: Path, threads: int) -> Session:
        """Calls `loader`.

        Raises:
            RunError: The format's library is not installed.
        """
        with self._packages():
            return self.loader(path, threads)

    @contextmanager
    def _packages(self) -> Iterator[None]:
        try:
            yield
        except ImportError as error:
            raise RunError(f"this needs {error.name or self.packages}: pip install {self.packages}") from error


def _write_onnx(model: "nn.Module", images: Iterable["Tensor"], metadata: Metadata, path: Path) -> None:
    """Writes an ONNX file for batches of any size; each value of the metadata is an entry of its own, as JSON."""
    import onnxscript  # noqa: F401  used by torch's exporter
    import torch

    image = next(iter(images))
    batch = torch.cat([image, image])  # torch takes a batch size of one for a constant
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns about its own parts
    try:
        with warnings.catch_warnings(action="ignore"):
            program = torch.onnx.export(
                model, (batch,), dynamo=True, verbose=False, input_names=[INPUT], output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )  # fmt: skip
    except torch.onnx.errors.OnnxExporterError as error:
        raise RunError(f"{type(model).__name__} cannot be written as ONNX: {str(error).splitlines()[0]}") from error
    save_onnx(program.model_proto, metadata, path)


def _quantize_onnx(onnx_path: Path, images: Iterable["Tensor"], metadata: Metadata, path: Path) -> None:
    """Quantizes an ONNX file to 8-bit weights and activations (static, QDQ, signed, weights scaled per channel)."""
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
    save_onnx(onnx.load(path), metadata, path)


def save_onnx(proto: Any, metadata: Metadata, path: Path) -> None:
    """Writes `proto`; each value of `metadata` is an entry of its own, as JSON."""
    import onnx

    texts = {name: json.dumps(value, ensure_ascii=False) for name, value in metadata.items()}
    onnx.helper.set_model_props(proto, texts)
    onnx.save(proto, path)


def _load_onnx(path: Path, threads: int) -> Session:
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(images: "Tensor") -> "Tensor":
        return torch.from_numpy(session.run(None, {INPUT: images.numpy()})[0])

    texts = session.get_modelmeta().custom_metadata_map
    return Session(run, {name: json.loads(text) for name, text in texts.items()})


@contextmanager
def _deprecated_torchscript() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit\..* is deprecated")
        yield


def _write_torchscript(model: "nn.Module", images: Iterable["Tensor"], metadata: Metadata, path: Path) -> None:
    """Writes a TorchScript file for batches of any size; the metadata is an extra file, as JSON."""
    import torch

    image = next(iter(images))
    with _deprecated_torchscript(), torch.no_grad():
        traced = torch.jit.freeze(torch.jit.trace(model, torch.cat([image, image])))
        torch.jit.save(traced, path, _extra_files={METADATA: json.dumps(metadata)})


def _load_torchscript(path: Path, threads: int) -> Session:
    """Loads a TorchScript file; it computes with torch's own threads, which the caller sets."""
    import torch

    extra_files = {METADATA: ""}
    with _deprecated_torchscript():
        module = torch.jit.load(path, map_location="cpu", _extra_files=extra_files)

    def run(images: "Tensor") -> "Tensor":
        with torch.inference_mode():
            return module(images)

    return Session(run, json.loads(extra_files[METADATA]))


def _write_executorch(model: "nn.Module", images: Iterable["Tensor"], metadata: Metadata, path: Path) -> None:
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


def _load_executorch(path: Path, threads: int) -> Session:
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


FORMATS = {
    "onnx": Format(
        suffix=".onnx",
        packages="onnx onnxscript onnxruntime",
        hint="onnxruntime runs it; --format onnx-int8 makes it smaller",
        writer=_write_onnx,
        loader=_load_onnx,
        image_input=True,
    ),
    "onnx-int8": Format(
        suffix="-int8.onnx",
        packages="onnx onnxscript onnxruntime",
        hint="onnxruntime runs it",
        writer=_quantize_onnx,
        loader=_load_onnx,
        problems=prediction_problems,
        image_input=True,
        quantizes="onnx",
        advice="an undertrained model has many small margins, and 8 bits flip some of its predictions; train it further "
        "and export again. --format onnx keeps 32 bits",
    ),
    "executorch": Format(
        suffix=".pte",
        packages="executorch",
        hint="the ExecuTorch runtime for Android and iOS runs it",
        writer=_write_executorch,
        loader=_load_executorch,
    ),
    "torchscript": Format(
        suffix=".torchscript",
        packages="torch",
        hint="torch.jit.load runs it; PyTorch has deprecated this format, --format onnx or executorch will last",
        writer=_write_torchscript,
        loader=_load_torchscript,
    ),
}
