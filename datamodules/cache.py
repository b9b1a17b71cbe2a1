"""The resized images of a split in one file, each decoded once; bit-equal to those of `DecodedImages`."""

import hashlib
import logging
import os
import tempfile
import threading
import time
import weakref
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor

from datamodules.images import DecodedImages
from utils.errors import ConfigError, RunError
from utils.files import remove_partial, replacing
from utils.machine import available_cores
from utils.progress import in_threads

FORMAT = 3  # part of a cache's name; raised when its layout changes
SUFFIX = ".photos"
CHECKSUM = np.dtype("<u4")  # CRC-32
IMAGES_PER_PART = 256  # checked, or copied to a device, at a time
MAX_UNUSED_SECONDS = 7 * 24 * 3600  # after which a cache is removed
MEGABYTE = 1_000_000

logger = logging.getLogger(__name__)


class ImageCache:
    """The images of one file: (N, channels, height, width) bytes, followed by a checksum of each image.

    The file is read by position rather than mapped into memory: a failing disk or a truncated file then raises an error
    instead of a signal that kills the process. Each process opens it at its first read and keeps it open, so that it can
    read on if the file is removed or replaced.
    """

    def __init__(self, path: Path, shape: tuple[int, int, int, int]) -> None:
        self.path = path
        self.shape = shape
        self._descriptor: int | None = None
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.shape[0]

    def __reduce__(self) -> tuple[type, tuple]:
        return type(self), (self.path, self.shape)

    @property
    def size(self) -> int:
        """Bytes of the images."""
        return int(np.prod(self.shape))

    def image(self, index: int) -> Image.Image:
        image = self.batch([index])[0].numpy()
        return Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)) if len(image) == 3 else image[0])

    def batch(self, indices: Sequence[int], out: Tensor | None = None) -> Tensor:
        """Returns images as uint8 (N, C, H, W), in `out` if given; reading releases the GIL.

        Raises:
            RunError: The file cannot be read, or is shorter than when it was opened.
        """
        indices = np.asarray(indices)
        if not ((indices >= 0) & (indices < len(self))).all():
            raise IndexError(f"expected indices below {len(self)}, not {indices.tolist()}.")
        out = torch.empty(len(indices), *self.shape[1:], dtype=torch.uint8) if out is None else out
        for place, index in zip(out.numpy(), indices.tolist(), strict=True):
            self._read(place, index * place.nbytes)
        return out

    def to(self, device: torch.device) -> Tensor:
        """Returns all images as uint8 (N, C, H, W) on a device."""
        stored = torch.empty(self.shape, dtype=torch.uint8, device=device)
        for part in self._parts():
            stored[part.start : part.stop] = self.batch(part).to(device)
        return stored

    def is_intact(self, description: str) -> bool:
        """Reads the whole file and compares its length and the checksum of each image."""
        try:
            if self.path.stat().st_size != self.size + len(self) * CHECKSUM.itemsize:
                return False
            checksums = np.empty(len(self), CHECKSUM)
            self._read(checksums, self.size)

            def is_equal(part: range) -> bool:
                return all(
                    zlib.crc32(image) == checksums[i] for i, image in zip(part, self.batch(part).numpy(), strict=True)
                )

            threads = available_cores()
            return all(in_threads(is_equal, self._parts(), threads=threads, description=description, unit=" parts"))
        except (OSError, RunError):
            return False

    def _parts(self) -> list[range]:
        starts = range(0, len(self), IMAGES_PER_PART)
        return [range(start, min(start + IMAGES_PER_PART, len(self))) for start in starts]

    def _read(self, place: np.ndarray, offset: int) -> None:
        """Fills an array from the file, from `offset` on."""
        view = memoryview(place).cast("B")
        try:
            while view:
                if (count := self._read_some(view, offset)) == 0:
                    raise RunError(f"{self.path}: this cache was truncated; resume the run, and it is rebuilt")
                view, offset = view[count:], offset + count
        except OSError as error:
            raise RunError(f"{self.path}: this cache cannot be read: {error.strerror or error}") from error

    def _read_some(self, view: memoryview, offset: int) -> int:
        with self._lock:
            if self._descriptor is None:
                self._descriptor = os.open(self.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
                weakref.finalize(self, os.close, self._descriptor)
        if hasattr(os, "preadv"):
            return os.preadv(self._descriptor, [view], offset)
        with self._lock:  # on Windows all threads share one position in the file
            os.lseek(self._descriptor, offset, os.SEEK_SET)
            found = os.read(self._descriptor, len(view))
        view[: len(found)] = found
        return len(found)


def check_cache_folder(folder: Path) -> None:
    """Checks that caches can be written to `folder`, unless it holds some already.

    Raises:
        ConfigError: They cannot.
    """
    if any(folder.glob(f"*{SUFFIX}")):
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"cache_path: {folder} cannot be written to ({error.strerror}); expected a folder, or null for no cache"
        ) from error


