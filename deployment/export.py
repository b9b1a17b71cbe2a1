"""Exports a trained model, and rejects an export whose outputs differ from the model's."""

import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datamodules import DataSplits, ImageRecord
from datamodules.images import read_image
from deployment.agreement import Agreement, measure_agreement
from deployment.calibration import SCORE
from deployment.formats import FORMATS, Metadata, Run, Session
from deployment.model_card import model_card
from deployment.profiling.measure import Seconds, interleaved, restored_threads, spread
from deployment.trained import TrainedModel
from utils.errors import DataError, RunError
from utils.files import make_folder, replacing, write_text
from utils.progress import progress_bar

CALIBRATION_IMAGES = 200
BATCH_SIZE = 32  # of the comparison
ROUNDS, SECONDS = 5, 0.4  # of the latency measurement

RESIZE = {
    "squash": ["resize to image_size = [height, width], bilinear with antialiasing, aspect ratio not kept"],
    "crop": [
        "cut out the largest central rectangle of the aspect ratio of image_size = [height, width], in whole pixels",
        "resize to image_size, bilinear with antialiasing",
    ],
    "pad": [
        "resize to the largest size within image_size = [height, width] that keeps the aspect ratio, in whole pixels, bilinear "
        "with antialiasing",
        "center on black of image_size",
    ],
}

Item = TypeVar("Item")


@dataclass(frozen=True)
class ExportedFile:
    """A file and what was measured of it.

    Attributes:
        path: The file.
        sizes: Bytes by format; of a quantized file also those of the file it was made from.
        agreement: With the model; None where the file cannot be run on this machine.
        seconds: Latency of one image on one thread, of the model ("eager") and by format.
        data: Folder of the data set that it was compared on; None: the training's.
    """

    path: Path
    sizes: dict[str, int]
    agreement: Agreement | None
    seconds: dict[str, Seconds]
    data: Path | None = None

    @property
    def card(self) -> Path:
        """The model card."""
        return self.path.with_name(f"{self.path.name}.md")


def build_metadata(trained: TrainedModel, *, image_input: bool = False, is_compared: bool = True) -> Metadata:
    """Returns all that a program needs to run the exported file on a photo: the steps to its input, and its output."""
    config, normalization = trained.config, trained.config.normalization
    gray, calibration = config.convert_to_grayscale, trained.calibration
    metadata = {
        "architecture": config.architecture,
        "image_size": list(config.test_size),
        "aspect": config.aspect,
        "channels": ["gray"] if gray else ["red", "green", "blue"],
        "mean": normalization and normalization.mean,
        "std": normalization and normalization.std,
        "class_names": list(trained.class_names),
        "input": "float32 (images, channels, height, width)",
        "preprocessing": [
            "apply the EXIF orientation (tag 0x0112), so that the image is upright",
            "convert to 8-bit RGB",
            *RESIZE[config.aspect],
            *(["one gray channel: 0.299 red + 0.587 green + 0.114 blue"] if gray else []),
            "divide the 8-bit values by 255",
            *(["subtract mean and divide by std, channel by channel"] if normalization else []),
        ],
        "output": "logits (images, classes) in the order of class_names; their softmax gives the probabilities",
        "flip": "averages the logits of the image and its mirror image, inside the file"
        if config.flip_at_test
        else None,
        "checkpoint": trained.path.name,
        "validation_accuracy": trained.metrics.get("valid_acc"),
        "temperature": calibration.temperature if calibration else 1.0,
        "threshold": calibration.threshold if calibration else None,
        "score": calibration.score if calibration else SCORE,
    }
    if not is_compared:
        metadata["warning"] = (
            f"converted on {platform.system()}, where this format cannot be run; not compared with the model"
        )
    if image_input:
        metadata |= {
            "input": "uint8 (height, width, 3) of any size, red, green, blue",
            "preprocessing": metadata["preprocessing"][:2],
            "output": "probabilities (classes,) in the order of class_names; the logits are divided by temperature",
        }
    return metadata


