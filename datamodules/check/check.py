"""Reads everything that a training would read, decodes each image once and reports all problems; trains nothing."""

import hashlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice, takewhile
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageChops
from torch import Tensor
from torch.nn.functional import one_hot
from torchvision import transforms

from datamodules import DataSplits, ImageRecord
from datamodules.check.figures import SPLITS, MixedSample, SampleRow
from datamodules.check.report import CheckedImage, Findings
from datamodules.datamodule import CarsDataModule, Split
from datamodules.hashes import ImageHashes, near_pairs, perceptual_hash
from datamodules.images import read_image, read_size
from datamodules.mixing import Mixing
from datamodules.on_device.loader import epoch_params
from datamodules.readers.records import NO_VALIDATION, THREADS, clip_box, only_class, raise_data_errors
from utils.errors import DataError
from utils.progress import in_threads

MAX_GRAY_DIFFERENCE = 2  # of 255, between channels: one step of JPEG's chroma
MAX_COLOR_RANGE = 16  # of 255, within each channel of an image of one color
SAMPLE_IMAGES = 6
SAMPLE_EPOCHS = 6
SAMPLE_STEPS = 6


def examine_data(
    data: DataSplits,
    build_data: Callable[[DataSplits], CarsDataModule],
    *,
    folder: Path,
    near_duplicate_distance: int | None = 4,
    mixing: Mixing | None = None,
    accumulate_batches: int = 1,
) -> Findings:
    """Decodes every image of a data set.

    Args:
        data: The records of the data set; their image files may be damaged.
        build_data: Builds the data module of the training to come.
        folder: The data set's, for the report.
        near_duplicate_distance: Images whose perceptual hashes differ in at most so many bits are listed; None: none.
        mixing: What mixes the training batches; None: nothing.
        accumulate_batches: Training batches of a step.

    Raises:
        DataError: There are fewer than two classes, or too few images can be decoded to train with.
    """
    began = time.monotonic()
    data, clipped, broken = _clip_boxes(data)
    module = build_data(data)
    images, levels, undecodable = _examine_all(data, module)
    broken += undecodable
    train, valid = (sum(image.split == split for image in images) for split in ("train", "valid"))
    few = []
    if len(data.class_names) < 2:
        few.append(f"{only_class(data.class_names)}, expected at least 2 classes")
    if train < 2 or not valid:
        few.append(f"{train} training and {valid} validation images can be used, expected at least 2 and 1")
        few[-1] += NO_VALIDATION if train > 2 else ""
    if few:
        raise_data_errors([*few, *broken], folder)
    usable = {image.path for image in images}
    return Findings(
        folder=folder,
        description=data.description,
        valid_from=data.valid_from,
        upright=data.upright,
        class_names=data.class_names,
        images=images,
        broken=broken,
        clipped=clipped,
        boxes=sum(record.bounding_box is not None for record in data.records),
        near_duplicates=_near_duplicates(images, near_duplicate_distance),
        levels=levels,
        image_size=module.train.resized_shape[1:],
        aspect=module.train.pipeline.aspect,
        crop=module.train.source.crop,
        configured=_normalization(module.train),
        samples=draw_samples(module, usable),
        mixed=mix_samples(module, usable, mixing, accumulate_batches) if mixing else [],
        augmentations=_describe_augmentations(module),
        began=began,
    )


