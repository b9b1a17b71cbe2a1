"""Configurations that the schema takes and torch does not: all is found by the trial, in one message."""

import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

import assembly
from tests.support.hostile import examples, outcome
from utils.config import load_config, parse_config
from utils.config.checks import EXPRESSIONS, UNSUPPORTED
from utils.config.signatures import losses, lr_schedulers, optimizers, transforms
from utils.config.yaml_source import SourcedMapping
from utils.errors import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore")  # a training shows them; they are no errors there
COMMON = {"cache_path": None, "accelerator": "cpu", "trackers": [], "num_epochs": 5}
NUMBERS = (
    st.integers(-3, 5) | st.floats() | st.sampled_from([0.1, 0.5, 0.9, 10, 255, 5000, 2**40, -(2**63), 2**64, 1e300])
)
WORDS = st.sampled_from(
    ["x", "", "mean", "sum", "none", "min", "triangular", "linear", "reflect", "bilinear", "random"]
)
EXPRESSION = st.sampled_from(
    ["0.9 ** epoch", "1 / (3 - epoch)", "lambda x: 1 / x", "log(epoch)", "1e308 * epoch", "epoch < 3"]
)
PLAIN = st.none() | st.booleans() | NUMBERS | WORDS
VALUES = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=2))


@st.composite
def parameters(draw: st.DrawFn, catalogue: dict) -> tuple[str, dict]:
    """Draws a name of torch, and values for its required and some of its other parameters."""
    name = draw(st.sampled_from(sorted(catalogue.keys() - UNSUPPORTED.keys())))
    optional = catalogue[name].optional
    some = draw(st.lists(st.sampled_from(optional), max_size=3)) if optional else []
    given = [*catalogue[name].required, *some]
    return name, {each: draw(EXPRESSION | PLAIN if each in EXPRESSIONS else VALUES) for each in given}


@st.composite
def nonsense(draw: st.DrawFn) -> dict:
    """Draws some keys of a configuration."""
    values = dict(COMMON, num_epochs=draw(st.sampled_from([1, 5, 300])))
    kind = draw(st.sampled_from(["optimizer", "lr_scheduler", "loss", "images", "tensors", "network", "machine"]))
    if kind in ("optimizer", "lr_scheduler"):
        values["optimizer"], values["optimizer_params"] = draw(parameters(optimizers()) | st.just(("SGD", {"lr": 0.1})))
    if kind == "lr_scheduler":
        values["lr_scheduler"], values["lr_scheduler_params"] = draw(parameters(lr_schedulers()))
    if kind == "loss":
        values["loss_function"], values["loss_params"] = draw(parameters(losses()))
    if kind in ("images", "tensors"):
        key = "image_augmentations" if kind == "images" else "tensor_augmentations"
        values[key] = dict(draw(st.lists(parameters(transforms()), min_size=1, max_size=2)))
        values["image_size"] = draw(st.sampled_from([[32, 32], [64, 48], [227, 227]]))
        values["convert_to_grayscale"] = draw(st.booleans())
    if kind == "network":
        names = [
            "ghost",
            "sq_11",
            "mob_v2",
            "sqnxt_1",
            "hard_39",
            "shuff_v2_x05",
            "eff_b0",
            "timm/resnet10t",
            "timm/x",
            "timm/",
        ]
        values["architecture"] = draw(st.sampled_from(names))
        values["out_channels"] = draw(st.none() | st.sampled_from([1, 320, 2**31, 2**40, 2**62, 2**63, 10**9]))
        values["dropout"] = draw(st.none() | st.floats(0, 0.99))
        values["width_multiplier"] = draw(st.sampled_from([1.0, 1e-9, 0.5, 4.0]))
        values["image_size"] = draw(st.lists(st.sampled_from([32, 33, 227, 4096]), min_size=2, max_size=2))
    if kind == "machine":
        values["devices"] = draw(st.sampled_from(["auto", 1, 2, 64, 1024, [0], [5], [], [1, 1], [0] * 50]))
        values["accelerator"] = draw(st.sampled_from(["auto", "cpu", "gpu", "cuda", "mps"]))
        values["strategy"] = draw(st.sampled_from(["auto", "ddp"]))
        values["precision"] = draw(st.sampled_from(["auto", "32-true", "16-mixed", "bf16-mixed", "64-true"]))
        values["num_nodes"] = draw(st.sampled_from([1, 2, 1000]))
        values["augmentation_device"] = draw(st.sampled_from(["auto", "device", "cpu"]))
        values["cache_path"] = draw(st.sampled_from([None, "cache"]))
    return values


