"""Warm-up, schedules by step, parameter groups, freezing, averaged weights, clipping and accumulation by their definitions."""

import copy
import math

import pytest
import torch
from pytorch_lightning import LightningDataModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from datamodules.mixing import Mixing
from deployment.trained import FlipAverage
from losses.distillation import Distillation, Teacher, View
from losses.targets import MoreTargets
from models import build_model
from models.classifier import RAW, Classifier
from models.finetuning.parameter_groups import head_names, layer_ids, parameter_groups
from models.optimization import build_lr_scheduler, build_optimizer
from utils.errors import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning warns of small data; a training shows what matters

PLAIN = {
    "optimizer": "SGD",
    "optimizer_params": {"lr": 0.1},
    "lr_scheduler": None,
    "lr_scheduler_params": None,
    "seed": 0,
}


class Points(LightningDataModule):
    """Points (N, 3, 1, 1) with labels, in batches of `batch_size` in the same order in each epoch; the last may be smaller."""

    def __init__(self, count: int = 22, batch_size: int = 4) -> None:
        super().__init__()
        points = torch.randn(count, 3, 1, 1, generator=torch.Generator().manual_seed(0))
        self.points = list(zip(points, torch.arange(count) % 3, strict=True))
        self.batch_size = batch_size
        self.batches_per_epoch = math.ceil(count / batch_size)

    def batches(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return list(self.train_dataloader())

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.points, batch_size=self.batch_size)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.points, batch_size=self.batch_size)


def small_model(norm: bool = True) -> nn.Sequential:
    torch.manual_seed(1)
    layers = [nn.Conv2d(3, 4, 1), *([nn.BatchNorm2d(4)] if norm else []), nn.ReLU(), nn.Flatten(), nn.Linear(4, 3)]
    return nn.Sequential(*layers)


class Watched(Classifier):
    """Notes the learning rates and the weights of each step."""

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.rates, self.weights = [], []

    def optimizer_step(self, *arguments, **keywords) -> None:
        super().optimizer_step(*arguments, **keywords)
        self.rates.append(self.last_lr)
        self.weights.append(copy.deepcopy(self.model.state_dict()))


def fit(
    data: Points, model: nn.Module | None = None, *, epochs: int = 3, loss: nn.Module | None = None, **settings
) -> Watched:
    trainer_settings = {
        "accumulate_grad_batches": settings.get("accumulate_batches", 1),
        "gradient_clip_val": settings.get("gradient_clip_norm"),
    }
    classifier = Watched(
        model or small_model(), loss or nn.CrossEntropyLoss(), **(PLAIN | {"batch_size": data.batch_size} | settings)
    )
    trainer = Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, **trainer_settings,
    )  # fmt: skip
    trainer.fit(classifier, data)
    return classifier


def test_warm_up_rises_linearly_by_step_over_a_scheduler_that_does_not_see_it():
    schedule = {"lr_scheduler": "StepLR", "lr_scheduler_params": {"step_size": 1, "gamma": 0.5}}
    classifier = fit(Points(), warmup_epochs=1.5, **schedule)  # 6 steps an epoch
    scheduled = [0.1] * 6 + [0.05] * 6 + [0.025] * 6
    expected = [rate * min(1, (step + 1) / 9) for step, rate in enumerate(scheduled)]
    assert classifier.rates == pytest.approx(expected)
    assert classifier.epoch_metrics["lr"] == pytest.approx(0.025)
    assert classifier.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.0125)


@pytest.mark.parametrize(
    ("scheduler", "params", "rate"),
    [
        ("CosineAnnealingLR", {"T_max": 3}, lambda epoch: 0.05 * (1 + math.cos(math.pi * epoch / 3))),
        ("LambdaLR", {"lr_lambda": "lambda epoch: 1 / (1 + epoch)"}, lambda epoch: 0.1 / (1 + epoch)),
        ("ExponentialLR", {"gamma": 0.5}, lambda epoch: 0.1 * 0.5**epoch),
        ("MultiStepLR", {"milestones": [1, 2]}, lambda epoch: 0.1 * 0.1 ** (epoch >= 1) * 0.1 ** (epoch >= 2)),
        ("LinearLR", {"start_factor": 0.5, "total_iters": 2}, lambda epoch: 0.1 * min(1, 0.5 + 0.25 * epoch)),
        ("PolynomialLR", {}, lambda epoch: 0.1 * (1 - epoch / 5)),  # torch's own length is 5
        (
            "CyclicLR",
            {"base_lr": 0.1, "max_lr": 0.2, "step_size_up": 1, "mode": "exp_range", "gamma": 0.5},
            lambda epoch: 0.1 + 0.1 * 0.5**epoch * (1 - abs(epoch % 2 - 1)),
        ),
    ],
)
def test_a_scheduler_that_is_stepped_by_batch_keeps_its_lengths_in_epochs(scheduler, params, rate):
    settings = {"lr_scheduler": scheduler, "lr_scheduler_params": params}
    classifier = fit(Points(), scheduler_step="batch", **settings)
    assert classifier.rates == pytest.approx([rate(step / 6) for step in range(18)])
    by_two = fit(Points(), scheduler_step="batch", accumulate_batches=2, **settings)
    assert by_two.rates == pytest.approx([rate(step / 3) for step in range(9)])


