"""`compile`: full batches through one compiled network, the others through the plain one, and the run is the same."""

import functools
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor.exc import InductorError

import assembly
import train
from datamodules.cache import ImageCache
from datamodules.on_device.augmentations import BatchedAugmentations
from datamodules.on_device.loader import DeviceLoader
from datamodules.sampler import EpochBatchSampler
from models.compilation import FullBatches
from tests.support.data_sets import write_updated_release
from tests.support.small_runs import NAMES, assert_same_run, rows, run
from training.checkpoints import read_checkpoint
from utils.config import load_config, load_run_config
from utils.errors import ConfigError, RunError
from utils.runs.folder import read_record

COMPILED = "compile=default"
SMALL = ("architecture=sq_11", "out_channels=null")  # is compiled in a second
EXACT = "precision=64-true"  # batch norm of eight images, one pixel each, makes much of the last digits of float32


@pytest.fixture(scope="module")
def cars(tmp_path_factory) -> Path:
    """20 training and 12 validation photos: of batches of 8, the last of both is a partial one."""
    folder = tmp_path_factory.mktemp("cars")
    write_updated_release(folder, train_per_class=5, valid_per_class=3, class_names=NAMES)
    return folder


@pytest.fixture
def counter(monkeypatch):
    """Lets torch.compile take its graphs as they are, without fusing them, and count them."""
    torch._dynamo.reset()
    counting = CompileCounterWithBackend("aot_eager")
    original = torch.compile
    monkeypatch.setattr(torch, "compile", functools.partial(original, backend=counting))
    yield counting
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def plain(cars, tmp_path_factory) -> Path:
    return run(cars, tmp_path_factory.mktemp("plain"), *SMALL, EXACT, "num_epochs=4")


def assert_trains_as(plain: Path, compiled: Path) -> None:
    for own, other in zip(rows(plain), rows(compiled), strict=True):
        assert own.keys() == other.keys()
        for name in own:
            assert float(other[name]) == pytest.approx(float(own[name]), rel=1e-7), (own["epoch"], name)


@pytest.mark.slow
def test_it_trains_as_the_plain_network_does_and_compiles_training_and_evaluation_once(cars, plain, tmp_path, counter):
    assert_trains_as(plain, run(cars, tmp_path, *SMALL, COMPILED, EXACT, "num_epochs=4"))
    assert counter.frame_count == 2


@pytest.mark.slow
def test_so_does_ghostnet_with_its_batch_norm(cars, tmp_path, counter):
    narrow = ("architecture=ghost", "width_multiplier=0.35", EXACT)
    plain = run(cars, tmp_path / "plain", *narrow)
    assert_trains_as(plain, run(cars, tmp_path / "compiled", *narrow, COMPILED))
    assert counter.frame_count == 2


@pytest.mark.slow
def test_its_checkpoints_have_the_plain_networks_names_and_it_goes_on_as_the_same_run(cars, plain, tmp_path, counter):
    whole = run(cars, tmp_path / "whole", *SMALL, COMPILED, "num_epochs=4")
    parts = run(cars, tmp_path / "parts", *SMALL, COMPILED)
    train.main(["--resume", str(parts), "--set", "num_epochs=4"])
    assert_same_run(whole, parts)
    first, second = (read_checkpoint(folder / "checkpoints/last.ckpt") for folder in (whole, plain))
    assert list(first["state_dict"]) == list(second["state_dict"])


def test_a_run_that_goes_on_keeps_its_compile(trained_run):
    with pytest.raises(ConfigError, match="a resumed run keeps its compile"):
        load_run_config(trained_run, overrides=[COMPILED])


@pytest.mark.slow
def test_a_batch_of_any_other_size_is_never_compiled(counter):
    config = load_config(overrides=[*SMALL, COMPILED, "batch_size=4"])
    classifier = assembly.build_classifier(config, num_classes=4)
    classifier.setup("fit")
    for count in (3, 5, 2):
        classifier(torch.zeros(count, 3, 32, 32))
    assert counter.frame_count == 0
    classifier(torch.zeros(4, 3, 32, 32))
    assert counter.frame_count == 1


