"""Writes a model in the formats that phones and servers run, and runs such files. Each format's library is optional.

Importing this room is fast: torch and the libraries are imported when a file is written or loaded.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deployment.agreement import Agreement, output_problems, prediction_problems
from deployment.formats import coreml, executorch, litert, onnx, torchscript
from deployment.formats.session import INPUT, OUTPUT, Metadata, Run, Session
from utils.errors import RunError

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["FORMATS", "INPUT", "OUTPUT", "Format", "Metadata", "Run", "Session"]


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
        environment: Name of an environment for its packages alone, where they want older versions than other parts.
        platform: The `sys.platform` of its runtime; None for all.
        advice: What helps if a file is rejected.
    """

    suffix: str
    packages: str
    hint: str
    writer: Callable[[Any, Iterable["Tensor"], Metadata, Path], None]
    loader: Callable[[Path, int], Session]
    problems: Callable[[Agreement], list[str]] = output_problems
    image_input: bool = False
    quantizes: str | None = None
    environment: str | None = None
    platform: str | None = None
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
            install = f"pip install {self.packages}"
            if self.environment:
                path = self.environment
                install = f"python -m venv {path} && {path}/bin/{install} && {path}/bin/python export.py …"
            raise RunError(f"this needs {error.name or self.packages}: {install}") from error


FORMATS = {
    "onnx": Format(
        suffix=".onnx",
        packages="onnx onnxscript onnxruntime",
        hint="onnxruntime runs it; --format onnx-int8 makes it smaller",
        writer=onnx.write,
        loader=onnx.load,
        image_input=True,
    ),
    "onnx-int8": Format(
        suffix="-int8.onnx",
        packages="onnx onnxscript onnxruntime",
        hint="onnxruntime runs it",
        writer=onnx.quantize,
        loader=onnx.load,
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
        writer=executorch.write,
        loader=executorch.load,
    ),
    "litert": Format(
        suffix=".tflite",
        packages="-r requirements-litert.txt",
        hint="the LiteRT runtime for Android, iOS and microcontrollers runs it; unzip reads its class names",
        writer=litert.write,
        loader=litert.load,
        environment="litert",
    ),
    "coreml": Format(
        suffix=".mlpackage.zip",
        packages="-r requirements-coreml.txt",
        hint="unzip it, and add the .mlpackage to a project of Xcode",
        writer=coreml.write,
        loader=coreml.load,
        platform="darwin",
    ),
    "torchscript": Format(
        suffix=".torchscript",
        packages="torch",
        hint="torch.jit.load runs it; PyTorch has deprecated this format, --format onnx or executorch will last",
        writer=torchscript.write,
        loader=torchscript.load,
    ),
}
