"""The configuration: what is loaded, and the message of each wrong value."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from utils.config import CONFIG_FILE, LOCAL_KEYS, load_config, load_run_config
from utils.config.schema import Config as Schema
from utils.config.schema import json_schema
from utils.errors import ConfigError
from utils.machine import PROJECT


def problems(*overrides: str, text: str = "", folder: Path | None = None) -> str:
    path = None
    if text:
        path = folder / "mine.yml"
        path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides=overrides)
    return str(caught.value)


def test_config_yml_is_experiment_c_50():
    config = load_config()
    assert (config.architecture, config.out_channels) == ("ghost", 320)
    assert config.experiment_id is None  # which the edited file would not be
    assert (config.optimizer, config.optimizer_params) == ("AdamW", {"lr": 0.001, "weight_decay": 0.6})
    assert config.lr_scheduler_params == {"gamma": 0.1, "milestones": [67, 82, 95, 107]}
    assert list(config.image_augmentations) == ["RandomHorizontalFlip", "RandomAffine", "ColorJitter"]


@pytest.mark.parametrize("name", sorted(Schema.model_fields.keys() - {"neptune_api_token"}))
def test_config_yml_has_every_key_with_its_default_and_a_comment(name):
    text = CONFIG_FILE.read_text(encoding="utf-8")
    field, value = Schema.model_fields[name], yaml.safe_load(text)[name]
    if not field.is_required() and name not in ("experiment_id", "description"):
        assert value == (str(field.default) if isinstance(field.default, Path) else field.default)
    lines = [line for line in text.splitlines() if line.startswith(f"{name}: ") or line.startswith(f"{name}:  ")]
    assert len(lines) == 1 and re.search(r" # .{5}", lines[0])
    is_local = name in LOCAL_KEYS and name not in ("experiment_id", "description")
    assert ("# (local)" in lines[0]) == is_local


def test_every_key_has_a_description():
    assert all(field.description and field.description.endswith(".") for field in Schema.model_fields.values())


def test_json_schema_in_the_repository_is_current():
    assert (PROJECT / "config.schema.json").read_text() == json_schema(), "python -m utils.config > config.schema.json"
    assert json.loads(json_schema())["additionalProperties"] is False
    assert "config.schema.json" in CONFIG_FILE.read_text().splitlines()[0]


@pytest.mark.parametrize("path", sorted((PROJECT / "experiments").glob("*.yml")), ids=lambda path: path.stem)
def test_every_experiment_file_loads(path):
    if path.stem not in ("base", "sections"):
        assert load_config(path).experiment_id == path.stem


PUBLISHED = """
loglevel: 'INFO'
logging_dir: 'logs'
log_to_neptune: False
neptune_username: '<your name>'
neptune_project_name: '<your project>'
neptune_api_token: '<your token>'
stanford_raw_data_path: '<folder of car_ims.tgz>'
stanford_data_path: 'input/stanford'
output_path: 'output'
image_size: &img_size [227, 227]
convert_to_grayscale: False
normalize: True
normalization_params_rgb: {mean: [0.4707, 0.4602, 0.4550], std: [0.2594, 0.2585, 0.2635]}
normalization_params_grayscale: {mean: [0.4627], std: [0.2545]}
crop_to_bboxes: True
erase_background: True
augment_images: True
image_augmentations:
  RandomResizedCrop: {size: *img_size}
augment_tensors: True
tensor_augmentations:
  RandomErasing: {p: 0.5, scale: [0.02, 0.25]}
