"""Losses: equal to the formula and to torch's, and refused where they cannot classify."""

import pytest
import torch
from torch import nn

from losses import LOSSES, build_loss
from losses.label_smoothing import LabelSmoothingCrossEntropy
from utils.errors import ConfigError


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(8, 196, generator=generator, dtype=torch.float64) * 5
    return logits.requires_grad_(), torch.randint(196, (8,), generator=generator)


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_label_smoothing_equals_the_formula_and_torch(batch, epsilon, reduction):
    logits, labels = batch
    ours = LabelSmoothingCrossEntropy(epsilon, reduction)(logits, labels)
    log_p = logits - logits.exp().sum(dim=1, keepdim=True).log()
    formula = torch.stack(
        [epsilon * -row.sum() / 196 - (1 - epsilon) * row[label] for row, label in zip(log_p, labels, strict=True)]
    )
    formula = {"mean": formula.mean(), "sum": formula.sum(), "none": formula}[reduction]
    torchs = nn.CrossEntropyLoss(label_smoothing=epsilon, reduction=reduction)(logits, labels)
    torch.testing.assert_close(ours, formula, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours, torchs, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(loss.sum(), logits, retain_graph=True)[0] for loss in (ours, torchs)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


def test_label_smoothing_takes_weights_and_probabilities_as_torch_does(batch):
    logits, labels = batch
    weight = torch.linspace(0.5, 2, 196, dtype=torch.float64)
    ours, torchs = LabelSmoothingCrossEntropy(0.1, weight=weight), nn.CrossEntropyLoss(weight, label_smoothing=0.1)
    assert ours(logits, labels) == torchs(logits, labels)
    mixed = (
        0.3 * torch.eye(196, dtype=torch.float64)[labels] + 0.7 * torch.eye(196, dtype=torch.float64)[labels.flip(0)]
    )
    parts = LabelSmoothingCrossEntropy(0.1)
    expected = 0.3 * parts(logits, labels) + 0.7 * parts(logits, labels.flip(0))
    torch.testing.assert_close(parts(logits, mixed), expected, rtol=1e-12, atol=1e-12)


def test_the_default_is_the_studys():
    assert build_loss("LabelSmoothingCrossEntropy").label_smoothing == 0.1
    assert set(LOSSES) == {"LabelSmoothingCrossEntropy"}


def test_losses_of_torch_by_name_with_parameters(batch):
    logits, labels = batch
    loss = build_loss("CrossEntropyLoss", {"label_smoothing": 0.2, "weight": [2.0] * 196})
    expected = nn.CrossEntropyLoss(label_smoothing=0.2)(logits, labels)  # equal weights change nothing
    torch.testing.assert_close(loss(logits.float(), labels), expected.float())
    assert isinstance(build_loss("MultiMarginLoss", num_classes=12), nn.MultiMarginLoss)


@pytest.mark.parametrize(
    "name", ["MSELoss", "BCEWithLogitsLoss", "CosineEmbeddingLoss", "CTCLoss", "TripletMarginLoss"]
)
def test_a_loss_for_another_task_is_refused(name):
    with pytest.raises(ConfigError, match=f"'{name}' does not take logits"):
        build_loss(name)


def test_a_loss_that_gives_no_single_number_is_refused():
    with pytest.raises(ConfigError, match="set reduction: mean"):
        build_loss("CrossEntropyLoss", {"reduction": "none"})


def test_wrong_names_and_values():
    with pytest.raises(AttributeError, match="no attribute 'CrossEntropyLos'"):
        build_loss("CrossEntropyLos")
    with pytest.raises(ValueError, match="expected 0 … 1"):
        build_loss("LabelSmoothingCrossEntropy", {"epsilon": 1.5})
