"""Exports a trained network, and refuses a file that does not say of real photos what the network says."""

import copy
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from datamodules import DataSplits, ImageRecord
from datamodules.images import read_image
from deployment.formats import FORMATS, INT8, Facts, Opened, Run, write_int8
from deployment.profiling.measure import Seconds, interleaved, spread, threads_restored
from deployment.trained import Trained
from utils.errors import RunError
from utils.files import make_folder, replacing
from utils.progress import progress_bar

LARGEST_DIFFERENCE = 1e-3  # of two logits in 32 bits, as a part of the largest logit (or of 1, if that is larger)
LEAST_AGREEMENT = (
    0.75  # of the first choices of an int8 file; those of a network that is hardly sure of any change easily
)
LARGEST_LOSS = 0.03  # of accuracy, of an int8 file
CALIBRATION_PHOTOS = 200
BATCH_SIZE = 32  # of the comparison; ExecuTorch runs its photos one at a time, on one thread
ROUNDS, SECONDS = 5, 0.4  # of the measurement

Item = TypeVar("Item")


@dataclass(frozen=True)
class Comparison:
    """What an exported file said of `photos` validation photos, beside the network itself.

    Attributes:
        photos: How many.
        largest_difference, largest_logit: Of all logits.
        agreement: Share of the photos with the same first choice.
        accuracy, exported_accuracy: Of the network and of the file, on these photos.
    """

    photos: int
    largest_difference: float
    largest_logit: float
    agreement: float
    accuracy: float
    exported_accuracy: float


@dataclass(frozen=True)
class Exported:
    """A file that agrees with its network, its size in bytes, and how long one photo takes on one thread."""

    path: Path
    size: int
    comparison: Comparison
    seconds: dict[str, Seconds]


def facts_of(trained: Trained) -> Facts:
    """Returns what a program must know to use the network: how a photo becomes its input, and what its output means."""
    config = trained.config
    gray = config.convert_to_grayscale
    params = config.normalization_params_grayscale if gray else config.normalization_params_rgb
    normalized = config.normalize and params is not None
    return {
        "architecture": config.architecture,
        "image_size": list(config.image_size),
        "channels": ["gray"] if gray else ["red", "green", "blue"],
        "mean": params.mean if normalized else None,
        "std": params.std if normalized else None,
        "class_names": list(trained.class_names),
        "input": "float32 (photos, channels, height, width)",
        "preprocessing": [
            "resize to image_size = [height, width], bilinear with antialiasing, aspect ratio not kept",
            *(["one gray channel: 0.299 red + 0.587 green + 0.114 blue"] if gray else []),
            "divide the 8-bit values by 255",
            *(["subtract mean and divide by std, channel by channel"] if normalized else []),
        ],
        "output": "logits (photos, classes) in the order of class_names; their softmax is the probabilities",
        "checkpoint": trained.path.name,
        "validation_accuracy": trained.metrics.get("valid_acc"),
    }


def export(trained: Trained, format_name: str, annotations: DataSplits, output: Path, *, photos: int) -> Exported:
    """Writes the network to `output` in a format, if the file agrees with it on real photos.

    Args:
        trained: The network.
        format_name: A name in `FORMATS`, or "onnx-int8".
        annotations: Its validation photos judge the file; int8 takes its ranges from the training photos.
        output: Where to.
        photos: How many validation photos, evenly spread over all of them.

    Raises:
        RunError: The file disagrees with the network, and is not kept; or the format's library is not installed.
    """
    model = copy.deepcopy(trained.classifier.model).float().to(memory_format=torch.contiguous_format).eval()
    judges = evenly(annotations.valid, photos)
    image = load_image(trained, judges[0])[None]
    facts = facts_of(trained)
    make_folder(output.parent)
    with replacing(output) as partial, tempfile.TemporaryDirectory() as folder:
        runs: dict[str, Run] = {"eager": trained.logits}
        if format_name == INT8:
            fp32 = Path(folder, "fp32.onnx")
            FORMATS["onnx"].write(model, image, facts, fp32)
            runs["onnx"] = FORMATS["onnx"].open(fp32, 1).run
            chosen = evenly(annotations.train, CALIBRATION_PHOTOS)
            bar = progress_bar(chosen, description="calibrating", unit=" photos")
            write_int8(fp32, (load_image(trained, photo)[None] for photo in bar), facts, partial)
            opened = FORMATS["onnx"].open(partial, 1)
        else:
            FORMATS[format_name].write(model, image, facts, partial)
            opened = FORMATS[format_name].open(partial, 1)
        comparison = _compare(trained, opened, judges)
        problems = disagreements(comparison, is_int8=format_name == INT8)
        if opened.facts != facts:
            problems.append("the facts of the preprocessing did not arrive in the file")
        refusal = f"{output} is not written, for it disagrees with the network: {'; '.join(problems)}"
        if problems and format_name != INT8:
            raise RunError(refusal)
        runs[format_name] = opened.run
        exported = Exported(output, partial.stat().st_size, comparison, _measure(runs, image))
        if problems:
            raise RunError("\n".join([refusal, *_what_int8_would_give(exported, fp32.stat().st_size)]))
    return exported