architecture: 'ghost'
batch_size: 64
num_epochs: 200
dropout: 0.2
out_channels: 320
optimizer: AdamW
optimizer_params: {lr: 0.001, weight_decay: 0.6}
lr_scheduler: None
lr_scheduler_params:
loss_function: LabelSmoothingCrossEntropy
loss_params:
"""


def test_a_configuration_of_the_published_project_loads_unchanged(tmp_path):
    (tmp_path / "published.yml").write_text(PUBLISHED)
    config = load_config(tmp_path / "published.yml")
    assert config.lr_scheduler is None and config.loss_params is None  # the text None means none
    assert config.raw_data_path is None and config.neptune_username is None  # placeholders are nothing
    assert config.neptune_project_name is None and config.neptune_api_token is None
    assert config.image_augmentations == {"RandomResizedCrop": {"size": [227, 227]}}


def test_texts_in_angle_brackets_are_kept_where_they_are_the_persons_own():
    config = load_config(overrides=["description=<b>x</b>", "experiment_id=<C-50>", "tags=['<a>', '']"])
    assert (config.description, config.experiment_id, config.tags) == ("<b>x</b>", "<C-50>", ["<a>", ""])
    assert load_config(overrides=["description=' '"]).description is None


def test_a_published_configuration_may_even_take_the_place_of_config_yml(tmp_path, monkeypatch):
    (tmp_path / "config.yml").write_text(PUBLISHED)
    monkeypatch.setattr("utils.config.loading.CONFIG_FILE", tmp_path / "config.yml")
    config = load_config()
    assert (config.seed, config.early_stopping_patience, config.precision) == (0, "auto", "auto")


def test_a_missing_key_of_the_study_is_named(tmp_path, monkeypatch):
    (tmp_path / "config.yml").write_text(PUBLISHED.replace("batch_size: 64\n", ""))
    monkeypatch.setattr("utils.config.loading.CONFIG_FILE", tmp_path / "config.yml")
    assert "batch_size: this key is missing" in problems()


@pytest.mark.parametrize("name", list(Schema.model_fields))
def test_each_misspelt_key_suggests_the_right_one(name):
    misspelt = name[:-1] + "x"
    message = problems(f"{misspelt}=1")
    assert f"{misspelt}: unknown key. Did you mean '" in message
    nearest = message.partition("Did you mean '")[2].partition("'")[0]
    assert nearest == name or len(name) == len(nearest), message


def test_the_templates_dead_key_suggests_the_present_one():
    assert "output_channels: unknown key. Did you mean 'out_channels'?" in problems("output_channels=320")


WRONG_VALUES = [
    ("seed=-1", "seed: -1; expected greater than or equal to 0"),
    ("deterministic=1", "deterministic: 1; expected a valid boolean"),
    ("loglevel=LOUD", "loglevel: 'LOUD'; expected 'DEBUG', 'INFO', 'WARNING', 'ERROR' or 'CRITICAL'"),
    ("log_to_neptune='True'", "expected a valid boolean. Write True without quotes"),
    ("neptune_username=a/b", "expected a name without '/'"),
    ("tags=[1]", "tags.0: 1; expected a valid string"),
    ("data_path=null", "data_path: None; expected"),
    ("image_size=227", "image_size: 227; expected a list, such as [1, 2]"),
    ("image_size=[227]", "image_size: [227]; expected"),
    ("image_size=[227, 0]", "image_size.1: 0; expected greater than or equal to 1"),
    ("image_size=[31, 227]", "image_size: [31, 227] is too small for ghost; expected at least 32 pixels a side"),
    ("normalize=yes please", "normalize: 'yes please'; expected a valid boolean"),
    ("normalization_params_rgb={mean: [0.5], std: [0.5]}", "mean: [0.5]; expected one value per channel: 3"),
    ("normalization_params_rgb.std=[0.1, 0.2, 0]", "std.2: 0; expected greater than 0"),
    ("normalization_params_rgb.sdt=[0.1]", "normalization_params_rgb.sdt: unknown key. Did you mean 'std'?"),
    ("table_params={lable: x}", "table_params.lable: unknown key. Did you mean 'label'?"),
    ("table_params.box=3", "table_params.box: 3; expected a valid string or a list, such as [1, 2]"),
    ("table_params.box_unit=inches", "table_params.box_unit: 'inches'; expected 'pixels' or 'fractions'"),
    ("normalization_params_rgb=null", "normalize: True needs mean and std"),
    ("erase_background=True", "has no effect unless crop_to_bboxes is True"),
    ("shuffle_bounding_boxes=True", "has no effect unless crop_to_bboxes is True"),
    ("image_augmentations={RandomAfine: {degrees: 5}}", "Did you mean 'RandomAffine'?"),
    ("image_augmentations={RandomAffine: {degree: 5}}", "RandomAffine has no such parameter. Did you mean 'degrees'?"),
    ("image_augmentations={RandomAffine: {}}", "RandomAffine needs the parameter 'degrees'"),
    ("image_augmentations={Lambda: {lambd: print}}", "'Lambda' cannot be used: a configuration cannot hold functions"),
    ("image_augmentations=[RandomAffine]", "image_augmentations: ['RandomAffine']; expected names with their values below"),
    ("image_augmentations={RandomHorizontalFlip: {p: 2}}", "RandomHorizontalFlip.p: 2; expected a probability, 0 … 1"),
    ("image_augmentations={RandomErasing: {}}", "'RandomErasing' takes tensors; move it to tensor_augmentations"),
    ("image_augmentations={RandomRotation: {degrees: 3, interpolation: bilinaer}}",
     "interpolation: 'bilinaer' is not a choice of RandomRotation. Did you mean 'bilinear'?"),
    ("image_augmentations={AutoAugment: {policy: imagnet}}", "Did you mean 'imagenet'?"),
    ("loglevel=info", "Did you mean 'INFO'?"),
    ("precision=bf16", "Did you mean 'bf16-mixed'?"),
    ("lr_scheduler_params={max_lr: 1, epochs: 4, steps_per_epoch: 9}", "steps_per_epoch: 9; lengths count epochs here"),
    ("lr_scheduler_params.milestones=[3, '82']", "milestones: [3, '82']; expected a list of epochs"),
    ("loss_function=NLLLoss", "it takes log-probabilities; use CrossEntropyLoss, the same on logits"),
    ("loss_function=MSELoss", "it does not take logits (N, classes) and labels (N,)"),
    ("devices=[]", "devices: []; expected"),
    ("tensor_augmentations={RandomErasing: {prob: 1}}", "tensor_augmentations.RandomErasing.prob"),
    ("architecture=ghsot", "'ghsot' is not an architecture. Did you mean 'ghost'?"),
    ("out_channels=null", "ghost needs a width"),
    ("dropout=1.0", "dropout: 1.0; expected less than 1"),
    ("batch_size=1", "batch_size: 1; expected greater than or equal to 2"),
    ("batch_size=6.4e1", "batch_size: 64.0; expected a valid integer"),
    ("num_epochs=0", "num_epochs: 0; expected greater than or equal to 1"),
    ("early_stopping_patience=soon", "early_stopping_patience: 'soon'; expected 'auto' or a valid integer"),
    ("checkpoint_interval=0", "checkpoint_interval: 0; expected greater than 0"),
    ("optimizer=AdmaW", "'AdmaW' is not an optimizer of torch.optim. Did you mean 'AdamW'?"),
    ("optimizer=SparseAdam", "'SparseAdam' cannot be used: it needs sparse gradients"),
    ("optimizer_params={lrr: 0.1}", "optimizer_params.lrr: AdamW has no such parameter. Did you mean 'lr'?"),
    ("lr_scheduler=MultiStep", "Did you mean 'MultiStepLR'?"),
    ("lr_scheduler_params={gama: 0.1, milestones: [1]}", "MultiStepLR has no such parameter. Did you mean 'gamma'?"),
    ("lr_scheduler_params=null", "MultiStepLR needs the parameter 'milestones'"),
    ("lr_scheduler=null", "lr_scheduler_params: has no effect without lr_scheduler; write lr_scheduler_params: null"),
    ("loss_function=CrossEntropy", "Did you mean 'CrossEntropyLoss'?"),
    ("loss_params={eps: 0.1}", "LabelSmoothingCrossEntropy has no such parameter"),
    ("num_workers=-1", "num_workers: -1; expected 'auto' or greater than or equal to 0"),
    ("accelerator=gpuu", "accelerator: 'gpuu'; expected 'auto', 'cpu'"),
    ("devices=0", "devices: 0; expected"),
    ("strategy=dpp", "strategy: 'dpp'; expected 'auto' or 'ddp'"),
    ("precision=fp16", "precision: 'fp16'; expected 'auto', '32-true'"),
    ("seed=.nan", "seed: nan; expected a valid integer"),
    ("dropout=.inf", "dropout: inf; expected"),
    ("batch_size", "--set batch_size: write --set key=value"),
    ("seed.x=1", "--set seed: this value has no keys"),
]  # fmt: skip


@pytest.mark.parametrize(("override", "expected"), WRONG_VALUES, ids=[case[0] for case in WRONG_VALUES])
def test_each_wrong_value_by_its_message(override, expected):
    assert expected in problems(override)


# A second message would be about a value that the first one asks to change.
ONE_PROBLEM = [
    ["num_epochs=abc", "lr_scheduler=LambdaLR", "lr_scheduler_params={lr_lambda: 0.9 ** epoch}"],
    ["image_size=[227]", "architecture=sq_11", "out_channels=null"],
    ["width_multiplier=x", "architecture=sq_11", "out_channels=null"],
    ["crop_to_bboxes=perhaps", "erase_background=True"],
    ["crop_to_bbox=True", "erase_background=True"],
    ["optimizr=SGD", "optimizer_params={lr: 0.1, momentum: 0.9}"],
    ["optimizer=SDG", "optimizer_params={lr: 0.1, momentum: 0.9}"],
    ["lr_scheduler=StpLR", "lr_scheduler_params={step_size: 3}"],
    ["image_augmentations={RandomAffine: {degree: 5}}"],
    ["image_augmentations={RandomAfine: {degrees: 5}}"],
    ["convert_to_greyscale=True", "normalization_params_grayscale=null"],
    ["architecture=gost", "out_channels=null"],
    ["neptune_username=5", "neptune_project_name=cars"],
]


@pytest.mark.parametrize("overrides", ONE_PROBLEM, ids=str)
def test_a_wrong_value_causes_no_second_problem(overrides):
    assert problems(*overrides).startswith("The configuration has 1 problem:\n")


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 0.001), ("1E5", 1e5), ("-1e-3", -0.001), (".5e-2", 0.005), ("1.e3", 1000.0), ("1.0e-07", 1e-7), ("3", 3)],
)
def test_numbers_with_an_exponent_are_numbers(tmp_path, text, value):
    found = load_config(overrides=[f"optimizer_params.lr={text}"]).optimizer_params["lr"]
    (tmp_path / "mine.yml").write_text(f"optimizer_params: {{lr: {text}, eps: {text}}}")
    assert found == value == load_config(tmp_path / "mine.yml").optimizer_params["eps"]
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "value",
    ["/content/drive/cars #2/output", "#2", "My Drive ü 50%", "cars: all", "2026-11-24", "{a} b", "🚗", "a: #1"],
)
def test_a_value_of_set_reaches_the_program_whole_or_is_an_error(value):
    quoted = load_config(overrides=[f"output_path={json.dumps(value)}"])
    assert str(quoted.output_path) == value
    try:
        assert str(load_config(overrides=[f"output_path={value}"]).output_path) == value
    except ConfigError as error:
        assert value in ("cars: all", "{a} b", "a: #1")
        assert "output_path" in str(error)


def test_a_comment_after_a_value_of_set_is_an_error():
    for value in ("{lr: 0.1} # mine", "[0.1] #2", "'0.1' # mine"):
        assert "after the value; remove it, or put the whole value in quotes" in problems(f"optimizer_params={value}")
    assert "seed: '3 # three'; expected a valid integer" in problems("seed=3 # three")


def test_a_file_that_is_not_there_suggests_the_nearest(tmp_path):
    (tmp_path / "C-14.yml").write_text("seed: 1")
    with pytest.raises(
        ConfigError, match=r"C-15\.yml cannot be read: No such file or directory\. Did you mean .*C-14\.yml\?"
    ):
        load_config(tmp_path / "C-15.yml")


def test_all_problems_come_at_once_each_with_its_line(tmp_path):
    text = "batch_size: 0\noptimizer: Adamm\nimage_augmentations:\n  RandomAffine:\n    degrees: 5\n    sheer: 1\nsede: 3\n"
    message = problems(text=text, folder=tmp_path)
    assert message.splitlines()[0] == "The configuration has 4 problems:"
    for place in (
        "mine.yml:1: batch_size",
        "mine.yml:2: optimizer",
        "mine.yml:6: image_augmentations.RandomAffine.sheer",
    ):
        assert place in message
    assert "mine.yml:7: sede: unknown key. Did you mean 'seed'?" in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed: 1\nseed: 2\n", "mine.yml:2: duplicate key 'seed', first at"),
        ("seed: [1\n", "not valid YAML"),
        ("- seed\n", "expected keys and values, such as"),
        ("seed: !!python/object/apply:os.system ['true']\n", "mine.yml:1: a tag cannot be used here"),
        ("seed: !!python/name:os.system ''\n", "not valid YAML: could not determine a constructor for the tag"),
        ("1: 2\n", "expected a name as key, not 1"),
        ("a: " + "[" * 300 + "]" * 300, "nested more than 20 levels"),
        ("a: &a [1,1,1,1,1,1,1,1,1,1]\n"
         + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 10)}]\n" for i in range(8)),
         "more than 10,000 values; not a configuration file"),
        ("seed: " + "9" * 5000 + "\n", "mine.yml:1: this value cannot be read"),
    ],
)  # fmt: skip
def test_yaml_that_is_not_a_configuration(tmp_path, text, expected):
    assert expected in problems(text=text, folder=tmp_path)


def test_a_file_that_is_not_there_or_not_utf8(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_config(tmp_path / "no.yml")
    (tmp_path / "latin.yml").write_bytes("description: Citroën\n".encode("latin-1"))
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        load_config(tmp_path / "latin.yml")


def test_a_key_of_a_file_replaces_the_whole_key(tmp_path):
    (tmp_path / "mine.yml").write_text("optimizer_params: {lr: 0.5}\n")
    assert load_config(tmp_path / "mine.yml").optimizer_params == {"lr": 0.5}


def test_set_changes_one_value_deep_inside_and_leaves_the_others():
    config = load_config(overrides=["optimizer_params.lr=0.5", "image_augmentations.ColorJitter.hue=0"])
    assert config.optimizer_params == {"lr": 0.5, "weight_decay": 0.6}
    assert config.image_augmentations["ColorJitter"] == {
        "brightness": 0.2,
        "contrast": 0.2,
        "saturation": 0.2,
        "hue": 0,
    }


def test_a_resolved_configuration_can_be_read_back_and_holds_no_secret(tmp_path):
    config = load_config(overrides=["neptune_api_token=SECRET123", "lr_scheduler_params.gamma=1.0e-7"])
    (tmp_path / "config.yml").write_text(config.as_yaml())
    assert "SECRET123" not in config.as_yaml()
    again = load_run_config(tmp_path)
    assert again.plain() == config.plain() | {"output_path": str(tmp_path.parent)}
    assert again.lr_scheduler_params["gamma"] == 1e-7


def test_text_that_looks_like_a_number_survives_the_file_of_a_run(tmp_path):
    texts = ["1e-3", "1E5", "1.5", "0x10", "1e", "yes"]
    config = load_config(overrides=[f"tags={json.dumps(texts)}", 'experiment_id="1e5"', "optimizer_params.lr=1e-5"])
    (tmp_path / "config.yml").write_text(config.as_yaml())
    again = load_run_config(tmp_path)
    assert (again.tags, again.experiment_id, again.optimizer_params["lr"]) == (texts, "1e5", 1e-5)


def test_a_patience_of_no_epoch_still_stops():
    changes = ["lr_scheduler=ReduceLROnPlateau", "lr_scheduler_params={patience: 0}"]
    assert load_config(overrides=changes).stopping_patience == 1


def test_a_run_that_goes_on_keeps_what_it_trains(tmp_path):
    (tmp_path / "config.yml").write_text(load_config().as_yaml())
    assert load_run_config(tmp_path, overrides=["num_epochs=300"]).num_epochs == 300
    # A run that was logged offline, without a project, can get one.
    config = load_run_config(tmp_path, overrides=["neptune_username=somebody", "neptune_project_name=cars"])
    assert (config.neptune_username, config.neptune_project_name) == ("somebody", "cars")
    assert load_run_config(tmp_path, overrides=["table_params.label=car"]).table_params.label == "car"
    # The token is in no file of the run.
    assert load_run_config(tmp_path, overrides=["neptune_api_token=secret"]).neptune_api_token == "secret"
    with pytest.raises(ConfigError, match=r"a resumed run keeps its optimizer_params\.lr"):
        load_run_config(tmp_path, overrides=["optimizer_params.lr=0.1"])
    with pytest.raises(ConfigError, match="a resumed run keeps its image_size"):
        load_run_config(tmp_path, overrides=["image_size=[32, 32]"])


def test_a_typo_is_answered_before_torch_is_imported(tmp_path):
    (tmp_path / "mine.yml").write_text("optimizer: AdmaW\noptimizer_params: {lrr: 0.1}\n")
    code = (
        "import sys, train; from utils.cli import run_command; sys.argv += ['--config', sys.argv[1]]; del sys.argv[1]\n"
    )
    code += "code = run_command(train.main); print('torch' in sys.modules); sys.exit(code)"
    command = [sys.executable, "-c", code, str(tmp_path / "mine.yml")]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout.strip() == "False"
    assert done.stderr.startswith("error: The configuration has 1 problem") and "Traceback" not in done.stderr
