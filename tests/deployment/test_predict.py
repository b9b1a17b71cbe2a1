"""Prediction: the same classes as the network itself gives, from the checkpoint alone, whatever the files are like."""

import csv
import json
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
from deployment.explanation import Explainer, last_feature_map
from deployment.prediction import Prediction, find_photos
from deployment.prediction import predict as predict_photos
from deployment.trained import load_trained
from models import build_model
from tests.conftest import CAR_MODELS
from training.checkpoints import ABOUT, read_checkpoint
from utils.cli import run_command
from utils.errors import ConfigError, RunError


@pytest.fixture(scope="module")
def trained(trained_run):
    return load_trained(str(trained_run))


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A folder of five noisy photos of different sizes, one of them in a folder below and one gray, and a text."""
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
    """Returns what the network says of one photo, step by step as the study prepared its photos."""
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
    assert [entry["photo"] for entry in entries] == [str(photos / name) for name in names]
    for entry in entries:
        found = [(row["name"], row["probability"]) for row in entry["classes"]]
        assert_top_five(found, reference(trained, Path(entry["photo"])))


def test_csv_and_table(trained, trained_run, photos, capsys):
    path = photos / "b.png"
    predict.main([str(trained_run), str(path), "--csv"])
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    found = [(row["class"], float(row["probability"])) for row in rows]
    assert_top_five(found, reference(trained, path))
    assert [row["rank"] for row in rows] == list("12345") and {row["photo"] for row in rows} == {str(path)}
    predict.main([str(trained_run), str(path)])
    said = capsys.readouterr().out.splitlines()
    assert said[0] == str(path)
    assert said[1:6] == [f"  {100 * value:7.2f} %  {name}" for name, value in found]
    assert "--explain" in said[-1]


def test_a_broken_photo_is_named_and_the_others_are_predicted(
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
        assert_top_five(found, reference(trained, Path(entries[index]["photo"])))
    assert "half.jpg: this image cannot be decoded" in err and "text.png: this image cannot be decoded" in err
    assert "gone.jpg: there is no such file" in err and "3 of 5 photos could not be read" in err


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_batches_do_not_change_what_belongs_to_which_photo(trained, photos, tmp_path, batch_size):
    paths = [*find_photos([str(photos)]), tmp_path / "gone.jpg"]
    paths.insert(2, tmp_path / "gone_too.jpg")
    predictions = list(predict_photos(trained, paths, batch_size=batch_size))
    assert [prediction.path for prediction in predictions] == paths
    for prediction in predictions:
        if prediction.error is None:
            assert_top_five(prediction.classes, reference(trained, prediction.path))
    assert sum(prediction.error is not None for prediction in predictions) == 2


def test_a_phone_photo_is_turned_upright(trained, photos, tmp_path):
    upright = Image.open(photos / "a.JPG")
    upright.save(tmp_path / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    first, second = predict_photos(trained, [tmp_path / "upright.png", tmp_path / "turned.png"])
    assert first.classes == second.classes


def test_a_folder_without_photos_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="has no photos in it"):
        find_photos([str(tmp_path)])


def test_what_a_folder_has_besides_photos_is_counted_and_a_dangling_link_is_named(
    trained_run, photos, tmp_path, monkeypatch, capsys
):
    shutil.copy(photos / "b.png", tmp_path)
    (tmp_path / "below.png").mkdir()  # a folder, whatever its name
    for name in ("a.gif", "below.png/b.heic", "c.avif"):
        (tmp_path / name).touch()
    (tmp_path / "lost.JPG").symlink_to("gone.jpg")
    monkeypatch.setattr(sys, "argv", ["predict.py", str(trained_run), str(tmp_path), "--json"])
    assert run_command(predict.main) == 1
    out, err = capsys.readouterr()
    assert [Path(entry["photo"]).name for entry in json.loads(out)] == ["b.png", "lost.JPG"]
    assert f"{tmp_path}: files of other kinds left out: 3; read are .jpg, .jpeg, .png" in err
    assert "lost.JPG: this link leads nowhere" in err and "1 of 2 photos could not be read" in err
    capsys.readouterr()
    find_photos([str(photos / "more")])
    assert "left out" not in capsys.readouterr().err


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
        (lambda checkpoint: checkpoint.pop(ABOUT), r"no checkpoint of this project: its part 'cars'"),
        (without("class_names"), "class_names are missing"),
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
def test_old_and_foreign_checkpoints_are_refused_with_what_is_missing(trained_run, tmp_path, change, message):
    checkpoint = read_checkpoint(trained_run / "checkpoints/best.ckpt")
    change(checkpoint)
    torch.save(checkpoint, tmp_path / "old.ckpt")
    with pytest.raises(RunError, match=message) as error:
        load_trained(str(tmp_path / "old.ckpt"))
    assert "old.ckpt" in str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_by_the_name_of_the_first(trained_run, tmp_path, value):
    checkpoint = read_checkpoint(trained_run / "checkpoints/best.ckpt")
    for name in ("model.fc.bias", "model.stage2.0.branch1.1.running_var"):
        checkpoint["state_dict"][name][-1] = value
    torch.save(checkpoint, tmp_path / "spoiled.ckpt")
    message = r"spoiled.ckpt: its weight model\.stage2\.0\.branch1\.1\.running_var is not finite"
    with pytest.raises(RunError, match=message):
        load_trained(str(tmp_path / "spoiled.ckpt"))


class Harmful:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


def test_no_pickle_is_executed(trained_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint = read_checkpoint(trained_run / "checkpoints/best.ckpt")
    torch.save(checkpoint | {"more": Harmful()}, tmp_path / "harmful.ckpt")
    with pytest.raises(RunError, match="more than tensors and plain values"):
        load_trained("harmful.ckpt")
    assert not (tmp_path / "executed").exists()


def test_grad_cam_is_that_of_its_paper(trained, tmp_path, monkeypatch):
    """Equations 1 and 2: channels weighted by the mean of the gradient, summed, and what is negative cut off."""
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
        assert torch.allclose(explainer.heat(image, label), expected, atol=1e-5)
    assert shown > 1


def test_an_overlay_for_each_photo_and_none_for_the_broken(trained_run, photos, tmp_path):
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
        assert overlay.width == 70 and overlay.height > 50  # the photo, and a line below it


def test_overlays_replace_neither_the_photos_beside_them_nor_anything_else(trained_run, photos, tmp_path):
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


def test_the_overlay_colours_where_the_heat_is(trained, tmp_path, monkeypatch):
    Image.new("RGB", (100, 80), (90, 90, 90)).save(tmp_path / "gray.png")
    explainer = Explainer(trained, tmp_path / "out")
    monkeypatch.setattr(explainer, "heat", lambda image, label: torch.tensor([[0.0, 0.0], [0.0, 1.0]]))
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
    """As a transformer: the only feature map is the one that the tokens are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 16, 16)
        self.layers = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))
        self.head = nn.Linear(8, 7)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(self.patches(images).flatten(2).transpose(1, 2)).mean(dim=1))


def test_a_network_without_feature_maps_is_not_explained(trained, monkeypatch):
    monkeypatch.setitem(trained.classifier._modules, "model", Tokens())
    with pytest.raises(RunError, match="no feature map near its end"):
        last_feature_map(trained)


def test_without_captum_the_error_says_what_to_install(trained_run, photos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(RunError, match="pip install captum"):
        predict.main([str(trained_run), str(photos / "b.png"), "--explain", str(tmp_path / "out")])
