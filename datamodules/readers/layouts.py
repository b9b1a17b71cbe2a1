"""Finds a release of Stanford Cars in a folder, whichever way it was published, and extracts its archives.

Two releases show the same 16,185 photos. The original has cars_train/00001.jpg …, cars_test/00001.jpg …, a devkit/ and
cars_test_annos_withlabels.mat; the updated has car_ims/000001.jpg … and cars_annos.mat. They number the photos
differently, so that no file of one can be used with the other's.
"""

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from datamodules.readers.archives import extract_archive, lock_path
from datamodules.readers.downloads import WHERE_TO_GET
from utils.errors import DataError

Release = Literal["updated", "original"]
Split = Literal["train", "valid"]

ARCHIVE_NAMES = {"car_ims": "car_ims", "cars_train": "cars_train", "cars_test": "cars_test", "devkit": "car_devkit"}
ARCHIVE_SUFFIXES = (".tgz", ".tar.gz", ".tar")
PHOTO_FOLDERS: dict[Release, tuple[str, ...]] = {"updated": ("car_ims",), "original": ("cars_train", "cars_test")}
UPDATED_ANNOTATIONS = "cars_annos.mat"
TRAIN_ANNOTATIONS = "cars_train_annos.mat"
TEST_ANNOTATIONS = "cars_test_annos_withlabels.mat"
TEST_ANNOTATIONS_NAMES = (TEST_ANNOTATIONS, "cars_test_annos_withlabels (1).mat")  # the latter is spread by a mirror
TEST_ANNOTATIONS_WITHOUT_LABELS = "cars_test_annos.mat"
CLASS_NAMES = "cars_meta.mat"
ANNOTATION_FOLDERS = ("", "devkit", "car_devkit", "car_devkit/devkit")
TORCHVISION_FOLDER = "stanford_cars"

DIFFERENT_PHOTOS = (
    "The releases number the photos differently (car_ims/000001.jpg is not cars_train/00001.jpg), so no file of one "
    "can be used with the other's."
)
LISTED = 10

logger = logging.getLogger(__name__)


class AnnotationFile(NamedTuple):
    """One annotation file.

    Attributes:
        mat: The file.
        photos: Name of the folder of the photos that it describes, such as cars_train.
        split: The split that it is of; None if its rows tell.
    """

    mat: Path
    photos: str
    split: Split | None


@dataclass(frozen=True, slots=True)
class Layout:
    """A complete release; its photos may still be in their archives."""

    data_folder: "DataFolder"
    release: Release
    annotation_files: tuple[AnnotationFile, ...]


class DataFolder:
    """What lies in the folders that a person named, in any of the published layouts."""

    def __init__(self, folder: Path, raw_path: Path | None) -> None:
        self.folder = folder
        self.bases = [base for base in (folder, raw_path) if base is not None]
        self.roots = [root for base in self.bases for root in (base, base / TORCHVISION_FOLDER)]

    def extracted(self, name: str) -> Path | None:
        """Returns the folder `name` that has something in it; the inner one of a mirror's cars_train/cars_train/."""
        candidates = (candidate for root in self.roots for candidate in (root / name / name, root / name))
        return next((path for path in candidates if path.is_dir() and any(path.iterdir())), None)

    def archive(self, name: str) -> Path | None:
        """Returns the archive of the folder `name`."""
        paths = (root / f"{ARCHIVE_NAMES[name]}{suffix}" for root in self.roots for suffix in ARCHIVE_SUFFIXES)
        return next((path for path in paths if path.is_file()), None)

    def annotations(self, *names: str) -> Path | None:
        """Returns the first of these .mat files that there is."""
        paths = (root / folder / name for root in self.roots for folder in ANNOTATION_FOLDERS for name in names)
        return next((path for path in paths if path.is_file()), None)

    def extract(self, name: str) -> Path | None:
        """Returns the folder `name`, extracted from its archive if need be; None without both."""
        archive = self.archive(name)
        if archive is not None:
            at_torchvision = archive.parent == self.folder / TORCHVISION_FOLDER
            destination = archive.parent if at_torchvision else self.folder
            if self.extracted(name) is None or lock_path(destination, name).exists():
                extract_archive(archive, destination, name)
        return self.extracted(name)

    def devkit_file(self, name: str, *others: str) -> Path | None:
        """Returns a .mat file of the devkit, which is extracted if that is where the file must be."""
        if self.annotations(name, *others) is None:
            self.extract("devkit")
        return self.annotations(name, *others)

    def class_names_file(self) -> Path:
        """Returns the file of the class names.

        Raises:
            DataError: There is none.
        """
        path = self.devkit_file(CLASS_NAMES)
        if path is None:
            raise DataError(
                f"{self.folder}: the names of the classes are missing; add car_devkit.tgz or its {CLASS_NAMES}.\n"
                f"{WHERE_TO_GET}"
            )
        return path

    def status(self, release: Release) -> tuple[list[str], list[str]]:
        """Returns what is there of a release and what is missing, in words; an archive counts as what it may hold."""
        there, missing = [], []
        for name in PHOTO_FOLDERS[release]:
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
        """Returns a path as seen from the folder it was found through; folders end with a slash."""
        base = next(base for base in self.bases if path.is_relative_to(base))
        return f"{path.relative_to(base) if base == self.folder else path}{'/' if path.is_dir() else ''}"


