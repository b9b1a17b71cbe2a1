"""Judges a trained network on photos with labels: the training's own figures, and what they are made of."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from assembly import build_data, build_trainer
from datamodules import DataSplits, ImageRecord, clip_boxes, read_data
from deployment.trained import Trained
from models.classifier import TOP_K
from utils.errors import DataError
from utils.nearest import nearest
from utils.progress import progress_bar

Z_95 = 1.959963984540054  # quantile of the standard normal distribution at 97.5 %
METRICS = ("valid_loss", "valid_acc", "valid_top5_acc")


@dataclass(frozen=True)
class Evaluation:
    """What a network made of `photos`.

    Attributes:
        photos: In the order of the data set.
        logits: (N, classes), as 32-bit numbers.
        metrics: valid_loss, valid_acc and valid_top5_acc by the training's own arithmetic, accuracies in 0 … 1.
        device: What computed them.
    """

    photos: tuple[ImageRecord, ...]
    logits: Tensor
    metrics: dict[str, float]
    device: str

    @property
    def labels(self) -> Tensor:
        return torch.tensor([photo.label for photo in self.photos])

    @property
    def ranking(self) -> Tensor:
        """Returns the five most probable classes of each photo, (N, 5), or all if there are fewer."""
        return self.logits.topk(min(TOP_K, self.logits.shape[1]), dim=1).indices

    @property
    def confusion(self) -> Tensor:
        """Returns how many photos of each label (row) were taken for each class (column)."""
        classes = self.logits.shape[1]
        pairs = self.labels * classes + self.ranking[:, 0]
        return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


class _Collector(Callback):
    """Keeps the logits that the validation computes, and shows how far it is."""

    def __init__(self) -> None:
        self.logits: list[Tensor] = []

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.hook = module.model.register_forward_hook(
            lambda model, images, logits: self.logits.append(logits.float().cpu())
        )
        self.bar = progress_bar(description="evaluating", unit=" batches", total=int(sum(trainer.num_val_batches)))

    def on_validation_batch_end(self, *_: Any) -> None:
        self.bar.update()

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.hook.remove()
        self.bar.close()


def read_photos(
    trained: Trained, data: Path | None, split: Literal["valid", "train", "all"]
) -> tuple[tuple[ImageRecord, ...], DataSplits]:
    """Reads the photos to judge by, their labels turned into the network's own.

    Args:
        trained: Knows its own data set and classes.
        data: Folder of a data set of any layout; None for that of the training.
        split: Which of its photos.

    Returns:
        The photos, and the whole data set.

    Raises:
        DataError: The data set is wrong, has a class that the network does not know, or no photo in the split.
    """
    folder = data or trained.config.data_path
    archives = None if data else trained.config.raw_data_path
    annotations, _ = clip_boxes(read_data(folder, raw_path=archives, exif_orientation=trained.config.exif_orientation))
    label_of = {name: label for label, name in enumerate(trained.class_names)}
    unknown = [name for name in annotations.class_names if name not in label_of]
    if unknown:
        raise DataError(
            f"{folder} has {len(unknown)} of {len(annotations.class_names)} classes that {trained.path} was not trained "
            f"on, such as '{unknown[0]}'.{nearest(unknown[0], trained.class_names)[:200]}"
        )
    train, valid = (
        tuple(replace(photo, label=label_of[annotations.class_names[photo.label]]) for photo in photos)
        for photos in (annotations.train, annotations.valid)
    )
    annotations = replace(annotations, train=train, valid=valid, class_names=trained.class_names)
    photos = {"train": train, "valid": valid, "all": train + valid}[split]
    if not photos:
        raise DataError(f"{folder} has no photos in its split '{split}'")
    return photos, annotations


def evaluate(trained: Trained, photos: tuple[ImageRecord, ...], annotations: DataSplits) -> Evaluation:
    """Runs the training's own validation over `photos`: same loader, batch size, number format and sums.

    So its figures of the training's validation photos are those of the training, bit by bit, on the same machine. Photos
    are never cut to their boxes, those of the training split neither.

    Raises:
        ConfigError: The machine has no device of the kind that the configuration names.
        DataError: A photo cannot be read.
    """
    changes = {"devices": 1, "num_nodes": 1, "strategy": "auto", "compile": None}  # one pass is not worth compiling
    if photos is not annotations.valid:  # no cache of photos that are looked at once
        changes |= {"cache_path": None, "augmentation_device": "cpu"}
    config = trained.config.model_copy(update=changes)
    collector = _Collector()
    trainer = build_trainer(config, trained.folder, [collector])
    data = build_data(config, replace(annotations, train=(), valid=photos))
    trainer.validate(trained.classifier, data, verbose=False)
    metrics = {name: trained.classifier.epoch_metrics[name] for name in METRICS}
    return Evaluation(photos, torch.cat(collector.logits), metrics, str(trainer.strategy.root_device))


def wilson_interval(correct: int, count: int) -> tuple[float, float]:
    """Returns the 95 % confidence interval of the probability behind `correct` of `count`.

    Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 1927. It holds for photos that were
    drawn independently and did not choose the network.
    """
    share, z2 = correct / count, Z_95**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = Z_95 / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    return (centre - half if correct else 0.0), (centre + half if correct < count else 1.0)  # exact at both ends


def class_rows(evaluation: Evaluation, class_names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Returns a row for each class that has photos: how many, how many right, and what it is most often taken for."""
    confusion, labels = evaluation.confusion, evaluation.labels
    among_top5 = evaluation.ranking.eq(labels[:, None]).any(dim=1)
    rows = []
    for label, name in enumerate(class_names):
        count = int(confusion[label].sum())
        if count == 0:
            continue
        wrong = confusion[label].clone()
        wrong[label] = 0
        times, other = wrong.max(dim=0)
        correct = int(confusion[label, label])
        low, high = wilson_interval(correct, count)
        rows.append(
            {
                "class": name,
                "photos": count,
                "correct": correct,
                "accuracy": correct / count,
                "accuracy_low": low,
                "accuracy_high": high,
                "top5_accuracy": int(among_top5[labels == label].sum()) / count,
                "predicted": int(confusion[:, label].sum()),
                "most_often_taken_for": class_names[int(other)] if times else "",
                "times": int(times),
            }
        )
    return rows


