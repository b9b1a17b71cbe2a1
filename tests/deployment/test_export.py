"""Export: a file agrees with its model, carries all that a program needs to run it, or is not written."""

import importlib.util
import json
import re
import shutil
import sys
import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import export
from datamodules import read_data
from datamodules.images import read_image
from datamodules.transforms import build_transforms
from deployment.agreement import Agreement, measure_agreement, output_problems, prediction_problems
from deployment.calibration import Calibration, save_calibration
from deployment.export import _compare, build_metadata, evenly_spaced
from deployment.export import export as export_model
from deployment.formats import FORMATS
from deployment.model_card import model_card
from deployment.prediction import predict
from deployment.trained import load_trained
from tests.conftest import CAR_MODELS
from utils.cli import run_command
from utils.errors import ConfigError, DataError, RunError
from utils.files import file_digest


@pytest.fixture(scope="module", autouse=True)
def short_measurement():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deployment.export.ROUNDS", 2)
        patch.setattr("deployment.export.SECONDS", 0.0)
        yield


@pytest.fixture(scope="module")
def trained(trained_run):
    return load_trained(str(trained_run))


@pytest.fixture(scope="module")
def onnx_file(trained_run, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    return export.main([str(trained_run), "--format", "onnx", "--output", str(path)])


@pytest.fixture(scope="module")
def images(trained, car_photos):
    """Three validation photos as one batch (3, 3, 64, 48)."""
    photos = read_data(car_photos).valid[::5]
    return torch.stack([trained.transform(read_image(photo.path)) for photo in photos])


def assert_metadata(metadata: dict) -> None:
    assert metadata["class_names"] == list(CAR_MODELS)
    assert metadata["image_size"] == [64, 48] and metadata["channels"] == ["red", "green", "blue"]
    assert metadata["mean"] == [0.4707, 0.4602, 0.455] and metadata["std"] == [0.2594, 0.2585, 0.2635]
    assert metadata["architecture"] == "shuff_v2_x05"


def upright(image: Image.Image, metadata: dict) -> Image.Image:
    turns = {1: (), 2: ("FLIP_LEFT_RIGHT",), 3: ("ROTATE_180",), 4: ("FLIP_TOP_BOTTOM",), 5: ("TRANSPOSE",),
             6: ("ROTATE_270",), 7: ("TRANSVERSE",), 8: ("ROTATE_90",)}  # fmt: skip
    for name in turns[image.getexif().get(0x0112, 1)]:
        image = image.transpose(Image.Transpose[name])
    return image


# What a programmer does who has the file and its metadata, and nothing of this project: sentence → code.
STEPS = {
    "apply the EXIF orientation (tag 0x0112), so that the image is upright": upright,
    "convert to 8-bit RGB": lambda image, _: image.convert("RGB"),
    "resize to image_size = [height, width], bilinear with antialiasing, aspect ratio not kept": (
        lambda image, metadata: image.resize(metadata["image_size"][::-1], Image.Resampling.BILINEAR)
    ),
    "divide the 8-bit values by 255": lambda image, _: np.asarray(image, dtype=np.float32) / 255,
    "subtract mean and divide by std, channel by channel": (
        lambda pixels, metadata: (pixels - np.float32(metadata["mean"])) / np.float32(metadata["std"])
    ),
}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_onnx_file_run_by_its_metadata_alone_gives_the_models_predictions(onnx_file, trained, tmp_path, orientation):
    import onnxruntime

    turned = np.random.default_rng(orientation).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "phone.png"
    Image.fromarray(turned).resize((70, 90), Image.Resampling.NEAREST).save(path, exif=exif)

    session = onnxruntime.InferenceSession(onnx_file.path, providers=["CPUExecutionProvider"])
    metadata = {name: json.loads(text) for name, text in session.get_modelmeta().custom_metadata_map.items()}
    assert_metadata(metadata)
    pixels = Image.open(path)
    for step in metadata["preprocessing"]:
        pixels = STEPS[step](pixels, metadata)
    (logits,) = session.run(["logits"], {"image": pixels.transpose(2, 0, 1)[None]})
    exponentials = np.exp(logits[0] - logits[0].max())
    found = dict(zip(metadata["class_names"], exponentials / exponentials.sum(), strict=True))
    (prediction,) = predict(trained, [path])
    assert prediction.classes == tuple((name, pytest.approx(found[name], abs=1e-5)) for name, _ in prediction.classes)
    assert prediction.classes[0][0] == max(found, key=found.get)


def test_an_onnx_file_takes_batches_of_any_size(onnx_file, trained, images):
    session = FORMATS["onnx"].load(onnx_file.path, 1)
    for batch in (images, images[1:2]):
        assert torch.allclose(session.run(batch), trained.logits(batch), atol=1e-5)


def test_the_report_of_an_onnx_file(onnx_file, trained, car_photos):
    assert onnx_file.sizes == {"onnx": onnx_file.path.stat().st_size}
    assert onnx_file.sizes["onnx"] > 4 * 348_967  # 32-bit parameters
    agreement = onnx_file.agreement
    assert agreement.images == 14 and agreement.top1 == 1 and agreement.max_difference < 1e-5
    assert agreement.accuracy == agreement.exported_accuracy == trained.metrics["valid_acc"]
    assert set(onnx_file.seconds) == {"eager", "onnx"}
    assert all(0 < time.low <= time.median <= time.high < 5 for time in onnx_file.seconds.values())
    lines = "\n".join(export.describe(onnx_file))
    assert (
        f"{onnx_file.sizes['onnx'] / 1e6:.2f} MB" in lines and "on 14 validation images" in lines and "eager" in lines
    )


def measured(card: str) -> list[dict]:
    """Returns the figures that model hubs read."""
    (result,) = yaml.safe_load(card.split("---\n")[1])["model-index"][0]["results"]
    return result["metrics"]


def test_the_model_card_has_what_was_measured_and_nothing_else(onnx_file, trained, car_photos, tmp_path):
    card = onnx_file.card.read_text(encoding="utf-8")
    _, head, text = card.split("---\n", maxsplit=2)
    head = yaml.safe_load(head)
    accuracy = {
        "type": "accuracy",
        "value": round(onnx_file.agreement.exported_accuracy, 6),
        "name": "top-1 accuracy on 14 images",
    }
    assert head["pipeline_tag"] == "image-classification" and measured(card) == [accuracy]  # not evaluated
    assert f"| 14 | {onnx_file.agreement.exported_accuracy:.2%} |" in text and "Chance level: 14.29%" in text
    assert f"| onnx | {onnx_file.sizes['onnx'] / 1e6:.2f} | {1e3 * onnx_file.seconds['onnx'].median:.2f} (" in text
    assert "Not calibrated" in text and "architecture: shuff_v2_x05" in text
    assert all(f"{label}. {name}\n" in text for label, name in enumerate(CAR_MODELS))
    assert str(trained.folder) not in card and str(car_photos.parent) not in card

    checkpoint = Path(shutil.copy(trained.path, tmp_path))
    kept = Calibration(1.5, 0.25, "margin", 0.9, 100)
    evaluated = replace(trained, path=checkpoint, sha256=file_digest(checkpoint), calibration=kept)
    summary = {
        "sha256": file_digest(checkpoint), "images": 50, "valid_acc": 0.8, "valid_acc_95_low": 0.67,
        "valid_acc_95_high": 0.89, "valid_top5_acc": 0.98,
        "calibration": {"ece": 0.05, "ece_without_temperature": 0.1, "ece_method": "15 bins"},
    }  # fmt: skip
    folder = tmp_path / "evaluation" / f"{checkpoint.stem}_valid"
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(summary))
    write = partial(model_card, evaluated, onnx_file, read_data(car_photos), build_metadata(evaluated))
    assert (
        "| 50 | 80.00% | 67.00% … 89.00% | 98.00% |" in write()
        and "Expected calibration error 5.00% (15 bins)" in write()
    )
    assert "Temperature 1.5000" in write() and "90% are right on these images: threshold 0.2500" in write()
    assert measured(write()) == [{"type": "accuracy", "value": 0.8, "name": "top-1 accuracy on 50 images"}]
    other = replace(onnx_file, agreement=replace(onnx_file.agreement, top1=0.9))  # whose accuracy is not the model's
    assert measured(model_card(evaluated, other, read_data(car_photos), build_metadata(evaluated))) == [accuracy]
    paths = {"teacher": ["/home/me/runs/a/checkpoints/best.ckpt", "b.ckpt"], "pretrained": "/home/me/lite0.safetensors"}
    taught = replace(trained, config=trained.config.model_copy(update=paths))
    text = model_card(taught, onnx_file, read_data(car_photos), build_metadata(trained))
    assert "- a/checkpoints/best.ckpt\n- b.ckpt\n" in text and "pretrained: lite0.safetensors\n" in text
    elsewhere = replace(onnx_file, agreement=replace(onnx_file.agreement, top1=0.9), data=tmp_path / "others")
    text = model_card(evaluated, elsewhere, read_data(car_photos), build_metadata(evaluated))
    assert "| this file, validation images of others | 14 |" in text and "model-index" not in text
    precise = replace(evaluated, calibration=replace(kept, rate=0.995))
    assert "99.5% are right" in model_card(precise, onnx_file, read_data(car_photos), build_metadata(precise))
    for other in (summary | {"sha256": "of other weights"}, summary | {"is_same_split": False}, []):
        (folder / "summary.json").write_text(json.dumps(other))
        assert "80.00%" not in write() and "Expected calibration error" not in write()