def open_cache(folder: Path, name: str, images: DecodedImages, shape: tuple[int, int, int]) -> ImageCache:
    """Returns the cache of `images` in `folder`; builds it where there is none of exactly these images.

    Caches of other images or settings stay: another run may use them. Those that no run has opened for a week are
    removed when a new one is built.

    Args:
        folder: Of the caches; created where it is missing.
        name: Of the split, such as "train".
        images: The images to cache. Paths, sizes and times of the files, boxes, crop, aspect, orientation and shape make the
            key.
        shape: Channels, height and width.

    Raises:
        DataError: An image cannot be decoded.
        RunError: The cache cannot be written.
    """
    full_shape = (len(images), *shape)
    folder_digest = hashlib.blake2b(str(images.records[0].path.parent).encode(), digest_size=4).hexdigest()
    kind = f"{name}-{'x'.join(map(str, full_shape))}-{'-'.join(_way(images)).replace(' ', '-')}-{folder_digest}"
    path = folder / f"{kind}-{_digest(images, shape)}{SUFFIX}"
    cache = ImageCache(path, full_shape)
    if path.is_file():
        if cache.is_intact(f"checking {name}"):
            with suppress(OSError):  # a folder that can only be read
                os.utime(path)  # the time of its last use
            return cache
        logger.warning("%s is damaged; it is rebuilt", path)
    logger.info("caching %s images once: %s, %s MB", f"{len(images):,}", path, f"{cache.size / MEGABYTE:,.0f}")
    with replacing(path, key="cache_path") as partial:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_unused(folder)
        _write(partial, images, description=f"caching {name}")
    cache = ImageCache(path, full_shape)
    cache.batch([0])  # opens it here: workers that start later read on if it is removed after a week
    return cache


def _write(path: Path, images: DecodedImages, *, description: str) -> None:
    """Decodes all images into a file, then appends their checksums."""
    lock = threading.Lock()
    checksums = np.empty(len(images), CHECKSUM)

    def decode(index: int) -> None:
        pixels = np.asarray(images.image(index))
        stored = np.ascontiguousarray(pixels.transpose(2, 0, 1) if pixels.ndim == 3 else pixels[None])  # (C, H, W)
        checksums[index] = zlib.crc32(stored)
        with lock:  # not a memory map: when the disk is full, the system kills a process that writes to one
            file.seek(index * stored.size)
            file.write(stored)

    with path.open("wb") as file:
        for _ in in_threads(decode, range(len(images)), threads=available_cores(), description=description):
            pass
        file.seek(0, os.SEEK_END)
        file.write(checksums)


def _remove_unused(folder: Path) -> None:
    remove_partial(folder)
    for path in folder.glob(f"*{SUFFIX}"):
        with suppress(OSError):  # another process was faster, or has it open on Windows
            if time.time() - path.stat().st_mtime > MAX_UNUSED_SECONDS:
                path.unlink()
                logger.info("removed %s, which no run has used for a week", path)


def _way(images: DecodedImages) -> list[str]:
    """Returns how images are cut and resized; caches from before `aspect` was a setting keep their names."""
    return [images.crop, *([images.aspect] if images.aspect != "squash" else [])]


def _digest(images: DecodedImages, shape: tuple[int, int, int]) -> str:
    settings = (FORMAT, PIL.__version__, shape, *_way(images), *(["upright"] if images.upright else []))
    digest = hashlib.blake2b(repr(settings).encode(), digest_size=8)
    for record, (size, modified) in zip(images.records, images.files, strict=True):
        box = tuple(record.bounding_box) if images.crop != "no" else None
        digest.update(repr((str(record.path), size, modified, box)).encode())
    return digest.hexdigest()
