"""Evaluates a trained model on labeled images: the training's own metrics, per class and per image."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from assembly import build_data, build_trainer
from datamodules import DataSplits, ImageRecord, clip_boxes, read_splits, split_as_configured
from deployment.trained import TrainedModel
from models.classifier import TOP_K
from utils.errors import DataError
from utils.nearest import nearest
from utils.progress import progress_bar

Split = Literal["valid", "train", "test", "all"]
METRICS = ("valid_loss", "valid_acc", "valid_top5_acc", "valid_mean_class_acc")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """The outputs of a model for `images`.

    Attributes:
        images: In the order of the data set.
        logits: (N, classes), 32-bit.
        metrics: Those of `METRICS` as the training computes them, accuracies in 0 … 1.
        device: The device that computed them.
    """

    images: tuple[ImageRecord, ...]
    logits: Tensor
    metrics: dict[str, float]
    device: str

    @property
    def labels(self) -> Tensor:
        return torch.tensor([image.label for image in self.images])

    @property
    def ranking(self) -> Tensor:
        """The five most probable classes of each image, (N, 5), or all if there are fewer."""
        return self.logits.topk(min(TOP_K, self.logits.shape[1]), dim=1).indices

    @property
    def confusion(self) -> Tensor:
        """The number of images by label (row) and top-1 prediction (column)."""
        classes = self.logits.shape[1]
        pairs = self.labels * classes + self.ranking[:, 0]
        return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


class _Collector(Callback):
    """Collects the logits of a validation and shows its progress."""

    def __init__(self) -> None:
        self.logits: list[Tensor] = []

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.bar = progress_bar(description="evaluating", unit=" batches", total=int(sum(trainer.num_val_batches)))

    def on_validation_batch_end(self, trainer: Trainer, module: LightningModule, logits: Tensor, *_: Any) -> None:
        self.logits.append(logits.float().cpu())
        self.bar.update()

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.bar.close()


def load_split(trained: TrainedModel, data: Path | None, split: Split) -> tuple[tuple[ImageRecord, ...], DataSplits]:
    """Reads a split, with the labels of the model.

    The training's data set has the splits of the training, also where `data` is a copy of it. If its images have changed since,
    a warning says that those of the split may have been trained on.

    Args:
        trained: The model, with its data set and classes.
        data: Folder of a data set in any supported layout; None for the training's.
        split: The split to read.

    Returns:
        The images of the split, and the whole data set.

    Raises:
        DataError: The data set is invalid, has a class that the model was not trained on, or the split is empty.
    """
    folder = data or trained.config.data_path
    splits = clip_boxes(_with_splits_of_training(trained, read_splits(trained.config, data), data))
    label_of = {name: label for label, name in enumerate(trained.class_names)}
    unknown = [name for name in splits.class_names if name not in label_of]
    if unknown:
        raise DataError(
            f"{folder}: {trained.path} was not trained on {len(unknown)} of its {len(splits.class_names)} classes, "
            f"such as '{unknown[0]}'.{nearest(unknown[0], trained.class_names)[:200]}"
        )
    train, valid, test = (
        tuple(replace(image, label=label_of[splits.class_names[image.label]]) for image in images)
        for images in (splits.train, splits.valid, splits.test)
    )
    splits = replace(splits, train=train, valid=valid, test=test, class_names=trained.class_names)
    images = splits.records if split == "all" else getattr(splits, split)
    if not images:
        hint = ""
        if split == "test" and splits.valid_from == "test":
            hint = (
                "; its test split is the validation split: evaluate --split valid, or train with validation_fraction, which "
                "keeps the test split apart"
            )
        raise DataError(f"{folder} has no images in its split '{split}'{hint}")
    return images, splits


def _with_splits_of_training(trained: TrainedModel, splits: DataSplits, data: Path | None) -> DataSplits:
    if trained.split_digest is None:
        return splits
    if data is not None:
        again = split_as_configured(splits, trained.config, data)
        return again if again.split_digest == trained.split_digest else splits
    if splits.split_digest != trained.split_digest:
        logger.warning(
            "%s: its images are not those that %s was trained on; split again, images of its validation and test splits may "
            "have been trained on", trained.config.data_path, trained.path,
        )  # fmt: skip
    return splits


def evaluate(trained: TrainedModel, images: tuple[ImageRecord, ...], splits: DataSplits) -> Evaluation:
    """Runs the training's own validation on `images`: same loader, batch size, precision and sums.

    On the same machine, the metrics of the training's validation images equal those of the training bit by bit. As in
    the training's validation, images are not cropped to their boxes.

    Raises:
        ConfigError: The machine has no device of the configured kind.
        DataError: An image cannot be read.
    """
    changes = {"devices": 1, "num_nodes": 1, "strategy": "auto", "compile": None}  # one pass is not worth compiling
    if images is not splits.valid:  # read once, so not cached
        changes |= {"cache_path": None, "augmentation_device": "cpu"}
    config = trained.config.model_copy(update=changes)
    collector = _Collector()
    trainer = build_trainer(config, trained.folder, [collector])
    data = build_data(config, replace(splits, train=(), valid=images))
    trainer.validate(trained.classifier, data, verbose=False)
    metrics = {name: trained.classifier.epoch_metrics[name] for name in METRICS}
    return Evaluation(images, torch.cat(collector.logits), metrics, str(trainer.strategy.root_device))


def wilson_interval(correct: int, count: int) -> tuple[float, float]:
    """Returns the 95 % confidence interval of the accuracy behind `correct` of `count` predictions.

    Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 1927. It assumes images that are
    drawn independently and were not used to select the model.
    """
    from scipy.stats import binomtest  # takes a second

    interval = binomtest(correct, count).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def class_rows(evaluation: Evaluation, class_names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Returns a row for each class that has images: accuracy with its interval, and the class it is most confused with."""
    confusion, labels = evaluation.confusion, evaluation.labels
    in_top5 = evaluation.ranking.eq(labels[:, None]).any(dim=1)
    rows = []
    for label, name in enumerate(class_names):
        count = int(confusion[label].sum())
        if count == 0:
            continue
        wrong = confusion[label].clone()
        wrong[label] = 0
        confusions, other = wrong.max(dim=0)
        correct = int(confusion[label, label])
        low, high = wilson_interval(correct, count)
        rows.append(
            {
                "class": name,
                "images": count,
                "correct": correct,
                "accuracy": correct / count,
                "accuracy_low": low,
                "accuracy_high": high,
                "top5_accuracy": int(in_top5[labels == label].sum()) / count,
                "predicted": int(confusion[:, label].sum()),
                "most_confused_with": class_names[int(other)] if confusions else "",
                "confusions": int(confusions),
            }
        )
    return rows


