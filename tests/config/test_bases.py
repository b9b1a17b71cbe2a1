"""Bases of configuration files: the study is frozen, config.yml is the user's; former names of keys."""

from pathlib import Path

import pytest
import yaml

from utils.config import CONFIG_FILE, LOCAL_KEYS, Config, load_config, load_run_config, parse_config
from utils.config.schema import Config as Schema
from utils.config.yaml_source import SourcedMapping
from utils.errors import ConfigError

EXPERIMENTS = CONFIG_FILE.parent / "experiments"
STUDY = sorted(
    path
    for path in EXPERIMENTS.rglob("*.yml")
    if path.stem not in ("base", "sections") and path.parent.name != "searches"
)

# Another valid value of every key of config.yml.
EDITS = """
experiment_id: mine
description: Mine
tags: [mine]
seed: 1
deterministic: True
loglevel: DEBUG
logging_dir: logs
trackers: [tensorboard]
mlflow_artifacts: True
log_to_neptune: True
neptune_username: me
neptune_project_name: cars
data_path: mine/cars
raw_data_path: mine/archives
extract_path: edited
dataset: class_folders
table_params: {path: file, label: null, split: null, box: null, box_format: xywh, box_unit: null, delimiter: null}
output_path: mine/output
validation_fraction: 0.2
test_fraction: 0.1
split_seed: 3
near_duplicate_distance: 2
image_size: [64, 48]
resize_size: [600, 600]
test_image_size: [90, 90]
aspect: pad
flip_at_test: True
exif_orientation: True
convert_to_grayscale: True
normalize: False
normalization_params_rgb: {mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}
normalization_params_grayscale: {mean: [0.5], std: [0.5]}
crop_to_bboxes: True
erase_background: True
shuffle_bounding_boxes: True
augment_images: False
image_augmentations: {RandomVerticalFlip: {p: 0.5}}
augment_tensors: True
tensor_augmentations: {RandomErasing: {p: 0.1}}
architecture: ghost
dropout: 0.1
out_channels: 640
width_multiplier: 0.5
drop_path: 0.1
pretrained: True
batch_size: 16
num_epochs: 3
early_stopping_patience: 2
best_metric: valid_acc
checkpoint_interval: 1
keep_checkpoints: [1]
stop_on_nonfinite_loss: False
freeze_epochs: 1
accumulate_batches: 2
optimizer: SGD
optimizer_params: {lr: 0.1}
head_lr_factor: 10.0
layer_decay: 0.8
decay_norm_and_bias: False
gradient_clip_norm: 1.0
ema_decay: 0.9
lr_scheduler: StepLR
lr_scheduler_params: {step_size: 3}
scheduler_step: batch
warmup_epochs: 0.5
loss_function: CrossEntropyLoss
loss_params: {label_smoothing: 0.2}
class_weights: balanced
mixup_alpha: 0.2
cutmix_alpha: 1.0
mix_probability: 0.5
mix_off_epochs: 1
sampler: balanced
teacher: another_run
distillation_temperature: 4.0
distillation_weight: 0.5
auxiliary_targets: [make]
auxiliary_weight: 0.5
cache_path: mine/cache
augmentation_device: cpu
cache_on_device: True
num_workers: 1
accelerator: cpu
devices: 1
num_nodes: 2
strategy: ddp
precision: 64-true
channels_last: False
compile: default
"""


@pytest.fixture
def edited(tmp_path, monkeypatch) -> dict:
    """A copy of config.yml with another value of each key, in the place of config.yml; returns its values."""
    shipped, edits = yaml.safe_load(CONFIG_FILE.read_text()), yaml.safe_load(EDITS)
    assert edits.keys() == shipped.keys()
    assert [key for key in shipped if edits[key] == shipped[key]] == ["architecture"]  # SqueezeNet has no out_channels
    (tmp_path / "config.yml").write_text(EDITS.replace("architecture: ghost", "architecture: sq_11"))
    monkeypatch.setattr("utils.config.loading.CONFIG_FILE", tmp_path / "config.yml")
    return edits


def result_settings(config: Config) -> dict:
    return {key: value for key, value in config.plain().items() if key not in LOCAL_KEYS}


def test_no_edit_of_config_yml_changes_an_experiment(request):
    shipped = {path: result_settings(load_config(path)) for path in STUDY}
    request.getfixturevalue("edited")
    for path in STUDY:
        assert result_settings(load_config(path)) == shipped[path], path.stem


def test_how_and_where_an_experiment_runs_comes_from_config_yml(edited):
    values = load_config(EXPERIMENTS / "C-1.yml").plain()
    for key in set(LOCAL_KEYS) - {"experiment_id", "description", "neptune_api_token"}:
        assert values[key] == edited[key]


