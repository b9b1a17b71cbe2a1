"""Which runs are the same run, and what is still to be done."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from datamodules import BoundingBox, read_data
from reproduction.jobs import DataSet, RunIndex, changes_of, digest_of_annotations, plan, read_data_set
from reproduction.published import (
    EXPERIMENTS,
    experiment_names,
)
from reproduction.results import read_results
from reproduction.shortening import COUNTS
from tests.support.data_sets import write_updated_release
from tests.support.reproduction_runs import DATA, jobs_for, write_run
from utils.config import load_config
from utils.config.expressions import parse_expression
from utils.errors import ConfigError

SAME = [
    ("num_workers=3",), ("trackers=[tensorboard]",), ("accelerator=cpu",), ("devices=[1]",), ("loglevel=DEBUG",),
    ("checkpoint_interval=1",), ("tags=[mine]",), ("data_path=elsewhere",), ("cache_path=null",),
    ("num_epochs=200",), ("optimizer_params={weight_decay: 0.6, lr: 0.001}",),
]  # fmt: skip
OTHER = [
    ("image_size=[64, 64]",), ("num_epochs=20",), ("optimizer_params.lr=0.01",), ("precision=64-true",), ("devices=2",),
    ("devices=[0, 1]",), ("early_stopping_patience=3",), ("stop_on_nonfinite_loss=False",), ("width_multiplier=0.5",),
    ("seed=1",),
    ("image_augmentations={RandomAffine: {degrees: 25, translate: [0.1, 0.1], scale: [0.9, 1.1], shear: 8}, "
     "RandomHorizontalFlip: {p: 0.5}, ColorJitter: {brightness: 0.2, contrast: 0.2, saturation: 0.2, hue: 0.1}}",),
]  # fmt: skip


def test_what_does_not_shape_the_result_leaves_a_run_the_same_run(tmp_path):
    (plain,) = jobs_for(tmp_path, "C-50")
    for overrides in SAME:
        assert jobs_for(tmp_path, "C-50", overrides=overrides)[0].key == plain.key, overrides


def test_what_shapes_the_result_makes_another_run(tmp_path):
    (plain,) = jobs_for(tmp_path, "C-50")
    keys = {jobs_for(tmp_path, "C-50", overrides=overrides)[0].key for overrides in OTHER}
    assert plain.key not in keys and len(keys) == len(OTHER) - 1  # two devices are two, whichever
    assert jobs_for(tmp_path, "C-50", data=DataSet("cars", "ffffffff"))[0].key != plain.key
    assert jobs_for(tmp_path, "C-50", data=DataSet("renamed", DATA.digest))[0].key == plain.key


def test_each_seed_is_a_run_and_all_experiments_have_one_before_any_has_two(tmp_path):
    jobs = jobs_for(tmp_path, "C-7", "C-1", overrides=("seed=4",), repeat=2)
    assert [(job.key.experiment, job.key.seed) for job in jobs] == [("C-7", 4), ("C-1", 4), ("C-7", 5), ("C-1", 5)]
    assert load_config(EXPERIMENTS / "C-1.yml", overrides=jobs[3].overrides).seed == 5
    assert jobs[0].key.settings == jobs[2].key.settings != jobs[1].key.settings


@pytest.mark.parametrize(
    "override", ["devices=auto", "output_path=x", "experiment_id=x", "num_epochs=none", "num_epoch=3"]
)
def test_settings_that_cannot_be_are_refused_before_anything_runs(tmp_path, override):
    with pytest.raises(ConfigError, match=override.partition("=")[0]):
        jobs_for(tmp_path, "C-7", overrides=(override,))


def test_a_run_folder_tells_whose_run_it_is(tmp_path):
    jobs = jobs_for(tmp_path, "C-7", "C-10-published-boxes", overrides=("num_epochs=3", "tags=[mine]"), repeat=2)
    runs = {job.key: write_run(job) for job in jobs}
    assert RunIndex(tmp_path).runs() == {key: [run] for key, run in runs.items()}

    (foreign := tmp_path / "ghost_foreign").mkdir()
    (foreign / "run.json").write_text(json.dumps({"status": "completed", "tags": [], "experiment_id": "C-7"}))
    folder = runs[jobs[0].key]
    values = yaml.safe_load((folder / "config.yml").read_text())
    del values["width_multiplier"], values["channels_last"]  # as if it were older than these keys
    (folder / "config.yml").write_text(yaml.safe_dump(values | {"num_workers": 7}, sort_keys=False))
    assert RunIndex(tmp_path).runs() == {key: [run] for key, run in runs.items()}

    (folder / "config.yml").write_text("seed: [")  # damaged: it does not count, and the others do
    assert set(RunIndex(tmp_path).runs()) == set(runs) - {jobs[0].key}


def test_of_several_folders_of_a_run_the_one_that_ended_counts(tmp_path):
    (job,) = jobs_for(tmp_path, "C-7")
    without_checkpoint, broken_off = write_run(job, status="failed"), write_run(job, status="interrupted")
    (without_checkpoint / "checkpoints" / "last.ckpt").unlink()
    index = RunIndex(tmp_path)
    assert not index.ended(job.key) and index.broken_off(job.key) == broken_off
    ended = write_run(job)
    assert index.ended(job.key) and index.runs()[job.key][0] == ended
    measured, unfinished = read_results(tmp_path, ["C-7"])
    assert [run.run for run in measured] == [ended.name] and not unfinished


def test_changes_are_named_as_they_would_be_set(tmp_path):
    (job,) = jobs_for(tmp_path, "C-50", overrides=("optimizer_params.lr=0.01", "image_size=[64, 48]", "num_workers=1"))
    values = load_config(EXPERIMENTS / "C-50.yml", overrides=job.overrides).plain()
    assert changes_of(values, "C-50") == "image_size=[64, 48]; optimizer_params.lr=0.01"
    values["optimizer_params"] = {"lr": 0.001}
    assert changes_of(values, "C-50") == "image_size=[64, 48]; optimizer_params.weight_decay=removed"
    (job,) = jobs_for(tmp_path, "C-50")
    assert changes_of(load_config(EXPERIMENTS / "C-50.yml", overrides=job.overrides).plain(), "C-50") == ""


def test_a_shortened_study_has_schedules_that_are_as_much_faster(tmp_path):
    names = ("C-1", "C-27", "C-39", "C-50", "C-63")
    jobs = plan(names, overrides=(), repeat=1, folder=tmp_path, shorten=8, data=DATA)
    configs = {
        job.key.experiment: load_config(EXPERIMENTS / f"{job.key.experiment}.yml", overrides=job.overrides)
        for job in jobs
    }
    assert all(config.num_epochs == 25 for config in configs.values())
    assert configs["C-1"].early_stopping_patience == 2  # 15 / 8
    assert configs["C-27"].lr_scheduler_params == {"factor": 0.1, "patience": 1, "threshold": 0.001, "min_lr": 1e-7}
    assert configs["C-50"].lr_scheduler_params == {"gamma": 0.1, "milestones": [9, 11, 12, 14]}
    schedule = parse_expression(configs["C-63"].lr_scheduler_params["lr_lambda"])
    assert schedule(3) == parse_expression(load_config(EXPERIMENTS / "C-63.yml").lr_scheduler_params["lr_lambda"])(24)
    for name, config in configs.items():
        assert config.tags == ["shortened 8", DATA.tag]
        assert changes_of(config.plain(), name) == "counts of epochs / 8"


def test_every_count_of_epochs_in_the_study_is_shortened():
    schedules = [load_config(EXPERIMENTS / f"{name}.yml").lr_scheduler_params or {} for name in experiment_names()]
    assert {key for params in schedules for key in params} == {
        *COUNTS,
        "lr_lambda",
        "gamma",
        "factor",
        "threshold",
        "min_lr",
    }


def test_a_data_set_is_known_by_its_annotations_wherever_it_lies(tmp_path):
    for name in ("one", "two"):
        write_updated_release(tmp_path / name)
    write_updated_release(tmp_path / "other", seed=1)
    config = load_config(overrides=[f"data_path={tmp_path / 'one'}"])
    digests = {name: digest_of_annotations(read_data(tmp_path / name)) for name in ("one", "two", "other")}
    assert read_data_set(config) == DataSet("one", digests["one"])
    assert digests["one"] == digests["two"] != digests["other"]

    annotations = read_data(tmp_path / "one")
    first, *rest = annotations.train
    changed = [
        replace(annotations, train=(replace(first, label=2 - first.label), *rest)),
        replace(annotations, train=(replace(first, bounding_box=BoundingBox(0, 0, 1, 1)), *rest)),
        replace(annotations, train=(replace(first, path=Path("999999.jpg")), *rest)),
        replace(annotations, train=(*rest, first)),
        replace(annotations, train=tuple(rest), valid=(first, *annotations.valid)),
        replace(annotations, class_names=annotations.class_names[::-1]),
    ]
    assert len({digest_of_annotations(each) for each in changed} | {digests["one"]}) == 7