def _what_int8_would_give(refused: Exported, fp32_size: int) -> list[str]:
    """Returns what was measured of a refused int8 file beside 32 bits, and what helps, a line each."""
    compared = refused.comparison
    times = ", ".join(f"{name} {1e3 * time.median:.2f} ms" for name, time in refused.seconds.items())
    return [
        f"  measured on {compared.photos:,} validation photos: accuracy {compared.exported_accuracy:.2%} with 8 bits, "
        f"{compared.accuracy:.2%} with 32; same first choice in {compared.agreement:.2%}",
        f"  size: {refused.size / 1e6:.2f} MB with 8 bits, {fp32_size / 1e6:.2f} MB with 32; one photo on one thread: {times}",
        "  what helps: a network that is little trained has many close calls, which 8 bits turn over; train it further and "
        "export again. --format onnx keeps 32 bits",
    ]


def load_image(trained: Trained, photo: ImageRecord) -> Tensor:
    """Returns a photo, whole, as the network takes it: (C, H, W)."""
    return trained.transform(read_image(photo.path))


def evenly(items: Sequence[Item], count: int) -> list[Item]:
    """Returns `count` of the items, evenly spread over all of them, or all if there are fewer."""
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def _compare(trained: Trained, opened: Opened, photos: Sequence[ImageRecord]) -> Comparison:
    """Compares in batches, which give the same logits as one photo at a time but for the last bits, and far sooner."""
    rows: list[tuple[Tensor, Tensor]] = []
    with progress_bar(description="comparing", unit=" photos", total=len(photos)) as bar:
        for start in range(0, len(photos), BATCH_SIZE):
            batch = photos[start : start + BATCH_SIZE]
            images = torch.stack([load_image(trained, photo) for photo in batch])
            rows.append((trained.logits(images), opened.run(images)))
            bar.update(len(batch))
    logits, exported = (torch.cat(side) for side in zip(*rows, strict=True))
    labels = torch.tensor([photo.label for photo in photos])
    return compare(logits, exported, labels)


def compare(logits: Tensor, exported: Tensor, labels: Tensor) -> Comparison:
    """Compares the logits (N, classes) of the network with those of the exported file."""
    first, exported_first = logits.argmax(dim=1), exported.argmax(dim=1)
    return Comparison(
        photos=len(labels),
        largest_difference=float((logits - exported).abs().max()),
        largest_logit=float(logits.abs().max()),
        agreement=float((first == exported_first).double().mean()),
        accuracy=float((first == labels).double().mean()),
        exported_accuracy=float((exported_first == labels).double().mean()),
    )


def disagreements(comparison: Comparison, *, is_int8: bool) -> list[str]:
    """Returns in what the exported file differs by more than is accepted; a NaN differs in everything."""
    if is_int8:
        lost = round(comparison.accuracy - comparison.exported_accuracy, 9)  # 0.5 − 0.48 is 0.02
        return [
            *([] if comparison.agreement >= LEAST_AGREEMENT else
              [f"same first choice in {comparison.agreement:.1%} of {comparison.photos} photos; at least "
               f"{LEAST_AGREEMENT:.0%} is accepted"]),
            *([] if lost <= LARGEST_LOSS else
              [f"accuracy {comparison.exported_accuracy:.2%} instead of {comparison.accuracy:.2%}; {LARGEST_LOSS:.0%} less "
               "is accepted"]),
        ]  # fmt: skip
    accepted = LARGEST_DIFFERENCE * max(1.0, comparison.largest_logit)
    if comparison.largest_difference <= accepted:
        return []
    return [f"logits differ by up to {comparison.largest_difference:.2g}; {accepted:.2g} is accepted"]


def _measure(runs: dict[str, Run], image: Tensor) -> dict[str, Seconds]:
    """Returns how long each takes for one image on one thread."""

    def call(run: Run) -> Callable[[], object]:
        return lambda: run(image)

    with threads_restored():
        torch.set_num_threads(1)
        times = interleaved({name: call(run) for name, run in runs.items()}, rounds=ROUNDS, seconds=SECONDS)
    return {name: spread(values) for name, values in times.items()}