def test_base_yml_sets_everything_that_shapes_a_result_as_c_50_does():
    base = yaml.safe_load((EXPERIMENTS / "base.yml").read_text())
    assert base.keys() == Schema.model_fields.keys() - {*LOCAL_KEYS}
    assert base == {key: value for key, value in yaml.safe_load(CONFIG_FILE.read_text()).items() if key in base}


def write(folder: Path, **texts: str) -> None:
    for name, text in texts.items():
        (folder / f"{name}.yml").write_text(text)


def test_a_chain_of_bases_is_relative_to_each_file(tmp_path):
    (tmp_path / "lab").mkdir()
    write(tmp_path, ours=f"base: {EXPERIMENTS / 'C-14.yml'}\nbatch_size: 32\nseed: 7\nexperiment_id: ours")
    write(tmp_path / "lab", mine="base: ../ours.yml\nseed: 8\noptimizer_params: {lr: 0.5}")
    config = load_config(tmp_path / "lab" / "mine.yml")
    assert (config.seed, config.batch_size, config.optimizer_params) == (8, 32, {"lr": 0.5})
    assert config.out_channels == load_config(EXPERIMENTS / "C-14.yml").out_channels == 1280
    assert (config.experiment_id, config.description) == (None, None)  # it is neither ours nor C-14
    assert "base" not in config.plain() and "base:" not in config.as_yaml()


def test_config_yml_can_have_a_base_too(tmp_path, monkeypatch):
    write(tmp_path, config=f"base: {EXPERIMENTS / 'C-1.yml'}\nnum_epochs: 3\nexperiment_id: mine\ndata_path: cars")
    monkeypatch.setattr("utils.config.loading.CONFIG_FILE", tmp_path / "config.yml")
    config = load_config()
    assert (config.optimizer, config.num_epochs, config.experiment_id) == ("Adam", 3, "mine")
    assert str(load_config(EXPERIMENTS / "C-50.yml").data_path) == "cars"
    assert load_config(EXPERIMENTS / "C-50.yml").num_epochs == 200


def test_without_a_base_keys_that_are_not_set_have_their_defaults(tmp_path):
    write(tmp_path, mine="base: null\nseed: 1")
    with pytest.raises(ConfigError, match="batch_size: this key is missing"):
        load_config(tmp_path / "mine.yml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: mine.yml", "mine.yml:1: base: the bases form a cycle: mine.yml → mine.yml"),
        ("seed: 1\nbase: other.yml", "other.yml:1: base: the bases form a cycle: mine.yml → other.yml → mine.yml"),
        ("base: [a]", "mine.yml:1: base: ['a']; expected the path of a configuration file, or null"),
        ("base: ''", "mine.yml:1: base: ''; expected the path"),
        ("base: no.yml", "mine.yml:1: base: "),
        ("bse: x.yml", "mine.yml:1: bse: unknown key. Did you mean 'base'?"),
    ],
)
def test_a_wrong_base_is_one_clear_error(tmp_path, text, message):
    write(tmp_path, mine=text, other="base: mine.yml")
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "mine.yml")
    assert message in str(caught.value) and len(str(caught.value).splitlines()) <= 2


def test_a_base_cannot_be_set():
    with pytest.raises(ConfigError, match="--set base: only a file can name its base; use --config"):
        load_config(overrides=["base=experiments/C-1.yml"])


def test_former_names_are_accepted_everywhere(tmp_path):
    write(tmp_path, mine="stanford_data_path: a\nstanford_raw_data_path: b")
    config = load_config(tmp_path / "mine.yml")
    assert (str(config.data_path), str(config.raw_data_path)) == ("a", "b")
    assert str(load_config(tmp_path / "mine.yml", overrides=["stanford_data_path=c"]).data_path) == "c"
    resolved = config.as_yaml()
    assert "stanford" not in resolved
    former = resolved.replace("raw_data_path:", "stanford_raw_data_path:").replace(
        "\ndata_path:", "\nstanford_data_path:"
    )
    assert "\nstanford_data_path: a" in former
    write(tmp_path, config=former)
    assert str(load_run_config(tmp_path).data_path) == "a"
    assert str(load_run_config(tmp_path, overrides=["stanford_data_path=d"]).data_path) == "d"
    source = SourcedMapping()  # as a checkpoint has it
    source.values = yaml.safe_load(former)
    assert str(parse_config(source).raw_data_path) == "b"


def test_both_names_of_a_key_are_an_error_that_names_both_places(tmp_path):
    write(tmp_path, mine="stanford_data_path: a\nseed: 1\ndata_path: b")
    with pytest.raises(
        ConfigError, match=r"mine\.yml:1 and .*mine\.yml:3: stanford_data_path is the former name of data_path"
    ):
        load_config(tmp_path / "mine.yml")
    with pytest.raises(ConfigError, match="--set stanford_data_path and --set data_path"):
        load_config(overrides=["stanford_data_path=a", "data_path=b"])