def test_one_cycle_of_some_epochs_ends_with_the_last_of_their_steps():
    params = {"max_lr": 0.1, "epochs": 3, "steps_per_epoch": 1, "anneal_strategy": "linear", "pct_start": 0.5}
    rates = fit(Points(), scheduler_step="batch", lr_scheduler="OneCycleLR", lr_scheduler_params=params).rates
    assert len(rates) == 18 and max(rates) == pytest.approx(0.1) and rates[-1] == pytest.approx(4e-7)


@pytest.mark.parametrize(("count", "reduction"), [(22, "mean"), (21, "mean"), (22, "sum")])
@pytest.mark.parametrize("weights", [None, [1.0, 5.0, 0.5]])
def test_accumulated_batches_train_as_one_large_batch_even_the_smaller_last_ones(count, reduction, weights):
    """Without batch norm, which sees each batch alone. 22 points: four windows of six batches, the last of 4 + 2 points."""
    loss = nn.CrossEntropyLoss(torch.tensor(weights) if weights else None, reduction=reduction)
    settings = {"optimizer_params": {"lr": 0.01}, "loss": loss}
    large = fit(Points(count, 12), small_model(norm=False), **settings)
    small = fit(Points(count, 4), small_model(norm=False), accumulate_batches=3, **settings)
    assert len(large.weights) == len(small.weights) == 6
    for first, second in zip(large.weights, small.weights, strict=True):
        for name in first:
            torch.testing.assert_close(second[name], first[name])
    assert small.epoch_metrics["train_loss"] == pytest.approx(large.epoch_metrics["train_loss"])


def test_gradients_are_clipped_to_the_norm_of_all_together():
    norm, data = 0.01, Points(8, 8)
    classifier = fit(data, epochs=1, gradient_clip_norm=norm)
    model = small_model()
    nn.CrossEntropyLoss()(model(data.batches()[0][0]), data.batches()[0][1]).backward()
    total = math.sqrt(sum(parameter.grad.square().sum().item() for parameter in model.parameters()))
    assert total > norm
    for name, parameter in model.named_parameters():
        step = parameter.detach() - classifier.weights[0][name]
        torch.testing.assert_close(step, 0.1 * parameter.grad * norm / total, rtol=1e-3, atol=1e-7)


def test_averaged_weights_are_those_of_a_loop_and_are_what_is_validated_and_saved():
    classifier = fit(Points(), ema_decay=0.8, epochs=2)
    average = small_model().state_dict()
    for weights in classifier.weights:
        for name, value in weights.items():
            average[name] = 0.8 * average[name] + 0.2 * value if value.is_floating_point() else value
    checkpoint = {"state_dict": classifier.state_dict()}
    classifier.on_save_checkpoint(checkpoint)
    for name, value in average.items():
        torch.testing.assert_close(checkpoint["state_dict"][f"model.{name}"], value)
        assert torch.equal(checkpoint[RAW][f"model.{name}"], classifier.weights[-1][name])
    for weights, prefix in ((average, "valid"), (classifier.weights[-1], "valid_raw")):
        model = small_model()
        model.load_state_dict(weights)
        images, labels = (torch.cat(part) for part in zip(*Points().batches(), strict=True))
        logits = model.eval()(images)
        metrics = classifier.epoch_metrics
        assert metrics[f"{prefix}_loss"] == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
        assert metrics[f"{prefix}_acc"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())


def test_only_the_head_trains_while_the_backbone_is_frozen_and_its_statistics_rest():
    before = small_model().state_dict()
    classifier = fit(
        Points(), epochs=2, freeze_epochs=1, optimizer="AdamW", optimizer_params={"lr": 0.1, "weight_decay": 0.5}
    )
    frozen, thawed = classifier.weights[5], classifier.weights[-1]
    for name in before:
        is_head = name.startswith("4.")
        assert torch.equal(frozen[name], before[name]) != is_head, name
        assert not torch.equal(thawed[name], frozen[name]), name


