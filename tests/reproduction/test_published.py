"""The published figures, experiments and questions."""

import ast
import csv
from pathlib import Path

import pytest

from reproduction.published import (
    PUBLISHED,
    choose_experiments,
    experiment_names,
    read_published,
    read_sections,
)
from utils.errors import ConfigError

PROJECT = Path(__file__).resolve().parents[2]
REFERENCE = PROJECT.parent / "shared" / "reference" / "experiments.csv"


@pytest.mark.skipif(
    not REFERENCE.exists(), reason=f"the published record is not part of the project; expected at {REFERENCE}"
)
def test_the_published_figures_are_those_of_the_study():
    with REFERENCE.open(newline="") as file:
        reference = list(csv.DictReader(file))
    with PUBLISHED.open(newline="") as file:
        ours = list(csv.DictReader(file))
    assert [row["id"] for row in ours] == [row["id"] for row in reference] and len(ours) == 56
    for row, published in zip(ours, reference, strict=True):
        assert row.pop("description") == published["description"]
        del row["id"]
        assert {key: ast.literal_eval(text) for key, text in row.items()} == {
            key: ast.literal_eval(published[key]) for key in row
        }


def test_figures_belong_to_the_boxes_they_were_measured_with():
    published = read_published()
    assert len(published) == 56 and set(experiment_names()) - set(published) == {"C-10", "C-11"}
    assert published["C-10-published-boxes"].valid_acc_percent == 3.91
    assert published["C-50"].valid_acc_percent == 83.79 and published["C-50"].epochs == 130


def test_experiments_are_chosen_by_name():
    everything = choose_experiments(["all"])
    assert len(everything) == 58 and everything[:2] == ["C-1", "C-2"] and everything[-1] == "C-66"
    assert everything[9:11] == ["C-10", "C-10-published-boxes"]
    assert choose_experiments(["C-7", "C-1", "C-7"]) == ["C-7", "C-1"]
    with pytest.raises(
        ConfigError, match=r"C-10-publised-boxes: there is no such experiment. Did you mean 'C-10-published"
    ):
        choose_experiments(["C-1", "C-10-publised-boxes"])


def test_the_questions_are_about_experiments_that_exist():
    sections = read_sections()
    assert len(sections) == 10
    assert {name for section in sections for group in section.groups for name in group.experiments} <= set(
        experiment_names()
    )
