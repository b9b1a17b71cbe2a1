"""Predicts the classes of images from files and folders."""

import logging
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from datamodules import read_data
from datamodules.images import IMAGE_SUFFIXES, read_image
from datamodules.readers.location import DATA_SUFFIXES, scan
from datamodules.readers.parquet import ParquetImage
from deployment.trained import TrainedModel
from models.classifier import TOP_K
from utils.errors import ConfigError, DataError
from utils.machine import available_cores
from utils.progress import progress_bar

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one image with their probabilities in 0 … 1, or why it could not be read.

    Attributes:
        sure: Whether the score reaches the threshold of the calibration; None without a calibration.
    """

    path: Path | ParquetImage
    classes: tuple[tuple[str, float], ...] = ()
    sure: bool | None = None
    error: str | None = None


def find_images(names: Sequence[str]) -> list[Path | ParquetImage]:
    """Returns the images among `names`, and all of the folders and data sets among them.

    Of a folder these are the images at or below it, sorted by folder and name, or, if it has none, those of its table,
    Parquet files or archive. Hidden files and folders are skipped, as is `__MACOSX` of archives made on a Mac. Files of
    other kinds are counted in a warning. Broken symbolic links are returned if their name is that of an image.

    Raises:
        ConfigError: A folder has no images, or a name is a web address.
        DataError: A data set is damaged.
    """
    found: list[Path | ParquetImage] = []
    for name in names:
        if re.match(r"[a-z][a-z0-9+.-]+://", name, re.IGNORECASE):
            raise ConfigError(f"{name}: web addresses are not read; download the image and give its path")
        path = Path(name)
        if path.is_file() and path.name.lower().endswith(DATA_SUFFIXES):
            found += [record.path for record in read_data(path).records]
            continue
        if not path.is_dir():
            found.append(path)
            continue
        files = scan(path)
        images = [path.joinpath(*folder, file) for folder, names in files.images.items() for file in names]
        if images and files.others:
            logger.warning(
                "%s: skipped files of other kinds: %d; supported: %s", path, files.others, ", ".join(IMAGE_SUFFIXES)
            )
        elif not images and (files.tables or files.parquet or files.archives):
            images = [record.path for record in read_data(path).records]
        if not images:
            raise ConfigError(f"{path} contains no images ({', '.join(IMAGE_SUFFIXES)})")
        found += images
    return found


def read_upright(path: Path | ParquetImage) -> Image.Image:
    """Reads an image as RGB and applies its EXIF orientation, which nearly every phone photo has.

    Raises:
        DataError: There is no such file, or it cannot be decoded.
    """
    if isinstance(path, Path) and not path.exists():
        raise DataError(f"{path}: {'broken symbolic link' if path.is_symlink() else 'no such file'}")
    return read_image(path, upright=True)


def predict(
    trained: TrainedModel, paths: Sequence[Path | ParquetImage], *, batch_size: int = 32
) -> Iterator[Prediction]:
    """Yields the five most probable classes of each image, in order; unreadable images do not stop it."""

    def read(path: Path | ParquetImage) -> Tensor | str:
        try:
            return trained.transform(read_upright(path))
        except DataError as error:
            return str(error)

    with (
        ThreadPoolExecutor(available_cores()) as pool,
        progress_bar(description="predicting", unit=" images", total=len(paths)) as bar,
    ):
        for start in range(0, len(paths), batch_size):
            batch = paths[start : start + batch_size]
            images = list(pool.map(read, batch))
            readable = [image for image in images if isinstance(image, Tensor)]
            rows = iter(_most_probable(trained, torch.stack(readable)) if readable else [])
            for path, image in zip(batch, images, strict=True):
                bar.update()
                yield Prediction(path, error=image) if isinstance(image, str) else Prediction(path, *next(rows))


def _most_probable(trained: TrainedModel, images: Tensor) -> list[tuple[tuple[tuple[str, float], ...], bool | None]]:
    probabilities = trained.probabilities(trained.logits(images))
    values, labels = probabilities.topk(min(TOP_K, len(trained.class_names)), dim=1)
    sure = trained.calibration.accepts(probabilities).tolist() if trained.calibration else [None] * len(images)
    return [
        (tuple((trained.class_names[label], value) for label, value in zip(*row, strict=True)), is_sure)
        for *row, is_sure in zip(labels.tolist(), values.tolist(), sure, strict=True)
    ]
