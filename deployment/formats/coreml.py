"""Core ML packages, for iOS and macOS: https://developer.apple.com/documentation/coreml"""

import json
import logging
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deployment.formats.session import INPUT, METADATA, OUTPUT, Metadata, Session

if TYPE_CHECKING:
    from torch import Tensor, nn

SUFFIX = ".mlpackage"
CLASSES = "classes"  # the entry that Xcode shows class names of


@contextmanager
def _coremltools() -> Iterator[Any]:
    """Yields coremltools, which warns of any torch that is newer than itself."""
    with warnings.catch_warnings(action="ignore"):
        logging.getLogger("coremltools").setLevel(logging.ERROR)
        import coremltools

        yield coremltools


def write(model: "nn.Module", images: Iterable["Tensor"], metadata: Metadata, path: Path) -> None:
    """Writes a package, which is a folder, into a ZIP archive: 32 bits, one image at a time, iOS 16 or later."""
    import torch

    with _coremltools() as tools, tempfile.TemporaryDirectory() as folder:
        image = next(iter(images))
        program = torch.export.export(model, (image,)).run_decompositions({})
        for node in program.graph.nodes:
            if (
                node.target is torch.ops.aten.alias.default
            ):  # another name of a tensor, which coremltools 9 does not know
                node.replace_all_uses_with(node.args[0])
                program.graph.erase_node(node)
        package = tools.convert(
            program,
            inputs=[tools.TensorType(name=INPUT, shape=image.shape)],
            outputs=[tools.TensorType(name=OUTPUT)],
            minimum_deployment_target=tools.target.iOS16,
            compute_precision=tools.precision.FLOAT32,
            skip_model_load=True,
        )
        package.user_defined_metadata[METADATA] = json.dumps(metadata, ensure_ascii=False)
        package.user_defined_metadata[CLASSES] = ",".join(metadata.get("class_names", []))
        package.save(str(Path(folder, "package", "model" + SUFFIX)))
        archive = shutil.make_archive(str(Path(folder, "archive")), "zip", Path(folder, "package"))
        shutil.copyfile(archive, path)


def load(path: Path, threads: int) -> Session:
    """Loads a package; it runs on macOS only, with threads of its own."""
    with _coremltools() as tools, tempfile.TemporaryDirectory() as folder:
        shutil.unpack_archive(path, folder, "zip")
        package = tools.models.MLModel(str(Path(folder, "model" + SUFFIX)), skip_model_load=sys.platform != "darwin")

    def run(images: "Tensor") -> "Tensor":
        from torch import cat, from_numpy

        return cat([from_numpy(package.predict({INPUT: image[None].numpy()})[OUTPUT]) for image in images])

    metadata = json.loads(package.user_defined_metadata[METADATA])
    return Session(run if sys.platform == "darwin" else None, metadata)
