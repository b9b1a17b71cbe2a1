"""Looks at all that a training will read before it starts: every photo decoded once, everything told, nothing trained."""

import hashlib
import io
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageChops
from torch import Tensor
from torchvision import transforms

from datamodules import DataSplits, ImageRecord, clip_boxes
from datamodules.check.figures import SampleRow
from datamodules.check.report import REPORT, CheckedPhoto, Findings, write_report
from datamodules.datamodule import CarsDataModule, Split
from datamodules.images import FORMATS, cut_to_box, read_image
from datamodules.readers.records import THREADS, raise_data_errors
from utils.errors import DataError
from utils.progress import progress_bar
from utils.seeding import generator

GRAY = 2  # of 255: what one step of JPEG's colour channels makes between two of red, green and blue
SAMPLE_PHOTOS = 6
SAMPLE_EPOCHS = 6


def check_data(
    data: DataSplits,
    build_data: Callable[[DataSplits], CarsDataModule],
    *,
    folder: Path,
    output_path: Path,
) -> Path:
    """Decodes every photo of a data set once, prints a short report and writes a long one with pictures.

    Args:
        data: The records of the data set; their image files may be damaged.
        build_data: Builds the data module of the training to come.
        folder: The data set's, for the report.
        output_path: Where the report's folder is made, `check_<timestamp>`.

    Returns:
        The report's folder.

    Raises:
        DataError: There are photos that cannot be decoded; the report is there nevertheless. Or as `examine_data`,
            without a report.
        RunError: The report cannot be written.
    """
    findings = examine_data(data, build_data, folder=folder)
    report = write_report(findings, output_path)
    raise_data_errors(findings.broken, f"the photos; {report / REPORT} lists all")
    return report


def examine_data(data: DataSplits, build_data: Callable[[DataSplits], CarsDataModule], *, folder: Path) -> Findings:
    """Decodes every photo of a data set once; the arguments are those of `check_data`.

    Raises:
        DataError: The annotations are wrong, or too few photos for a training can be decoded.
    """
    began = time.monotonic()
    readable, broken = _without_unreadable(data)
    annotations, _ = clip_boxes(readable)
    clipped = [
        f"{old.path.name}: {tuple(old.bounding_box)} to {tuple(new.bounding_box)}"
        for old, new in zip(readable.train + readable.valid, annotations.train + annotations.valid, strict=True)
        if old is not new
    ]
    module = build_data(annotations)
    photos, levels, undecodable = _examine_all(module)
    broken += undecodable
    train, valid = (sum(photo.split == split.name for photo in photos) for split in (module.train, module.valid))
    if train < 2 or not valid:
        few = f"{train} training and {valid} validation photos can be used, expected at least 2 and 1"
        raise_data_errors([few, *broken], folder)
    normalize = module.train.pipeline.augment.transforms[-1]
    return Findings(
        folder=folder,
        description=annotations.description,
        class_names=annotations.class_names,
        photos=photos,
        broken=broken,
        clipped=clipped,
        levels=levels,
        image_size=tuple(module.train.pipeline(Image.new("RGB", (8, 8))).shape[1:]),
        crop=module.train.source.crop,
        configured=_numbers(normalize) if isinstance(normalize, transforms.Normalize) else None,
        samples=draw_samples(module, {photo.path for photo in photos}),
        sampled_by=_way_of_sampling(module),
        began=began,
    )