def test_an_int8_file_is_smaller_and_its_accuracy_is_reported(
    trained_run, onnx_file, images, trained, tmp_path, monkeypatch, capsys
):
    import onnx

    # The 32-bit file takes seconds to write, and is tested above.
    copy = replace(FORMATS["onnx"], writer=lambda model, images, metadata, path: shutil.copy(onnx_file.path, path))
    monkeypatch.setitem(FORMATS, "onnx", copy)
    path = tmp_path / "net.onnx"
    exported = export.main([str(trained_run), "--format", "onnx-int8", "--output", str(path)])
    assert exported.sizes["onnx-int8"] == path.stat().st_size < 0.5 * exported.sizes["onnx"]
    assert set(exported.seconds) == {"eager", "onnx", "onnx-int8"}
    proto = onnx.load(path)
    kinds = {onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in proto.graph.initializer if tensor.dims}
    assert "INT8" in kinds and "QuantizeLinear" in {node.op_type for node in proto.graph.node}
    session = FORMATS["onnx-int8"].load(path, 1)
    assert_metadata(session.metadata)
    difference = (session.run(images) - trained.logits(images)).abs().max()
    assert 1e-4 < difference < 0.3 * trained.logits(images).abs().max()
    assert f"accuracy {exported.agreement.exported_accuracy:.2%}, the model's" in capsys.readouterr().out


