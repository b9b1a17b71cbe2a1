"""Splits training images into training, validation and test by their content; copies of an image stay together."""

import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from datamodules.hashes import ImageHashes, hash_images, near_pairs
from datamodules.readers.records import MAX_LISTED_PROBLEMS, DataSplits, ImageRecord, Split
from utils.errors import ConfigError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fractions:
    """The configured splits: the keys of the same names, and the seed of the split."""

    validation_fraction: float
    test_fraction: Literal["auto"] | float | None
    near_duplicate_distance: int | None
    seed: int


def split_data(data: DataSplits, fractions: Fractions, *, cache_path: Path | None, name: str) -> DataSplits:
    """Returns the data with a validation split, and where it has no held-out images a test split, of its training images.

    The held-out images of the data set (its test split, else its validation split) stay as they are and become `test`. If it
    has both, its validation images join the training images before the split.

    The split is stratified by class. It depends on the content of the images, their classes and the seed, and not on their
    names, their order or the machine. Identical images, and those of similar perceptual hash, stay in one split, also where
    they are of several classes. A class with only one distinct image has it in training, one with two has the other one in
    validation.

    Args:
        data: As a reader returns it.
        fractions: Sizes of the new splits.
        cache_path: Folder in which the hashes of the images are kept.
        name: Of the data set, for messages and for its hashes.

    Raises:
        ConfigError: The fractions leave nothing for training.
        RunError: The hashes cannot be stored.
    """
    pool, test, test_from = data.train, data.valid, data.valid_from
    if data.test:
        pool, test, test_from = data.train + data.valid, data.test, "test"
        instead = "with its training images" if data.train else "in place of training images, which it lacks"
        logger.info("%s: its %d validation images are split %s", name, len(data.valid), instead)
    if not pool:  # an error where it is trained on, and none where another data set is evaluated
        return data
    shares: dict[Split, float] = {"test": 0.0 if test else _test_share(fractions)}
    shares["valid"] = fractions.validation_fraction
    if sum(shares.values()) >= 1:
        raise ConfigError(
            f"validation_fraction and test_fraction are {shares['valid']:g} and {shares['test']:g}; expected a sum below 1"
        )
    distance = fractions.near_duplicate_distance
    settings = {"upright": data.upright, "cache_path": cache_path}
    hashes = hash_images(pool, perceptual=distance is not None, name=f"{name} train", **settings)
    held_out = hash_images(test, perceptual=False, name=f"{name} test", **settings)
    groups = group_images(hashes, distance)
    labels = [record.label for record in pool]
    sides = _assign(groups, hashes.digests, labels, shares, fractions.seed)
    parts: dict[str, tuple[ImageRecord, ...]] = {
        side: tuple(record for record, own in zip(pool, sides, strict=True) if own == side)
        for side in ("train", "valid", "test")
    }
    together = [len(group) for group in groups if len(group) > 1]
    count = f"{len(together):,} group{'s' * (len(together) > 1)} of copies"
    logger.info(
        "%s: split by class with seed %d into %s training, %s validation and %s test images (%s)%s",
        name, fractions.seed, f"{len(parts['train']):,}", f"{len(parts['valid']):,}",
        f"{len(parts['test']) + len(test):,}", f"those of its {test_from} split" if test else "split off",
        f"; {count}, {sum(together):,} images in all, stay together" if together else "",
    )  # fmt: skip
    _warn_of_small_classes(data.class_names, labels, sides, shares, name)
    outside = set(hashes.digests)
    if copies := sum(digest in outside for digest in held_out.digests):
        logger.warning(
            "%s: %d image%s of the %s split %s identical to images outside of it; its accuracy includes them",
            name, copies, "s" * (copies > 1), test_from, "are" if copies > 1 else "is",
        )  # fmt: skip
    all_sides: list[Split] = [*sides, *["test"] * len(test)]
    return replace(
        data,
        train=parts["train"],
        valid=parts["valid"],
        test=parts["test"] + test,
        valid_from="train",
        split_digest=_digest_of(data.class_names, pool + test, hashes.digests + held_out.digests, all_sides),
    )