def check(values: dict) -> None:
    def load_and_try() -> None:
        source = SourcedMapping()
        source.values = load_config().plain() | values
        with warnings.catch_warnings(action="ignore"):
            assembly.check_buildable(parse_config(source))

    outcome(load_and_try, ConfigError, seconds=10)


@pytest.fixture(scope="module", autouse=True)
def imported():
    """What is imported at the first use takes seconds, once."""
    check(COMMON | {"architecture": "timm/resnet10t", "out_channels": None, "dropout": None})


@pytest.mark.parametrize("count", [pytest.param(80, id="some"), pytest.param(2000, marks=pytest.mark.slow, id="all")])
def test_nonsense_is_one_error_or_can_be_built(count):
    examples(count)(given(nonsense())(check))()


WRONG = [
    ("optimizer_params={lr: [1]}", "optimizer_params"),
    ("optimizer_params={betas: 3}", "optimizer_params"),
    ("optimizer_params={betas: [0.9]}", "optimizer_params"),
    ("optimizer_params={weight_decay: x}", "optimizer_params"),
    ("image_augmentations={RandomAffine: {degrees: x}}", "image_augmentations"),
    ("image_augmentations={Pad: {padding: 5000000}}", "Pad.padding: 5000000 is too large; expected at most 4,096"),
    ("image_augmentations={Resize: {size: [9, 100000]}}", "Resize.size: [9, 100000] is too large"),
    (
        "image_augmentations={RandAugment: {num_ops: 1000}}",
        "RandAugment.num_ops: 1000 is too large; expected at most 20",
    ),
    ("lr_scheduler_params={gamma: x, milestones: [3]}", "lr_scheduler_params"),
    ("lr_scheduler_params={milestones: 3}", "lr_scheduler_params"),
    ("loss_params={epsilon: x}", "loss_params"),
    ("out_channels=1000000000000", "architecture: invalid value 'ghost': its weights take"),
    ("devices=1000000000", "devices"),
]


@pytest.mark.parametrize(("change", "expected"), WRONG, ids=[change for change, _ in WRONG])
def test_each_kind_of_nonsense_by_its_key(change, expected):
    overrides = [change, *(f"{key}={value}" for key, value in COMMON.items())]
    with pytest.raises(ConfigError) as caught:
        assembly.check_buildable(load_config(overrides=overrides))
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("name", "params", "epochs", "reason"),
    [
        ("OneCycleLR", "{max_lr: 0.1, total_steps: 5}", 6, "Tried to step 6 times"),
        ("LambdaLR", "{lr_lambda: 1 / (6 - epoch)}", 6, "cannot be computed for epoch 6"),
        ("LambdaLR", "{lr_lambda: 4 - epoch}", 6, "learning rate -0.001 in epoch 5"),
        ("ReduceLROnPlateau", "{patience: x}", 2, "not supported between"),
    ],
)
def test_a_schedule_that_fails_in_a_later_epoch_is_found_before_the_first(name, params, epochs, reason):
    changes = [f"lr_scheduler={name}", f"lr_scheduler_params={params}", "cache_path=null", "trackers=[]"]
    assembly.check_buildable(load_config(overrides=[*changes, "num_epochs=1"])) if name != "ReduceLROnPlateau" else None
    with pytest.raises(ConfigError, match="lr_scheduler_params") as caught:
        assembly.check_buildable(load_config(overrides=[*changes, f"num_epochs={epochs}"]))
    assert reason in str(caught.value)