def find_layout(folder: Path, raw_path: Path | None = None) -> Layout:
    """Finds a complete release in a folder; extracts the devkit where it is needed, but no photos yet.

    Args:
        folder: Where the data lies, and where archives are extracted to.
        raw_path: Where else archives and annotations may lie.

    Raises:
        DataError: There is no complete release, or a folder cannot be read.
    """
    here = DataFolder(folder, raw_path)
    try:
        complete: list[Release] = [release for release in PHOTO_FOLDERS if not here.status(release)[1]]
        if len(complete) == 2:
            logger.info("Both releases of Stanford Cars lie in %s; the updated one (car_ims/) is used", folder)
        if not complete:
            raise _incomplete(here)
        return Layout(here, complete[0], _annotation_files(here, complete[0]))
    except OSError as error:
        raise DataError(f"{error.filename or folder} cannot be read: {error.strerror or error}") from error


def _annotation_files(here: DataFolder, release: Release) -> tuple[AnnotationFile, ...]:
    if release == "updated":
        return (AnnotationFile(here.annotations(UPDATED_ANNOTATIONS), "car_ims", None),)
    train, valid = here.devkit_file(TRAIN_ANNOTATIONS), here.devkit_file(*TEST_ANNOTATIONS_NAMES)
    here.devkit_file(CLASS_NAMES)
    if here.status("original")[1]:  # the devkit's archive did not hold all that it might have
        raise _incomplete(here)
    return AnnotationFile(train, "cars_train", "train"), AnnotationFile(valid, "cars_test", "valid")


def _incomplete(here: DataFolder) -> DataError:
    """Returns the error that tells what is there, what is missing and what to do."""
    statuses = {release: here.status(release) for release in PHOTO_FOLDERS}
    begun = {release: (there, missing) for release, (there, missing) in statuses.items() if there}
    lines = [f"{here.folder}: no {'complete release' if begun else 'photos and annotations'} of Stanford Cars here."]
    for release, (there, missing) in begun.items():
        lines.append(f"  of the {release} release there is {', '.join(there)}; missing: {', '.join(missing)}")
    if len(begun) == 2:
        lines.append(DIFFERENT_PHOTOS)
    if not begun:
        lines += [f"  {base}: {_listing(base)}" for base in here.bases]
    meant = _suggest_folder(here.folder, inside=not begun)
    if meant is not None:
        lines.append(f"Did you mean {meant}? Set data_path (-d) to the folder that holds those of the photos.")
    else:
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
    more = f" and {len(names) - LISTED:,} more" if len(names) > LISTED else ""
    return f"there is {', '.join(names[:LISTED])}{more}" if names else "this folder is empty"


def _suggest_folder(folder: Path, *, inside: bool) -> Path | None:
    """Returns the folder that was probably meant, a few levels up or, if `inside`, one down."""
    parts_of_a_release = {*ARCHIVE_NAMES, *ARCHIVE_NAMES.values()}
    meant = folder = folder.resolve()
    while meant.name in parts_of_a_release:
        meant = meant.parent
    if meant != folder or not folder.is_dir():
        return meant if meant != folder else None
    if any(re.fullmatch(r"\d{5,6}\.jpg", path.name) for path in folder.iterdir()):
        return folder.parent
    below = (path for path in sorted(folder.iterdir()) if inside and path.is_dir())
    return next((path for path in below if any(DataFolder(path, None).status(r)[0] for r in PHOTO_FOLDERS)), None)
