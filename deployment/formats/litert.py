"""LiteRT files, formerly TensorFlow Lite: https://ai.google.dev/edge/litert"""

import contextlib
import io
import json
import logging
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from deployment.formats.session import INPUT, METADATA, OUTPUT, Metadata, Session

if TYPE_CHECKING:
    from torch import Tensor, nn

LABELS, FACTS = "labels.txt", f"{METADATA}.json"


def write(model: "nn.Module", images: Iterable["Tensor"], metadata: Metadata, path: Path) -> None:
    """Writes a LiteRT file for one image at a time.

    As the format has it, class names and metadata are files in a ZIP archive behind the model: `unzip` reads them.
    """
    with (
        warnings.catch_warnings(action="ignore"),
        contextlib.redirect_stdout(io.StringIO()),
    ):  # it prints each of its steps
        import litert_torch
        from torch import nn

        class Named(nn.Module):
            """Gives input and output their names."""

            def __init__(self) -> None:
                super().__init__()
                self.model = model

            def forward(self, image: "Tensor") -> dict[str, "Tensor"]:
                return {OUTPUT: self.model(image)}

        logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
        litert_torch.convert(Named().eval(), sample_kwargs={INPUT: next(iter(images))}).export(str(path))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(LABELS, "\n".join(metadata.get("class_names", [])))
        archive.writestr(FACTS, json.dumps(metadata, ensure_ascii=False))


def load(path: Path, threads: int) -> Session:
    from ai_edge_litert.interpreter import Interpreter
    from torch import cat, from_numpy

    runner = Interpreter(str(path), num_threads=threads or None).get_signature_runner()

    def run(images: "Tensor") -> "Tensor":
        return cat([from_numpy(runner(**{INPUT: image[None].numpy()})[OUTPUT]) for image in images])

    with zipfile.ZipFile(path) as archive:
        return Session(run, json.loads(archive.read(FACTS)))
