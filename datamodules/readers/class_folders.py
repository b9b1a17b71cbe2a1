"""Reads class folders: `<split>/<class>/…` or `<class>/…`, at any depth below the folder of the data set."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datamodules.readers.location import Location
from datamodules.readers.records import (
    MAX_LISTED_PROBLEMS,
    SPLIT_NAMES,
    DataSplits,
    NamedImage,
    Split,
    label_images,
    normalized,
)
from datamodules.readers.table import split_of_name
from utils.errors import DataError

KIND = "class_folders"

logger = logging.getLogger(__name__)

Parts = tuple[str, ...]


def read_class_folders(location: Location, params: Mapping[str, Any]) -> DataSplits | None:
    """Reads the data set of a folder, or returns None where no folder below it holds images.

    Folders inside a class folder belong to the class.
    """
    images = location.files.images
    if not any(images):  # the key () is the folder itself
        return None
    root = _descend(images, ())
    split_of = {
        name: SPLIT_NAMES[name.casefold()] for name in _children(images, root) if name.casefold() in SPLIT_NAMES
    }
    roots = [(_inner(images, (*root, name)), split) for name, split in split_of.items()] or [(root, "train")]
    splits: dict[Split, list[NamedImage]] = {"train": [], "valid": [], "test": []}
    left_out: list[Path] = []
    for parts, names in images.items():
        folder = location.folder.joinpath(*parts)
        top, split = next((pair for pair in roots if parts[: len(pair[0])] == pair[0]), (parts, "train"))
        if len(parts) == len(top):
            left_out += (folder / name for name in names)
        else:
            class_name = normalized(parts[len(top)])
            splits[split] += (NamedImage(folder / name, class_name) for name in names)
    if left_out:
        text = (
            f"{location.folder}: images outside the class folders are left out: {len(left_out):,}, such as {left_out[0]}"
            f"{_hint(_children(images, root), split_of)}"
        )
        if not any(splits.values()):
            if location.files.tables:
                return None
            raise DataError(text)
        logger.warning("%s", text)
    if empty := [path for path in location.files.empty if len(path.relative_to(location.folder).parts) > len(root)]:
        named = ", ".join(map(str, empty[:MAX_LISTED_PROBLEMS])) + (" …" if len(empty) > MAX_LISTED_PROBLEMS else "")
        logger.warning("folders without images: %d (%s)", len(empty), named)
    return label_images(splits, kind=KIND, description="class folders", where=location.folder)


def _hint(children: Sequence[str], split_of: Mapping[str, Split]) -> str:
    """Returns what the names of folders beside or instead of split folders may mean."""
    near = [f"{name}/ to {split}/" for name in children if name not in split_of and (split := split_of_name(name))]
    if split_of and near:
        return f"; rename {', '.join(near)}"
    if split_of and "train" not in split_of.values():
        return f"; read as splits: {', '.join(f'{name}/' for name in split_of)} (rename a class of such a name)"
    return ""


def _children(images: Mapping[Parts, list[str]], root: Parts) -> list[str]:
    """Returns the names of the folders in `root` that have images at or below them, sorted."""
    return sorted({parts[len(root)] for parts in images if len(parts) > len(root) and parts[: len(root)] == root})


def _descend(images: Mapping[Parts, list[str]], root: Parts) -> Parts:
    """Returns the folder below `root` that holds the class or split folders: `root`, or its only folder, or that one's."""
    while len(children := _children(images, root)) == 1:
        inner = (*root, children[0])
        if inner in images or children[0].casefold() in SPLIT_NAMES:
            break
        root = inner
    return root


def _inner(images: Mapping[Parts, list[str]], folder: Parts) -> Parts:
    """Returns the inner one of folders such as train/train/."""
    while _children(images, folder) == [folder[-1]]:
        folder = (*folder, folder[-1])
    return folder
