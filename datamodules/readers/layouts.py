"""Finds an official release of Stanford Cars in a folder, in any published layout, and extracts its archives.

Two releases show the same 16,185 images. The original has cars_train/00001.jpg …, cars_test/00001.jpg …, a devkit/ and
cars_test_annos_withlabels.mat; the updated has car_ims/000001.jpg … and cars_annos.mat. They number the images
differently, so no file of one can be used with the other's.
"""

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from datamodules.readers.archives import ARCHIVE_SUFFIXES, WHERE_TO_GET
from datamodules.readers.location import Location
from utils.errors import DataError

Release = Literal["updated", "original"]

ARCHIVE_NAMES = {"car_ims": "car_ims", "cars_train": "cars_train", "cars_test": "cars_test", "devkit": "car_devkit"}
IMAGE_FOLDERS: dict[Release, tuple[str, ...]] = {"updated": ("car_ims",), "original": ("cars_train", "cars_test")}
UPDATED_ANNOTATIONS = "cars_annos.mat"
TRAIN_ANNOTATIONS = "cars_train_annos.mat"
TEST_ANNOTATIONS = "cars_test_annos_withlabels.mat"
TEST_ANNOTATIONS_NAMES = (TEST_ANNOTATIONS, "cars_test_annos_withlabels (1).mat")  # the latter from a mirror
TEST_ANNOTATIONS_WITHOUT_LABELS = "cars_test_annos.mat"
CLASS_NAMES = "cars_meta.mat"
ANNOTATION_FOLDERS = ("", "devkit", "car_devkit", "car_devkit/devkit")
TORCHVISION_FOLDER = "stanford_cars"

DIFFERENT_NUMBERS = (
    "The releases number the images differently (car_ims/000001.jpg is not cars_train/00001.jpg), so no file of one "
    "can be used with the other's."
)
MAX_LISTED_FILES = 10

logger = logging.getLogger(__name__)


class AnnotationFile(NamedTuple):
    """A .mat file.

    Attributes:
        mat: The file.
        images: Name of the folder of its images, such as cars_train.
        split: The split of its images; None if its rows tell.
    """

    mat: Path
    images: str
    split: Literal["train", "valid"] | None


@dataclass(frozen=True, slots=True)
class Layout:
    """A complete release; its images may still be in their archives."""

    data_folder: "DataFolder"
    release: Release
    annotation_files: tuple[AnnotationFile, ...]


def is_release_archive(path: Path) -> bool:
    """Returns whether a file has the name of an archive of Stanford Cars."""
    return path.name in {f"{name}{suffix}" for name in ARCHIVE_NAMES.values() for suffix in ARCHIVE_SUFFIXES}


class DataFolder:
    """The files of Stanford Cars at a location, in any published layout."""

    def __init__(self, location: Location) -> None:
        self.location = location
        self.folder = location.folder
        self.bases = [base for base in (location.folder, location.raw_path, location.extracted) if base is not None]
        self.roots = [root for base in self.bases for root in (base, base / TORCHVISION_FOLDER)]

    def extracted(self, name: str) -> Path | None:
        """Returns the folder `name` if it is not empty; the inner one of a mirror's cars_train/cars_train/."""
        candidates = (candidate for root in self.roots for candidate in (root / name / name, root / name))
        return next((path for path in candidates if path.is_dir() and any(path.iterdir())), None)

    def archive(self, name: str) -> Path | None:
        """Returns the archive of the folder `name`."""
        paths = (root / f"{ARCHIVE_NAMES[name]}{suffix}" for root in self.roots for suffix in ARCHIVE_SUFFIXES)
        return next((path for path in paths if path.is_file()), None)

    def annotations(self, *names: str) -> Path | None:
        """Returns the first of these .mat files that exists."""
        paths = (root / folder / name for root in self.roots for folder in ANNOTATION_FOLDERS for name in names)
        return next((path for path in paths if path.is_file()), None)

    def extract(self, name: str) -> Path | None:
        """Returns the folder `name`, extracted from its archive if needed; None without both."""
        archive = self.archive(name)
        if archive is not None and self.extracted(name) is None:
            at_torchvision = archive.parent == self.folder / TORCHVISION_FOLDER
            self.location.extract(archive, name, member=name, folder=archive.parent if at_torchvision else self.folder)
        return self.extracted(name)

    def devkit_file(self, name: str, *others: str) -> Path | None:
        """Returns a .mat file of the devkit, extracted if needed."""
        if self.annotations(name, *others) is None:
            self.extract("devkit")
        return self.annotations(name, *others)

    def class_names_file(self) -> Path:
        """Returns the file of the class names.

        Raises:
            DataError: It is missing.
        """
        path = self.devkit_file(CLASS_NAMES)
        if path is None:
            raise DataError(
                f"{self.folder}: the class names are missing; add car_devkit.tgz or its {CLASS_NAMES}.\n{WHERE_TO_GET}"
            )
        return path

    def status(self, release: Release) -> tuple[list[str], list[str]]:
        """Returns the parts of a release that are there and those that are missing; an archive counts as its content."""
        there, missing = [], []
        for name in IMAGE_FOLDERS[release]:
            path = self.extracted(name) or self.archive(name)
            if path is None:
                missing.append(f"{name}/ (or {name}.tgz)")
            else:
                there.append(self.shown(path))
        if release == "updated":
            wanted = {UPDATED_ANNOTATIONS: (UPDATED_ANNOTATIONS,)}
        else:
            wanted = {
                f"{TRAIN_ANNOTATIONS} (in car_devkit.tgz)": (TRAIN_ANNOTATIONS,),
                f"{CLASS_NAMES} (in car_devkit.tgz)": (CLASS_NAMES,),
                TEST_ANNOTATIONS: TEST_ANNOTATIONS_NAMES,
            }
            if without_labels := self.annotations(TEST_ANNOTATIONS_WITHOUT_LABELS):
                there.append(f"{self.shown(without_labels)} (has no labels)")
        devkit = self.archive("devkit") if release == "original" and self.extracted("devkit") is None else None
        if devkit is not None:
            there.append(self.shown(devkit))
        for description, names in wanted.items():
            path = self.annotations(*names)
            if path is not None:
                there.append(self.shown(path))
            elif devkit is None:
                missing.append(description)
        return there, missing

    def shown(self, path: Path) -> str:
        """Returns a path relative to the folder it was found in; folders end with a slash."""
        base = next(base for base in self.bases if path.is_relative_to(base))
        return f"{path.relative_to(base) if base == self.folder else path}{'/' if path.is_dir() else ''}"


