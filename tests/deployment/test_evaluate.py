"""Evaluation: the training's own metrics to the last bit, and the tables and figures behind them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
from datamodules import BoundingBox, ImageRecord, read_data
from datamodules.transforms import build_transforms
from deployment.evaluation.evaluation import Evaluation, Pair, class_rows, confused_pairs, image_rows, wilson_interval
from deployment.evaluation.figures import draw_confused_pairs, draw_confusion_matrix
from deployment.trained import load_trained
from tests.conftest import CAR_MODELS
from tests.support.data_sets import write_original_release, write_updated_release
from tests.support.small_runs import table
from training.checkpoints import ABOUT, read_checkpoint
from utils.errors import ConfigError, DataError, RunError

NAMES = ("Alpha 2001", "Beta 2002", "Gamma 2003", "Delta 2004")


def changed_checkpoint(trained_run: Path, path: Path, change) -> Path:
    checkpoint = read_checkpoint(trained_run / "checkpoints/last.ckpt")
    change(checkpoint)
    torch.save(checkpoint, path)
    return path


def evaluation_of(labels: list[int], predicted: list[int], classes: int, folder: Path = Path()) -> Evaluation:
    """Returns an evaluation of `folder/000000.jpg`, `folder/000001.jpg` …"""
    logits = torch.nn.functional.one_hot(torch.tensor(predicted), classes).float() * 2
    photos = tuple(
        ImageRecord(folder / f"{index:06d}.jpg", label, BoundingBox(0, 0, 1, 1)) for index, label in enumerate(labels)
    )
    return Evaluation(photos, logits, {}, "cpu")


@pytest.mark.parametrize("name", ["best", "last"])
def test_metrics_equal_the_trainings_to_the_last_bit(trained_run, capsys, name):
    checkpoint = trained_run / f"checkpoints/{name}.ckpt"
    metrics = evaluate.main([str(checkpoint)])
    in_training = read_checkpoint(checkpoint)[ABOUT]["metrics"]
    assert metrics == {
        key: in_training[key] for key in ("valid_loss", "valid_acc", "valid_top5_acc", "valid_mean_class_acc")
    }
    assert metrics["valid_mean_class_acc"] == pytest.approx(metrics["valid_acc"])  # two images of each class
    out = capsys.readouterr().out
    assert "equals the training's own metrics of this checkpoint exactly" in out
    chosen = "the checkpoint and the end of the training" if name == "best" else "the end of the training"
    assert f"These validation images also chose {chosen}, as in the study" in out
    folder = trained_run / f"evaluation/{name}_valid"
    assert str(folder) in out
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["equals_training"] is True and summary["valid_loss"] == in_training["valid_loss"]
    assert summary["images"] == 14 and summary["correct"] == round(14 * in_training["valid_acc"])
    assert {path.name for path in folder.iterdir()} == {
        "summary.json", "classes.csv", "images.csv", "confused_pairs.csv", "confusion_matrix.png", "confused_pairs.png",
        "calibration.png",
    }  # fmt: skip


@pytest.mark.slow
def test_another_test_size_and_flips_are_tried_without_touching_the_runs_own_report(trained_run, car_photos, capsys):
    metrics = evaluate.main([str(trained_run), "--image-size", "80", "72", "--flip"])
    assert "not with the settings of the run: 80x72 flip" in capsys.readouterr().out
    trained = load_trained(str(trained_run))
    resized = build_transforms(image_size=[80, 72], normalization=trained.config.normalization.model_dump())
    photos = read_data(car_photos).valid
    images = torch.stack([resized(Image.open(photo.path).convert("RGB")) for photo in photos])
    with torch.no_grad():
        logits = sum(trained.classifier.model(each) for each in (images, images.flip(-1))) / 2
    loss = trained.classifier.loss(logits, torch.tensor([photo.label for photo in photos]))
    assert metrics["valid_loss"] == pytest.approx(loss.item(), rel=1e-5)
    summary = json.loads((trained_run / "evaluation/best_valid_80x72_flip/summary.json").read_text())
    assert (summary["image_size"], summary["flip_at_test"], summary["training_metrics"]) == ([80, 72], True, None)
    with pytest.raises(ConfigError, match=r"--image-size 8 80: .* is too small for shuff_v2_x05"):
        evaluate.main([str(trained_run), "--image-size", "8", "80"])


def test_the_tables_hold_the_models_outputs_for_each_image(trained_run, car_photos, tmp_path):
    evaluate.main([str(trained_run), "--output", str(tmp_path)])
    trained = load_trained(str(trained_run))
    photos = read_data(car_photos).valid
    mean, std = (torch.tensor(values)[:, None, None] for values in ((0.4707, 0.4602, 0.455), (0.2594, 0.2585, 0.2635)))
    rows = table(tmp_path / "images.csv")
    assert [row["image"] for row in rows] == [str(photo.path) for photo in photos]
    predicted = []
    for row, photo in zip(rows, photos, strict=True):
        pixels = np.asarray(Image.open(photo.path).resize((48, 64), Image.Resampling.BILINEAR))
        image = (torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255 - mean) / std
        with torch.no_grad():
            probabilities = trained.classifier.model(image[None])[0].softmax(dim=0)
        predicted.append(int(probabilities.argmax()))
        assert row["class"] == CAR_MODELS[photo.label] and row["predicted"] == CAR_MODELS[predicted[-1]]
        assert float(row["probability"]) == pytest.approx(float(probabilities.max()), abs=1e-5)
        assert float(row["probability_of_class"]) == pytest.approx(float(probabilities[photo.label]), abs=1e-5)
        assert row["correct"] == str(int(predicted[-1] == photo.label))
    assert len(set(predicted)) > 2  # else this test would prove little
    for label, row in enumerate(table(tmp_path / "classes.csv")):
        right = sum(p == photo.label == label for p, photo in zip(predicted, photos, strict=True))
        assert (row["class"], row["images"], row["correct"]) == (CAR_MODELS[label], "2", str(right))
        assert row["predicted"] == str(predicted.count(label))
    wrong = sum(p != photo.label for p, photo in zip(predicted, photos, strict=True))
    assert sum(int(row["total"]) for row in table(tmp_path / "confused_pairs.csv")) == wrong


@pytest.mark.slow
def test_other_weights_do_not_equal_the_trainings_metrics(trained_run, tmp_path, capsys):
    def disturb(checkpoint):
        checkpoint["state_dict"]["model.fc.weight"] *= 1.1

    path = changed_checkpoint(trained_run, tmp_path / "other.ckpt", disturb)
    evaluate.main([str(path)])
    out = capsys.readouterr().out
    assert "differs from the training's own metrics" in out and "loss " in out
    assert json.loads((tmp_path / "evaluation/other_valid/summary.json").read_text())["equals_training"] is False


def test_a_checkpoint_from_within_an_epoch_has_no_metrics_to_compare_with(trained_run, tmp_path, capsys):
    def interrupt(checkpoint):
        checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["ready"] += 1

    path = changed_checkpoint(trained_run, tmp_path / "within.ckpt", interrupt)
    assert load_trained(str(path)).metrics == {}
    evaluate.main([str(path)])
    assert "is from within an epoch" in capsys.readouterr().out
    assert json.loads((tmp_path / "evaluation/within_valid/summary.json").read_text())["equals_training"] is None


def test_another_data_set_in_another_layout_and_order_of_classes(trained_run, tmp_path, capsys):
    """Label 0 of the data set is label 6 of the model: class names decide."""
    folder = tmp_path / "phone"
    photos = write_original_release(folder, train_per_class=1, valid_per_class=2, class_names=CAR_MODELS[::-1])
    evaluate.main([str(trained_run), "--data", str(folder), "--split", "all", "--output", str(tmp_path / "out")])
    out = capsys.readouterr().out
    assert ": 21 images, all split of" in out and "an independent result if none of" in out
    assert "equals the training" not in out and "also chose the checkpoint" not in out
    rows = {row["image"]: row for row in table(tmp_path / "out/images.csv")}
    assert {row["class"] for row in rows.values()} == set(CAR_MODELS)
    for photo in photos:
        assert rows[str(folder / photo.name)]["class"] == CAR_MODELS[::-1][photo.label]


def test_the_training_split_can_be_evaluated(trained_run, capsys):
    evaluate.main([str(trained_run), "--split", "train"])
    out = capsys.readouterr().out
    assert ": 28 images, train split" in out and "does not show how well it generalizes" in out


def test_an_unknown_class_is_an_error(trained_run, tmp_path):
    write_updated_release(tmp_path / "other", class_names=("BMW X6 SUV 2012", "Trabant 601 Sedan 1964"))
    with pytest.raises(DataError, match=r"not trained on 1 of its 2 classes, such as 'Trabant 601 Sedan 1964'"):
        evaluate.main([str(trained_run), "--data", str(tmp_path / "other")])


def test_an_image_is_not_a_checkpoint(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    (tmp_path / "empty.ckpt").touch()
    for name in ("photo.png", "empty.ckpt"):
        with pytest.raises(RunError, match=rf"{name} is not a checkpoint; name a run, or a file that a training wrote"):
            evaluate.main([str(tmp_path / name)])


@pytest.mark.parametrize("share", [0.001, 0.5, 0.9999])
def test_a_truncated_checkpoint_is_one_short_error(trained_run, tmp_path, share):
    whole = (trained_run / "checkpoints/best.ckpt").read_bytes()
    path = tmp_path / "half.ckpt"
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(RunError) as error:
        evaluate.main([str(path)])
    assert str(error.value) == f"{path} is damaged or not a checkpoint: its end is missing or damaged; copy it again"


@pytest.mark.parametrize(
    ("correct", "count", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_confidence_interval_is_wilsons(correct, count, low, high):
    """Table I of Newcombe, "Two-sided confidence intervals for the single proportion", Statistics in Medicine 1998."""
    assert tuple(round(end, 4) for end in wilson_interval(correct, count)) == (low, high)


def test_confusion_rows_and_pairs():
    labels = [0, 0, 0, 1, 1, 2, 2, 3]
    predicted = [0, 1, 1, 0, 1, 1, 2, 3]
    evaluation = evaluation_of(labels, predicted, 4)
    assert evaluation.confusion.tolist() == [[1, 2, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]]
    assert confused_pairs(evaluation.confusion) == [Pair(0, 1, 2, 1), Pair(2, 1, 1, 0)]
    rows = class_rows(evaluation, NAMES)
    assert [(row["images"], row["correct"], row["predicted"]) for row in rows] == [
        (3, 1, 2),
        (2, 1, 4),
        (2, 1, 1),
        (1, 1, 1),
    ]
    assert [row["most_confused_with"] for row in rows] == ["Beta 2002", "Alpha 2001", "Beta 2002", ""]
    assert [row["confusions"] for row in rows] == [2, 1, 1, 0]
    certain = np.exp(2) / (np.exp(2) + 3)
    assert image_rows(evaluation, NAMES)[1]["probability"] == pytest.approx(certain, abs=1e-6)
    assert image_rows(evaluation, NAMES)[1]["probability_of_class"] == pytest.approx(1 / (np.exp(2) + 3), abs=1e-6)


def test_classes_without_photos_have_no_row_and_top5_looks_at_five():
    logits = torch.arange(7.0).repeat(2, 1)  # the five most probable are 6, 5, 4, 3, 2
    photos = tuple(ImageRecord(Path("a.jpg"), label, BoundingBox(0, 0, 1, 1)) for label in (2, 1))
    rows = class_rows(Evaluation(photos, logits, {}, "cpu"), CAR_MODELS)
    assert [(row["class"], row["top5_accuracy"]) for row in rows] == [(CAR_MODELS[1], 0.0), (CAR_MODELS[2], 1.0)]


@pytest.mark.slow
def test_the_matrix_of_196_classes_has_a_cell_to_read_for_each(tmp_path):
    """All predictions are correct but one: class 5 is predicted as class 190. Names sort as numbers."""
    names = [f"Make {number:03d}" for number in range(196)]
    predicted = list(range(196))
    predicted[5] = 190
    draw_confusion_matrix(evaluation_of(list(range(196)), predicted, 196), names, tmp_path / "m.png", title="")
    pixels = np.asarray(Image.open(tmp_path / "m.png").convert("RGB")).astype(int)
    frame = np.argwhere((pixels == 0).all(axis=2).mean(axis=1) > 0.6)  # the black lines above and below the cells
    top, bottom = frame.min(), frame.max()
    columns = np.argwhere((pixels == 0).all(axis=2).mean(axis=0) > 0.6)
    left, right = columns.min(), columns.max()
    assert (bottom - top) / 196 >= 13 and (right - left) / 196 >= 13

    def color(row: int, column: int) -> str:
        y, x = (
            start + (index + 0.5) * (end - start) / 196
            for start, end, index in ((top, bottom, row), (left, right, column))
        )
        red, _, blue = pixels[round(y), round(x)]
        return "white" if min(red, blue) > 240 else "red" if red > blue else "blue"

    assert [color(5, 5), color(5, 190), color(190, 5)] == ["white", "red", "white"]
    assert all(color(index, index) == "blue" for index in range(196) if index != 5)


def test_the_sheet_shows_the_confused_images_and_no_others(tmp_path, monkeypatch):
    """Two images of class 0 are predicted as 1. Other images of class 0, and class 2, are not shown."""
    monkeypatch.setattr("deployment.evaluation.figures.MAX_PAIRS", 1)
    colors = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 0, 200), (0, 200, 200), (200, 200, 0)]
    for index, color in enumerate(colors):
        Image.new("RGB", (60, 45), color).save(tmp_path / f"{index:06d}.jpg", quality=100, subsampling=0)
    evaluation = evaluation_of([0, 0, 0, 1, 2, 0], [1, 1, 0, 1, 2, 2], 3, tmp_path)
    draw_confused_pairs(evaluation, NAMES, tmp_path / "sheet.png", title="")
    pixels = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB")).astype(int)
    shown = [(np.abs(pixels - color).max(axis=2) < 8).sum() > 10_000 for color in colors]
    assert shown == [True, True, False, True, False, False]  # the fourth stands for comparison
