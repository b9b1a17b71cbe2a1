"""Spaces: what they take, and how a wrong one is answered before anything is trained."""

import re
from pathlib import Path

import pytest
import yaml

from searching.reading import check_corners, read_space
from tests.support.search_runs import write_space
from utils.config import CONFIG_FILE, load_config
from utils.errors import ConfigError

RATE = {"optimizer_params.lr": {"low": 0.001, "high": 0.1, "log": True}}
SHIPPED = sorted((CONFIG_FILE.parent / "experiments" / "searches").glob("*.yml"))


def problems(path: Path, **keys) -> str:
    with pytest.raises(ConfigError) as caught:
        read_space(write_space(path, **keys))
    return str(caught.value)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_each_shipped_space_is_valid(path):
    space = read_space(path)
    assert space.source.values["validation_fraction"] and len(space.corners()) == {
        "demo": 4,
        "lr-decay-length": 12,
    }.get(path.stem, 10)


def test_the_space_in_the_guide_is_valid(tmp_path):
    guide = (CONFIG_FILE.parent / "docs" / "search.md").read_text(encoding="utf-8")
    text = re.search(r"```yaml\n(.*?)```", guide, re.DOTALL)[1]
    (tmp_path / "s.yml").write_text(text.replace("../base.yml", str(CONFIG_FILE.parent / "experiments" / "base.yml")))
    assert len(read_space(tmp_path / "s.yml").corners()) == 2 * 2 * 3 * 2 * 2


def test_a_trial_has_the_settings_that_its_axes_name(tmp_path):
    length = {"short": {"num_epochs": 9}, "long": {"num_epochs": 18, "lr_scheduler_params.milestones": [12, 16]}}
    vary = RATE | {"length": length, "lr_scheduler_params.gamma": {"low": 0, "high": 1, "step": 0.5}}
    space = read_space(write_space(tmp_path / "s.yml", vary=vary, sampler="random", budget={"trials": 3}))
    config = space.config({"optimizer_params.lr": 0.05, "length": "long", "lr_scheduler_params.gamma": 0.5})
    assert (config.num_epochs, config.optimizer_params) == (18, {"lr": 0.05, "weight_decay": 0.2})
    assert config.lr_scheduler_params == {"gamma": 0.5, "milestones": [12, 16]}
    assert (config.experiment_id, config.best_metric, config.devices) == ("s", "valid_acc", 1)
    assert len(space.corners()) == 8 and all(isinstance(c["lr_scheduler_params.gamma"], float) for c in space.corners())


def test_all_mistakes_are_answered_at_once_with_their_places(tmp_path):
    vary = {
        "optimizer_params.wieght_decay": [0.1, 0.2],
        "optimzer": ["SGD"],
        "optimizer_params.lr": {"low": 0.1, "high": 0.01},
        "dropout": {"low": 0.1, "hihg": 0.5},
        "dropout.x": [1],
        "batch_size": [],
        "seed": [0, 1],
        "num_workers": [0, 2],
        "length": {"short": {"num_epoch": 3}},
    }
    text = problems(
        tmp_path / "s.yml", vary=vary, metric="valid_ac", pruning={"factor": 3}, set={"image_siz": [32, 32]}
    )
    expected = (
        "set.image_siz: unknown key. Did you mean 'image_size'?",
        "optimizer_params.wieght_decay: AdamW has no such parameter. Did you mean 'weight_decay'?",
        "vary.optimzer: unknown key. Did you mean 'optimizer'?",
        "vary.optimizer_params.lr: low 0.1, high 0.01: the range is empty",
        "vary.dropout.hihg: unknown key. Did you mean 'high'?",
        "vary.dropout.x: dropout: this value has no keys",
        "vary.batch_size: no choice is left",
        "vary.seed: cannot vary: the best of several seeds",
        "vary.num_workers: it does not change the result",
        "vary.length.short.num_epoch: unknown key. Did you mean 'num_epochs'?",
        "metric: 'valid_ac' is not a metric. Did you mean 'valid_acc'?",
        "budget: expected trials or hours",
    )
    assert text.startswith(f"{tmp_path / 's.yml'} has {len(expected)} problems:")
    for line in expected:
        assert f": {line}" in text, line


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"vray": RATE}, "vray: unknown key. Did you mean 'vary'?"),
        ({"vary": RATE, "budget": {"trails": 3}}, "budget.trails: unknown key. Did you mean 'trials'?"),
        ({"vary": RATE, "pruning": 3}, "pruning: 3; expected names with their values below, such as {name: value}."),
        ({"vary": RATE, "sampler": "grid"}, "vary.optimizer_params.lr: a grid needs a step"),
        ({"vary": {"dropout": {"low": 0.1}}, "budget": {"trials": 1}}, "the key 'high' is missing"),
        ({"vary": RATE, "set": {"optimizer_params.lr": 1}, "budget": {"trials": 1}}, "is set under 'set' too"),
        (
            {"vary": {"num_epochs": [3, 9]}, "budget": {"hours": 1}, "pruning": {}},
            "num_epochs 3 is too short for 2 rungs",
        ),
        ({"vary": RATE, "metric": ["valid_acc", "size"], "budget": {"hours": 1}}, "'size' is not a cost"),
        ({"vary": {"batch_size": [1, 2]}, "budget": {"trials": 1}}, "s.yml:3: batch_size: 1; expected greater than"),
    ],
)
def test_one_mistake(tmp_path, keys, expected):
    assert expected in problems(tmp_path / "s.yml", **keys)


def test_a_corner_that_cannot_be_built_is_named_before_anything_trains(tmp_path):
    vary = {"out_channels": [320, 10**12], "optimizer_params.lr": [0.1]}
    space = read_space(write_space(tmp_path / "s.yml", vary=vary, sampler="grid"))
    with pytest.raises(ConfigError, match=r"its weights take .* \(trial with out_channels=1000000000000, ") as caught:
        check_corners(space)
    assert str(caught.value).count("\n") == 1


def test_a_base_may_have_pretrained_weights_and_no_seed(tmp_path, trained_run):
    base = load_config().plain() | {
        "base": None, "architecture": "shuff_v2_x05", "dropout": None, "out_channels": None, "image_size": [64, 48],
        "pretrained": str(trained_run), "normalization_params_rgb": "pretrained", "validation_fraction": 0.2,
    }  # fmt: skip
    del base["seed"]
    (tmp_path / "base.yml").write_text(yaml.safe_dump(base))
    (tmp_path / "s.yml").write_text(yaml.safe_dump({"base": "base.yml", "vary": RATE, "budget": {"trials": 2}}))
    space = read_space(tmp_path / "s.yml")
    check_corners(space)
    assert space.config(space.corners()[0]).split_seed == 0