ARCHITECTURES = [
    ("ghost", {"out_channels": 320, "dropout": 0.2}, {"head.4.weight", "head.4.bias"}),
    ("sq_11", {}, {"classifier.1.weight", "classifier.1.bias"}),
    ("mob_v2", {}, {"classifier.1.weight", "classifier.1.bias"}),
    ("shuff_v2_x05", {}, {"fc.weight", "fc.bias"}),
    ("hard_39", {}, {"classifier.1.weight", "classifier.1.bias"}),
    ("sqnxt_1", {}, {"classifier.weight", "classifier.bias"}),
    ("timm/tf_efficientnet_lite0", {}, {"classifier.weight", "classifier.bias"}),
]


@pytest.mark.parametrize(("architecture", "settings", "head"), ARCHITECTURES, ids=[each[0] for each in ARCHITECTURES])
def test_groups_hold_each_parameter_once_by_depth_kind_and_head(architecture, settings, head):
    with torch.device("meta"):
        model = build_model(architecture, num_classes=7, **settings)
    assert head_names(model) == head
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, head_lr_factor=10, layer_decay=0.5, decay_norm_and_bias=False)
    assert sorted(names[id(parameter)] for group in groups for parameter in group["params"]) == sorted(names.values())
    scales = {names[id(parameter)]: group["lr_scale"] for group in groups for parameter in group["params"]}
    layers = layer_ids(model)
    for name in names.values():
        assert scales[name] == 0.5 ** (max(layers.values()) - layers[name]) * (10 if name in head else 1)
    assert len(set(layers.values())) > 5 and layers[next(iter(names.values()))] == 0  # the stem
    for group in groups:
        assert {parameter.ndim <= 1 for parameter in group["params"]} == {group.get("weight_decay") == 0}
    assert not {names[id(parameter)] for parameter in groups[0]["params"]} & head  # its learning rate is logged


def test_a_parameter_of_the_model_itself_belongs_to_the_first_layer():
    with torch.device("meta"):
        layers = layer_ids(build_model("timm/pit_ti_224", num_classes=7, image_size=[224, 224]))
    assert layers["pos_embed"] == 0 and len(set(layers.values())) > 5


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "mobilenetv3_small_100", "deit_tiny_patch16_224"])
def test_layer_decay_of_a_model_of_timm_is_timms(name):
    from timm.optim import param_groups_layer_decay

    model = build_model(f"timm/{name}", num_classes=7)
    names = {id(parameter): parameter_name for parameter_name, parameter in model.named_parameters()}

    def settings(groups: list[dict]) -> dict:
        return {
            names[id(parameter)]: (group["lr_scale"], group.get("weight_decay", 0.05))
            for group in groups
            for parameter in group["params"]
        }

    skip = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    expected = settings(param_groups_layer_decay(model, 0.05, skip, layer_decay=0.7))
    found = settings(parameter_groups(model, layer_decay=0.7, decay_norm_and_bias=False))
    assert found.keys() == expected.keys()
    for parameter_name, values in expected.items():
        assert found[parameter_name] == pytest.approx(values), parameter_name


def test_blocks_of_our_own_models_are_layers_by_depth():
    layers = layer_ids(build_model("eff_b0", num_classes=7))
    assert layers["features.0.0.weight"] == 0 == layers["features.0.1.bias"]
    assert layers["features.2.0.block.0.0.weight"] + 1 == layers["features.2.1.block.0.0.weight"]
    assert layers["classifier.1.weight"] == max(layers.values()) == layers["features.8.0.weight"] + 1


@pytest.mark.parametrize(
    ("scheduler", "params"),
    [
        ("OneCycleLR", {"max_lr": 0.4, "total_steps": 5}),
        ("CyclicLR", {"base_lr": 0.1, "max_lr": 0.4, "step_size_up": 2}),
        ("CosineAnnealingLR", {"T_max": 4}),
    ],
)
def test_a_scheduler_keeps_the_factors_of_the_groups(scheduler, params):
    model = small_model()
    optimizer = build_optimizer("SGD", {"lr": 0.1, "momentum": 0.9}, parameter_groups(model, head_lr_factor=3))
    lr_scheduler = build_lr_scheduler(scheduler, params, optimizer)
    for _ in range(4):
        backbone, head = (group["lr"] for group in optimizer.param_groups)
        assert head == pytest.approx(3 * backbone)
        optimizer.step()
        lr_scheduler.step()


