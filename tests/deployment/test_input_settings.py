"""Crops from larger images, the aspect ratio, the test size and flips reach every command in the same way."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import export
from deployment.evaluation.evaluation import evaluate, load_split
from deployment.explanation import Explainer
from deployment.prediction import predict
from deployment.trained import load_trained
from tests.support.data_sets import write_updated_release
from tests.support.small_runs import rows, run

pytestmark = pytest.mark.slow
COMMON = (
    "architecture=shuff_v2_x05", "dropout=null", "out_channels=null", "image_size=[64, 48]", "resize_size=[80, 60]",
    "test_image_size=[72, 60]", "flip_at_test=True", "num_epochs=1",
    "image_augmentations={RandomResizedCrop: {size: [64, 48], scale: [0.5, 1.0]}, RandomHorizontalFlip: {}}",
)  # fmt: skip


@pytest.fixture(scope="module", params=[("crop", "cpu"), ("pad", "device")], ids=["crop", "pad"])
def folder(request, tmp_path_factory) -> Path:
    aspect, device = request.param
    work = tmp_path_factory.mktemp(aspect)
    write_updated_release(work / "data", train_per_class=6, valid_per_class=4, image_sizes=[(90, 60), (60, 100)])
    return run(work / "data", work / "output", *COMMON, f"aspect={aspect}", f"augmentation_device={device}")


def test_evaluation_prediction_and_exported_files_agree_with_the_training(folder):
    trained = load_trained(str(folder))
    images, splits = load_split(trained, None, "valid")
    last = rows(folder)[-1]
    for name, value in evaluate(trained, images, splits).metrics.items():
        assert float(last[name]) == value, name
    assert trained.transform(Image.new("RGB", (90, 60))).shape == (3, 72, 60)
    paths = sorted((trained.config.data_path / "car_ims").iterdir())[:3]
    for path, prediction in zip(paths, predict(trained, paths), strict=True):
        image = trained.transform(Image.open(path).convert("RGB"))
        with torch.no_grad():
            logits = trained.classifier.model(torch.stack([image, image.flip(-1)])).mean(0)
        assert prediction.classes[0][1] == pytest.approx(logits.softmax(0).max().item(), abs=1e-5)
    way = ["onnx", "--input", "image"] if trained.config.aspect == "pad" else ["torchscript"]
    exported = export.main([str(folder), "--format", *way])
    assert exported.agreement.max_difference < 1e-5


def test_a_heat_map_lies_where_the_model_looked(folder, tmp_path):
    trained = load_trained(str(folder))
    heat = torch.ones(3, 3)
    wide = Explainer(trained, tmp_path)._over_image(heat, (90, 60))
    if trained.config.aspect == "crop":  # of 90 × 60 pixels the central 50 × 60
        assert np.array_equal(wide.any(0), (np.arange(90) >= 20) & (np.arange(90) < 70)) and wide.any(1).all()
    else:
        assert wide.shape == (60, 90) and (wide == 1).all()
