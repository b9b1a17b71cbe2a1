"""Export: a file says of photos what the network says, carries what a program must know, or is not written."""

import importlib.util
import json
import re
import shutil
import sys

import numpy as np
import pytest
import torch

import export
from datamodules import read_data
from datamodules.images import read_image
from deployment import exporter as exporting
from deployment.exporter import Comparison, compare, disagreements, evenly, facts_of
from deployment.formats import FORMATS, Opened
from deployment.trained import load_trained
from tests.conftest import CAR_MODELS
from utils.cli import run_command
from utils.errors import ConfigError, RunError


@pytest.fixture(scope="module", autouse=True)
def short_measurement():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deployment.exporter.ROUNDS", 2)
        patch.setattr("deployment.exporter.SECONDS", 0.0)
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


def assert_facts(facts: dict) -> None:
    assert facts["class_names"] == list(CAR_MODELS)
    assert facts["image_size"] == [64, 48] and facts["channels"] == ["red", "green", "blue"]
    assert facts["mean"] == [0.4707, 0.4602, 0.455] and facts["std"] == [0.2594, 0.2585, 0.2635]
    assert facts["architecture"] == "shuff_v2_x05"


def test_an_onnx_file_alone_is_enough_to_name_a_car(onnx_file, trained, images):
    """Reads a photo as the file's facts say, without a line of this project."""
    import onnxruntime

    session = onnxruntime.InferenceSession(onnx_file.path, providers=["CPUExecutionProvider"])
    facts = {name: json.loads(text) for name, text in session.get_modelmeta().custom_metadata_map.items()}
    assert_facts(facts)
    (logits,) = session.run(None, {"image": images.numpy()})  # any number of photos
    assert np.abs(logits - trained.logits(images).numpy()).max() < 1e-5
    (logits,) = session.run(["logits"], {"image": images[1:2].numpy()})
    assert np.abs(logits - trained.logits(images[1:2]).numpy()).max() < 1e-5


def test_what_is_said_of_an_onnx_file(onnx_file, trained, car_photos):
    assert onnx_file.size == onnx_file.path.stat().st_size > 4 * 348_967  # parameters of 32 bits
    compared = onnx_file.comparison
    assert compared.photos == 14 and compared.agreement == 1 and compared.largest_difference < 1e-5
    assert compared.accuracy == compared.exported_accuracy == trained.metrics["valid_acc"]
    assert set(onnx_file.seconds) == {"eager", "onnx"}
    assert all(0 < time.low <= time.median <= time.high < 5 for time in onnx_file.seconds.values())
    said = export.describe(onnx_file, "onnx")
    assert f"{onnx_file.size / 1e6:.2f} MB" in said and "on 14 validation photos" in said and "eager" in said


def test_an_int8_file_is_smaller_and_says_its_accuracy(
    trained_run, onnx_file, images, trained, tmp_path, monkeypatch, capsys
):
    import onnx

    # The file of 32 bits that it is made from takes seconds to write, and is tested above.
    copy = FORMATS["onnx"]._replace(write=lambda model, image, facts, path: shutil.copy(onnx_file.path, path))
    monkeypatch.setitem(FORMATS, "onnx", copy)
    path = tmp_path / "net.onnx"
    exported = export.main([str(trained_run), "--format", "onnx-int8", "--output", str(path)])
    assert exported.size < 0.5 * onnx_file.size
    assert set(exported.seconds) == {"eager", "onnx", "onnx-int8"}
    proto = onnx.load(path)
    kinds = {onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in proto.graph.initializer if tensor.dims}
    assert "INT8" in kinds and "QuantizeLinear" in {node.op_type for node in proto.graph.node}
    opened = FORMATS["onnx"].open(path, 1)
    assert_facts(opened.facts)
    difference = (opened.run(images) - trained.logits(images)).abs().max()
    assert 1e-4 < difference < 0.3 * trained.logits(images).abs().max()
    assert f"its accuracy {exported.comparison.exported_accuracy:.2%}" in capsys.readouterr().out


def test_an_int8_file_that_is_refused_says_what_was_measured_and_what_helps(
    trained_run, onnx_file, tmp_path, monkeypatch, capsys
):
    copy = FORMATS["onnx"]._replace(write=lambda model, image, facts, path: shutil.copy(onnx_file.path, path))
    monkeypatch.setitem(FORMATS, "onnx", copy)
    monkeypatch.setattr("deployment.exporter.LEAST_AGREEMENT", 1.01)
    path = tmp_path / "net.onnx"
    monkeypatch.setattr(sys, "argv", ["export.py", str(trained_run), "--format", "onnx-int8", "--output", str(path)])
    assert run_command(export.main) == 1
    said = capsys.readouterr().err
    assert "net.onnx is not written, for it disagrees with the network: same first choice in" in said
    accuracy = onnx_file.comparison.accuracy
    assert re.search(rf"on 14 validation photos: accuracy \d+\.\d\d% with 8 bits, {accuracy:.2%} with 32", said)
    assert re.search(rf"size: \d\.\d\d MB with 8 bits, {onnx_file.size / 1e6:.2f} MB with 32", said)
    assert re.search(r"eager \d+\.\d\d ms, onnx \d+\.\d\d ms, onnx-int8 \d+\.\d\d ms", said)
    assert "many close calls" in said and "train it further" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", ["0", "-5", "2.5", "many"])
def test_a_number_of_photos_that_is_none_is_refused(count, capsys):
    with pytest.raises(SystemExit) as error:
        export.main(["last", "--format", "onnx", "--photos", count])
    assert error.value.code == 2
    assert f"argument --photos: '{count}' is no number of photos; expected 1 or more" in capsys.readouterr().err