def draw_samples(module: CarsDataModule, usable: set[Path]) -> list[SampleRow]:
    """Returns training images, each with what the model will see of it in the first epochs.

    They equal those of the training, whose random numbers depend on the seed, the epoch and the index of the image only.

    Args:
        module: The data module of the training.
        usable: The images that can be decoded.
    """
    records, source = module.train.records, module.train.source
    indices = [index for index, record in enumerate(records) if record.path in usable]
    count = min(SAMPLE_IMAGES, len(indices))
    chosen = [indices[(2 * number + 1) * len(indices) // (2 * count)] for number in range(count)]
    epochs = [_augment(module, epoch, chosen) for epoch in range(SAMPLE_EPOCHS)]
    return [
        SampleRow(
            read_image(records[index].path, upright=source.upright),
            records[index].bounding_box,
            records[index].path.name,
            records[index].label,
            [_to_array(epoch[number], module.train) for epoch in epochs],
        )
        for number, index in enumerate(chosen)
    ]


def mix_samples(
    module: CarsDataModule, usable: set[Path], mixing: Mixing, accumulate_batches: int
) -> list[list[MixedSample]]:
    """Returns some images of each of the first training batches, as the model will see them.

    Args:
        module: The data module of the training.
        usable: The images that can be decoded.
        mixing: What mixes its batches.
        accumulate_batches: Batches of a step.
    """
    records, rows = module.train.records, []
    for number, batch in enumerate(islice(module.sampler(module.train, shuffle=True), SAMPLE_STEPS)):
        # Each image is mixed with the one before it: up to the first damaged one they are those of the training.
        sound = takewhile(lambda draw: records[draw % len(records)].path in usable, (draw for _, draw in batch))
        draws = list(islice(sound, 1 + SAMPLE_IMAGES))
        if len(draws) < 2:
            continue
        images = torch.stack(_augment(module, 0, draws))
        labels = torch.tensor([records[draw % len(records)].label for draw in draws])
        step = (number // accumulate_batches, *([number] if accumulate_batches > 1 else []))
        images, targets = mixing(images, labels, *step)
        if not targets.is_floating_point():
            targets = one_hot(targets)
        rows.append(
            [
                MixedSample(
                    _to_array(image, module.train),
                    [(label, share) for share, label in zip(*map(Tensor.tolist, target.topk(2)), strict=True) if share],
                )
                for image, target in zip(
                    images[1:], targets[1:].float(), strict=True
                )  # the first one's partner is not here
            ]
        )
    return rows


def _augment(module: CarsDataModule, epoch: int, draws: list[int]) -> list[Tensor]:
    """Returns training images as in an epoch, by the draws of its sampler."""
    split, count = module.train, len(module.train.source)
    if split.batched is None:
        dataset = module.dataset(split)
        return [dataset[epoch, draw][0] for draw in draws]
    images = [np.atleast_3d(np.asarray(split.source.image(draw % count))).transpose(2, 0, 1) for draw in draws]
    params = epoch_params(split.batched, count, module.seed, epoch, repeats=1 + max(draws) // count)
    return list(split.batched(torch.from_numpy(np.stack(images)), params[draws]))


def _to_array(image: Tensor, split: Split) -> np.ndarray:
    """Undoes the normalization of a tensor (C, H, W); returns (H, W, 3) in [0, 1]."""
    if normalization := _normalization(split):
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in normalization)
        image = image * std + mean
    return image.clamp(0, 1).expand(3, -1, -1).permute(1, 2, 0).numpy()


def _normalization(split: Split) -> tuple[list[float], list[float]] | None:
    """Returns the configured mean and standard deviation of each channel; None without a normalization."""
    last = split.pipeline.augment.transforms[-1]
    return (list(last.mean), list(last.std)) if isinstance(last, transforms.Normalize) else None


def _describe_augmentations(module: CarsDataModule) -> str:
    names = [
        type(step).__name__
        for step in module.train.pipeline.augment.transforms
        if not isinstance(step, (transforms.ToTensor, transforms.Normalize))
    ]
    way = "per image on the CPU" if module.train.batched is None else "batched on the device"
    return f"{', '.join(names)}, {way}, seed {module.seed}" if names else "no augmentation"


def _clip_boxes(data: DataSplits) -> tuple[DataSplits, list[str], list[str]]:
    """Returns the data with clipped boxes and without unreadable headers, a line for each clipped box, and the problems."""
    kept: dict[str, tuple[ImageRecord, ...]] = {}
    clipped, broken = [], []
    with ThreadPoolExecutor(THREADS) as pool:
        for split in SPLITS:
            records = getattr(data, split)
            results = list(pool.map(lambda record: clip_box(record, upright=data.upright), records))
            broken += [result for result in results if isinstance(result, str)]
            kept[split] = tuple(result for result in results if not isinstance(result, str))
            clipped += [
                f"{old.path.name}: {tuple(old.bounding_box)} to {tuple(new.bounding_box)}"
                for old, new in zip(records, results, strict=True)
                if not isinstance(new, str) and new is not old
            ]
    return replace(data, **kept), clipped, broken


def _examine_all(data: DataSplits, module: CarsDataModule) -> tuple[list[CheckedImage], np.ndarray, list[str]]:
    """Decodes all images; returns them, the histogram of the training images (C, 256), and the problems."""
    items = [(split, index) for split in SPLITS for index in range(len(getattr(data, split)))]
    images, levels, broken = [], np.zeros((module.train.resized_shape[0], 256), np.int64), []

    def examine(item: tuple[str, int]) -> tuple[CheckedImage, np.ndarray | int] | str:
        return _examine(data, module, *item)

    for result in in_threads(examine, items, threads=THREADS, description="decoding images"):
        if isinstance(result, str):
            broken.append(result)
            continue
        images.append(result[0])
        levels += result[1]
    return images, levels, broken


def _examine(
    data: DataSplits, module: CarsDataModule, split: str, index: int
) -> tuple[CheckedImage, np.ndarray | int] | str:
    """Returns what the report needs to know of an image and, in training, its histogram (C, 256); or the problem."""
    record: ImageRecord = getattr(data, split)[index]
    name = str(record.path)
    try:
        content = record.path.read_bytes()
        image = read_image(content, upright=data.upright, name=name)
        size = read_size(content, upright=data.upright, name=name)
    except DataError as error:
        return str(error)
    except OSError as error:
        return f"{name}: cannot be read ({error.strerror or error})"
    checked = CheckedImage(
        record.path,
        split,
        record.label,
        size,
        mode=image.info["mode"],
        is_gray=_is_gray(image),
        lacks_end="lacks_end" in image.info,
        digest=hashlib.blake2b(content, digest_size=16).hexdigest(),
        has_one_color=_has_one_color(image),
        perceptual=perceptual_hash(content, upright=data.upright, name=name),
    )
    if split != "train":
        return checked, 0
    source = module.train.source
    return checked, np.reshape(source.resize(source.cut(image, index)).histogram(), (-1, 256))


def _near_duplicates(
    images: list[CheckedImage], max_distance: int | None
) -> list[tuple[CheckedImage, CheckedImage, int]]:
    """Returns the pairs of images that are not identical files but look alike, and their distances, the closest first."""
    if max_distance is None:
        return []
    digests = [bytes.fromhex(image.digest) for image in images]
    values = np.array([image.perceptual for image in images], np.uint64)
    pairs, distances = near_pairs(ImageHashes(digests, values, np.ones(len(images), bool)), max_distance)
    order = sorted(zip(distances.tolist(), *pairs.T.tolist(), strict=True))
    return [(images[one], images[other], bits) for bits, one, other in order if digests[one] != digests[other]]


def _has_one_color(image: Image.Image) -> bool:
    return all(high - low <= MAX_COLOR_RANGE for low, high in image.getextrema())


def _is_gray(image: Image.Image) -> bool:
    red, green, blue = image.split()
    pairs = ((red, green), (green, blue), (blue, red))
    return all(ImageChops.difference(*pair).getextrema()[1] <= MAX_GRAY_DIFFERENCE for pair in pairs)
