"""Writes down what an evaluation found, and says it in a few lines."""

import json
from pathlib import Path

from deployment.evaluation.evaluation import Evaluation, class_rows, confused_pairs, photo_rows, wilson_interval
from deployment.evaluation.figures import draw_confused_pairs, draw_confusion_matrix
from deployment.trained import Trained
from utils.files import make_folder, write_csv, write_text
from utils.machine import versions

NAMED_PAIRS = 5  # in the terminal
PAIR_COLUMNS = ("first", "second", "times", "first_taken_for_second", "second_taken_for_first")
TITLES = {"valid_acc": "top-1 accuracy", "valid_top5_acc": "top-5 accuracy", "valid_loss": "loss"}


def write_report(
    trained: Trained, evaluation: Evaluation, *, data: Path | None, split: str, output: Path | None
) -> str:
    """Writes summary.json, three tables and two pictures; returns what a person wants to read.

    Args:
        trained: The network.
        evaluation: What came out.
        data: Folder of the data set, None for that of the training.
        split: Which of its photos.
        output: Where to; None for a folder of its own in the run's evaluation/.

    Raises:
        RunError: The folder cannot be written.
    """
    photos = f"{split} of {data or trained.config.data_path}"
    folder = output or trained.folder / "evaluation" / "_".join(
        [trained.path.stem, split, *([data.resolve().name] if data else [])]
    )
    make_folder(folder)
    count = len(evaluation.photos)
    correct = round(evaluation.metrics["valid_acc"] * count)
    low, high = wilson_interval(correct, count)
    names = trained.class_names
    pairs = confused_pairs(evaluation.confusion)
    is_own = data is None and split == "valid"
    said, agrees = _comparison(trained, evaluation) if is_own else (None, None)

    write_csv(folder / "classes.csv", class_rows(evaluation, names))
    write_csv(folder / "photos.csv", photo_rows(evaluation, names))
    rows = [(names[pair.first], names[pair.second], pair.times, pair.forth, pair.back) for pair in pairs]
    write_csv(folder / "confused_pairs.csv", [dict(zip(PAIR_COLUMNS, row, strict=True)) for row in rows], PAIR_COLUMNS)
    title = (
        f"{trained.folder.name}, {trained.path.name}: {correct:,} of {count:,} right ({100 * correct / count:.2f} %), "
        f"{split} of {(data or trained.config.data_path).name}"
    )
    draw_confusion_matrix(evaluation, names, folder / "confusion_matrix.png", title=title)
    sheet = folder / "confused_pairs.png"
    sheet.unlink(missing_ok=True)  # of an earlier evaluation
    if pairs:
        draw_confused_pairs(evaluation, names, sheet, title=title)
    summary = {
        "checkpoint": str(trained.path),
        "photos": photos,
        "count": count,
        "correct": correct,
        **evaluation.metrics,
        "valid_acc_95_low": low,
        "valid_acc_95_high": high,
        "training_said": trained.metrics if is_own else None,
        "equals_training": agrees,
        "device": evaluation.device,
        "versions": versions(),
    }
    write_text(folder / "summary.json", json.dumps(summary, indent=2) + "\n")

    lines = [
        f"{trained.path} on {count:,} photos, {photos}",
        f"  {TITLES['valid_acc']:<16}{100 * evaluation.metrics['valid_acc']:7.2f} %   95 % confidence interval "
        f"{100 * low:.2f} … {100 * high:.2f} % (Wilson)",
        f"  {TITLES['valid_top5_acc']:<16}{100 * evaluation.metrics['valid_top5_acc']:7.2f} %",
        f"  {TITLES['valid_loss']:<16}{evaluation.metrics['valid_loss']:9.4f}",
        f"  {'a guess':<16}{100 / len(names):7.2f} %",
    ]
    if said:
        lines.append(f"  {said}")
    lines += [f"  {line}" for line in _caution(trained, data, split)]
    if pairs:
        lines.append("  most confused:")
        lines += [
            f"    {pair.times:>3} ×  {names[pair.first]}  –  {names[pair.second]}" for pair in pairs[:NAMED_PAIRS]
        ]
    files = ("summary.json", "classes.csv", "photos.csv", "confused_pairs.csv", "confusion_matrix.png")
    lines += [
        f"  all of it is in {folder}: {', '.join(files)}{', confused_pairs.png' if pairs else ''}",
        f"  next: python predict.py {trained.path} PHOTO … --explain FOLDER   or   "
        f"python export.py {trained.path} --format onnx",
    ]
    return "\n".join(lines)


def _comparison(trained: Trained, evaluation: Evaluation) -> tuple[str, bool | None]:
    """Says whether the figures are those that the training noted in the checkpoint."""
    if not trained.metrics:
        return "written within an epoch: its training measured no figures of these weights to compare with", None
    differences = [
        f"{title} {evaluation.metrics[name]!r}, the training {trained.metrics.get(name)!r}"
        for name, title in TITLES.items()
        if evaluation.metrics[name] != trained.metrics.get(name)
    ]
    if not differences:
        return "equals the training's own figures of this checkpoint exactly", True
    reasons = "another machine, device, number of threads or devices, versions, or changed photos"
    return f"differs from the training's own figures ({reasons}): {'; '.join(differences)}", False


def _caution(trained: Trained, data: Path | None, split: str) -> list[str]:
    """Returns what a reader of the accuracy must know of the photos."""
    if data is not None and data.resolve() != trained.config.data_path.resolve():
        return [f"The photos are named by --data: an independent figure if no photo of {data} was trained on."]
    if split == "valid":
        return [
            "These validation photos also chose the checkpoint, as in the study: expect a little less on other photos.",
            "An independent set: --data FOLDER --split all.",
        ]
    return ["The network was trained on these photos: the figure says what it remembers, not how good it is."]
