"""Names the car models that photos most probably show."""

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from datamodules.images import read_image
from deployment.trained import Trained
from models.classifier import TOP_K
from utils.errors import ConfigError, DataError
from utils.machine import available_cores
from utils.progress import progress_bar

logger = logging.getLogger(__name__)

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")  # what is taken of a folder


@dataclass(frozen=True)
class Prediction:
    """The most probable class names of one photo with their probabilities in 0 … 1, or why it could not be read."""

    path: Path
    classes: tuple[tuple[str, float], ...] = ()
    error: str | None = None


def find_photos(names: Sequence[str]) -> list[Path]:
    """Returns the files among `names` as they are, and all photos below the folders among them, in order.

    How many files of other kinds a folder has is said as a warning. A link that leads nowhere counts by its own name.

    Raises:
        ConfigError: A folder has none.
    """
    found = []
    for path in map(Path, names):
        if not path.is_dir():
            found.append(path)
            continue
        files = sorted(file for file in path.rglob("*") if not file.is_dir())
        below = [file for file in files if file.suffix.lower() in SUFFIXES and (file.is_file() or file.is_symlink())]
        if not below:
            raise ConfigError(f"{path} has no photos in it ({', '.join(SUFFIXES)})")
        if left_out := len(files) - len(below):
            logger.warning("%s: files of other kinds left out: %d; read are %s", path, left_out, ", ".join(SUFFIXES))
        found += below
    return found


def read_upright(path: Path) -> Image.Image:
    """Reads any photo, turned as its camera noted; a phone notes it in nearly every one, Stanford Cars has no such notes.

    Raises:
        DataError: There is no such file, or it cannot be decoded.
    """
    if path.is_symlink() and not path.exists():
        raise DataError(f"{path}: this link leads nowhere")
    if not path.exists():
        raise DataError(f"{path}: there is no such file")
    return read_image(path, upright=True)


def predict(trained: Trained, paths: Sequence[Path], *, batch_size: int = 32) -> Iterator[Prediction]:
    """Yields the five most probable classes of each photo, in order; one that cannot be read does not end it."""

    def read(path: Path) -> Tensor | str:
        try:
            return trained.transform(read_upright(path))
        except DataError as error:
            return str(error)

    with (
        ThreadPoolExecutor(available_cores()) as pool,
        progress_bar(description="predicting", unit=" photos", total=len(paths)) as bar,
    ):
        for start in range(0, len(paths), batch_size):
            batch = paths[start : start + batch_size]
            images = list(pool.map(read, batch))
            readable = [image for image in images if isinstance(image, Tensor)]
            rows = iter(_most_probable(trained, torch.stack(readable)) if readable else [])
            for path, image in zip(batch, images, strict=True):
                bar.update()
                yield Prediction(path, error=image) if isinstance(image, str) else Prediction(path, next(rows))


def _most_probable(trained: Trained, images: Tensor) -> list[tuple[tuple[str, float], ...]]:
    probabilities = trained.logits(images).softmax(dim=1)
    values, labels = probabilities.topk(min(TOP_K, len(trained.class_names)), dim=1)
    return [
        tuple((trained.class_names[label], value) for label, value in zip(*row, strict=True))
        for row in zip(labels.tolist(), values.tolist(), strict=True)
    ]