def test_an_int8_file_needs_training_images(trained, car_photos, tmp_path):
    splits = replace(read_data(car_photos), train=())
    with pytest.raises(DataError, match="onnx-int8 is calibrated on training images, and the data set has none"):
        export_model(trained, "onnx-int8", splits, tmp_path / "net.onnx", num_images=2)
    assert list(tmp_path.iterdir()) == []


def test_a_rejected_int8_file_is_explained_with_measurements_and_advice(
    trained_run, onnx_file, tmp_path, monkeypatch, capsys
):
    copy = replace(FORMATS["onnx"], writer=lambda model, images, metadata, path: shutil.copy(onnx_file.path, path))
    monkeypatch.setitem(FORMATS, "onnx", copy)
    monkeypatch.setattr("deployment.agreement.MIN_TOP1_AGREEMENT", 1.01)
    path = tmp_path / "net.onnx"
    monkeypatch.setattr(sys, "argv", ["export.py", str(trained_run), "--format", "onnx-int8", "--output", str(path)])
    assert run_command(export.main) == 1
    err = capsys.readouterr().err
    assert "net.onnx is not written, because it disagrees with the model: same top-1 prediction for" in err
    accuracy, size = onnx_file.agreement.accuracy, onnx_file.sizes["onnx"]
    assert re.search(rf"on 14 validation images: accuracy \d+\.\d\d%, the model's {accuracy:.2%}; same top-1", err)
    assert re.search(rf"size: onnx {size / 1e6:.2f} MB, onnx-int8 \d\.\d\d MB", err)
    assert re.search(r"eager \d+\.\d\d ms, onnx \d+\.\d\d ms, onnx-int8 \d+\.\d\d ms", err)
    assert "undertrained" in err and "train it further" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", ["0", "-5", "2.5", "many"])
def test_a_wrong_number_of_images_is_an_error(count, capsys):
    with pytest.raises(SystemExit) as error:
        export.main(["last", "--format", "onnx", "--photos", count])
    assert error.value.code == 2
    assert f"argument --images/--photos: '{count}': expected a positive number of images" in capsys.readouterr().err