def photo_rows(evaluation: Evaluation, class_names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Returns a row for each photo: its class, the class it was taken for, and the probabilities of both."""
    probabilities = evaluation.logits.softmax(dim=1)
    predicted = evaluation.ranking[:, 0]
    best, own = (probabilities.gather(1, labels[:, None])[:, 0] for labels in (predicted, evaluation.labels))
    columns = zip(evaluation.photos, predicted.tolist(), best.tolist(), own.tolist(), strict=True)
    return [
        {
            "photo": str(photo.path),
            "class": class_names[photo.label],
            "predicted": class_names[index],
            "correct": int(index == photo.label),
            "probability": probability,
            "probability_of_class": of_class,
        }
        for photo, index, probability, of_class in columns
    ]


@dataclass(frozen=True)
class Pair:
    """Two classes that are taken for one another: `first` for `second` `forth` times, the other way `back` times."""

    first: int
    second: int
    forth: int
    back: int

    @property
    def times(self) -> int:
        return self.forth + self.back


def confused_pairs(confusion: Tensor) -> list[Pair]:
    """Returns the pairs of classes that are ever confused, most often confused first; `forth` is at least `back`."""
    confused = {tuple(sorted(pair)) for pair in confusion.nonzero().tolist() if pair[0] != pair[1]}
    pairs = []
    for one, other in confused:
        forth, back = int(confusion[one, other]), int(confusion[other, one])
        pairs.append(Pair(one, other, forth, back) if forth >= back else Pair(other, one, back, forth))
    return sorted(pairs, key=lambda pair: (-pair.times, -pair.forth, pair.first, pair.second))