def find_layout(location: Location) -> Layout | None:
    """Finds a complete release; extracts the devkit if needed, but no images yet.

    Raises:
        DataError: A folder cannot be read.
    """
    here = DataFolder(location)
    try:
        complete: list[Release] = [release for release in IMAGE_FOLDERS if not here.status(release)[1]]
        if not complete:
            return None
        if len(complete) == 2:
            logger.info("Both releases of Stanford Cars are in %s; the updated one (car_ims/) is used", here.folder)
        if complete[0] == "updated":
            files = (AnnotationFile(here.annotations(UPDATED_ANNOTATIONS), "car_ims", None),)
            return Layout(here, "updated", files)
        train, valid = here.devkit_file(TRAIN_ANNOTATIONS), here.devkit_file(*TEST_ANNOTATIONS_NAMES)
        here.devkit_file(CLASS_NAMES)
        if here.status("original")[1]:  # the devkit's archive lacked a file
            return None
        return Layout(
            here,
            "original",
            (AnnotationFile(train, "cars_train", "train"), AnnotationFile(valid, "cars_test", "valid")),
        )
    except OSError as error:
        raise DataError(f"{error.filename or here.folder} cannot be read: {error.strerror or error}") from error


def is_begun(location: Location) -> bool:
    """Returns whether a part of a release is there."""
    here = DataFolder(location)
    return any(here.status(release)[0] for release in IMAGE_FOLDERS)


def is_near_release(location: Location) -> bool:
    """Returns whether a folder holds parts of a release, is a part of one or holds its folder: its folders are no classes."""
    suggestion = None if is_begun(location) else _suggest_folder(location, inside=True)
    return is_begun(location if suggestion is None else Location(suggestion))


def missing_data(location: Location) -> DataError:
    """Returns the error for a folder without a data set: what is there, what is missing and what to do."""
    here = DataFolder(location)
    states = {release: here.status(release) for release in IMAGE_FOLDERS}
    begun = {release: state for release, state in states.items() if state[0]}
    lines = [f"{here.folder}: {'no complete release of Stanford Cars' if begun else 'no data set'} here."]
    for release, (there, missing) in begun.items():
        lines.append(f"  of the {release} release there is {', '.join(there)}; missing: {', '.join(missing)}")
    if len(begun) == 2:
        lines.append(DIFFERENT_NUMBERS)
    if not begun:
        lines += [f"  {base}: {_listing(base)}" for base in here.bases]
    suggestion = _suggest_folder(location, inside=not begun)
    if suggestion is not None:
        lines.append(f"Did you mean {suggestion}? Set data_path (-d) to the folder that holds those of the images.")
    else:
        if not begun:
            lines.append(
                "A data set is Stanford Cars in a published layout, folders of images named by class (or train/, valid/ and "
                "test/ with such folders), a CSV or TSV table with a path and a class column, or Parquet files."
            )
        lines.append(WHERE_TO_GET)
        lines.append(f"Put it into {here.folder}, or set data_path (-d) to the folder that has it.")
    lines.append("`python train.py --demo` needs no data: it trains on drawn cars.")
    return DataError("\n".join(lines))


def _listing(folder: Path) -> str:
    if not folder.exists():
        return "this folder does not exist"
    if not folder.is_dir():
        return "this is a file, not a folder"
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    more = f" and {len(names) - MAX_LISTED_FILES:,} more" if len(names) > MAX_LISTED_FILES else ""
    return f"there is {', '.join(names[:MAX_LISTED_FILES])}{more}" if names else "this folder is empty"


def _suggest_folder(location: Location, *, inside: bool) -> Path | None:
    """Returns the folder that was probably meant, some levels up or, if `inside`, one down."""
    parts_of_a_release = {*ARCHIVE_NAMES, *ARCHIVE_NAMES.values()}
    suggestion = folder = location.folder.resolve()
    while suggestion.name in parts_of_a_release:
        suggestion = suggestion.parent
    if suggestion != folder or not folder.is_dir():
        return suggestion if suggestion != folder else None
    if any(re.fullmatch(r"\d{5,6}\.jpg", path.name) for path in folder.iterdir()):
        return folder.parent
    below = (path for path in sorted(folder.iterdir()) if inside and path.is_dir())
    return next((path for path in below if is_begun(Location(path))), None)
