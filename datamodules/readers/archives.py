"""Checks downloaded files and extracts archives: safely, and completely or not at all."""

import errno
import gzip
import logging
import os
import re
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from filelock import FileLock, Timeout
from tqdm.utils import CallbackIOWrapper

from utils.errors import DataError
from utils.progress import progress_bar

ARCHIVE_SUFFIXES = (".tgz", ".tar.gz", ".tar", ".zip")
MAX_MEMBERS = 2_000_000
MAX_RATIO = 100  # of extracted to archived bytes; images do not shrink, annotations shrink tenfold
MAX_EXTRA_BYTES = 64 * 2**20  # allowed beyond that ratio, as the padding of a small archive shrinks a thousandfold
MAX_DEPTH = 20  # nested folders
SPARE_BYTES = 2**26  # left free on the disk
CHUNK = 2**20  # bytes
END_OF_ARCHIVE = bytes(1024)  # two blocks of zeros end a tar archive
HEAD_LENGTH = 1024  # bytes; enough to recognize a web page or a Git LFS pointer

WHERE_TO_GET = """\
The official links of Stanford Cars (ai.stanford.edu) are dead and answer with web pages. Copies are kept on
  - Kaggle: data sets named stanford-cars-dataset (images, often nested as cars_train/cars_train), cars-devkit and
    stanford-car-dataset-by-classes-folder (class folders, boxes in anno_train.csv and anno_test.csv);
  - Hugging Face: data sets named stanford_cars, as Parquet files (most without boxes);
  - the thread https://github.com/pytorch/vision/issues/7545, whose comments lead to car_devkit.tgz and
    cars_test_annos_withlabels.mat, and to the folder that torchvision expects;
  - the Internet Archive (web.archive.org), in its snapshots of the official pages.
Of the two official releases one is enough, as archives (.tgz, .tar or .zip) or extracted:
  - updated release: car_ims.tgz, cars_annos.mat
  - original release: cars_train.tgz, cars_test.tgz, car_devkit.tgz, cars_test_annos_withlabels.mat"""

logger = logging.getLogger(__name__)


def check_download(path: Path) -> bytes:
    """Returns the first bytes of a file.

    Raises:
        DataError: The file cannot be read or is what a failed download leaves: empty, a web page or a Git LFS pointer.
    """
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_LENGTH)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    if not head:
        raise DataError(f"{path} is empty (0 bytes): the download failed.\n{WHERE_TO_GET}")
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        title = re.search(rb"<title>\s*(.*?)\s*</title>", head, re.IGNORECASE | re.DOTALL)
        named = f' with the title "{title[1].decode(errors="replace")}"' if title else ""
        wanted = "annotations" if path.suffix == ".mat" else "a data file"
        raise DataError(f"{path} is a web page{named}, not {wanted}: its link is dead.\n{WHERE_TO_GET}")
    if text.startswith(b"version https://git-lfs"):
        raise DataError(f"{path} is a Git LFS pointer, not the file: run `git lfs pull` in its repository")
    return head


def extract_archive(archive: Path, final: Path, member: str | None = None) -> None:
    """Extracts a .tgz, .tar.gz, .tar or .zip archive to the folder `final`, unless that exists.

    Files are written to a hidden folder beside `final`, which is renamed at the end. A run that finds another one
    extracting waits for it and uses its result.

    Args:
        archive: The archive.
        final: The new folder.
        member: The only folder of the archive to extract; its content becomes that of `final`.

    Raises:
        DataError: The archive is damaged, a failed download or too large, holds a link, a device or a path outside its
            folder, or the disk is full. Nothing is left behind.
    """
    partial = final.with_name(f".{final.name}.partial")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with _locked(final.with_name(f".{final.name}.lock")):
            shutil.rmtree(partial, ignore_errors=True)  # left by a killed run
            if final.is_dir() and any(final.iterdir()):
                return
            try:
                partial.mkdir()
                _extract(archive, partial, member)
                folder = partial / (member or "")
                if not folder.is_dir() or not any(folder.iterdir()):
                    raise DataError(
                        f"{archive} is not extracted: it holds no {f'folder {member}/ with ' * bool(member)}files"
                    )
                folder.replace(final)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise DataError(
            f"{archive} cannot be extracted to {final}: {error.strerror or error}; make room on the disk, or extract it "
            "elsewhere and set data_path to that folder"
        ) from error


