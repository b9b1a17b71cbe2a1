"""Generated data: caches of any size, and a data set with files as large as those of Stanford Cars."""

import io
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image

from datamodules import BoundingBox, DataSplits, ImageRecord
from datamodules.cache import ImageCache
from utils.machine import available_cores
from utils.progress import progress_bar

CLASSES = 196
FIELDS = ("relative_im_path", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "test")
CHUNK = 1 << 26  # bytes

# Stanford Cars: median 640×480 pixels, mean 124 KB; widths are log-normal.
MEDIAN_WIDTH, WIDTH_SPREAD, MIN_WIDTH, MAX_WIDTH = 640, 0.45, 80, 4000
ASPECTS = (3 / 4, 2 / 3, 9 / 16)
GRAIN, QUALITY = 8.0, 87  # noise level of 255 and JPEG quality that give the mean file size


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


def write_data_set(folder: Path, *, train_images: int, valid_images: int) -> dict[str, float]:
    """Writes JPEGs in the layout of the updated release, with the sizes of Stanford Cars; returns their mean size."""
    (folder / "car_ims").mkdir(parents=True)
    count = train_images + valid_images
    annotations = np.empty((1, count), dtype=[(field, object) for field in FIELDS])
    pixels = size = 0
    with ProcessPoolExecutor(available_cores()) as pool:
        sizes = pool.map(_write_image, _numbered(folder, count), chunksize=16)
        bar = progress_bar(sizes, description="generating images", unit=" images", total=count)
        for number, (width, height, length) in enumerate(bar):
            pixels, size = pixels + width * height, size + length
            values = (1, 1, width, height, number % CLASSES + 1, int(number >= train_images))
            columns = (np.array([[value]], dtype=np.min_scalar_type(value)) for value in values)
            annotations[0, number] = (_name(number), *columns)
    class_names = np.empty((1, CLASSES), dtype=object)
    class_names[0] = [f"Generated Model {number:03d}" for number in range(CLASSES)]
    scipy.io.savemat(
        folder / "cars_annos.mat", {"annotations": annotations, "class_names": class_names}, do_compression=True
    )
    return {"mean_kilobytes": round(size / count / 1e3, 1), "mean_megapixels": round(pixels / count / 1e6, 3)}


def _name(number: int) -> str:
    return f"car_ims/{number + 1:06d}.jpg"


def _numbered(folder: Path, count: int) -> Iterator[tuple[Path, int]]:
    return ((folder / _name(number), number) for number in range(count))


def _write_image(job: tuple[Path, int]) -> tuple[int, int, int]:
    """Writes smooth colors with grain, which cost as much to decode as a photo; returns width, height and file size."""
    path, number = job
    draws = np.random.default_rng(number)
    width = int(np.clip(MEDIAN_WIDTH * np.exp(WIDTH_SPREAD * draws.standard_normal()), MIN_WIDTH, MAX_WIDTH))
    height = int(width * ASPECTS[number % len(ASPECTS)])
    coarse = Image.fromarray(draws.integers(256, size=(12, 16, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
    grain = draws.standard_normal((height, width, 1), dtype=np.float32) * GRAIN
    buffer = io.BytesIO()
    Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=QUALITY)
    path.write_bytes(buffer.getvalue())
    return width, height, buffer.tell()