@pytest.mark.slow
def test_every_training_of_a_process_is_compiled(counter):
    for number in range(1, 13):
        FullBatches(nn.Linear(3, 2), "default", 4)(torch.zeros(4, 3))
        assert counter.frame_count == number


def test_whole_batches_augmented_by_fused_kernels_are_the_same(tmp_path, counter):
    path = tmp_path / "photos"
    generator = torch.Generator().manual_seed(0)
    photos = torch.randint(256, (20, 3, 24, 32), dtype=torch.uint8, generator=generator)
    path.write_bytes(photos.numpy().tobytes())
    augmentations = {"RandomHorizontalFlip": {"p": 0.5}, "ColorJitter": {"brightness": 0.2, "hue": 0.1}}
    steps = BatchedAugmentations(augmentations, {}, image_size=(24, 32), mean=[0.5] * 3, std=[0.2] * 3)

    def images(compiled: bool) -> list[torch.Tensor]:
        batches = EpochBatchSampler(20, 8, shuffle=True, seed=3)
        loader = DeviceLoader(
            ImageCache(path, (20, 3, 24, 32)), list(range(20)), batches, steps,
            device=torch.device("cpu"), on_device=True, seed=3, compiled=compiled,
        )  # fmt: skip
        return [images for images, _ in loader]

    for fused, plain in zip(images(True), images(False), strict=True):
        torch.testing.assert_close(fused, plain, rtol=0, atol=2e-5)
    assert counter.frame_count == 1  # the last four photos are augmented without


def test_a_machine_without_a_compiler_is_told_so_before_any_data_is_read(tmp_path, monkeypatch):
    for variable in ("CC", "CXX"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"compile: invalid value 'default': .* needs a C\+\+ compiler") as caught:
        train.main(["-d", str(tmp_path / "nowhere"), "--set", COMPILED, "--set", "trackers=[]"])
    assert len(str(caught.value).splitlines()) == 2  # the heading, and the problem


@pytest.mark.slow
@pytest.mark.parametrize("at", ["the network", "its gradients"])
def test_a_compilation_that_fails_is_one_line_and_the_run_says_failed(cars, tmp_path, monkeypatch, at):
    torch._dynamo.reset()

    def broken(graph, inputs):
        if at == "its gradients":  # which are compiled at the first backward
            return aot_autograd(fw_compiler=lambda graph, _: graph, bw_compiler=fail)(graph, inputs)
        return fail(graph, inputs)

    def fail(graph, inputs):
        error = RuntimeError("No working C++ compiler found in torch._inductor.config.cpp.cxx: (None, 'g++')\nmore\n")
        raise InductorError(error, None)

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=broken))
    with pytest.raises(RunError) as caught:
        run(cars, tmp_path, *SMALL, COMPILED)
    torch._dynamo.reset()
    assert "compile is not possible here: No working C++ compiler found" in str(caught.value)
    assert "\n" not in str(caught.value)
    (folder,) = tmp_path.iterdir()
    assert read_record(folder)["status"] == "failed"


@pytest.mark.slow
def test_torchs_own_compiler_trains_and_goes_on_as_the_same_run(cars, tmp_path):
    small = (*SMALL, COMPILED, "dropout=null")  # random numbers are drawn otherwise than by the plain model
    whole = run(cars, tmp_path / "whole", *small, "num_epochs=2")
    plain = run(cars, tmp_path / "plain", *SMALL, "dropout=null", "num_epochs=2")
    for compiled, own in zip(rows(whole), rows(plain), strict=True):
        assert float(compiled["train_loss"]) == pytest.approx(float(own["train_loss"]), rel=1e-4)
        assert float(compiled["valid_loss"]) == pytest.approx(float(own["valid_loss"]), rel=1e-4)
    parts = run(cars, tmp_path / "parts", *small, "num_epochs=1")
    train.main(["--resume", str(parts), "--set", "num_epochs=2"])
    assert_same_run(whole, parts)
