"""Writes the model card of an exported file: Markdown with the metadata that model hubs read.

Mitchell et al., "Model Cards for Model Reporting", FAT* 2019; https://huggingface.co/docs/hub/model-cards
Every figure was measured on exactly these weights or on the file; what was not measured is named as such.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from datamodules import DataSplits
from deployment.calibration import NEVER
from deployment.evaluation.evaluation import wilson_interval
from deployment.formats import Metadata
from deployment.trained import TrainedModel
from utils.config import LOCAL_KEYS
from utils.machine import cpu_name
from utils.runs.folder import BEST, read_record
from utils.runs.summary import duration

if TYPE_CHECKING:
    from deployment.export import ExportedFile

PATH_KEYS = ("pretrained", "teacher", "auxiliary_targets")  # whose strings may be paths on this machine
SPLITS = {"test": "test images", "valid": "validation images, which also chose the checkpoint"}


def model_card(trained: TrainedModel, exported: "ExportedFile", splits: DataSplits, metadata: Metadata) -> str:
    """Returns the card of `exported`.

    Args:
        trained: The model.
        exported: Its file, with what was measured of it.
        splits: The data set that the file was compared on.
        metadata: What the file carries.
    """
    sections = {
        "Use": _use(metadata),
        "Data": _data(trained, splits),
        "Training": _training(trained),
        "Accuracy": _accuracy(trained, exported),
        "Calibration": _calibration(trained),
        "Size and latency": _cost(exported),
        "Limits": _limits(trained, metadata),
        "Classes": "\n".join(f"{label}. {name}" for label, name in enumerate(trained.class_names)),
    }
    head = yaml.safe_dump(_front_matter(trained, exported), sort_keys=False, allow_unicode=True)
    title = f"# {exported.path.name}: {trained.config.architecture}, {len(trained.class_names)} car models"
    return f"---\n{head}---\n\n{title}\n" + "".join(f"\n## {name}\n\n{text}\n" for name, text in sections.items())


def _front_matter(trained: TrainedModel, exported: "ExportedFile") -> dict[str, Any]:
    head: dict[str, Any] = {
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "cars", trained.config.architecture],
        "metrics": ["accuracy"],
    }
    name = trained.config.data_path.name
    results = [
        {
            "task": {"type": "image-classification"},
            "dataset": {"name": name, "type": name, "split": split},
            "metrics": [
                {"type": "accuracy", "value": round(accuracy, 6), "name": f"top-1 accuracy on {images} images"}
            ],
        }
        for split, (accuracy, images) in _file_accuracies(trained, exported).items()
    ]
    return head | ({"model-index": [{"name": exported.path.name, "results": results}]} if results else {})


def _file_accuracies(trained: TrainedModel, exported: "ExportedFile") -> dict[str, tuple[float, int]]:
    """Returns the accuracy of the file and the number of images, by split; the model's where the file always agrees with it."""
    agreement = exported.agreement
    if agreement is None:
        return {}
    found = {} if exported.data else {"valid": (agreement.exported_accuracy, agreement.images)}
    if agreement.top1 == 1:
        found |= {split: (one["valid_acc"], one["images"]) for split, one in _evaluations(trained).items()}
    return found


def _evaluations(trained: TrainedModel) -> dict[str, dict[str, Any]]:
    """Returns what evaluate.py wrote of exactly these weights, by split."""
    found = {}
    for split in SPLITS:
        path = trained.folder / "evaluation" / f"{trained.path.stem}_{split}" / "summary.json"
        try:
            summary = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        is_whole = isinstance(summary, dict) and summary.get("is_same_split", True)
        if is_whole and summary.get("sha256") == trained.sha256:
            found[split] = summary
    return found


def _use(metadata: Metadata) -> str:
    steps = "\n".join(f"{number}. {step}" for number, step in enumerate(metadata["preprocessing"], start=1))
    lines = [
        f"Input: {metadata['input']}; image_size {metadata['image_size']}, channels {', '.join(metadata['channels'])}"
        + (f", mean {metadata['mean']}, std {metadata['std']}" if metadata["mean"] else ""),
        f"Output: {metadata['output']}",
    ]
    return "\n\n".join([*lines, f"From a photo to the input:\n\n{steps}", "All of this is in the file's metadata."])


def _data(trained: TrainedModel, splits: DataSplits) -> str:
    record = read_record(trained.folder)
    counts = [
        f"{record[key]:,} {name}" for key, name in (("train_photos", "training"), ("valid_photos", "validation"))
        if isinstance(record.get(key), int)
    ]  # fmt: skip
    origin = {"train": "split off from the training images", "test": "the data set's test split"}
    return "\n\n".join(
        [
            f"{trained.config.data_path.name}: {len(trained.class_names)} classes"
            + (f"; trained and validated on {' and '.join(counts)} images" if counts else ""),
            f"At the export: {splits.description}, {len(splits.train):,} training, {len(splits.valid):,} validation and "
            f"{len(splits.test):,} test images; the validation images are "
            f"{origin.get(splits.valid_from, 'a split of the data set')}.",
        ]
    )


