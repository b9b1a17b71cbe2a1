"""Where the resized photos of a split come from: decoded each time, or from a cache that was decoded once."""

import hashlib
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor

from datamodules.annotations import Annotation
from datamodules.photos import cut_to_box, read_photo
from utils.errors import RunError
from utils.files import remove_partial, replacing
from utils.machine import available_cores
from utils.progress import progress_bar

Crop = Literal["no", "box", "box on white"]
FORMAT = 1  # part of a cache's name; raised when its layout changes
MEGABYTE = 1_000_000

logger = logging.getLogger(__name__)


class Source(Protocol):
    """The photos of a split at the size that the network sees, before any augmentation."""

    def __len__(self) -> int: ...

    def image(self, index: int) -> Image.Image:
        """Returns a photo, RGB or gray."""
        ...


class DecodedPhotos:
    """Decodes, cuts and resizes a photo each time it is asked for.

    Args:
        annotations: Path and box of each photo.
        resize: From an RGB image of any size to the size and colours that the network sees.
        crop: Whether to cut each photo to its box, or also to paste the cut-out on white.
    """

    def __init__(
        self, annotations: Sequence[Annotation], resize: Callable[[Image.Image], Image.Image], *, crop: Crop = "no"
    ) -> None:
        self.annotations = annotations
        self.resize = resize
        self.crop = crop

    def __len__(self) -> int:
        return len(self.annotations)

    def image(self, index: int) -> Image.Image:
        annotation = self.annotations[index]
        photo = read_photo(annotation.image_path)
        if self.crop != "no":
            photo = cut_to_box(photo, annotation.bounding_box, erase_background=self.crop == "box on white")
        return self.resize(photo)


class CachedPhotos:
    """The same photos, to the bit, from one file of (N, channels, height, width) bytes.

    The file is opened where it is read, not here: an open memory map would be copied whole into every worker.
    """

    def __init__(self, path: Path, shape: tuple[int, int, int, int]) -> None:
        self.path = path
        self.shape = shape
        self._map: np.ndarray | None = None

    def __len__(self) -> int:
        return self.shape[0]

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_map": None}

    @property
    def size(self) -> int:
        """Bytes."""
        return int(np.prod(self.shape))

    @property
    def photos(self) -> np.ndarray:
        if self._map is None:
            self._map = np.memmap(self.path, np.uint8, "r", shape=self.shape)
        return self._map

    def image(self, index: int) -> Image.Image:
        photo = self.photos[index]
        return Image.fromarray(np.ascontiguousarray(photo.transpose(1, 2, 0)) if len(photo) == 3 else photo[0])

    def tensor(self) -> Tensor:
        """Returns all photos as uint8 (N, C, H, W), mapped from the file, not read."""
        return torch.from_file(str(self.path), size=self.size, dtype=torch.uint8).view(self.shape)

    def batch(self, indices: Sequence[int], out: Tensor | None = None) -> Tensor:
        """Returns photos as uint8 (N, C, H, W), in `out` if given; another thread may run while they are copied."""
        indices = np.asarray(indices)
        if not ((indices >= 0) & (indices < len(self))).all():
            raise IndexError(f"there are {len(self)} photos, and not those at {indices.tolist()}.")
        out = torch.empty(len(indices), *self.shape[1:], dtype=torch.uint8) if out is None else out
        np.take(self.photos, indices, axis=0, out=out.numpy(), mode="clip")  # the default mode would copy twice
        return out


def open_cache(folder: Path, name: str, photos: DecodedPhotos, shape: tuple[int, int, int]) -> CachedPhotos:
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
    size = int(np.prod(whole))
    folder_digest = hashlib.blake2b(str(photos.annotations[0].image_path.parent).encode(), digest_size=4).hexdigest()
    kind = f"{name}-{'x'.join(map(str, whole))}-{photos.crop.replace(' ', '-')}-{folder_digest}"
    path = folder / f"{kind}-{_digest(photos, shape)}.photos"
    if path.is_file() and path.stat().st_size == size:
        stored = CachedPhotos(path, whole).photos
        if all(np.array_equal(stored[index], _pixels(photos, index)) for index in (0, -1)):
            return CachedPhotos(path, whole)
        logger.warning("%s does not hold the photos that it is named for; it is built anew", path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"cache_path {folder} cannot be written: {error.strerror}; set another, or null for none"
        ) from error
    logger.info("caching %s photos once: %s, %s MB", f"{len(photos):,}", path, f"{size / MEGABYTE:,.0f}")
    remove_partial(folder)
    with replacing(path, key="cache_path") as partial, partial.open("wb") as file:
        lock = threading.Lock()

        def decode(index: int) -> None:
            stored = _pixels(photos, index)
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
    for stale in folder.glob(f"{kind}-*.photos"):
        if stale != path:
            stale.unlink(missing_ok=True)
    return CachedPhotos(path, whole)


def _pixels(photos: DecodedPhotos, index: int) -> np.ndarray:
    """Returns a photo as it is stored: uint8 (C, H, W)."""
    pixels = np.asarray(photos.image(index))
    return np.ascontiguousarray(pixels.transpose(2, 0, 1) if pixels.ndim == 3 else pixels[None])


def _digest(photos: DecodedPhotos, shape: tuple[int, int, int]) -> str:
    digest = hashlib.blake2b(repr((FORMAT, PIL.__version__, shape, photos.crop)).encode(), digest_size=8)
    for annotation in photos.annotations:
        state = annotation.image_path.stat()
        box = tuple(annotation.bounding_box) if photos.crop != "no" else None
        digest.update(repr((str(annotation.image_path), state.st_size, state.st_mtime_ns, box)).encode())
    return digest.hexdigest()
