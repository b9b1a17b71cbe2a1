"""Within an epoch nothing asks the device for a number: the host would wait for it, and it for the host."""

from pathlib import Path

import pytest
import torch
from pytorch_lightning import Callback
from torch.utils._python_dispatch import TorchDispatchMode

import assembly
from datamodules.on_device import augmentations as batched_augmentations
from datamodules.on_device import color as batched_colour
from datamodules.on_device import draws as batched_draws
from datamodules.sampler import EpochBatchSampler
from losses import mean_loss
from losses.auxiliary import AuxiliaryTargets
from losses.distillation import Distillation, Teacher
from losses.targets import MoreTargets
from measurements.generated import generated_splits, write_cache
from models import build_model
from tests.support.data_sets import write_updated_release
from tests.support.devices import needs_cuda
from tests.support.small_runs import run
from utils.config import load_config

QUESTIONS = ("tolist", "numpy", "cpu", "__array__")  # of a tensor, that do not come down to _local_scalar_dense


class Questions(TorchDispatchMode):
    """Counts what takes a number out of a tensor: item, bool, int, float, an if, all of them one operation."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default or function is torch.ops.aten.is_nonzero.default:
            self.asked.append(str(function))
        return function(*args, **(kwargs or {}))


class BetweenSteps(Callback):
    """Notes, at the end of each training and validation batch, how many questions had been asked until then."""

    def __init__(self, questions: Questions) -> None:
        self.questions = questions
        self.training: list[int] = []
        self.validation: list[int] = []

    def on_train_batch_end(self, trainer, *_) -> None:
        if trainer.current_epoch == 1:  # the first has what is done once
            self.training.append(len(self.questions.asked))

    def on_validation_batch_end(self, trainer, *_) -> None:
        if trainer.current_epoch == 1:
            self.validation.append(len(self.questions.asked))


@pytest.fixture(scope="module")
def cars(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cars")
    write_updated_release(folder, train_per_class=10, valid_per_class=8)
    return folder


@pytest.fixture
def watch(monkeypatch):
    """Returns a function that trains two epochs of four steps, and says what was asked between those of the second."""
    # On the CPU steps that a photo did not draw are left out, which takes a look at the numbers. Not on a device.
    for module in (batched_draws, batched_augmentations, batched_colour):
        monkeypatch.setattr(module, "is_zero", lambda values: False)
    augmentations = batched_augmentations.BatchedAugmentations
    monkeypatch.setattr(augmentations, "__call__", torch.no_grad()(augmentations.augment))

    def trained(cars: Path, output: Path, *changes: str) -> tuple[list[str], BetweenSteps]:
        with Questions() as questions, monkeypatch.context() as patch:
            between = BetweenSteps(questions)
            original = assembly.build_callbacks
            patch.setattr(assembly, "build_callbacks", lambda *a, **k: [*original(*a, **k), between])
            for name in QUESTIONS:
                method = getattr(torch.Tensor, name)

                def asking(tensor, *arguments, name=name, method=method, **settings):
                    questions.asked.append(name)
                    return method(tensor, *arguments, **settings)

                patch.setattr(torch.Tensor, name, asking)
            run(cars, output, "augmentation_device=device", "cache_on_device=True", *changes)
        return questions.asked, between

    return trained


def test_nothing_is_asked_between_the_steps_of_an_epoch(cars, tmp_path, watch):
    asked, between = watch(cars, tmp_path)
    first, last = between.training[0], between.training[-1]
    assert len(between.training) == 4 and len(between.validation) == 3
    assert asked[first:last] == []
    assert asked[between.validation[0] : between.validation[-1]] == []
    assert len(asked) > last  # at the end of an epoch they are, so that the count is no empty one


def test_a_question_in_a_step_is_noticed(cars, tmp_path, watch, monkeypatch):
    from models.classifier import Classifier

    step = Classifier.training_step
    monkeypatch.setattr(
        Classifier, "training_step", lambda self, batch: step(self, batch) * (1 + 0 * batch[1][0].item())
    )
    asked, between = watch(cars, tmp_path)
    assert len(asked[between.training[0] : between.training[-1]]) == 3


@pytest.mark.parametrize(
    ("loss_function", "cache_on_device"),
    [
        ("LabelSmoothingCrossEntropy", True),
        pytest.param("LabelSmoothingCrossEntropy", False, marks=pytest.mark.slow),
        pytest.param("CrossEntropyLoss", True, marks=pytest.mark.slow),
    ],
)
def test_an_epoch_mixes_no_tensor_of_the_host_with_those_of_the_device(tmp_path, cache_on_device, loss_function):
    """On the meta device, where mixing the two is an error as on a card, and so is every question."""
    settings = ("augmentation_device=device", "image_size=[32, 32]", "batch_size=4", f"loss_function={loss_function}")
    config, device = load_config(overrides=settings), torch.device("meta")
    data = assembly.build_data(config, generated_splits(10))
    data.cache_on_device = cache_on_device
    data.train.source = write_cache(tmp_path / "photos", (10, 3, 32, 32))
    classifier = assembly.build_classifier(config, num_classes=196).to(device).train()
    optimizer = classifier.configure_optimizers()
    teacher = Teacher(build_model("sq_11", num_classes=200), assembly.view_of(config, (40, 36)), torch.arange(196))
    distillation = Distillation([teacher], assembly.view_of(config, config.image_size), temperature=2.0, weight=0.9)
    distillation.to(device, torch.float32)
    targets = MoreTargets(distillation, AuxiliaryTargets({"make": [label % 3 for label in range(196)]}, weight=0.2))
    targets, sums, sizes = targets.to(device), None, []
    for images, labels in data.loader(data.train, EpochBatchSampler(10, 4, shuffle=True), device):
        logits = classifier(images)
        task = mean_loss(classifier.loss, logits, labels)
        loss, more = targets(classifier.loss, images, (logits, logits[:, :3]), labels, task)
        loss.backward()
        optimizer.step()
        sums = classifier._accumulate(sums, logits, labels, *task)
        assert more.device == device and more.shape == (3,)
        sizes.append(len(labels))
    assert sizes == [4, 4, 2] and sums.device == device and sums.shape == (5,)
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        sums.tolist()


@needs_cuda
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed"])
def test_on_cuda_no_step_of_an_epoch_waits_for_the_device(cars, tmp_path, monkeypatch, precision):
    """CUDA itself raises an error where the host waits, from the first to the last step of each part of an epoch."""

    class Strict(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, index) -> None:
            torch.cuda.set_sync_debug_mode("default" if trainer.is_last_batch else "error")

        def on_validation_batch_end(self, trainer, module, outputs, batch, index, loader=0) -> None:
            torch.cuda.set_sync_debug_mode("default" if index == trainer.num_val_batches[0] - 1 else "error")

    original = assembly.build_callbacks
    monkeypatch.setattr(assembly, "build_callbacks", lambda *a, **k: [*original(*a, **k), Strict()])
    settings = ("accelerator=gpu", "devices=1", "augmentation_device=device", "cache_on_device=True")
    try:
        run(cars, tmp_path, *settings, f"precision={precision}")
    finally:
        torch.cuda.set_sync_debug_mode("default")