def image_rows(evaluation: Evaluation, class_names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Returns a row for each image: its class, the top-1 prediction, and the probabilities of both."""
    probabilities = evaluation.logits.softmax(dim=1)
    predicted = evaluation.ranking[:, 0]
    top1, own = (probabilities.gather(1, labels[:, None])[:, 0] for labels in (predicted, evaluation.labels))
    columns = zip(evaluation.images, predicted.tolist(), top1.tolist(), own.tolist(), strict=True)
    return [
        {
            "image": str(image.path),
            "class": class_names[image.label],
            "predicted": class_names[index],
            "correct": int(index == image.label),
            "probability": probability,
            "probability_of_class": probability_of_class,
        }
        for image, index, probability, probability_of_class in columns
    ]


@dataclass(frozen=True)
class Pair:
    """Two confused classes: `count` images of `first` predicted as `second`, `reverse_count` the other way around."""

    first: int
    second: int
    count: int
    reverse_count: int

    @property
    def total(self) -> int:
        return self.count + self.reverse_count


def confused_pairs(confusion: Tensor) -> list[Pair]:
    """Returns the confused pairs of classes, the most confused first; `count` is at least `reverse_count`."""
    confused = {tuple(sorted(pair)) for pair in confusion.nonzero().tolist() if pair[0] != pair[1]}
    pairs = []
    for one, other in confused:
        count, reverse = int(confusion[one, other]), int(confusion[other, one])
        pairs.append(Pair(one, other, count, reverse) if count >= reverse else Pair(other, one, reverse, count))
    return sorted(pairs, key=lambda pair: (-pair.total, -pair.count, pair.first, pair.second))
