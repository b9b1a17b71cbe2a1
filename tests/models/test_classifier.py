"""Loss and accuracy of an epoch: each image once, and the same however the images fall into batches."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from losses import build_loss, mean_loss
from models.classifier import Classifier
from tests.support.small_runs import rows, run

CLASSES = 4
WEIGHT = [0.1, 1.0, 3.0, 10.0]
LOSSES = [
    ("CrossEntropyLoss", {}),
    ("CrossEntropyLoss", {"weight": WEIGHT}),
    ("CrossEntropyLoss", {"weight": WEIGHT, "label_smoothing": 0.2}),
    ("CrossEntropyLoss", {"weight": WEIGHT, "ignore_index": 0}),
    ("CrossEntropyLoss", {"ignore_index": 3, "label_smoothing": 0.1}),
    ("NLLLoss", {"weight": WEIGHT}),
    ("MultiMarginLoss", {"weight": WEIGHT}),  # whose mean is over images all the same
    ("LabelSmoothingCrossEntropy", {}),
]


@pytest.fixture
def split() -> tuple[Tensor, Tensor]:
    """Logits and labels, sorted as the validation split is: a whole batch may have one label."""
    draws = torch.Generator().manual_seed(0)
    return torch.randn(16, CLASSES, generator=draws), torch.arange(16) // 4


def validate(loss: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
    settings = {"optimizer": "SGD", "optimizer_params": None, "lr_scheduler": None, "lr_scheduler_params": None}
    classifier = Classifier(nn.Identity(), loss, **settings, seed=0)
    classifier.memory_format = torch.contiguous_format
    classifier._trainer = SimpleNamespace(strategy=SimpleNamespace(reduce=lambda value, reduce_op: value))
    classifier.log_dict = lambda *_, **__: None
    classifier.on_validation_epoch_start()
    for batch in batches:
        classifier.validation_step(batch)
    classifier.on_validation_epoch_end()
    return classifier.epoch_metrics


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(("name", "params"), LOSSES, ids=str)
@pytest.mark.parametrize("order", ["sorted", "shuffled"])
@pytest.mark.parametrize("size", [4, 5, 16])
def test_the_loss_of_a_split_is_torchs_mean_over_all_of_it(split, name, params, reduction, order, size):
    logits, labels = split
    if order == "shuffled":
        places = torch.randperm(16, generator=torch.Generator().manual_seed(1))
        logits, labels = logits[places], labels[places]
    loss = build_loss(name, params | {"reduction": reduction}, num_classes=CLASSES)
    expected = build_loss(name, params, num_classes=CLASSES)(logits, labels).item()
    metrics = validate(loss, list(zip(logits.split(size), labels.split(size), strict=True)))
    assert metrics["valid_loss"] == pytest.approx(expected, rel=1e-6)
    assert metrics["valid_acc"] == (logits.argmax(1) == labels).double().mean()


def test_top_5_and_the_mean_over_classes_are_those_of_a_loop():
    draws = torch.Generator().manual_seed(0)
    labels = torch.arange(40) ** 2 // 180  # of 9 classes, from 14 images of the first to 3 of the last
    logits = torch.randn(40, 9, generator=draws) + nn.functional.one_hot(labels, 9)
    metrics = validate(nn.CrossEntropyLoss(), list(zip(logits.split(7), labels.split(7), strict=True)))
    top5 = [label in row.topk(5).indices for row, label in zip(logits, labels, strict=True)]
    right = logits.argmax(1) == labels
    by_class = [right[labels == label].double().mean().item() for label in range(9)]
    assert 0 < sum(top5) < 40 and metrics["valid_top5_acc"] == pytest.approx(sum(top5) / 40)
    assert metrics["valid_mean_class_acc"] == pytest.approx(sum(by_class) / 9)
    assert abs(metrics["valid_acc"] - metrics["valid_mean_class_acc"]) > 0.005


def test_probabilities_are_averaged_by_their_classes_weights_however_they_fall_into_batches(split):
    logits, labels = split
    targets = nn.functional.one_hot(labels, CLASSES) * 0.7 + 0.075
    loss = build_loss("CrossEntropyLoss", {"weight": WEIGHT}, num_classes=CLASSES)
    value, denominator = mean_loss(loss, logits, targets)
    weights = torch.tensor(WEIGHT)
    by_hand = -(weights * targets * logits.log_softmax(1)).sum() / (weights * targets).sum()
    torch.testing.assert_close(value, by_hand)
    parts = [mean_loss(loss, logits[part], targets[part]) for part in (slice(5), slice(5, 16))]
    torch.testing.assert_close(sum(value * count for value, count in parts), value * denominator)


def test_lbfgs_counts_each_image_once(cars, tmp_path, monkeypatch):
    """It evaluates each batch several times, with other weights each time, and needs the contiguous memory format."""
    counted, log_means = [], Classifier._log_means

    def noted(self, split, sums):
        counted.append((split, int(sums[3])))
        log_means(self, split, sums)

    monkeypatch.setattr(Classifier, "_log_means", noted)
    changes = ("optimizer=LBFGS", "optimizer_params={lr: 0.1, max_iter: 3}", "num_epochs=1")
    folder = run(cars, tmp_path, *changes, "lr_scheduler=null", "lr_scheduler_params=null")
    assert counted == [("valid", 8), ("train", 20)]
    correct = 20 * float(rows(folder)[0]["train_acc"])
    assert correct == pytest.approx(round(correct), abs=1e-9)