def group_images(hashes: ImageHashes, near_duplicate_distance: int | None) -> list[list[int]]:
    """Returns the indices of the images in groups of copies; an image without a copy is a group of one.

    Two images are in one group if they are identical, if their perceptual hashes differ in at most
    `near_duplicate_distance` bits (None: identical ones only), or if a chain of such pairs leads from one to the other.
    """
    count = len(hashes.digests)
    first = {digest: index for index, digest in reversed(list(enumerate(hashes.digests)))}
    pairs = np.array([(first[digest], index) for index, digest in enumerate(hashes.digests)], np.int64).reshape(-1, 2)
    if near_duplicate_distance is not None:
        pairs = np.concatenate([pairs, near_pairs(hashes, near_duplicate_distance)[0]])
    graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    groups = defaultdict(list)
    for index, group in enumerate(connected_components(graph, directed=False)[1].tolist() if count else []):
        groups[group].append(index)
    return list(groups.values())


def _test_share(fractions: Fractions) -> float:
    share = fractions.test_fraction
    return fractions.validation_fraction if share == "auto" else share or 0.0


def _assign(
    groups: Sequence[list[int]],
    digests: Sequence[bytes],
    labels: Sequence[int],
    shares: dict[Split, float],
    seed: int,
) -> list[Split]:
    """Returns the split of each image; test images are chosen first, so that `validation_fraction` does not change them."""

    def key(group: list[int]) -> bytes:
        return hashlib.blake2b(min(digests[index] for index in group), key=str(seed).encode(), digest_size=16).digest()

    order = sorted(groups, key=key)
    counts = [Counter(labels[index] for index in group) for group in order]
    room = _quotas(counts, shares)
    side_of: list[Split] = ["train"] * len(order)
    in_training = Counter(label for count in counts for label in count)  # groups
    wanted = {pair for pair, number in room.items() if number}

    def move(number: int, side: Split) -> None:
        side_of[number] = side
        for label, count in counts[number].items():
            room[side, label] -= count
            in_training[label] -= 1
            wanted.discard((side, label))

    for side in shares:
        for number, count in enumerate(counts):
            fits = all(room[side, label] >= images for label, images in count.items())
            if side_of[number] == "train" and fits and all(in_training[label] > 1 for label in count):
                move(number, side)
    # Where every group is larger than the share of its class, the smallest of its own.
    for side, label in sorted(wanted):
        own = [number for number, count in enumerate(counts) if [*count] == [label] and side_of[number] == "train"]
        if in_training[label] > 1 and own:
            move(min(own, key=lambda number: counts[number][label]), side)
    sides: list[Split] = ["train"] * len(labels)
    for group, side in zip(order, side_of, strict=True):
        for index in group:
            sides[index] = side
    return sides


def _quotas(counts: Sequence[Counter[int]], shares: dict[Split, float]) -> dict[tuple[Split, int], int]:
    """Returns how many images of each label each split gets: at least one, if the label has enough groups."""
    images: Counter[int] = sum(counts, Counter())
    groups = Counter(label for count in counts for label in count)
    quotas = {}
    for label, count in images.items():
        own = {side: max(1, int(share * count + 0.5)) if share else 0 for side, share in shares.items()}
        if groups[label] == 2 and own["valid"]:
            own["test"] = 0
        while sum(own.values()) >= count:
            own[max(own, key=own.get)] -= 1
        quotas |= {(side, label): number if groups[label] > 1 else 0 for side, number in own.items()}
    return quotas


def _warn_of_small_classes(
    class_names: Sequence[str],
    labels: Sequence[int],
    sides: Sequence[Split],
    shares: dict[Split, float],
    name: str,
) -> None:
    found = Counter(zip(labels, sides, strict=True))
    lines = []
    for label, class_name in enumerate(class_names):
        missing = [side for side in ("valid", "test") if shares[side] and not found[label, side]]
        count = sum(found[label, side] for side in ("train", "valid", "test"))
        if missing and count:  # a class of held-out images only was named before
            where = ", ".join(
                f"{found[label, side]} {side}" for side in ("train", "valid", "test") if found[label, side]
            )
            lines.append(f"{class_name}: {count} image{'s' * (count != 1)} ({where}), none in {' and '.join(missing)}")
    if lines:
        more = [f"… and {len(lines) - MAX_LISTED_PROBLEMS} more"] if len(lines) > MAX_LISTED_PROBLEMS else []
        logger.warning(
            "%s: too few distinct images to split; these classes do not count in the missing split's accuracy:\n  %s",
            name, "\n  ".join(lines[:MAX_LISTED_PROBLEMS] + more),
        )  # fmt: skip


def _digest_of(
    class_names: Sequence[str], records: Sequence[ImageRecord], digests: Sequence[bytes], sides: Sequence[Split]
) -> str:
    rows = sorted(
        (digest.hex(), class_names[record.label], side)
        for record, digest, side in zip(records, digests, sides, strict=True)
    )
    return hashlib.blake2b(repr(rows).encode(), digest_size=8).hexdigest()
