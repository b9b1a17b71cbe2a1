"""Writes the app's model: from the pixels of a photo to probabilities."""

import tempfile
from pathlib import Path
from typing import Any

import onnx
import torch

from deployment.evaluation.evaluation import load_split
from deployment.export import build_metadata, export
from deployment.formats import FORMATS
from deployment.preprocessing import add_preprocessing
from deployment.trained import TrainedModel

COMPARED_IMAGES = 500  # on which an 8-bit model has to agree with the trained one


def write_model(trained: TrainedModel, output: Path, *, int8: bool, data: Path | None) -> dict[str, Any]:
    """Writes the app's model and returns the content of its `model.json`.

    Args:
        trained: The model.
        output: The ONNX file to write.
        int8: Whether weights and activations have 8 bits.
        data: The data set that an 8-bit model is calibrated on and compared on, instead of the training's.

    Raises:
        RunError: The 8-bit model disagrees with the trained one.
    """
    metadata = build_metadata(trained)
    accuracy, images = trained.metrics.get("valid_acc"), "validation photos"
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder, "draft.onnx")
        if int8:
            _, splits = load_split(trained, data, "valid")
            agreement = export(trained, "onnx-int8", splits, draft, num_images=COMPARED_IMAGES).agreement
            accuracy, images = agreement.exported_accuracy, f"{agreement.images:,} validation photos"
        else:
            example = torch.zeros(1, len(metadata["channels"]), *metadata["image_size"])
            FORMATS["onnx"].write(trained.exportable(), [example], metadata, draft)
        onnx.save(add_preprocessing(onnx.load(draft), metadata), output)
    return {
        "class_names": list(trained.class_names),
        "threshold": metadata["threshold"],
        "score": metadata["score"],
        "about": f"{trained.config.architecture}, {len(trained.class_names)} car models"
        + (f", {accuracy:.1%} right on {images}" if accuracy is not None else "")
        + ("; it sees only the center of a photo" if metadata["aspect"] == "crop" else ""),
    }