def _training(trained: TrainedModel) -> str:
    record = read_record(trained.folder)
    settings = trained.config.model_dump(exclude_none=True, exclude=set(LOCAL_KEYS))
    text = yaml.safe_dump(_without_folders(settings), sort_keys=False, allow_unicode=True)
    lines = []
    if record.get("epochs"):
        lines.append(
            f"{record['epochs']} epochs in {duration(record.get('seconds', 0.0))}, commit {record.get('commit')}"
        )
    if isinstance(record.get("versions"), dict):
        lines.append(", ".join(f"{name} {version}" for name, version in record["versions"].items()))
    return "\n\n".join([*lines, f"```yaml\n{text}```"])


def _without_folders(value: Any, *, is_path: bool = False) -> Any:
    """Returns plain values; of a path, which a string is where `is_path`, the name of the file and of its run."""
    if isinstance(value, dict):
        return {key: _without_folders(each, is_path=key in PATH_KEYS) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_folders(each, is_path=is_path) for each in value]
    if isinstance(value, Path) or (is_path and isinstance(value, str)):
        parts = Path(value).parts
        return "/".join(parts[-3:] if parts[-2:-1] == (BEST.parent.name,) else parts[-1:])
    return value


def _accuracy(trained: TrainedModel, exported: "ExportedFile") -> str:
    rows = ["| measured on | images | top-1 | 95 % interval (Wilson) | top-5 |", "|---|---:|---:|---|---:|"]
    for split, one in _evaluations(trained).items():
        rows.append(
            f"| the model, {SPLITS[split]} | {one['images']:,} | {one['valid_acc']:.2%} | "
            f"{one['valid_acc_95_low']:.2%} … {one['valid_acc_95_high']:.2%} | {one['valid_top5_acc']:.2%} |"
        )
    lines = []
    if agreement := exported.agreement:
        images = f"validation images of {exported.data.resolve().name}" if exported.data else SPLITS["valid"]
        low, high = wilson_interval(round(agreement.exported_accuracy * agreement.images), agreement.images)
        rows.append(
            f"| this file, {images} | {agreement.images:,} | {agreement.exported_accuracy:.2%} | {low:.2%} … "
            f"{high:.2%} | not measured |"
        )
        lines.append(
            f"File and model agree in the top-1 prediction for {agreement.top1:.2%} of these images; their "
            f"{agreement.output} differ by at most {agreement.max_difference:.2g}."
        )
    else:
        lines.append("The file was converted, but not run: its format cannot be run on the machine of the export.")
    table = ["\n".join(rows)] if len(rows) > 2 else []
    return "\n\n".join([*table, f"Chance level: {1 / len(trained.class_names):.2%}.", *lines])


def _calibration(trained: TrainedModel) -> str:
    kept, summary = trained.calibration, _evaluations(trained).get("valid", {}).get("calibration")
    if kept is None:
        return "Not calibrated: temperature 1, no threshold. The probabilities may be too high or too low."
    threshold = "no threshold reaches this rate" if kept.threshold >= NEVER else f"threshold {kept.threshold:.4f}"
    lines = [
        f"Temperature {kept.temperature:.4f}, fitted on {kept.images:,} validation images.",
        f"Answers with a {kept.score} below the threshold are *not sure*; of the others, {100 * kept.rate:g}% are right on "
        f"these images: {threshold}.",
    ]
    if summary:
        lines.append(
            f"Expected calibration error {summary['ece']:.2%} ({summary['ece_method']}), "
            f"{summary['ece_without_temperature']:.2%} without the temperature; each half of the images is judged by a fit to "
            "the other half."
        )
    return "\n\n".join(lines)


def _cost(exported: "ExportedFile") -> str:
    rows = ["| | MB | one image, ms: median (quartiles) |", "|---|---:|---:|"]
    for name in dict.fromkeys([*exported.seconds, *exported.sizes]):
        size, time = exported.sizes.get(name), exported.seconds.get(name)
        rows.append(
            f"| {'PyTorch' if name == 'eager' else name} | {'' if size is None else f'{size / 1e6:.2f}'} | "
            + (f"{1e3 * time.median:.2f} ({1e3 * time.low:.2f} … {1e3 * time.high:.2f})" if time else "not measured")
            + " |"
        )
    note = f"One thread of {cpu_name()}, torch {torch.__version__}. Other processes may have run at the same time."
    return "\n".join(rows) + f"\n\n{note}"


def _limits(trained: TrainedModel, metadata: Metadata) -> str:
    seen = (
        "Only the largest central part of an image that has this shape"
        if metadata["aspect"] == "crop"
        else "The whole image"
    )
    limits = [
        f"It knows these {len(trained.class_names)} classes only, and names one of them for every image, also for one of "
        "another car or without a car. How often it then says *not sure* was not measured for this card.",
        "The accuracy holds for images like those of the data set; other cameras, countries and years were not measured.",
        f"{seen} is scaled to {metadata['image_size'][0]} × {metadata['image_size'][1]} pixels: a small car in a "
        "large photo has few of them.",
    ]
    return "\n".join(f"- {limit}" for limit in limits)
