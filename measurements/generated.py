"""Photos that nobody took: caches of any size, and a data set whose files are as large as those of Stanford Cars."""

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
CHUNK = 1 << 26  # bytes written at once

# Of Stanford Cars: median 640×480 pixels, mean 124 KB. Widths are drawn log-normal around that, with its long tail.
MEDIAN_WIDTH, WIDTH_SPREAD, LEAST_WIDTH, MOST_WIDTH = 640, 0.45, 80, 4000
ASPECTS = (3 / 4, 2 / 3, 9 / 16)
GRAIN, QUALITY = 8.0, 87  # noise in levels of 255 and quality of the JPEG, which give the mean file size


def generated_annotations(count: int) -> DataSplits:
    """Returns `count` training photos, and one of validation, that are nowhere: their cache stands for them."""
    box = BoundingBox(0, 0, 8, 8)
    photos = tuple(ImageRecord(Path(f"{number:06d}.jpg"), number % CLASSES, box) for number in range(count))
    return DataSplits(
        photos, photos[:1], tuple(f"class {number}" for number in range(CLASSES)), "stanford_cars", "generated images"
    )


def write_cache(path: Path, shape: tuple[int, int, int, int]) -> ImageCache:
    """Writes random bytes as a cache of photos (N, channels, height, width)."""
    draws = np.random.default_rng(0)
    left = int(np.prod(shape))
    with path.open("wb") as file:
        while left:
            file.write(draws.bytes(min(left, CHUNK)))
            left -= min(left, CHUNK)
    return ImageCache(path, shape)


def write_data_set(folder: Path, *, training_photos: int, validation_photos: int) -> dict[str, float]:
    """Writes JPEGs in the layout of the updated release, with the sizes of Stanford Cars; returns their mean sizes."""
    (folder / "car_ims").mkdir(parents=True)
    count = training_photos + validation_photos
    annotations = np.empty((1, count), dtype=[(field, object) for field in FIELDS])
    pixels = size = 0
    with ProcessPoolExecutor(available_cores()) as pool:
        sizes = pool.map(_write_photo, _numbered(folder, count), chunksize=16)
        bar = progress_bar(sizes, description="generating photos", unit=" photos", total=count)
        for number, (width, height, length) in enumerate(bar):
            pixels, size = pixels + width * height, size + length
            values = (1, 1, width, height, number % CLASSES + 1, int(number >= training_photos))
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


def _write_photo(job: tuple[Path, int]) -> tuple[int, int, int]:
    """Writes smooth colours with grain, so that decoding costs what that of a photo does; returns its size."""
    path, number = job
    draws = np.random.default_rng(number)
    width = int(np.clip(MEDIAN_WIDTH * np.exp(WIDTH_SPREAD * draws.standard_normal()), LEAST_WIDTH, MOST_WIDTH))
    height = int(width * ASPECTS[number % len(ASPECTS)])
    coarse = Image.fromarray(draws.integers(256, size=(12, 16, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
    grain = draws.standard_normal((height, width, 1), dtype=np.float32) * GRAIN
    buffer = io.BytesIO()
    Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=QUALITY)
    path.write_bytes(buffer.getvalue())
    return width, height, buffer.tell()