def export(
    trained: TrainedModel,
    format_name: str,
    splits: DataSplits,
    output: Path,
    *,
    num_images: int,
    image_input: bool = False,
    data: Path | None = None,
) -> ExportedFile:
    """Writes the model to `output` if the exported file agrees with it on real images.

    Args:
        trained: The model.
        format_name: A name in `FORMATS`.
        splits: Files are compared on the validation split, and calibrated on the training split.
        output: The file to write.
        num_images: How many validation images to compare on, evenly spread over the split.
        image_input: Whether the file takes whole images and returns probabilities; of ONNX files.
        data: Folder of `splits` if that is not the training's data set.

    Raises:
        DataError: There are no training images to calibrate 8 bits on.
        RunError: The file disagrees with the model and is not kept, or the format's library is not installed.
    """
    chosen = FORMATS[format_name]
    if chosen.quantizes and not splits.train:
        raise DataError(
            f"{format_name} is calibrated on training images, and the data set has none; name another with -d"
        )
    source: torch.nn.Module | Path = trained.exportable()
    comparison_images = evenly_spaced(splits.valid, num_images)
    example = trained.load_image(comparison_images[0].path, upright=splits.upright)[None]
    examples: Iterable[Tensor] = [example]
    is_compared = chosen.platform in (None, sys.platform)
    metadata = build_metadata(trained, is_compared=is_compared)
    calls: dict[str, Callable[[], Tensor]] = {"eager": partial(trained.logits, example)}
    sizes = {}
    make_folder(output.parent)
    with tempfile.TemporaryDirectory() as folder:
        for name in [chosen.quantizes, format_name] if chosen.quantizes else [format_name]:
            draft = Path(folder, name)
            if FORMATS[name].quantizes:
                calibration = evenly_spaced(splits.train, CALIBRATION_IMAGES)
                bar = progress_bar(calibration, description="calibrating", unit=" images")
                examples = (trained.load_image(record.path, upright=splits.upright)[None] for record in bar)
            with replacing(draft, key="TMPDIR") as target:
                FORMATS[name].write(source, examples, metadata, target)
            session = FORMATS[name].load(draft, 1)
            sizes[name], source = draft.stat().st_size, draft
            if session.run:
                calls[name] = partial(session.run, example)
        agreement = None
        if image_input:
            metadata = build_metadata(trained, image_input=True)
            session = _put_preprocessing_inside(draft, metadata, Path(folder, "image"))
            draft = Path(folder, "image")
            pixels = _pixels(read_image(comparison_images[0].path, upright=splits.upright))
            name = f"{pixels.shape[1]} × {pixels.shape[0]} pixels"
            calls[name], sizes[name] = partial(session.run, pixels), draft.stat().st_size
            agreement = _compare_images(trained, session.run, comparison_images, upright=splits.upright)
        elif session.run:
            agreement = _compare(trained, session.run, comparison_images, upright=splits.upright)
        problems = chosen.problems(agreement) if agreement else []
        if session.metadata != metadata:
            problems.append("its metadata is not what was written")
        exported = ExportedFile(output, sizes, agreement, _latency(calls), data)
        if problems:
            raise RunError(_rejection(exported, problems, chosen.advice))
        with replacing(output) as target:
            shutil.copyfile(draft, target)
    write_text(exported.card, model_card(trained, exported, splits, metadata))
    return exported


def _rejection(rejected: ExportedFile, problems: list[str], advice: str) -> str:
    """Returns why the file was not kept, what was measured of it, and what helps."""
    agreement = rejected.agreement
    lines = [f"{rejected.path} is not written, because it disagrees with the model: {'; '.join(problems)}"]
    if agreement:
        lines.append(
            f"  measured on {agreement.images:,} validation images: accuracy {agreement.exported_accuracy:.2%}, the "
            f"model's {agreement.accuracy:.2%}; same top-1 prediction for {agreement.top1:.2%}"
        )
    lines.append(
        f"  size: {', '.join(f'{name} {size / 1e6:.2f} MB' for name, size in rejected.sizes.items())}; one image on one "
        f"thread: {', '.join(f'{name} {1e3 * time.median:.2f} ms' for name, time in rejected.seconds.items())}"
    )
    return "\n".join([*lines, *([f"  what helps: {advice}"] if advice else [])])


def evenly_spaced(items: Sequence[Item], count: int) -> list[Item]:
    """Returns `count` of the items, evenly spread over all of them, or all if there are fewer."""
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def _compare(trained: TrainedModel, run: Run, records: Sequence[ImageRecord], *, upright: bool) -> Agreement:
    rows: list[tuple[Tensor, Tensor]] = []
    with progress_bar(description="comparing", unit=" images", total=len(records)) as bar:
        for start in range(0, len(records), BATCH_SIZE):
            batch = records[start : start + BATCH_SIZE]
            images = torch.stack([trained.load_image(record.path, upright=upright) for record in batch])
            rows.append((trained.logits(images), run(images)))
            bar.update(len(batch))
    logits, exported = (torch.cat(side) for side in zip(*rows, strict=True))
    return measure_agreement(logits, exported, torch.tensor([record.label for record in records]))


def _put_preprocessing_inside(draft: Path, metadata: Metadata, output: Path) -> Session:
    import onnx

    from deployment.formats.onnx import save
    from deployment.preprocessing import add_preprocessing

    save(add_preprocessing(onnx.load(draft), metadata), metadata, output)
    return FORMATS["onnx"].load(output, 1)


def _pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image))


def _compare_images(trained: TrainedModel, run: Run, records: Sequence[ImageRecord], *, upright: bool) -> Agreement:
    """Compares the probabilities of whole images with those of predict.py."""
    rows: list[tuple[Tensor, Tensor]] = []
    for record in progress_bar(records, description="comparing", unit=" images"):
        image = read_image(record.path, upright=upright)
        expected = trained.probabilities(trained.logits(trained.transform(image)[None]))[0]
        rows.append((expected, run(_pixels(image))))
    probabilities, exported = (torch.stack(side) for side in zip(*rows, strict=True))
    labels = torch.tensor([record.label for record in records])
    return measure_agreement(probabilities, exported, labels, output="probabilities")


@restored_threads()
def _latency(calls: dict[str, Callable[[], Tensor]]) -> dict[str, Seconds]:
    """Measures one image on one thread."""
    torch.set_num_threads(1)
    return {name: spread(times) for name, times in interleaved(calls, rounds=ROUNDS, seconds=SECONDS).items()}
