"""Generated data: records without files, and caches of any size."""

from pathlib import Path

import numpy as np

from datamodules import BoundingBox, DataSplits, ImageRecord
from datamodules.cache import ImageCache

CLASSES = 196
CHUNK = 1 << 26  # bytes


def generated_splits(count: int) -> DataSplits:
    """Returns `count` training records and one validation record without files; a cache replaces them."""
    box = BoundingBox(0, 0, 8, 8)
    records = tuple(ImageRecord(Path(f"{number:06d}.jpg"), number % CLASSES, box) for number in range(count))
    return DataSplits(
        records, records[:1], tuple(f"class {number}" for number in range(CLASSES)), "stanford_cars", "generated images"
    )


def write_cache(path: Path, shape: tuple[int, int, int, int]) -> ImageCache:
    """Writes random bytes as a cache of images (N, C, H, W)."""
    draws = np.random.default_rng(0)
    left = int(np.prod(shape))
    with path.open("wb") as file:
        while left:
            file.write(draws.bytes(min(left, CHUNK)))
            left -= min(left, CHUNK)
    return ImageCache(path, shape)