def test_an_output_that_is_a_folder_is_an_error(trained_run, tmp_path):
    with pytest.raises(ConfigError, match=r"--output takes a file; .* is a folder"):
        export.main([str(trained_run), "--format", "onnx", "--output", str(tmp_path)])


def test_images_are_compared_in_batches_and_all_of_them(trained, car_photos, monkeypatch):
    records = read_data(car_photos).valid
    sizes = []

    def run(images):
        sizes.append(len(images))
        return trained.logits(images)

    monkeypatch.setattr("deployment.export.BATCH_SIZE", 5)
    agreement = _compare(trained, run, records, upright=False)
    assert sizes == [5, 5, 4] and agreement.images == 14
    assert agreement.accuracy == trained.metrics["valid_acc"] and agreement.max_difference == 0


def test_a_torchscript_file(trained_run, images, trained, capsys):
    exported = export.main([str(trained_run), "--format", "torchscript", "--images", "5"])
    assert exported.path == trained_run / "export/best.torchscript" and str(exported.path) in capsys.readouterr().out
    assert exported.agreement.images == 5
    with zipfile.ZipFile(exported.path) as archive:  # programs that are in use read the metadata by this name
        assert any(name.endswith("/extra/facts") for name in archive.namelist())
    session = FORMATS["torchscript"].load(exported.path, 1)
    assert_metadata(session.metadata)
    assert torch.allclose(session.run(images), trained.logits(images), atol=1e-5)


@pytest.mark.skipif(
    importlib.util.find_spec("executorch") is None, reason="executorch, an optional extra, is not installed"
)
def test_an_executorch_file(trained_run, images, trained):
    exported = export.main([str(trained_run), "--format", "executorch", "--images", "5"])
    session = FORMATS["executorch"].load(exported.path, 1)
    assert_metadata(session.metadata)
    assert torch.allclose(session.run(images), trained.logits(images), atol=1e-5)


@pytest.mark.parametrize(
    ("format_name", "module", "install"),
    [
        ("onnx", "onnxscript", "onnx onnxscript onnxruntime"),
        ("executorch", "executorch.backends.xnnpack.partition.xnnpack_partitioner", "executorch"),
        ("coreml", "coremltools", "-r requirements-coreml.txt"),
        ("litert", "litert_torch", "-r requirements-litert.txt && litert/bin/python export.py …"),
    ],
)
def test_a_missing_library_is_named(trained_run, tmp_path, monkeypatch, format_name, module, install):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(RunError, match=f"pip install {install}$"):
        export.main([str(trained_run), "--format", format_name, "--output", str(tmp_path / "net")])
    assert list(tmp_path.iterdir()) == []


class Shifted(torch.nn.Module):
    def __init__(self, model: torch.nn.Module, shift: float) -> None:
        super().__init__()
        self.model, self.shift = model, shift

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images) + self.shift


@pytest.mark.slow
@pytest.mark.parametrize("shift", [0.01, float("nan")])
def test_a_file_that_disagrees_is_not_kept_and_an_older_one_stays(trained_run, tmp_path, monkeypatch, shift):
    def write(model, images, metadata, path):
        original.write(Shifted(model, shift).eval(), images, metadata, path)

    original = FORMATS["torchscript"]
    monkeypatch.setitem(FORMATS, "torchscript", replace(original, writer=write))
    older = tmp_path / "net.torchscript"
    older.write_text("an older file")
    with pytest.raises(RunError, match=r"is not written, because it disagrees with the model: logits differ by up to"):
        export.main([str(trained_run), "--format", "torchscript", "--output", str(older)])
    assert older.read_text() == "an older file" and list(tmp_path.iterdir()) == [older]


def test_a_file_that_lost_its_metadata_is_not_kept(trained_run, tmp_path, monkeypatch):
    original = FORMATS["torchscript"]
    lossy = replace(original, writer=lambda model, images, metadata, path: original.write(model, images, {}, path))
    monkeypatch.setitem(FORMATS, "torchscript", lossy)
    with pytest.raises(RunError, match="its metadata is not what was written"):
        export.main([str(trained_run), "--format", "torchscript", "--output", str(tmp_path / "net.torchscript")])
    assert list(tmp_path.iterdir()) == []


