"""How often strangers are accepted: by thresholds of known images that are not the ones judged."""

import json

import pytest
import torch
from PIL import Image

from datamodules import ImageRecord
from measurements.rejection import __main__ as rejection
from measurements.rejection.__main__ import background, compare


def test_strangers_are_judged_by_thresholds_of_the_other_known_images():
    def logits(first: list[float]) -> torch.Tensor:
        return torch.tensor([[value, 0.0, 0.0] for value in first])

    sure, unsure = [8.0] * 40, [1.0] * 20
    right = torch.tensor([0] * 40 + [1] * 20)  # only the sure answers are right
    strangers = {"sure": logits([9.0] * 3 + [0.5]), "none": logits([]).reshape(0, 3)}
    rows = compare((logits(sure + unsure), right), (logits(sure[:30] + unsure), right[10:]), strangers, 0.95)
    found = {(row["score"], row["kind"]): row for row in rows}
    assert len(found) == 6  # no row without images
    for score in ("probability", "margin", "energy"):
        known, stranger = found[score, "known"], found[score, "sure"]
        assert (known["accepted"], known["right"], known["images"]) == (0.6, 1.0, 50)
        assert (stranger["accepted"], stranger["images"]) == (0.75, 4)
        assert known["accepted by 95 %"] == 1.0 and stranger["accepted by 95 %"] == 0.75

    wrong = logits(sure), torch.ones(40, dtype=torch.long)
    assert {row["accepted"] for row in compare(wrong, wrong, strangers, 0.95)} == {
        0.0
    }  # also energies, which are above 1.1


@pytest.mark.parametrize(
    ("box", "size"), [((60, 5, 100, 45), (60, 50)), ((0, 30, 100, 50), (100, 30)), ((2, 2, 98, 48), None), (None, None)]
)
def test_the_background_is_the_largest_strip_beside_the_car(tmp_path, box, size):
    record = ImageRecord(tmp_path / "car.jpg", 0, box)
    found = background(Image.new("RGB", (100, 50)), record)
    assert (found and found.size) == size


def test_the_measurement_of_rejection(trained_run, car_photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("deployment.calibration.MIN_ACCEPTED", 1)
    for name in ("others", "more/others"):
        (tmp_path / name).mkdir(parents=True)
        Image.new("RGB", (30, 20), "red").save(tmp_path / name / "red.png")
    report = tmp_path / "report.json"
    arguments = [
        str(trained_run),
        "-d",
        str(car_photos),
        "--negatives",
        str(tmp_path / "others"),
        "--negatives",
        str(tmp_path / "more/others"),
        "--output",
        str(report),
    ]
    rows = rejection.main(arguments)
    assert json.loads(report.read_text())["rows"] == rows
    kinds = {row["kind"]: row["images"] for row in rows}
    assert {"known": 7, "black": 7, "noise": 7, "blurred": 7, "upside down": 7, "others": 1}.items() <= kinds.items()
    assert kinds[str(tmp_path / "more/others")] == 1
    assert "| others | 1 |" in capsys.readouterr().out