def test_an_output_that_is_a_folder_is_refused_before_anything_is_done(trained_run, tmp_path):
    with pytest.raises(ConfigError, match=r"--output takes a file; .* is a folder"):
        export.main([str(trained_run), "--format", "onnx", "--output", str(tmp_path)])


def test_photos_are_compared_in_batches_and_all_of_them(trained, car_photos, monkeypatch):
    photos = read_data(car_photos).valid
    sizes = []

    def run(images):
        sizes.append(len(images))
        return trained.logits(images)

    monkeypatch.setattr(exporting, "BATCH_SIZE", 5)
    compared = exporting._compare(trained, Opened(run, {}), photos)
    assert sizes == [5, 5, 4] and compared.photos == 14
    assert compared.accuracy == trained.metrics["valid_acc"] and compared.largest_difference == 0


def test_a_torchscript_file(trained_run, images, trained, capsys):
    exported = export.main([str(trained_run), "--format", "torchscript", "--photos", "5"])
    assert exported.path == trained_run / "export/best.torchscript" and str(exported.path) in capsys.readouterr().out
    assert exported.comparison.photos == 5
    opened = FORMATS["torchscript"].open(exported.path, 1)
    assert_facts(opened.facts)
    assert torch.allclose(opened.run(images), trained.logits(images), atol=1e-5)


@pytest.mark.skipif(
    importlib.util.find_spec("executorch") is None, reason="executorch, an optional extra, is not installed"
)
def test_an_executorch_file(trained_run, images, trained):
    exported = export.main([str(trained_run), "--format", "executorch", "--photos", "5"])
    opened = FORMATS["executorch"].open(exported.path, 1)
    assert_facts(opened.facts)
    assert torch.allclose(opened.run(images), trained.logits(images), atol=1e-5)


@pytest.mark.parametrize(
    ("format_name", "module", "install"),
    [
        ("onnx", "onnxscript", "onnx onnxscript onnxruntime"),
        ("executorch", "executorch.backends.xnnpack.partition.xnnpack_partitioner", "executorch"),
    ],
)
def test_a_library_that_is_missing_is_named(trained_run, tmp_path, monkeypatch, format_name, module, install):
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


@pytest.mark.parametrize("shift", [0.01, float("nan")])
def test_a_file_that_disagrees_is_not_kept_and_an_older_one_stays(trained_run, tmp_path, monkeypatch, shift):
    def write(model, image, facts, path):
        original.write(Shifted(model, shift).eval(), image, facts, path)

    original = FORMATS["torchscript"]
    monkeypatch.setitem(FORMATS, "torchscript", original._replace(write=write))
    older = tmp_path / "net.torchscript"
    older.write_text("an older file")
    with pytest.raises(RunError, match=r"is not written, for it disagrees with the network: logits differ by up to"):
        export.main([str(trained_run), "--format", "torchscript", "--output", str(older)])
    assert older.read_text() == "an older file" and list(tmp_path.iterdir()) == [older]


def test_a_file_that_lost_its_facts_is_not_kept(trained_run, tmp_path, monkeypatch):
    original = FORMATS["torchscript"]
    lossy = original._replace(write=lambda model, image, facts, path: original.write(model, image, {}, path))
    monkeypatch.setitem(FORMATS, "torchscript", lossy)
    with pytest.raises(RunError, match="facts of the preprocessing did not arrive"):
        export.main([str(trained_run), "--format", "torchscript", "--output", str(tmp_path / "net.torchscript")])
    assert list(tmp_path.iterdir()) == []


def test_the_comparison():
    logits = torch.tensor([[1.0, -8.0, 3.0], [2.0, 1.0, 0.0], [0.0, 5.0, 1.0], [0.0, 1.0, 1.5]])
    exported = logits.clone()
    exported[1] = torch.tensor([1.0, 1.5, 0.0])
    labels = torch.tensor([2, 0, 1, 1])
    assert compare(logits, exported, labels) == Comparison(
        photos=4, largest_difference=1.0, largest_logit=8.0, agreement=0.75, accuracy=0.75, exported_accuracy=0.5
    )


@pytest.mark.parametrize(
    ("difference", "largest", "accepted"),
    [
        (0.99e-3, 0.1, True),
        (1.01e-3, 0.1, False),
        (9.9e-3, 10.0, True),
        (1.01e-2, 10.0, False),
        (float("nan"), 1.0, False),
    ],
)
def test_what_is_accepted_of_32_bits(difference, largest, accepted):
    comparison = Comparison(100, difference, largest, agreement=1.0, accuracy=0.5, exported_accuracy=0.5)
    assert (disagreements(comparison, is_int8=False) == []) == accepted


@pytest.mark.parametrize(
    ("agreement", "exported_accuracy", "problems"), [(0.75, 0.47, 0), (0.74, 0.5, 1), (0.95, 0.46, 1), (0.5, 0.3, 2)]
)
def test_what_is_accepted_of_8_bits(agreement, exported_accuracy, problems):
    comparison = Comparison(100, 3.0, 9.0, agreement=agreement, accuracy=0.5, exported_accuracy=exported_accuracy)
    assert len(disagreements(comparison, is_int8=True)) == problems


def test_the_facts_of_gray_images_that_are_not_normalised(trained):
    changes = {"convert_to_grayscale": True, "normalize": False}
    facts = facts_of(trained.__class__(**(vars(trained) | {"config": trained.config.model_copy(update=changes)})))
    assert facts["channels"] == ["gray"] and facts["mean"] is None and facts["std"] is None
    assert [step.split()[0] for step in facts["preprocessing"]] == ["resize", "one", "divide"]


def test_photos_are_spread_over_all_classes():
    assert evenly(list(range(10)), 4) == [0, 2, 5, 7]
    assert evenly([1, 2], 5) == [1, 2]