def test_agreement():
    logits = torch.tensor([[1.0, -8.0, 3.0], [2.0, 1.0, 0.0], [0.0, 5.0, 1.0], [0.0, 1.0, 1.5]])
    exported = logits.clone()
    exported[1] = torch.tensor([1.0, 1.5, 0.0])
    labels = torch.tensor([2, 0, 1, 1])
    assert measure_agreement(logits, exported, labels) == Agreement(
        images=4, max_difference=1.0, max_logit=8.0, top1=0.75, accuracy=0.75, exported_accuracy=0.5
    )


@pytest.mark.parametrize(
    ("output", "difference", "largest", "accepted"),
    [
        ("logits", 0.99e-3, 0.1, True),
        ("logits", 1.01e-3, 0.1, False),
        ("logits", 9.9e-3, 10.0, True),
        ("logits", 1.01e-2, 10.0, False),
        ("logits", float("nan"), 1.0, False),
        ("probabilities", 0.9e-4, 0.9, True),
        ("probabilities", 1.1e-4, 0.9, False),
        ("probabilities", float("nan"), 0.9, False),
    ],
)
def test_the_limits_of_32_bits(output, difference, largest, accepted):
    agreement = Agreement(100, difference, largest, 1.0, 0.5, 0.5, output)
    assert (output_problems(agreement) == []) == accepted


@pytest.mark.parametrize(
    ("top1", "exported_accuracy", "problems"), [(0.75, 0.47, 0), (0.74, 0.5, 1), (0.95, 0.46, 1), (0.5, 0.3, 2)]
)
def test_the_limits_of_8_bits(top1, exported_accuracy, problems):
    agreement = Agreement(100, 3.0, 9.0, top1=top1, accuracy=0.5, exported_accuracy=exported_accuracy)
    assert len(prediction_problems(agreement)) == problems


def test_the_metadata_of_gray_images_without_normalization(trained):
    changes = {"convert_to_grayscale": True, "normalize": False}
    metadata = build_metadata(replace(trained, config=trained.config.model_copy(update=changes)))
    assert metadata["channels"] == ["gray"] and metadata["mean"] is None and metadata["std"] is None
    assert [step.split()[0] for step in metadata["preprocessing"]] == ["apply", "convert", "resize", "one", "divide"]


def test_images_are_evenly_spaced():
    assert evenly_spaced(list(range(10)), 4) == [0, 2, 5, 7]
    assert evenly_spaced([1, 2], 5) == [1, 2]


@pytest.fixture(scope="module")
def image_file(trained_run, tmp_path_factory):
    """An ONNX file with preprocessing inside, of a checkpoint whose temperature is 2."""
    checkpoint = shutil.copy(trained_run / "checkpoints/best.ckpt", tmp_path_factory.mktemp("image") / "net.ckpt")
    save_calibration(checkpoint.parent, checkpoint, file_digest(checkpoint), Calibration(2.0, 0.25, "margin", 0.9, 100))
    return export.main([str(checkpoint), "--format", "onnx", "--input", "image"])


@pytest.mark.slow
def test_a_file_with_preprocessing_inside_gives_the_probabilities_of_predict(image_file, car_photos):
    import onnxruntime

    assert image_file.path.name == "net-image.onnx" and image_file.agreement.output == "probabilities"
    assert image_file.agreement.top1 == 1 and image_file.agreement.max_difference < 1e-4
    session = onnxruntime.InferenceSession(image_file.path, providers=["CPUExecutionProvider"])
    texts = session.get_modelmeta().custom_metadata_map
    assert {name: json.loads(texts[name]) for name in ("temperature", "threshold", "score")} == {
        "temperature": 2.0, "threshold": 0.25, "score": "margin",
    }  # fmt: skip
    assert_metadata({name: json.loads(text) for name, text in texts.items()})
    photos = [photo.path for photo in read_data(car_photos).valid]
    trained = load_trained(str(image_file.path.parents[1] / "net.ckpt"))
    for path, prediction in zip(photos, predict(trained, photos), strict=True):
        (found,) = session.run(["probabilities"], {"image": np.asarray(Image.open(path).convert("RGB"))})
        assert found.shape == (7,) and found.dtype == np.float32
        best = found.argsort()[::-1][:5]
        assert [CAR_MODELS[label] for label in best[:1]] == [prediction.classes[0][0]]
        assert found[best].tolist() == pytest.approx([value for _, value in prediction.classes], abs=1e-4)


