"""Where a data set lies: its folder, the files below it, and where its archives are extracted to."""

import difflib
import functools
import hashlib
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path

from datamodules.images import IMAGE_SUFFIXES
from datamodules.readers.archives import ARCHIVE_SUFFIXES, extract_archive
from utils.errors import DataError
from utils.progress import progress_bar

TABLE_SUFFIXES = (".csv", ".tsv")
PARQUET_SUFFIX = ".parquet"
DATA_SUFFIXES = (*TABLE_SUFFIXES, PARQUET_SUFFIX, *ARCHIVE_SUFFIXES)
IGNORED_FOLDERS = ("__MACOSX",)  # written by macOS into zip archives; hidden files and folders are ignored too

logger = logging.getLogger(__name__)


@dataclass
class Files:
    """The files below a folder, in an order that no file system changes.

    Attributes:
        images: The names of the images in each folder that holds some, by the parts of its path below the folder.
        tables, parquet, archives: Paths.
        empty: Folders without any image at or below them.
        others: Number of files of any other kind.
    """

    images: dict[tuple[str, ...], list[str]] = field(default_factory=dict)
    tables: list[Path] = field(default_factory=list)
    parquet: list[Path] = field(default_factory=list)
    archives: list[Path] = field(default_factory=list)
    empty: list[Path] = field(default_factory=list)
    others: int = 0

    def add(self, path: Path) -> None:
        """Adds a file that is not an image to the list of its kind."""
        name = path.name.lower()
        kinds = ((TABLE_SUFFIXES, self.tables), (PARQUET_SUFFIX, self.parquet), (ARCHIVE_SUFFIXES, self.archives))
        for suffixes, paths in kinds:
            if name.endswith(suffixes):
                paths.append(path)
                return
        self.others += 1


def scan(root: Path) -> Files:
    """Lists the files below a folder; follows links, and skips hidden files and what macOS adds to zip archives.

    Raises:
        DataError: A folder cannot be read.
    """
    files = Files()
    folders: list[tuple[str, ...]] = []
    pending = [((), root, frozenset([os.path.realpath(root)]))]  # with the real paths of the folders that lead there
    try:
        with progress_bar(description=f"scanning {root}", unit=" files") as bar:
            while pending:
                parts, folder, above = pending.pop()
                folders.append(parts)
                names = []
                with os.scandir(folder) as entries:
                    for entry in entries:
                        if entry.name.startswith(".") or entry.name in IGNORED_FOLDERS:
                            continue
                        if entry.is_dir():
                            if (real := os.path.realpath(entry.path)) not in above:  # else a link to a folder above
                                pending.append(((*parts, entry.name), Path(entry.path), above | {real}))
                        elif entry.name.lower().endswith(IMAGE_SUFFIXES):
                            names.append(entry.name)
                        else:
                            files.add(Path(entry.path))
                if names:
                    files.images[parts] = sorted(names)
                    bar.update(len(names))
    except OSError as error:
        raise DataError(f"{error.filename or root} cannot be read: {error.strerror or error}") from error
    files.images = dict(sorted(files.images.items()))
    for paths in (files.tables, files.parquet, files.archives):
        paths.sort()
    with_images = {parts[:depth] for parts in files.images for depth in range(len(parts) + 1)}
    files.empty = sorted(root.joinpath(*parts) for parts in folders if parts not in with_images)
    return files


def require_path(path: Path) -> None:
    """Checks that a path exists.

    Raises:
        DataError: It does not; names the nearest path that does.
    """
    try:
        if path.exists():
            return
        missing = next(part for part in (path, *path.absolute().parents) if (part.parent).exists())
        names = sorted(each.name for each in missing.parent.iterdir() if not each.name.startswith("."))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    close = difflib.get_close_matches(missing.name, names, n=1)
    hint = f"; did you mean {missing.with_name(close[0])}?" if close else f"; the nearest folder is {missing.parent}"
    raise DataError(f"data_path (-d): {path} does not exist{hint}")


def path_inside(root: Path, folder: Path, text: str) -> Path | None:
    """Returns the path that a table gives relative to `folder`, or None if it leads out of `root`; links may."""
    text = text.replace("\\", "/")
    if not text.startswith("/") and text[1:2] != ":" and ".." not in text:  # C:/ is a disk on Windows
        return folder / text
    path = Path(os.path.normpath(folder / text))
    absolute, absolute_root = (Path(os.path.normpath(each.absolute())) for each in (path, root))
    return path if absolute.is_relative_to(absolute_root) else None


@dataclass
class Location:
    """What the user named as a data set.

    Attributes:
        folder: The folder of the data set.
        raw_path: Another folder that holds archives and annotation files.
        extract_path: Where archives are extracted to if `folder` is read-only.
        file: The one file to read, if the user named a file.
        upright: Whether images are turned by their EXIF orientation, which decides on the size that fractions refer to.
    """

    folder: Path
    raw_path: Path | None = None
    extract_path: Path | None = None
    file: Path | None = None
    upright: bool = True

    @functools.cached_property
    def files(self) -> Files:
        """The files below `folder`, or only `file`."""
        if self.file is None:
            return scan(self.folder) if self.folder.is_dir() else Files()
        files = Files()
        files.add(self.file)
        return files

    @functools.cached_property
    def extracted(self) -> Path | None:
        """The folder for archives of a read-only data set; None if they are extracted into the data set's folder."""
        existing = next((each for each in (self.folder, *self.folder.absolute().parents) if each.exists()), self.folder)
        if self.extract_path is None or os.access(existing, os.W_OK):
            return None
        digest = hashlib.blake2b(str(self.folder.resolve()).encode(), digest_size=4).hexdigest()
        return self.extract_path / f"{self.folder.resolve().name}-{digest}"

    def extract(self, archive: Path, name: str, *, member: str | None = None, folder: Path | None = None) -> Path:
        """Extracts an archive to the folder `name`, unless it exists, and returns it.

        Args:
            archive: The archive.
            name: Of the new folder.
            member: As in `extract_archive`.
            folder: Where to create the new folder if it can be written to; the folder of the data set if None.

        Raises:
            DataError: The archive cannot be extracted.
        """
        final = (self.extracted or folder or self.folder) / name
        if self.extracted and not final.exists():
            logger.info(
                "%s is read-only: %s is extracted to %s (extract_path)", self.folder, archive.name, self.extracted
            )
        extract_archive(archive, final, member)
        return final
