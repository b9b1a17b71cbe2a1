"""Writes the report of an evaluation: a summary, tables and figures."""

import json
from pathlib import Path
from shlex import quote
from typing import Any

from deployment.calibration import (
    MIN_IMAGES,
    NEVER,
    Reliability,
    calibrate,
    cross_judge,
    judge,
    save_calibration,
)
from deployment.evaluation.evaluation import Evaluation, class_rows, confused_pairs, image_rows, wilson_interval
from deployment.evaluation.figures import draw_calibration, draw_confused_pairs, draw_confusion_matrix
from deployment.trained import TrainedModel
from utils.files import make_folder, write_csv, write_text
from utils.runs import LAST
from utils.runs.folder import read_record
from utils.runs.provenance import versions

MAX_PRINTED_PAIRS = 5
PAIR_COLUMNS = ("class", "confused_with", "count", "reverse_count", "total")
TITLES = {
    "valid_acc": "top-1 accuracy",
    "valid_top5_acc": "top-5 accuracy",
    "valid_mean_class_acc": "mean over classes",
    "valid_loss": "loss",
}


def write_report(
    trained: TrainedModel,
    evaluation: Evaluation,
    *,
    data: Path | None,
    split: str,
    is_same_split: bool,
    output: Path | None,
    rate: float,
) -> str:
    """Writes summary.json, three tables and three figures; returns the lines to print.

    Args:
        trained: The model.
        evaluation: Its outputs.
        data: Folder of the data set, None for the training's.
        split: The evaluated split.
        is_same_split: Whether the images are split as they were in the training.
        output: Folder to write to; None for a folder in the run's evaluation/.
        rate: Share of right answers among those above the threshold, which is kept with the run.

    Raises:
        RunError: The folder cannot be written.
    """
    data_path = data or trained.config.data_path
    default = "_".join(
        [trained.path.stem, split, *trained.other_settings.split(), *([data.resolve().name] if data else [])]
    )
    folder = make_folder(output or trained.folder / "evaluation" / default)
    names, metrics, count = trained.class_names, evaluation.metrics, len(evaluation.images)
    correct = round(metrics["valid_acc"] * count)
    low, high = wilson_interval(correct, count)
    pairs = confused_pairs(evaluation.confusion)
    is_own = data is None and is_same_split and split == "valid" and not trained.other_settings
    comparison, equal = _compare_with_training(trained, evaluation) if is_own else (None, None)

    write_csv(folder / "classes.csv", class_rows(evaluation, names))
    write_csv(folder / "images.csv", image_rows(evaluation, names))
    rows = [(names[pair.first], names[pair.second], pair.count, pair.reverse_count, pair.total) for pair in pairs]
    write_csv(folder / "confused_pairs.csv", [dict(zip(PAIR_COLUMNS, row, strict=True)) for row in rows], PAIR_COLUMNS)
    reliability, lines = _calibration(trained, evaluation, is_own=is_own, rate=rate)
    title = (
        f"{trained.folder.name}, {trained.path.name}: {correct:,} of {count:,} correct ({100 * correct / count:.2f} %), "
        f"{split} split of {data_path.name}"
    )
    draw_confusion_matrix(evaluation, names, folder / "confusion_matrix.png", title=title)
    draw_calibration(reliability, folder / "calibration.png", title=title)
    sheet = folder / "confused_pairs.png"
    sheet.unlink(missing_ok=True)  # of an earlier evaluation
    if pairs:
        draw_confused_pairs(evaluation, names, sheet, title=title)
    summary: dict[str, Any] = {
        "checkpoint": str(trained.path),
        "sha256": trained.sha256,
        "data": str(data_path),
        "split": split,
        "is_same_split": is_same_split,
        "image_size": list(trained.config.test_size),
        "flip_at_test": trained.config.flip_at_test,
        "images": count,
        "correct": correct,
        **metrics,
        "valid_acc_95_low": low,
        "valid_acc_95_high": high,
        "training_metrics": trained.metrics if is_own else None,
        "equals_training": equal,
        "calibration": reliability.summary(),
        "device": evaluation.device,
        "versions": versions(),
    }
    write_text(folder / "summary.json", json.dumps(summary, indent=2) + "\n")

    files = "summary.json, classes.csv, images.csv, confused_pairs.csv, confusion_matrix.png, calibration.png"
    return "\n".join(
        [
            f"{trained.path}: {count:,} images, {split} split of {data_path}",
            *([f"  not with the settings of the run: {trained.other_settings}"] if trained.other_settings else []),
            f"  {TITLES['valid_acc']:<16}{100 * metrics['valid_acc']:7.2f} %   95 % confidence interval "
            f"{100 * low:.2f} … {100 * high:.2f} % (Wilson)",
            f"  {TITLES['valid_top5_acc']:<16}{100 * metrics['valid_top5_acc']:7.2f} %",
            f"  {TITLES['valid_mean_class_acc']:<16}{100 * metrics['valid_mean_class_acc']:6.2f} %",
            f"  {TITLES['valid_loss']:<16}{metrics['valid_loss']:9.4f}",
            f"  {'chance level':<16}{100 / len(names):7.2f} %",
            *lines,
            *([f"  {comparison}"] if comparison else []),
            *(f"  {line}" for line in _caveats(trained, data, split, is_same_split=is_same_split)),
            *(["  most confused:"] if pairs else []),
            *(
                f"    {pair.total:>3} ×  {names[pair.first]}  –  {names[pair.second]}"
                for pair in pairs[:MAX_PRINTED_PAIRS]
            ),
            f"  report in {folder}: {files}{', confused_pairs.png' if pairs else ''}",
            f"  next: python predict.py {quote(str(trained.path))} IMAGE … --explain FOLDER   or   "
            f"python export.py {quote(str(trained.path))} --format onnx",
        ]
    )


