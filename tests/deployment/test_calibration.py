"""Calibration: known temperatures are found, thresholds keep their rate, and answers below them are "not sure"."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch

import evaluate
import predict
from datamodules import read_data
from deployment import calibration
from deployment.calibration import (
    NEVER,
    Calibration,
    calibrate,
    calibration_error,
    choose_threshold,
    cross_judge,
    fit_temperature,
    load_calibration,
    risk_coverage,
    save_calibration,
)
from deployment.trained import load_trained
from utils.files import file_digest


def save(checkpoint: Path, found: Calibration) -> None:
    save_calibration(checkpoint.parent, checkpoint, file_digest(checkpoint), found)


def load(checkpoint: Path) -> Calibration | None:
    return load_calibration(checkpoint.parent, checkpoint, file_digest(checkpoint))


@pytest.fixture
def checkpoint(trained_run, tmp_path):
    """A copy outside its run: its calibration lies beside it."""
    return shutil.copy(trained_run / "checkpoints/best.ckpt", tmp_path / "net.ckpt")


def drawn(count: int, temperature: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns logits and labels that are drawn with the probabilities softmax(logits / temperature)."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(count, 10, generator=generator)
    return logits * temperature, torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0]


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_a_known_temperature_is_found_and_makes_probabilities_true(temperature):
    logits, labels = drawn(20_000, temperature)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.03)
    figures = cross_judge(logits, labels).summary()
    assert figures["ece"] < 0.012
    assert temperature == 1 or figures["ece_without_temperature"] > 0.05


def test_the_error_is_the_mean_gap_of_the_bins():
    confidence = torch.tensor([0.9, 0.92, 0.3, 0.31, 1.0])  # bins 13, 13, 4, 4, 14 of 15
    correct = torch.tensor([True, False, True, True, True])
    expected = (2 * abs(0.91 - 0.5) + 2 * abs(0.305 - 1) + 0) / 5
    assert calibration_error(confidence, correct) == pytest.approx(expected)


def test_equal_scores_are_accepted_together():
    score = torch.tensor([0.5, 0.9, 0.5, 0.7])
    thresholds, count, risk = risk_coverage(score, torch.tensor([True, True, False, False]))
    assert thresholds.tolist() == pytest.approx([0.9, 0.7, 0.5])
    assert count.tolist() == [1, 2, 4] and risk.tolist() == [0, 0.5, 0.5]


@pytest.mark.parametrize("rate", [0.7, 0.9, 0.95])
def test_the_threshold_is_the_lowest_that_keeps_the_rate(rate):
    logits, labels = drawn(500, 1.0)
    score, correct = logits.softmax(dim=1).amax(dim=1), logits.argmax(dim=1) == labels
    threshold = choose_threshold(score, correct, rate)
    rates = {float(each): float(correct[score >= each].double().mean()) for each in score}
    assert threshold == min(each for each in rates if rates[each] >= rate and (score >= each).sum() >= 20)
    judged = cross_judge(logits, labels, rate=rate)
    assert judged.summary()["accepted_accuracy"] == pytest.approx(rate, abs=0.05)


def test_without_enough_right_answers_nothing_is_sure():
    score = torch.linspace(0, 1, 100)
    assert choose_threshold(score, score > 0.9, 1.0) == NEVER  # ten are right, and twenty are needed
    assert choose_threshold(score, score > 0.7, 1.0) == pytest.approx(0.7, abs=0.01)


def test_no_image_is_judged_by_what_was_fitted_on_it():
    logits, labels = drawn(300, 2.0)
    whole = cross_judge(logits, labels)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    first, second = order[::2], order[1::2]
    fit = calibrate(logits[second], labels[second])
    assert torch.equal(whole.confidence[:150], (logits[first] / fit.temperature).softmax(dim=1).amax(dim=1))
    assert torch.equal(whole.accepted[:150], whole.score[:150] >= fit.threshold)
    changed = labels.clone()
    changed[first] = (changed[first] + 1) % 10
    assert torch.equal(cross_judge(logits, changed).confidence[:150], whole.confidence[:150])
    assert not torch.equal(cross_judge(logits, changed).confidence[150:], whole.confidence[150:])


def test_the_margin_is_that_of_the_two_best():
    margin = Calibration(1.0, 0.25, "margin", 0.95, 100)
    assert margin.accepts(torch.tensor([[0.5, 0.2, 0.3], [0.6, 0.3, 0.1]])).tolist() == [False, True]


def test_a_calibration_belongs_to_its_checkpoint(tmp_path, caplog):
    for name in ("best", "last"):
        (tmp_path / f"{name}.ckpt").write_text(name)
    best, last = (Calibration(each, 0.5, "probability", 0.95, 200) for each in (0.8, 0.9))
    save(tmp_path / "best.ckpt", best)
    save(tmp_path / "last.ckpt", last)
    assert load(tmp_path / "best.ckpt") == best
    assert load(tmp_path / "last.ckpt") == last
    (tmp_path / "last.ckpt").write_text("trained further")
    assert load(tmp_path / "best.ckpt") == best and caplog.text == ""
    assert load(tmp_path / "last.ckpt") is None
    assert "is of other weights than those of last.ckpt" in caplog.text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"net.ckpt": 1}',
        '{"net.ckpt": {}}',
        '{"net.ckpt": {"sha256": "", "more": 1}}',
        "\udcff",
        "[" * 100_000,
    ],
)
def test_a_damaged_calibration_is_named_and_replaced(tmp_path, caplog, text):
    (tmp_path / "net.ckpt").touch()
    (tmp_path / "calibration.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert load(tmp_path / "net.ckpt") is None
    assert "calibration.json is" in caplog.text and "writes it anew" in caplog.text
    good = Calibration(0.8, 0.5, "probability", 0.95, 200)
    save(tmp_path / "net.ckpt", good)
    assert load(tmp_path / "net.ckpt") == good


@pytest.mark.slow
def test_evaluation_keeps_a_calibration_that_prediction_follows(checkpoint, car_photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("deployment.evaluation.report.MIN_IMAGES", 10)
    monkeypatch.setattr(calibration, "MIN_ACCEPTED", 1)
    evaluate.main([str(checkpoint), "--rate", "0.6"])
    printed = capsys.readouterr().out
    assert "expected calibration error" in printed and "calibration.json, fitted on both" in printed
    summary = json.loads((tmp_path / "evaluation/net_valid/summary.json").read_text())["calibration"]
    assert 0 <= summary["ece"] <= 1 and summary["ece_method"].startswith("15 bins")
    trained = load_trained(str(checkpoint))
    photos = [photo.path for photo in read_data(car_photos).valid]
    logits = torch.cat([trained.logits(trained.load_image(path, upright=True)[None]) for path in photos])
    labels = torch.tensor([photo.label for photo in read_data(car_photos).valid])
    kept = trained.calibration
    assert kept.temperature == pytest.approx(fit_temperature(logits, labels), rel=1e-3) and kept.images == 14

    # A threshold between the scores, so that both answers occur.
    probabilities = (logits / kept.temperature).softmax(dim=1)
    middle = float(probabilities.amax(dim=1).median()) + 1e-4
    save(tmp_path / "net.ckpt", Calibration(kept.temperature, middle, "probability", 0.6, 14))
    predictions = predict.main([str(checkpoint), *map(str, photos), "--json"])
    entries = json.loads(capsys.readouterr().out)
    sure = (probabilities.amax(dim=1) >= middle).tolist()
    assert {*sure} == {True, False} and sure == [entry["sure"] for entry in entries]
    for entry, row in zip(entries, probabilities, strict=True):
        best = sorted(row.tolist(), reverse=True)[:5]
        assert [each["probability"] for each in entry["classes"]] == pytest.approx(best, abs=1e-5)
    predict.main([str(checkpoint), *map(str, photos)])
    assert capsys.readouterr().out.count("not sure") == sure.count(False)
    predict.main([str(checkpoint), *map(str, photos), "--csv"])
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [row["sure"] for row in rows if row["rank"] == "1"] == [str(int(each)) for each in sure]
    assert [prediction.sure for prediction in predictions] == sure

    # Other images than those of the fit are judged by what is kept, and change nothing.
    before = (tmp_path / "calibration.json").read_bytes()
    evaluate.main([str(checkpoint), "--split", "train"])
    assert "were fitted on the validation images" in capsys.readouterr().out
    assert (tmp_path / "calibration.json").read_bytes() == before


def test_too_few_images_calibrate_nothing(checkpoint, tmp_path, capsys):
    evaluate.main([str(checkpoint)])
    assert "not calibrated: 14 validation images, at least 100 are needed" in capsys.readouterr().out
    assert not (tmp_path / "calibration.json").exists()
    (prediction,) = predict.main([str(checkpoint), str(next((tmp_path / "evaluation").rglob("*.png"))), "--json"])
    captured = capsys.readouterr()
    assert prediction.sure is None and json.loads(captured.out)[0]["sure"] is None
    assert "not calibrated: python evaluate.py" in captured.err


@pytest.mark.parametrize("text", ["0", "1.01", "95", "nan", "high"])
def test_a_wrong_rate_is_named(text, capsys):
    with pytest.raises(SystemExit, match="2"):
        evaluate.parse_arguments(["last", "--rate", text])
    assert f"{text!r}: expected a number above 0 and at most 1" in capsys.readouterr().err
