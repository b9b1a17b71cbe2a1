"""Prediction: the model's own classes, from the checkpoint alone, for files of any kind."""

import csv
import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import predict
from datamodules import read_data
from deployment.explanation import Explainer, last_feature_map
from deployment.prediction import Prediction, find_images, read_upright
from deployment.prediction import predict as predict_images
from deployment.trained import load_trained
from models import build_model
from tests.conftest import CAR_MODELS
from tests.datamodules.readers.test_real_data import write_parquet, write_table
from training.checkpoints import ABOUT, read_checkpoint
from utils.cli import run_command
from utils.errors import ConfigError, RunError


@pytest.fixture(scope="module")
def trained(trained_run):
    return load_trained(str(trained_run))


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A folder with five noisy images of different sizes, two of them in a subfolder and one gray, and a text file."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "more").mkdir()
    noise = np.random.default_rng(0)
    for name, shape in (("b.png", (50, 70, 3)), ("a.JPG", (120, 90, 3)), ("more/c.jpeg", (64, 48, 3)), ("gray.png", (30, 40)),
                        ("more/d.webp", (33, 44, 3))):  # fmt: skip
        coarse = Image.fromarray(
            noise.integers(0, 256, (*(side // 8 for side in shape[:2]), *shape[2:]), dtype=np.uint8)
        )
        coarse.resize(shape[1::-1]).save(folder / name)
    (folder / "readme.txt").write_text("no photo")
    return folder


def reference(trained, path: Path) -> dict[str, float]:
    """Returns the model's probabilities for one image, preprocessed step by step as in the study."""
    image = Image.open(path).convert("RGB").resize((48, 64), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in ((0.4707, 0.4602, 0.455), (0.2594, 0.2585, 0.2635)))
    with torch.no_grad():
        logits = trained.classifier.model.eval()(((pixels - mean) / std)[None])[0].double()
    probabilities = logits.exp() / logits.exp().sum()
    return dict(zip(CAR_MODELS, probabilities.tolist(), strict=True))


def assert_top_five(found, expected: dict[str, float]) -> None:
    """Names of equal probability may stand in any order."""
    assert len(found) == len({name for name, _ in found}) == 5
    assert [value for _, value in found] == pytest.approx(sorted(expected.values(), reverse=True)[:5], abs=2e-6)
    assert [value for _, value in found] == pytest.approx([expected[name] for name, _ in found], abs=2e-6)


def test_json_has_the_five_most_probable_models_of_every_photo(trained, trained_run, photos, capsys):
    predict.main([str(trained_run), str(photos), "--json"])
    entries = json.loads(capsys.readouterr().out)
    names = ["a.JPG", "b.png", "gray.png", "more/c.jpeg", "more/d.webp"]
    assert [entry["image"] for entry in entries] == [str(photos / name) for name in names]
    for entry in entries:
        found = [(row["name"], row["probability"]) for row in entry["classes"]]
        assert_top_five(found, reference(trained, Path(entry["image"])))


def test_csv_and_table(trained, trained_run, photos, capsys):
    path = photos / "b.png"
    predict.main([str(trained_run), str(path), "--csv"])
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    found = [(row["class"], float(row["probability"])) for row in rows]
    assert_top_five(found, reference(trained, path))
    assert [row["rank"] for row in rows] == list("12345") and {row["image"] for row in rows} == {str(path)}
    predict.main([str(trained_run), str(path)])
    out = capsys.readouterr().out.splitlines()
    assert out[0] == str(path)
    assert out[1:6] == [f"  {100 * value:7.2f} %  {name}" for name, value in found]
    assert "--explain" in out[-1]


def test_a_damaged_image_is_named_and_the_others_are_predicted(
    trained, trained_run, photos, tmp_path, capsys, monkeypatch
):
    whole = (photos / "a.JPG").read_bytes()
    (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no photo")
    names = [str(tmp_path / "half.jpg"), str(photos / "b.png"), str(tmp_path / "text.png"), str(tmp_path / "gone.jpg")]
    monkeypatch.setattr(sys, "argv", ["predict.py", str(trained_run), *names, str(photos / "gray.png"), "--json"])
    assert run_command(predict.main) == 1
    out, err = capsys.readouterr()
    entries = json.loads(out)
    assert ["error" in entry for entry in entries] == [True, False, True, True, False]
    for index in (1, 4):
        found = [(row["name"], row["probability"]) for row in entries[index]["classes"]]
        assert_top_five(found, reference(trained, Path(entries[index]["image"])))
    assert all(re.search(rf"{name}: .*cannot be decoded", err) for name in ("half.jpg", "text.png"))
    assert "gone.jpg: no such file" in err and "3 of 5 images could not be read" in err


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_predictions_do_not_depend_on_the_batch_size(trained, photos, tmp_path, batch_size):
    paths = [*find_images([str(photos)]), tmp_path / "gone.jpg"]
    paths.insert(2, tmp_path / "gone_too.jpg")
    predictions = list(predict_images(trained, paths, batch_size=batch_size))
    assert [prediction.path for prediction in predictions] == paths
    for prediction in predictions:
        if prediction.error is None:
            assert_top_five(prediction.classes, reference(trained, prediction.path))
    assert sum(prediction.error is not None for prediction in predictions) == 2


def test_exif_orientation_is_applied(trained, photos, tmp_path):
    upright = Image.open(photos / "a.JPG")
    upright.save(tmp_path / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    first, second = predict_images(trained, [tmp_path / "upright.png", tmp_path / "turned.png"])
    assert first.classes == second.classes


def test_a_folder_without_images_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="contains no images"):
        find_images([str(tmp_path)])


def test_web_addresses_are_an_error(trained_run):
    address = "https://example.org/cars/a.jpg"
    with pytest.raises(ConfigError, match=f"^{address}: web addresses are not read; download the image") as error:
        predict.main([str(trained_run), address])
    assert error.value.exit_code == 2


def test_hidden_files_of_a_folder_are_skipped(photos, tmp_path, caplog):
    """A folder zipped on a Mac, opened in Jupyter; the path of the folder itself may be hidden."""
    folder = tmp_path / ".downloads" / "cars"
    for name in ("a.png", "._a.png", "__MACOSX/._a.png", "__MACOSX/a.png", ".ipynb_checkpoints/a-checkpoint.png",
                 "below/b.png", "below/notes.txt", "below/.DS_Store", "below/__MACOSX/b.png", ".hidden.jpg"):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(photos / "b.png", folder / name)
    assert find_images([str(folder)]) == [folder / "a.png", folder / "below/b.png"]
    assert "skipped files of other kinds: 1;" in caplog.text
    assert find_images([str(folder / "._a.png")]) == [folder / "._a.png"]  # named explicitly


def test_other_files_of_a_folder_are_counted_and_a_broken_link_is_named(
    trained_run, photos, tmp_path, monkeypatch, capsys
):
    shutil.copy(photos / "b.png", tmp_path)
    (tmp_path / "below.png").mkdir()  # a folder, whatever its name
    for name in ("a.svg", "below.png/b.pdf", "c.avif"):
        (tmp_path / name).touch()
    (tmp_path / "lost.JPG").symlink_to("gone.jpg")
    monkeypatch.setattr(sys, "argv", ["predict.py", str(trained_run), str(tmp_path), "--json"])
    assert run_command(predict.main) == 1
    out, err = capsys.readouterr()
    assert [Path(entry["image"]).name for entry in json.loads(out)] == ["b.png", "lost.JPG"]
    assert f"{tmp_path}: skipped files of other kinds: 3; supported: .jpg, .jpeg, .png" in err
    assert "lost.JPG: broken symbolic link" in err and "1 of 2 images could not be read" in err
    capsys.readouterr()
    find_images([str(photos / "more")])
    assert "skipped" not in capsys.readouterr().err


def test_the_images_of_a_table_a_parquet_file_and_an_archive(trained, photos, tmp_path):
    for name in ("folders/Alpha/a.JPG", "folders/Alpha/b.png", "folders/Beta/gray.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(photos / Path(name).name, tmp_path / name)
    folders = read_data(tmp_path / "folders")
    expected = sorted(read_upright(path).tobytes() for path in find_images([str(tmp_path / "folders")]))
    for name in ("parquet", "table"):
        (tmp_path / name).mkdir()
    write_parquet(folders, tmp_path / "parquet")
    write_table(folders, tmp_path / "table")
    shutil.make_archive(str(tmp_path / "archived/cars"), "zip", tmp_path / "folders")
    (table,) = (tmp_path / "table").glob("*.csv")
    for name in (tmp_path / "parquet", table, tmp_path / "archived"):
        assert sorted(read_upright(path).tobytes() for path in find_images([str(name)])) == expected, name
    images = find_images([str(tmp_path / "parquet")])
    assert [len(prediction.classes) for prediction in predict_images(trained, images)] == [5] * len(expected)


def test_explain_needs_a_folder(trained_run, photos, tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(ConfigError, match=r"--explain needs a folder; .*out is a file"):
        predict.main([str(trained_run), str(photos / "b.png"), "--explain", str(tmp_path / "out")])


def test_the_checkpoint_is_all_that_is_needed(trained, trained_run, photos, tmp_path, monkeypatch):
    alone = tmp_path / "net.ckpt"
    shutil.copy(trained_run / "checkpoints/best.ckpt", alone)
    monkeypatch.chdir(tmp_path)
    (prediction,) = predict.main([str(alone), str(photos / "b.png")])
    assert_top_five(prediction.classes, reference(trained, photos / "b.png"))
    assert not trained.classifier.training


def without(part: str):
    return lambda checkpoint: checkpoint[ABOUT].pop(part)


def changed_config(**changes):
    return lambda checkpoint: checkpoint[ABOUT]["config"].update(changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda checkpoint: checkpoint.pop(ABOUT), r"not a checkpoint of this project: its part 'cars'"),
        (without("class_names"), "part has no class_names"),
        (without("config"), "Its configuration is missing"),
        (lambda checkpoint: checkpoint[ABOUT].update(format=0), "has checkpoint format 0; this version reads 1"),
        (lambda checkpoint: checkpoint[ABOUT]["config"].pop("image_size"), "image_size: this key is missing"),
        (changed_config(magic=1), "magic: unknown key"),
        (lambda checkpoint: checkpoint[ABOUT]["class_names"].pop(), "weights do not fit its own configuration"),
        (changed_config(architecture="mob_v2"), r"lacks weights \(\d+ of \d+\): model\."),
        (
            lambda checkpoint: checkpoint["state_dict"].pop("model.fc.bias"),
            r"lacks weights \(1 of \d+\): model.fc.bias$",
        ),
        (
            lambda checkpoint: checkpoint["state_dict"].update(extra=torch.zeros(1)),
            r"unknown weights \(1 of \d+\): extra$",
        ),
        (lambda checkpoint: checkpoint.update(state_dict=None), r"lacks weights"),
    ],
)
def test_old_and_foreign_checkpoints_are_errors_that_name_what_is_missing(trained_run, tmp_path, change, message):
    checkpoint = read_checkpoint(trained_run / "checkpoints/best.ckpt")
    change(checkpoint)
    torch.save(checkpoint, tmp_path / "old.ckpt")
    with pytest.raises(RunError, match=message) as error:
        load_trained(str(tmp_path / "old.ckpt"))
    assert "old.ckpt" in str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_nan_or_infinite_are_an_error(trained_run, tmp_path, value):
    checkpoint = read_checkpoint(trained_run / "checkpoints/best.ckpt")
    for name in ("model.fc.bias", "model.stage2.0.branch1.1.running_var"):
        checkpoint["state_dict"][name][-1] = value
    torch.save(checkpoint, tmp_path / "spoiled.ckpt")
    message = r"spoiled.ckpt: its weight model\.stage2\.0\.branch1\.1\.running_var is NaN or infinite"
    with pytest.raises(RunError, match=message):
        load_trained(str(tmp_path / "spoiled.ckpt"))


def test_grad_cam_is_that_of_its_paper(trained, tmp_path, monkeypatch):
    """Equations 1 and 2: channels weighted by the mean gradient, summed, rectified."""
    torch.manual_seed(0)
    model = build_model("shuff_v2_x05", num_classes=7).eval()
    monkeypatch.setitem(trained.classifier._modules, "model", model)
    explainer = Explainer(trained, tmp_path)
    image = torch.randn(3, 64, 48)
    features = model.stage4(model.stage3(model.stage2(model.maxpool(model.conv1(image[None])))))
    features = model.conv5(features).detach().requires_grad_()
    assert last_feature_map(trained) is model.conv5 and features.shape == (1, 1024, 2, 2)
    shown = 0
    for label in range(7):
        (gradient,) = torch.autograd.grad(model.fc(features.mean(dim=(2, 3)))[0, label], features)
        expected = (gradient.mean(dim=(2, 3), keepdim=True) * features).sum(dim=1)[0].relu().detach()
        shown += bool(expected.max() > 0)
        expected = expected / expected.max().clamp(min=1e-30)
        assert torch.allclose(explainer.heat_map(image, label), expected, atol=1e-5)
    assert shown > 1


def test_each_readable_image_gets_an_overlay(trained_run, photos, tmp_path):
    same_name = tmp_path / "in"
    same_name.mkdir()
    shutil.copy(photos / "b.png", same_name)
    broken = same_name / "broken.png"
    broken.write_text("no photo")
    out = tmp_path / "out"
    with pytest.raises(RunError, match="1 of 3"):
        predict.main([str(trained_run), str(photos / "b.png"), str(same_name), "--explain", str(out)])
    assert sorted(path.name for path in out.iterdir()) == ["b_explained.png", "b_explained_2.png"]
    with Image.open(out / "b_explained.png") as overlay:
        assert overlay.width == 70 and overlay.height > 50  # the image, and a line below it


def test_overlays_replace_no_files(trained_run, photos, tmp_path):
    for name in ("b.png", "b_explained.png"):
        shutil.copy(photos / "b.png", tmp_path / name)
    (tmp_path / "b_explained_2.png").symlink_to("gone.png")
    kept = (photos / "b.png").read_bytes()
    predict.main([str(trained_run), *(str(tmp_path / name) for name in ("b.png", "b_explained.png")),
                  "--explain", str(tmp_path)])  # fmt: skip
    assert (tmp_path / "b.png").read_bytes() == (tmp_path / "b_explained.png").read_bytes() == kept
    assert (tmp_path / "b_explained_2.png").is_symlink()
    written = {path.name for path in tmp_path.iterdir()} - {"b.png", "b_explained.png", "b_explained_2.png"}
    assert written == {"b_explained_3.png", "b_explained_explained.png"}


def test_the_overlay_is_colored_where_the_heat_map_is_high(trained, tmp_path, monkeypatch):
    Image.new("RGB", (100, 80), (90, 90, 90)).save(tmp_path / "gray.png")
    explainer = Explainer(trained, tmp_path / "out")
    monkeypatch.setattr(explainer, "heat_map", lambda image, label: torch.tensor([[0.0, 0.0], [0.0, 1.0]]))
    path = explainer.write(Prediction(tmp_path / "gray.png", ((CAR_MODELS[0], 0.5),)))
    pixels = np.asarray(Image.open(path))
    assert pixels[2, 2].tolist() == [90, 90, 90]  # as it was
    red, green, blue = pixels[78, 97].astype(int)
    assert red > green + 50 and red > blue + 50


@pytest.mark.parametrize(
    ("architecture", "layer"), [("ghost", "features"), ("sq_11", "classifier.2"), ("eff_b0", "features")]
)
def test_the_layer_that_is_explained(trained, monkeypatch, architecture, layer):
    model = build_model(architecture, num_classes=7, out_channels=32 if architecture == "ghost" else None).eval()
    monkeypatch.setitem(trained.classifier._modules, "model", model)
    config = trained.config.model_copy(update={"image_size": [96, 80]})
    assert last_feature_map(replace(trained, config=config)) is model.get_submodule(layer)


class Tokens(nn.Module):
    """Like a transformer: the only feature map is the one behind the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 16, 16)
        self.layers = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))
        self.head = nn.Linear(8, 7)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(self.patches(images).flatten(2).transpose(1, 2)).mean(dim=1))


def test_a_model_without_feature_maps_is_an_error(trained, monkeypatch):
    monkeypatch.setitem(trained.classifier._modules, "model", Tokens())
    for flip in (False, True):
        monkeypatch.setattr(trained.classifier, "flip_at_test", flip)
        with pytest.raises(RunError, match="no feature map near its output"):
            last_feature_map(trained)


def test_a_missing_captum_is_named(trained_run, photos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(RunError, match="pip install captum"):
        predict.main([str(trained_run), str(photos / "b.png"), "--explain", str(tmp_path / "out")])