def _calibration(
    trained: TrainedModel, evaluation: Evaluation, *, is_own: bool, rate: float
) -> tuple[Reliability, list[str]]:
    """Judges the calibration, fits and keeps it if these are the run's own validation images; returns lines on it."""
    logits, labels, count = evaluation.logits, evaluation.labels, len(evaluation.images)
    kept, note = trained.calibration, "temperature and threshold were fitted on the validation images"
    if is_own and count >= MIN_IMAGES:
        reliability = cross_judge(logits, labels, rate=rate)
        kept = calibrate(logits, labels, rate=rate)
        path = save_calibration(trained.folder, trained.path, trained.sha256, kept)
        note = f"each half of the images is judged by a fit to the other half; kept: {path}, fitted on both"
    else:
        reliability = judge(logits, labels, None if is_own else kept)
        kept = None if is_own else kept
    figures = reliability.summary()
    error = f"{100 * figures['ece']:7.2f} %   expected calibration error, {figures['ece_method']}"
    if kept is None:
        reason = f"not calibrated: {count} validation images, at least {MIN_IMAGES} are needed"
        advice = (
            f"not calibrated: python evaluate.py {quote(str(trained.path))} fits temperature and threshold, with "
            f"{MIN_IMAGES} validation images"
        )
        return reliability, [f"  {'calibration':<16}{error}", f"{'':18}{reason if is_own else advice}"]
    sure = f"{100 * figures['accepted']:7.2f} %   of the answers"
    right = figures["accepted_accuracy"]
    sure += "" if right is None else f", {100 * right:.2f} % of them right"
    threshold = "no threshold reaches" if kept.threshold == NEVER else f"threshold {kept.threshold:.3f} for"
    return reliability, [
        f"  {'calibration':<16}{error};",
        f"{'':30}{100 * figures['ece_without_temperature']:.2f} % without the temperature {kept.temperature:.3f}",
        f"  {'sure':<16}{sure}; {threshold} {100 * kept.rate:g} %",
        f"{'':30}{note}",
    ]


def _compare_with_training(trained: TrainedModel, evaluation: Evaluation) -> tuple[str, bool | None]:
    """Returns a line on whether the metrics equal those in the checkpoint, and whether they do; None: unknown."""
    if not trained.metrics:
        return "the checkpoint is from within an epoch: there are no training metrics to compare with", None
    differences = [
        f"{title} {evaluation.metrics[name]!r}, in training {trained.metrics.get(name)!r}"
        for name, title in TITLES.items()
        # Older checkpoints lack the mean over classes.
        if evaluation.metrics[name] != trained.metrics.get(name) and (name in trained.metrics or "mean" not in name)
    ]
    if not differences:
        return "equals the training's own metrics of this checkpoint exactly", True
    reasons = "another machine, device, number of threads or devices, other versions, or changed images"
    return f"differs from the training's own metrics ({reasons}): {'; '.join(differences)}", False


def _caveats(trained: TrainedModel, data: Path | None, split: str, *, is_same_split: bool) -> list[str]:
    """Returns how far the accuracy can be trusted, given where the images come from."""
    if data is not None and data.resolve() != trained.config.data_path.resolve():
        return [f"Images from --data: an independent result if none of {data} was used for training."]
    if not is_same_split:
        return [
            "The images have changed and are split anew: the model was trained on some of these, or chosen by them."
        ]
    if split in ("train", "all"):
        return ["The model was trained on these images: the accuracy does not show how well it generalizes."]
    uses = _uses_of_validation(trained) if split == "valid" else []
    if not uses:
        return ["Neither training nor the choice of the checkpoint used these images: an independent result."]
    source = ", as in the study" if trained.split_digest is None else ""
    has_test = read_record(trained.folder).get("test_photos", trained.split_digest is not None)
    other = "--split test" if has_test else "--data FOLDER --split all"
    return [
        f"These validation images also chose {' and '.join(uses)}{source}: expect slightly lower accuracy on other images.",
        f"For an independent result: {other}.",
    ]


def _uses_of_validation(trained: TrainedModel) -> list[str]:
    """Returns what the validation split has chosen of a checkpoint."""
    config = trained.config
    uses = {
        "the checkpoint": trained.path.name != LAST.name,
        "the end of the training": config.early_stopping_patience is not None,
        "the learning rate": config.lr_scheduler == "ReduceLROnPlateau",
    }
    return [use for use, is_so in uses.items() if is_so]