def test_the_lowest_rate_of_a_plateau_keeps_the_factors_of_the_groups():
    optimizer = build_optimizer("SGD", {"lr": 0.1}, parameter_groups(small_model(), head_lr_factor=3))
    lr_scheduler = build_lr_scheduler("ReduceLROnPlateau", {"patience": 0, "min_lr": 0.02}, optimizer)
    for _ in range(3):
        lr_scheduler.step(1.0)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.02, 0.06])


def test_an_average_over_more_steps_than_the_training_has_is_one_error():
    with pytest.raises(
        ConfigError, match=r"ema_decay: 0\.99 averages over 100 steps, and the training has 18; .* 0\.9444"
    ):
        fit(Points(), ema_decay=0.99)


def test_mixed_batches_are_trained_on_until_the_last_epochs_and_judged_by_the_larger_share():
    data, seen = Points(12, 4), []
    mixing = Mixing(3, mixup_alpha=1.0, cutmix_alpha=None, off_epochs=1)

    class Recorded(nn.CrossEntropyLoss):
        def forward(self, logits, targets):
            if logits.requires_grad:
                seen.append((logits.detach(), targets))
            return super().forward(logits, targets)

    classifier = fit(data, epochs=2, loss=Recorded(), mixing=mixing)
    mixed, last = seen[:3], seen[3:]
    torch.testing.assert_close(mixed[0][0], small_model()(mixing(*data.batches()[0], 0)[0]))
    for step, ((_, targets), (images, labels)) in enumerate(zip(mixed, data.batches(), strict=True)):
        assert torch.equal(targets, mixing(images, labels, step)[1])
    assert len(last) == 3 and not any(targets.is_floating_point() for _, targets in last)

    logits, targets = (torch.cat(part) for part in zip(*seen[:3], strict=True))
    classifier = fit(data, epochs=1, loss=Recorded(), mixing=Mixing(3, mixup_alpha=1.0, cutmix_alpha=None))
    metrics = classifier.epoch_metrics
    assert metrics["train_acc"] == pytest.approx((logits.argmax(1) == targets.argmax(1)).float().mean().item())
    assert metrics["train_loss"] == pytest.approx(nn.functional.cross_entropy(logits, targets).item(), rel=1e-5)


def test_a_teacher_and_further_targets_are_part_of_what_a_step_minimizes():
    data, model = Points(4, 4), small_model(norm=False)
    ((images, labels),) = data.batches()
    view = View((1, 1), 3, torch.zeros(3, 1, 1), torch.ones(3, 1, 1))
    torch.manual_seed(2)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(3, 3))
    targets = MoreTargets(
        Distillation([Teacher(teacher, view, torch.arange(3))], view, temperature=2.0, weight=0.75), None
    )
    classifier = fit(data, copy.deepcopy(model), epochs=1, targets=targets)
    logits = model(images)
    ours, theirs = (nn.functional.log_softmax(each / 2, dim=1) for each in (logits, teacher(images)))
    divergence = 4 * nn.functional.kl_div(ours, theirs, reduction="batchmean", log_target=True)
    (0.25 * nn.functional.cross_entropy(logits, labels) + 0.75 * divergence).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(classifier.weights[0][name], parameter.detach() - 0.1 * parameter.grad)


@pytest.mark.parametrize("ema_decay", [None, 0.5])
def test_validation_takes_the_mean_of_the_logits_of_image_and_mirror_image(ema_decay):
    class Columns(nn.Module):
        """The first column of pixels, so that a mirror image has other logits."""

        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(3, 3)

        def forward(self, images):
            return self.last(images[:, :, 0, 0])

    class Wide(Points):
        def __init__(self) -> None:
            super().__init__(12, 4)
            images = torch.randn(12, 3, 1, 2, generator=torch.Generator().manual_seed(0))
            self.points = list(zip(images, torch.arange(12) % 3, strict=True))

    data = Wide()
    classifier = fit(data, Columns(), epochs=1, flip_at_test=True, ema_decay=ema_decay)
    images, labels = (torch.cat(part) for part in zip(*data.batches(), strict=True))
    model = classifier.average.average.module if ema_decay else classifier.model
    logits = (model(images) + model(images.flip(3))) / 2
    assert classifier.epoch_metrics["valid_loss"] == pytest.approx(
        nn.functional.cross_entropy(logits, labels).item(), rel=1e-5
    )
    torch.testing.assert_close(FlipAverage(model)(images), logits)