@pytest.mark.parametrize(("aspect", "gray"), [("squash", False), ("squash", True), ("crop", False), ("pad", True)])
# 40 → 48 pixels, 5 : 6, put many values halfway between two levels, which Pillow rounds by the error of its weights.
@pytest.mark.parametrize(
    "size", [(90, 70), (30, 40), (641, 479), (479, 641), (90, 60), (64, 48), (48, 64), (1, 2), (1216, 1612)]
)
def test_the_pixels_inside_the_file_are_pillows(trained, size, aspect, gray):
    """The model is the identity: its probabilities' logarithms are the pixels but for a constant."""
    import onnxruntime
    from onnx import TensorProto, helper

    from deployment.preprocessing import add_preprocessing

    config = trained.config.model_copy(update={"convert_to_grayscale": gray, "normalize": False, "aspect": aspect})
    channels = 1 if gray else 3
    count = channels * 64 * 48
    metadata = build_metadata(replace(trained, config=config)) | {"class_names": [str(each) for each in range(count)]}
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["image"], ["logits"])],
        "identity",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, channels, 64, 48])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, count])],
    )
    identity = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    whole = add_preprocessing(identity, metadata).SerializeToString()
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    session = onnxruntime.InferenceSession(whole, providers=["CPUExecutionProvider"])
    (probabilities,) = session.run(None, {"image": noise})
    resize = build_transforms(image_size=(64, 48), aspect=aspect, convert_to_grayscale=gray).resize
    expected = (
        np.asarray(resize(Image.fromarray(noise)), dtype=np.float64)
        .reshape(64, 48, channels)
        .transpose(2, 0, 1)
        .ravel()
    )
    found = 255 * np.log(probabilities.astype(np.float64))
    assert np.abs(found - expected - np.median(found - expected)).max() < 0.01


@pytest.mark.slow
def test_an_int8_file_with_preprocessing_inside(trained_run, tmp_path):
    path = tmp_path / "small.onnx"
    exported = export.main(
        [str(trained_run), "--format", "onnx-int8", "--input", "image", "--images", "14", "--output", str(path)]
    )
    assert exported.agreement.output == "probabilities" and exported.agreement.top1 >= 0.75
    metadata = FORMATS["onnx"].load(path, 1).metadata
    assert metadata["temperature"] == 1.0 and metadata["threshold"] is None
    assert metadata["output"].startswith("probabilities (classes,)") and len(metadata["preprocessing"]) == 2
    assert exported.sizes["onnx-int8"] < exported.sizes["onnx"] / 2


def test_only_onnx_files_take_images(trained_run):
    with pytest.raises(ConfigError, match="--input image needs --format onnx or onnx-int8; --format is torchscript"):
        export.main([str(trained_run), "--format", "torchscript", "--input", "image"])


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("litert_torch") is None, reason="requirements-litert.txt is not installed")
def test_a_litert_file(trained_run, images, trained):
    exported = export.main([str(trained_run), "--format", "litert", "--images", "5"])
    assert exported.agreement.max_difference < 1e-4 and exported.agreement.top1 == 1
    session = FORMATS["litert"].load(exported.path, 1)
    assert_metadata(session.metadata)
    assert torch.allclose(session.run(images), trained.logits(images), atol=1e-5)
    with zipfile.ZipFile(exported.path) as archive:
        assert archive.read("labels.txt").decode().splitlines() == list(CAR_MODELS)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("coremltools") is None, reason="requirements-coreml.txt is not installed")
def test_a_core_ml_package(trained_run, images, trained, tmp_path, capsys):
    exported = export.main([str(trained_run), "--format", "coreml", "--images", "5"])
    session = FORMATS["coreml"].load(exported.path, 1)
    assert_metadata(session.metadata)
    if session.run:
        assert torch.allclose(session.run(images), trained.logits(images), atol=1e-3)
    else:
        assert exported.agreement is None and "not compared with the model" in session.metadata["warning"]
        assert "not run and not compared" in capsys.readouterr().out
        assert "was converted, but not run" in exported.card.read_text(encoding="utf-8")
    import coremltools

    shutil.unpack_archive(exported.path, tmp_path, "zip")
    description = coremltools.utils.load_spec(str(tmp_path / "model.mlpackage")).description
    assert [list(value.type.multiArrayType.shape) for value in (description.input[0], description.output[0])] == [
        [1, 3, 64, 48], [1, len(CAR_MODELS)],
    ]  # fmt: skip
    assert (description.input[0].name, description.output[0].name) == ("image", "logits")
    assert description.metadata.userDefined["classes"] == ",".join(CAR_MODELS)
