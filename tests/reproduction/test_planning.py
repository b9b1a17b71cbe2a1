"""Which runs are the same run, and what is still to be done."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from datamodules import BoundingBox, read_data
from reproduction.planning import (
    EPOCH_COUNTS,
    DataSet,
    RunIndex,
    changes_of,
    digest_of_data,
    plan,
    read_data_set,
    scale_schedule,
)
from reproduction.published import EXPERIMENTS, IMAGES, choose_experiments, experiment_files
from reproduction.results import Setup, read_results
from tests.config.test_bases import EDITS
from tests.support.data_sets import write_updated_release
from tests.support.reproduction_runs import DATA, jobs_for, write_run
from utils.config import LOCAL_KEYS, load_config
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
    jobs = jobs_for(
        tmp_path,
        "C-7",
        "C-10-published-boxes",
        overrides=("num_epochs=3", "tags=[mine, data cleaned, data cars v2]"),
        repeat=2,
    )
    runs = {job.key: write_run(job) for job in jobs}
    assert RunIndex(tmp_path).runs() == {key: [run] for key, run in runs.items()}

    (foreign := tmp_path / "ghost_foreign").mkdir()
    (foreign / "run.json").write_text(json.dumps({"status": "completed", "tags": [], "experiment_id": "C-7"}))
    folder = runs[jobs[0].key]
    values = yaml.safe_load((folder / "config.yml").read_text())
    del values["width_multiplier"], values["channels_last"]  # as if it were older than these keys
    (folder / "config.yml").write_text(yaml.safe_dump(values | {"num_workers": 7}, sort_keys=False))
    assert RunIndex(tmp_path).runs() == {key: [run] for key, run in runs.items()}

    nobodys = write_run(jobs[0])  # such as a branch, which had its trunk's tags until it lost its name alone
    named = (nobodys / "config.yml").read_text()
    (nobodys / "config.yml").write_text(named.replace("experiment_id: C-7", "experiment_id: null"))
    assert RunIndex(tmp_path).runs() == {key: [run] for key, run in runs.items()}

    (folder / "config.yml").write_text("seed: [")  # damaged: it does not count, and the others do
    assert set(RunIndex(tmp_path).runs()) == set(runs) - {jobs[0].key}


def test_of_several_folders_of_a_run_the_one_that_ended_counts(tmp_path):
    (job,) = jobs_for(tmp_path, "C-7")
    without_checkpoint, broken_off = write_run(job, status="failed"), write_run(job, status="interrupted")
    (without_checkpoint / "checkpoints" / "last.ckpt").unlink()
    index = RunIndex(tmp_path)
    assert not index.finished(job.key) and index.resumable(job.key) == broken_off
    ended = write_run(job)
    assert index.finished(job.key) == ended == index.runs()[job.key][0]
    measured, unfinished = read_results(tmp_path, choose_experiments(["C-7"]))
    assert [run.run for run in measured] == [ended.name] and not unfinished


def changes(name: str, values: dict) -> str:
    return changes_of(values, name, EXPERIMENTS / f"{name}.yml")


def test_changes_are_named_as_they_would_be_set(tmp_path):
    (job,) = jobs_for(tmp_path, "C-50", overrides=("optimizer_params.lr=0.01", "image_size=[64, 48]", "num_workers=1"))
    values = load_config(job.file, overrides=job.overrides).plain()
    assert changes("C-50", values) == "image_size=[64, 48]; optimizer_params.lr=0.01"
    values["optimizer_params"] = {"lr": 0.001}
    assert changes("C-50", values) == "image_size=[64, 48]; optimizer_params.weight_decay=removed"


@pytest.mark.parametrize("name", ["C-50"])
def test_a_run_with_any_other_setting_is_never_called_published(name, tmp_path, monkeypatch):
    (job,) = jobs_for(tmp_path, name)
    values = load_config(job.file, overrides=job.overrides).plain()
    edits = yaml.safe_load(EDITS)
    (tmp_path / "config.yml").write_text(EDITS.replace("drop_path: 0.1", "drop_path: null"))  # which ghost has not
    monkeypatch.setattr("utils.config.loading.CONFIG_FILE", tmp_path / "config.yml")

    assert load_config().batch_size == 16  # config.yml is edited, and no experiment notices
    assert jobs_for(tmp_path, name)[0].key == job.key
    assert changes(name, load_config(job.file, overrides=job.overrides).plain()) == ""

    setup = Setup("stanford", "0123abcd", *IMAGES, changes(name, values))
    assert setup.is_published
    tried = [key for key in edits if key not in (*LOCAL_KEYS, "seed") and edits[key] != values[key]]
    assert len(tried) >= 25 and {"batch_size", "precision", "num_nodes", "early_stopping_patience"} <= set(tried)
    for key in tried:
        found = changes(name, values | {key: edits[key]})
        assert found.startswith("devices=2" if key == "num_nodes" else key), key
        assert not setup._replace(changes=found).is_published
    assert not setup._replace(valid_images=4064).is_published


def test_runs_of_earlier_versions_are_recognized(tmp_path, caplog):
    job, other = jobs_for(tmp_path, "C-39", "C-50", divisor=5)
    run, unknown = write_run(job), write_run(other)
    config = run / "config.yml"
    values = yaml.safe_load(config.read_text().replace("\ndata_path:", "\nstanford_data_path:"))
    values["tags"] = [tag.replace("epochs / 5", "shortened 5") for tag in values["tags"]]
    config.write_text(yaml.safe_dump(values, sort_keys=False))
    (unknown / "config.yml").write_text((unknown / "config.yml").read_text() + "dropped_key: 3\n")
    (measured,), _ = read_results(tmp_path, choose_experiments(["C-39", "C-50"]))
    assert measured.experiment == "C-39" and measured.changes == "epoch counts / 5"
    assert "is ignored" in caplog.text and "unknown settings: dropped_key" in caplog.text


def test_a_divided_schedule_is_as_much_faster(tmp_path):
    names = ("C-1", "C-27", "C-39", "C-50", "C-63")
    jobs = jobs_for(tmp_path, *names, divisor=8)
    configs = {job.key.experiment: load_config(job.file, overrides=job.overrides) for job in jobs}
    assert all(config.num_epochs == 25 for config in configs.values())
    assert configs["C-1"].early_stopping_patience == 2  # 15 / 8
    assert configs["C-27"].lr_scheduler_params == {"factor": 0.1, "patience": 1, "threshold": 0.001, "min_lr": 1e-7}
    assert configs["C-50"].lr_scheduler_params == {"gamma": 0.1, "milestones": [9, 11, 12, 14]}
    schedule = parse_expression(configs["C-63"].lr_scheduler_params["lr_lambda"])
    assert schedule(3) == parse_expression(load_config(EXPERIMENTS / "C-63.yml").lr_scheduler_params["lr_lambda"])(24)
    for name, config in configs.items():
        assert config.tags == ["epochs / 8", DATA.tag]
        assert changes(name, config.plain()) == "epoch counts / 8"


@pytest.mark.parametrize(
    ("scheduler", "params", "divided"),
    [
        ("ExponentialLR", {"gamma": 0.9}, {"gamma": 0.9**4}),
        ("StepLR", {"step_size": 30, "gamma": 0.1}, {"step_size": 8, "gamma": 0.1}),
        ("CosineAnnealingLR", {"T_max": 200, "eta_min": 0.0001}, {"T_max": 50, "eta_min": 0.0001}),
    ],
)
def test_other_schedulers_are_divided_too(scheduler, params, divided):
    config = load_config(overrides=[f"lr_scheduler={scheduler}", f"lr_scheduler_params={json.dumps(params)}"])
    after = load_config(overrides=[f"lr_scheduler={scheduler}", f"lr_scheduler_params={json.dumps(params)}",
                                   *scale_schedule(config, 4)])  # fmt: skip
    assert after.lr_scheduler_params == pytest.approx(divided) and after.num_epochs == 50


def test_what_else_counts_epochs_is_divided_too(tmp_path):
    more = ("warmup_epochs=10", "freeze_epochs=3", "mix_off_epochs=80", "mixup_alpha=0.1", "keep_checkpoints=[17, 34]")
    config = load_config(EXPERIMENTS / "C-50.yml", overrides=[*more, "pretrained=x.ckpt"])
    faster = scale_schedule(config, 4)
    assert {"warmup_epochs=2.5", "freeze_epochs=1", "mix_off_epochs=20", "keep_checkpoints=null"} <= {*faster}
    assert load_config(EXPERIMENTS / "C-50.yml", overrides=[*more, "pretrained=x.ckpt", *faster]).num_epochs == 50


def test_repeats_with_other_seeds_keep_the_images_of_the_first(tmp_path):
    jobs = jobs_for(tmp_path, "C-1", repeat=2, overrides=("validation_fraction=0.2", "seed=5"))
    configs = [load_config(job.file, overrides=job.overrides) for job in jobs]
    assert [(config.seed, config.split_seed) for config in configs] == [(5, 5), (6, 5)]
    assert len({job.key.settings for job in jobs}) == 1
    for job in jobs:
        write_run(job)
    measured, _ = read_results(tmp_path, choose_experiments(["C-1"]))
    assert [(run.seed, run.changes) for run in measured] == [(5, "split_seed=5; validation_fraction=0.2"),
                                                             (6, "split_seed=5; validation_fraction=0.2")]  # fmt: skip
    assert {RunIndex(tmp_path).finished(job.key) is not None for job in jobs} == {True}
    (other,) = jobs_for(tmp_path, "C-1", overrides=("validation_fraction=0.2", "seed=6"))  # with other images
    assert RunIndex(tmp_path).finished(other.key) is None


def test_each_file_is_planned_with_its_own_data_set(tmp_path):
    files = {}
    for name in ("one", "other"):
        write_updated_release(tmp_path / name, seed=len(name))
        files[name] = tmp_path / f"{name}.yml"
        files[name].write_text(f"base: {EXPERIMENTS / 'base.yml'}\ndata_path: {tmp_path / name}\n")
    jobs = plan(files, overrides=(), repeat=1, folder=tmp_path / "runs")
    assert [load_config(job.file, overrides=job.overrides).tags[0].split()[1] for job in jobs] == ["one", "other"]
    (alone,) = plan({"other": files["other"]}, overrides=(), repeat=1, folder=tmp_path / "runs")
    assert alone.key == jobs[1].key and jobs[0].key.data != jobs[1].key.data


def test_every_epoch_count_in_the_study_is_divided():
    schedules = [load_config(file).lr_scheduler_params or {} for file in experiment_files().values()]
    keys = {key for params in schedules for key in params}
    assert keys - {*EPOCH_COUNTS} == {"lr_lambda", "gamma", "factor", "threshold", "min_lr"}


def test_own_files_are_planned_beside_the_study(tmp_path):
    mine, fast = tmp_path / "mine.yml", tmp_path / "fast.yml"
    mine.write_text(f"base: {EXPERIMENTS / 'base.yml'}\nbatch_size: 32\n")
    fast.write_text(f"base: {mine}\nexperiment_id: half precision\nprecision: bf16-mixed\n")
    names, folder, overrides = ("C-50", str(mine), str(fast)), tmp_path / "runs", ("num_epochs=9",)
    files = choose_experiments(names)
    assert list(files) == ["C-50", "mine", "half precision"]
    published, own, other = jobs_for(folder, *names, overrides=overrides)
    assert str(other.key).startswith("half_precision_seed-0_")
    configs = [load_config(job.file, overrides=job.overrides) for job in (published, own, other)]
    assert [config.experiment_id for config in configs] == list(files)
    assert [(config.batch_size, config.precision, config.devices, config.num_epochs) for config in configs] == [
        (64, "32-true", 1, 9), (32, "32-true", 1, 9), (32, "bf16-mixed", 1, 9)
    ]  # fmt: skip
    for job in (published, own, other):
        write_run(job)
    measured, _ = read_results(folder, files)
    assert {run.changes for run in measured} == {"num_epochs=9"}
    mine.write_text(mine.read_text().replace("32", "16"))  # a run is not taken for one of the edited file
    (again,) = (run for run in read_results(folder, files)[0] if run.experiment == "mine")
    assert again.changes == "batch_size=32; num_epochs=9"
    assert RunIndex(folder).finished(jobs_for(folder, *names, overrides=overrides)[1].key) is None


def test_a_data_set_is_known_by_its_annotations_wherever_it_lies(tmp_path):
    for name in ("one", "two"):
        write_updated_release(tmp_path / name)
    write_updated_release(tmp_path / "other", seed=1)
    config = load_config(overrides=[f"data_path={tmp_path / 'one'}"])
    digests = {name: digest_of_data(read_data(tmp_path / name)) for name in ("one", "two", "other")}
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
    assert len({digest_of_data(each) for each in changed} | {digests["one"]}) == 7
