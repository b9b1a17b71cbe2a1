"""The published figures, experiments and questions."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

from reproduction.published import (
    EXPERIMENTS,
    PUBLISHED,
    choose_experiments,
    experiment_files,
    first_drops,
    read_published,
    read_sections,
)
from tests.support.reference import needs_reference, reference_rows
from tests.support.small_runs import table
from utils.errors import ConfigError


@needs_reference
def test_the_published_results_are_those_of_the_study():
    reference, ours = reference_rows("experiments.csv"), table(PUBLISHED)
    assert [row["id"] for row in ours] == [row["id"] for row in reference] and len(ours) == 56
    for row, published in zip(ours, reference, strict=True):
        assert row.pop("description") == published["description"]
        del row["id"], row["first_drop"]
        assert {key: ast.literal_eval(text) for key, text in row.items()} == {
            key: ast.literal_eval(published[key]) for key in row
        }


@needs_reference
def test_the_first_drops_are_those_of_the_published_learning_rates():
    rates = defaultdict(list)
    for row in reference_rows("curves.csv"):
        rates[row["id"]].append(float(row["lr"]))
    for row in table(PUBLISHED):
        lr = rates[row["id"]]
        drops = [epoch for epoch in range(1, len(lr)) if lr[epoch] <= lr[epoch - 1] / 2]
        assert row["first_drop"] == (str(drops[0]) if drops else ""), row["id"]
    assert sum(bool(row["first_drop"]) for row in table(PUBLISHED)) == 27


def test_accuracy_follows_the_epoch_of_the_first_drop():
    drops, others, line = first_drops(0.6)
    assert len(drops) == 16 and sum(drop.is_plateau for drop in drops) == 11 and len(others) == 11
    assert (round(line.intercept, 1), round(line.slope, 3), round(line.correlation, 3)) == (68.0, 0.23, 0.974)
    by_epoch = {drop.epoch: drop.name for drop in drops}
    assert by_epoch[67] == "C-50" and max(by_epoch) == 68 and min(by_epoch) == 31
    assert {drop.weight_decay for drop in drops} == {0.6, 0.7}


def test_figures_belong_to_the_boxes_they_were_measured_with():
    published = read_published()
    assert len(published) == 56 and set(experiment_files()) - set(published) == {"C-10", "C-11"}
    assert published["C-10-published-boxes"].valid_acc_percent == 3.91
    assert published["C-50"].valid_acc_percent == 83.79 and published["C-50"].epochs == 130


def test_experiments_are_chosen_by_name_or_by_file(tmp_path):
    everything = list(choose_experiments(["all"]))
    assert len(everything) == 58 and everything[:2] == ["C-1", "C-2"] and everything[-1] == "C-66"
    assert everything[9:11] == ["C-10", "C-10-published-boxes"]
    assert list(choose_experiments(["C-7", "C-1", "C-7"])) == ["C-7", "C-1"]
    assert choose_experiments([str(EXPERIMENTS / "C-7.yml")]) == {"C-7": EXPERIMENTS / "C-7.yml"}
    (tmp_path / "mine.yml").write_text("seed: 1\n")
    (tmp_path / "other.yml").write_text("experiment_id: long\n")
    chosen = choose_experiments(["C-1", str(tmp_path / "mine.yml"), str(tmp_path / "other.yml")])
    assert list(chosen) == ["C-1", "mine", "long"] and chosen["long"] == tmp_path / "other.yml"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["C-10-publised-boxes"], "C-10-publised-boxes: neither an .* Did you mean 'C-10-published-boxes'"),
        (["missing.yml"], "missing.yml"),
        (["a.yml", "b.yml"], "b.yml and a.yml have the same name, twin"),
        (["c.yml"], "c.yml: experiment_id C-50 is an experiment of the study"),
    ],
)
def test_wrong_experiments_are_errors(names, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, experiment_id in {"a": "twin", "b": "twin", "c": "C-50"}.items():
        Path(f"{name}.yml").write_text(f"experiment_id: {experiment_id}\n")
    with pytest.raises(ConfigError, match=message):
        choose_experiments(["C-1", *names])


def test_the_questions_are_about_experiments_that_exist():
    sections = read_sections()
    assert len(sections) == 10
    assert {name for section in sections for group in section.groups for name in group.experiments} <= set(
        experiment_files()
    )