def draw_samples(data: CarsDataModule, usable: set[Path]) -> list[SampleRow]:
    """Returns training photos, each with what the network will see of it in the first epochs, in [0, 1].

    The random numbers are those of the training: they depend on the seed, the epoch and the photo's index alone.

    Args:
        data: The data module of the training.
        usable: The photos that can be decoded.
    """
    annotations = data.train.records
    indices = [index for index, annotation in enumerate(annotations) if annotation.path in usable]
    count = min(SAMPLE_PHOTOS, len(indices))
    chosen = [indices[(2 * number + 1) * len(indices) // (2 * count)] for number in range(count)]
    epochs = [_one_epoch(data, epoch, chosen) for epoch in range(SAMPLE_EPOCHS)]
    rows = []
    for number, index in enumerate(chosen):
        annotation = annotations[index]
        draws = [_displayed(epoch[number], data.train) for epoch in epochs]
        photo = read_image(annotation.path, upright=data.train.source.upright)
        rows.append(SampleRow(photo, annotation.bounding_box, annotation.path.name, annotation.label, draws))
    return rows


def _one_epoch(data: CarsDataModule, epoch: int, indices: list[int]) -> list[Tensor]:
    split = data.train
    if split.batched is None:
        photos = data.dataset(split)
        return [photos[epoch, index][0] for index in indices]
    images = [np.atleast_3d(np.asarray(split.source.image(index))).transpose(2, 0, 1) for index in indices]
    parameters = split.batched.draw(len(split.source), generator(data.seed, "rows", epoch))
    return list(split.batched(torch.from_numpy(np.stack(images)), parameters[indices]))


def _displayed(image: Tensor, split: Split) -> np.ndarray:
    """Returns a tensor (C, H, W) as an array (H, W, C) in [0, 1], its normalisation undone."""
    last = split.pipeline.augment.transforms[-1]
    if isinstance(last, transforms.Normalize):
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in _numbers(last))
        image = image * std + mean
    return image.clamp(0, 1).permute(1, 2, 0).numpy()


def _numbers(normalize: transforms.Normalize) -> tuple[list[float], list[float]]:
    return list(normalize.mean), list(normalize.std)


def _way_of_sampling(data: CarsDataModule) -> str:
    split = data.train
    steps = [
        type(step).__name__
        for step in split.pipeline.augment.transforms
        if not isinstance(step, (transforms.ToTensor, transforms.Normalize))
    ]
    way = "photo by photo" if split.batched is None else "in whole batches"
    return f"{', '.join(steps)}, {way}, seed {data.seed}" if steps else "no augmentation"


def _without_unreadable(annotations: DataSplits) -> tuple[DataSplits, list[str]]:
    """Leaves out the photos whose header cannot be read, and says what is wrong with each."""
    everything = annotations.train + annotations.valid
    with ThreadPoolExecutor(THREADS) as pool:
        problems = list(pool.map(_header_problem, everything))
    whole = {annotation for annotation, problem in zip(everything, problems, strict=True) if problem is None}
    train, valid = (tuple(a for a in split if a in whole) for split in (annotations.train, annotations.valid))
    return replace(annotations, train=train, valid=valid), [problem for problem in problems if problem is not None]


def _header_problem(annotation: ImageRecord) -> str | None:
    try:
        with Image.open(annotation.path, formats=FORMATS):
            return None
    except Exception as error:  # Pillow's plugins answer damaged headers with errors of a dozen kinds
        return f"{annotation.path}: cannot be read ({str(error) or type(error).__name__})"


def _examine_all(data: CarsDataModule) -> tuple[list[CheckedPhoto], np.ndarray, list[str]]:
    """Decodes all photos; returns them, how often each level occurs in training (C, 256), and what cannot be decoded."""
    items = [(split, annotation) for split in (data.train, data.valid) for annotation in split.source.records]
    channels = len(data.train.pipeline(Image.new("RGB", (8, 8))))
    photos, levels, broken = [], np.zeros((channels, 256), np.int64), []
    pool = ThreadPoolExecutor(THREADS)
    try:
        results = pool.map(lambda item: _examine(*item), items)
        for result in progress_bar(results, description="decoding photos", unit=" photos", total=len(items)):
            if isinstance(result, str):
                broken.append(result)
                continue
            photo, counted = result
            photos.append(photo)
            if photo.split == data.train.name:
                levels += counted
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C does not wait for the others
    return photos, levels, broken


def _examine(split: Split, annotation: ImageRecord) -> tuple[CheckedPhoto, np.ndarray | None] | str:
    """Returns what is to be known of a photo and, in training, how often each level occurs in it; or what is wrong."""
    path = annotation.path
    try:
        content = path.read_bytes()
        photo = read_image(path, upright=split.source.upright)
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            mode = image.mode
    except DataError as error:
        return str(error)
    except OSError as error:
        return f"{path}: cannot be read ({error})"
    digest = hashlib.blake2b(content, digest_size=16).hexdigest()
    checked = CheckedPhoto(path, split.name, annotation.label, photo.size, mode, _is_gray(photo), digest)
    if split.name != "train":
        return checked, None
    if split.source.crop != "no":
        erase_background = split.source.crop == "box on white"
        photo = cut_to_box(photo, annotation.bounding_box, erase_background=erase_background)
    return checked, np.reshape(split.source.resize(photo).histogram(), (-1, 256))


def _is_gray(photo: Image.Image) -> bool:
    red, green, blue = photo.split()
    pairs = ((red, green), (green, blue), (blue, red))
    return all(ImageChops.difference(*pair).getextrema()[1] <= GRAY for pair in pairs)
