"""ONNX files, run by onnxruntime: https://onnx.ai"""

import json
import logging
import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deployment.formats.session import INPUT, OUTPUT, Metadata, Session
from utils.errors import RunError

if TYPE_CHECKING:
    from torch import Tensor, nn


def write(model: "nn.Module", images: Iterable["Tensor"], metadata: Metadata, path: Path) -> None:
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
    save(program.model_proto, metadata, path)


def quantize(onnx_path: Path, images: Iterable["Tensor"], metadata: Metadata, path: Path) -> None:
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
    save(onnx.load(path), metadata, path)


def save(proto: Any, metadata: Metadata, path: Path) -> None:
    """Writes `proto`; each value of `metadata` is an entry of its own, as JSON."""
    import onnx

    texts = {name: json.dumps(value, ensure_ascii=False) for name, value in metadata.items()}
    onnx.helper.set_model_props(proto, texts)
    onnx.save(proto, path)


def load(path: Path, threads: int) -> Session:
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