def _extract(archive: Path, partial: Path, member: str | None) -> None:
    head = check_download(archive)
    extract = _extract_zip if head.startswith(b"PK") else _extract_tar
    size = archive.stat().st_size
    bar = progress_bar(description=f"extracting {archive.name}", unit="B", total=size, unit_scale=True)
    try:
        with bar, archive.open("rb") as file:
            extract(CallbackIOWrapper(bar.update, file, "read"), partial, member, MAX_RATIO * size + MAX_EXTRA_BYTES)
    except DataError as error:
        raise DataError(f"{archive} is not extracted: {error}") from error
    except OSError as error:
        if not isinstance(error, gzip.BadGzipFile):
            raise
        raise DataError(f"{archive} is damaged ({error}); download it again") from error
    except Exception as error:  # tarfile, zipfile and zlib raise a dozen kinds of errors on damaged bytes
        raise DataError(f"{archive} is damaged or cut short ({error}); download it again") from error


def _extract_tar(file: BinaryIO, partial: Path, member: str | None, limit: int) -> None:
    is_gzip = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    stream = _Limited(gzip.GzipFile(fileobj=file) if is_gzip else file, limit)
    with tarfile.open(fileobj=stream, mode="r|") as tar:
        for count, info in enumerate(tar, start=1):
            is_plain = (info.isreg() or info.isdir()) and not info.issparse()  # a sparse file grows beyond the limit
            if _is_wanted(info.name, is_plain, info.size, count, partial, member):
                tar.extract(info, partial, filter="data")
    while stream.read(CHUNK):  # up to the checksum at the end
        pass
    if stream.tail != END_OF_ARCHIVE:
        raise EOFError("it has no end mark")


def _extract_zip(file: BinaryIO, partial: Path, member: str | None, limit: int) -> None:
    try:
        archive = zipfile.ZipFile(file, metadata_encoding="utf-8")  # as macOS writes names, without marking them
    except UnicodeDecodeError:
        archive = zipfile.ZipFile(file)
    with archive:
        if sum(info.file_size for info in archive.infolist()) > limit:  # zipfile reads no more than that of each
            raise DataError(f"it grows to more than {MAX_RATIO} times its size")
        for count, info in enumerate(archive.infolist(), start=1):
            if info.flag_bits & 1:
                raise DataError("it is encrypted; extract it by hand")
            is_plain = stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG, stat.S_IFDIR)
            if _is_wanted(info.filename, is_plain, info.file_size, count, partial, member):
                archive.extract(info, partial)


def _is_wanted(name: str, is_plain: bool, size: int, count: int, partial: Path, member: str | None) -> bool:
    """Checks a member of an archive, and returns whether to extract it.

    `tarfile` and `zipfile` would not write outside of `partial` either.
    """
    path = PurePosixPath(name)
    if count > MAX_MEMBERS:
        raise DataError(f"it has more than {MAX_MEMBERS:,} members")
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"its member {name!r:.200} lies outside of its folder")
    if not is_plain:
        raise DataError(f"its member {name!r:.200} is neither a plain file nor a folder, but a link or a device")
    if len(path.parts) > MAX_DEPTH:
        raise DataError(f"its member {name[:200]!r} lies more than {MAX_DEPTH} folders deep")
    if member is not None and path.parts[:1] != (member,):
        return False
    if size + SPARE_BYTES > shutil.disk_usage(partial).free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # before other programs meet a full disk
    return True


class _Limited:
    """Reads a stream up to a limit, and keeps its last bytes."""

    def __init__(self, stream: BinaryIO, limit: int) -> None:
        self.stream, self.limit = stream, limit
        self.tail = b""

    def read(self, size: int) -> bytes:
        data = self.stream.read(size)
        self.limit -= len(data)
        if self.limit < 0:
            raise DataError(f"it grows to more than {MAX_RATIO} times its size")
        self.tail = (self.tail + data[-len(END_OF_ARCHIVE) :])[-len(END_OF_ARCHIVE) :]
        return data


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        logger.info("Another run is extracting (%s); waiting for it", path)
        lock.acquire()
    except NotImplementedError:  # some network file systems have no locks
        logger.warning("%s cannot be locked: do not start another run that extracts it now", path)
    try:
        yield
    finally:
        with suppress(OSError):  # Windows deletes no open file; there the lock does it at its release
            path.unlink(missing_ok=True)  # first: a process that waits for the lock sees that its file is gone
        lock.release()
