"""Hashes of images: of their bytes, and of how they look. Each image is read once; the hashes are kept beside the cache.

The perceptual hash is ImageHash's `phash`: 64 signs of the low frequencies of a 32×32 gray version (a discrete cosine
transform). Two of them differ in an even number of bits.
"""

import hashlib
import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datamodules.images import read_image
from datamodules.readers.records import THREADS, ImageRecord
from utils.errors import DataError
from utils.files import replacing
from utils.progress import in_threads, progress_bar

SUFFIX = ".hashes.npy"
THUMBNAIL = 64  # pixels: twice the side that the perceptual hash looks at
PAIRS_PER_PART = 5_000_000  # distances computed at a time
STORED = np.dtype([("key", "V16"), ("digest", "V16"), ("perceptual", "<u8"), ("has_perceptual", "?")])

logger = logging.getLogger(__name__)


class ImageHashes(NamedTuple):
    """The hashes of images, in their order.

    Attributes:
        digests: 16 bytes each, equal for equal files; of an image that cannot be read, of its path.
        perceptual: (N,), 64 bits each; 0 where `is_known` is False.
        is_known: (N,), whether the image could be decoded.
    """

    digests: list[bytes]
    perceptual: np.ndarray
    is_known: np.ndarray


def hash_images(
    records: Sequence[ImageRecord], *, perceptual: bool, upright: bool, cache_path: Path | None, name: str
) -> ImageHashes:
    """Returns the hashes of images; those of unchanged files come from the last time.

    Args:
        records: The images. One that cannot be read or decoded has hashes of its own; reading it later raises the error.
        perceptual: Whether perceptual hashes are needed.
        upright: Whether images are turned by their EXIF orientation.
        cache_path: Folder of the stored hashes; None for none.
        name: Of the data set, such as its path.

    Raises:
        RunError: The hashes cannot be stored.
    """
    file = cache_path / f"{_digest(name, size=8).hex()}{SUFFIX}" if cache_path is not None else None
    stored = {row["key"].tobytes(): row for row in _load(file)}

    def hash_one(record: ImageRecord) -> np.ndarray:
        row = np.zeros((), STORED)
        try:
            state = record.path.stat()
            row["key"] = np.void(_digest(str(record.path), state.st_size, state.st_mtime_ns, upright))
            old = stored.get(row["key"].tobytes())
            if old is not None and (old["has_perceptual"] or not perceptual):
                return old
            content = record.path.read_bytes()
        except (OSError, DataError):
            row["digest"] = np.void(_digest("unreadable", str(record.path)))
            return row
        row["digest"] = np.void(hashlib.blake2b(content, digest_size=16).digest())
        if perceptual:
            with suppress(DataError):
                row["perceptual"] = perceptual_hash(content, upright=upright, name=str(record.path))
                row["has_perceptual"] = True
        return row

    rows = np.empty(len(records), STORED)
    for index, row in enumerate(in_threads(hash_one, records, threads=THREADS, description="hashing images")):
        rows[index] = row
    if file is not None and any(
        (old := stored.pop(row["key"].tobytes(), None)) is None or old["has_perceptual"] != row["has_perceptual"]
        for row in rows
    ):
        with replacing(file, key="cache_path") as partial:
            file.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as opened:
                np.save(opened, rows, allow_pickle=False)
    return ImageHashes([row["digest"].tobytes() for row in rows], rows["perceptual"], rows["has_perceptual"])


def near_pairs(hashes: ImageHashes, max_distance: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pairs of images whose perceptual hashes differ in at most `max_distance` bits, and their distances.

    Returns:
        (P, 2), of indices, the smaller one first; of equal hashes, only the pairs with the first of them. And (P,).
    """
    known = np.flatnonzero(hashes.is_known)
    values, first, inverse = np.unique(hashes.perceptual[known], return_index=True, return_inverse=True)
    equal = np.flatnonzero(first[inverse] != np.arange(len(known)))
    found = [np.stack([first[inverse[equal]], equal, np.zeros_like(equal)])]
    step = max(1, PAIRS_PER_PART // max(1, len(values)))
    for start in progress_bar(range(0, len(values), step), description="comparing images", unit=" parts"):
        distances = np.bitwise_count(values[start : start + step, None] ^ values[None, start:])
        rows, columns = np.nonzero(distances <= max_distance)
        is_pair = columns > rows
        rows, columns = rows[is_pair], columns[is_pair]
        found.append(np.stack([first[start + rows], first[start + columns], distances[rows, columns]]))
    one, other, distance = np.concatenate(found, axis=1)
    return np.sort(known[np.stack([one, other], axis=1)], axis=1), distance


def perceptual_hash(content: bytes, *, upright: bool, name: str) -> int:
    """Returns the perceptual hash of an image file; `name` is for messages.

    Raises:
        DataError: It cannot be decoded.
    """
    import imagehash  # half a second

    bits = imagehash.phash(read_image(content, size=THUMBNAIL, upright=upright, name=name)).hash
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def _load(file: Path | None) -> np.ndarray:
    if file is None or not file.is_file():
        return np.empty(0, STORED)
    try:
        rows = np.load(file, allow_pickle=False)
        if rows.dtype != STORED:
            raise ValueError(f"its type is {rows.dtype}")
    except (OSError, ValueError, EOFError) as error:
        logger.warning("%s is damaged (%s); the images are hashed again", file, error)
        return np.empty(0, STORED)
    return rows


def _digest(*parts: object, size: int = 16) -> bytes:
    return hashlib.blake2b(repr(parts).encode(), digest_size=size).digest()
