"""The resized photos of a split in one file, decoded once: the same as those of `DecodedImages`, to the bit."""

import hashlib
import logging
import os
import tempfile
import threading
import weakref
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
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
from utils.progress import progress_bar

FORMAT = 2  # part of a cache's name; raised when its layout changes
CHECKSUM = np.dtype("<u4")  # CRC-32
PHOTOS_AT_ONCE = 256  # that are checked, or copied to a device
MEGABYTE = 1_000_000

logger = logging.getLogger(__name__)


class ImageCache:
    """Photos from one file: (N, channels, height, width) bytes, then a checksum of each photo.

    Read by position and not mapped into memory: where a disk fails or the file is cut, that is an error that can be told,
    and no signal that kills. The file is opened where it is first read, by each process for itself, and stays open: a
    training goes on with its photos although another one has put new ones in their place.
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
        """Bytes of the photos."""
        return int(np.prod(self.shape))

    def image(self, index: int) -> Image.Image:
        photo = self.batch([index])[0].numpy()
        return Image.fromarray(np.ascontiguousarray(photo.transpose(1, 2, 0)) if len(photo) == 3 else photo[0])

    def batch(self, indices: Sequence[int], out: Tensor | None = None) -> Tensor:
        """Returns photos as uint8 (N, C, H, W), in `out` if given; other threads run while they are read.

        Raises:
            RunError: The file cannot be read, or has become shorter.
        """
        indices = np.asarray(indices)
        if not ((indices >= 0) & (indices < len(self))).all():
            raise IndexError(f"there are {len(self)} photos, and not those at {indices.tolist()}.")
        out = torch.empty(len(indices), *self.shape[1:], dtype=torch.uint8) if out is None else out
        for place, index in zip(out.numpy(), indices.tolist(), strict=True):
            self._read(place, index * place.nbytes)
        return out

    def to(self, device: torch.device) -> Tensor:
        """Returns all photos as uint8 (N, C, H, W) on a device."""
        stored = torch.empty(self.shape, dtype=torch.uint8, device=device)
        for part in self._parts():
            stored[part.start : part.stop] = self.batch(part).to(device)
        return stored

    def is_whole(self, description: str) -> bool:
        """Reads the file once, and says whether its length and the checksums of all photos are right."""
        try:
            if self.path.stat().st_size != self.size + len(self) * CHECKSUM.itemsize:
                return False
            checksums = np.empty(len(self), CHECKSUM)
            self._read(checksums, self.size)

            def is_right(part: range) -> bool:
                return all(
                    zlib.crc32(photo) == checksums[i] for i, photo in zip(part, self.batch(part).numpy(), strict=True)
                )

            parts = self._parts()
            with ThreadPoolExecutor(available_cores()) as pool:
                checked = progress_bar(
                    pool.map(is_right, parts), description=description, unit=" parts", total=len(parts)
                )
                return all(checked)
        except (OSError, RunError):
            return False

    def _parts(self) -> list[range]:
        starts = range(0, len(self), PHOTOS_AT_ONCE)
        return [range(start, min(start + PHOTOS_AT_ONCE, len(self))) for start in starts]

    def _read(self, place: np.ndarray, offset: int) -> None:
        """Fills an array from the file, from `offset` on."""
        view = memoryview(place).cast("B")
        try:
            while view:
                if (count := self._read_some(view, offset)) == 0:
                    raise RunError(f"{self.path}: this cache has become shorter; it is built anew when the run goes on")
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
        with self._lock:  # Windows reads from where the file stands, which is the same place for all threads
            os.lseek(self._descriptor, offset, os.SEEK_SET)
            found = os.read(self._descriptor, len(view))
        view[: len(found)] = found
        return len(found)


def check_cache_folder(folder: Path) -> None:
    """Looks whether caches can be written to `folder`, unless some are there already.

    Raises:
        ConfigError: They cannot.
    """
    if any(folder.glob("*.photos")):
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"cache_path: {folder} cannot be written to ({error.strerror}); expected a folder, or null for no cache"
        ) from error


def open_cache(folder: Path, name: str, photos: DecodedImages, shape: tuple[int, int, int]) -> ImageCache:
    """Returns the cache of `photos` in `folder`, building it where there is none for just these photos.

    Args:
        folder: Where caches lie; made if need be.
        name: Of the split, such as "train".
        photos: What is cached. Paths, sizes and times of the files, boxes, crop and shape make the key: a changed photo
            or setting gets a new cache, and the old one of the same split and shape is removed.
        shape: Channels, height and width.

    Raises:
        DataError: A photo cannot be decoded.
        RunError: The cache cannot be written.
    """
    whole = (len(photos), *shape)
    folder_digest = hashlib.blake2b(str(photos.annotations[0].path.parent).encode(), digest_size=4).hexdigest()
    kind = f"{name}-{'x'.join(map(str, whole))}-{photos.crop.replace(' ', '-')}-{folder_digest}"
    path = folder / f"{kind}-{_digest(photos, shape)}.photos"
    cached = ImageCache(path, whole)
    if path.is_file():
        if cached.is_whole(f"checking {name}"):
            return cached
        logger.warning("%s is damaged; it is built anew", path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"cache_path {folder} cannot be written: {error.strerror}; set another, or null for none"
        ) from error
    logger.info("caching %s photos once: %s, %s MB", f"{len(photos):,}", path, f"{cached.size / MEGABYTE:,.0f}")
    remove_partial(folder)
    with replacing(path, key="cache_path") as partial, partial.open("wb") as file:
        lock = threading.Lock()
        checksums = np.empty(len(photos), CHECKSUM)

        def decode(index: int) -> None:
            stored = _pixels(photos, index)
            checksums[index] = zlib.crc32(stored)
            with lock:  # not a memory map: where the disk is full, the system kills a process that writes to one
                file.seek(index * stored.size)
                file.write(stored)

        pool = ThreadPoolExecutor(available_cores())
        try:
            decoded = pool.map(decode, range(len(photos)))
            for _ in progress_bar(decoded, description=f"caching {name}", unit=" photos", total=len(photos)):
                pass
        finally:
            pool.shutdown(cancel_futures=True)  # a broken photo or Ctrl-C does not wait for the others
        file.seek(cached.size)
        file.write(checksums)
    for stale in folder.glob(f"{kind}-*.photos"):
        if stale != path:
            stale.unlink(missing_ok=True)
    return ImageCache(path, whole)


def _pixels(photos: DecodedImages, index: int) -> np.ndarray:
    """Returns a photo as it is stored: uint8 (C, H, W)."""
    pixels = np.asarray(photos.image(index))
    return np.ascontiguousarray(pixels.transpose(2, 0, 1) if pixels.ndim == 3 else pixels[None])


def _digest(photos: DecodedImages, shape: tuple[int, int, int]) -> str:
    digest = hashlib.blake2b(repr((FORMAT, PIL.__version__, shape, photos.crop)).encode(), digest_size=8)
    for annotation in photos.annotations:
        state = annotation.path.stat()
        box = tuple(annotation.bounding_box) if photos.crop != "no" else None
        digest.update(repr((str(annotation.path), state.st_size, state.st_mtime_ns, box)).encode())
    return digest.hexdigest()
