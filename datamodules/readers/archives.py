"""Extracts one folder of a tar archive: safely, and completely or not at all."""

import errno
import gzip
import logging
import os
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO, TextIO

from tqdm.utils import CallbackIOWrapper

from datamodules.readers.downloads import check_download
from utils.errors import DataError
from utils.progress import progress_bar

try:
    import fcntl
except ImportError:  # Windows has no such locks: there two runs must not extract the same archive at once
    fcntl = None

MAX_MEMBERS = 200_000
MAX_RATIO = 100  # of extracted to archived bytes; photos do not shrink, annotations shrink tenfold
MAX_EXTRA_BYTES = 64 * 2**20  # allowed beyond that ratio, as the padding of a small archive shrinks a thousandfold
MAX_DEPTH = 20  # folders in each other; those of the published archives are two
SPARE_BYTES = 2**26  # that are left free on the disk
CHUNK = 2**20  # bytes
END_OF_ARCHIVE = bytes(1024)  # two blocks of zeros
GZIP_MAGIC = b"\x1f\x8b"

logger = logging.getLogger(__name__)


def lock_path(destination: Path, member: str) -> Path:
    """Returns the file that is there while `member` is extracted, and after that was broken off."""
    return destination / f".{member}.lock"


def extract_archive(archive: Path, destination: Path, member: str) -> None:
    """Extracts the folder `member` of a .tgz, .tar.gz or .tar archive to `destination / member`, unless that exists.

    Everything is written into the folder `.<member>.partial` beside it, which is renamed at the end. What a killed run
    left there is removed by the next one; a run that finds another one at work waits for it and takes its result.

    Raises:
        DataError: The archive is damaged, a failed download or too large, holds a link, a device or a path outside its
            folder, or `destination` cannot be written to. Nothing is left behind then.
    """
    final, partial = destination / member, destination / f".{member}.partial"
    try:
        destination.mkdir(parents=True, exist_ok=True)
        with _alone(lock_path(destination, member)):
            _remove(partial)
            if final.is_dir() and any(final.iterdir()):
                return
            try:
                partial.mkdir()
                _extract(archive, partial, member)
                if final.is_dir():
                    final.rmdir()  # Windows renames onto nothing that exists, be it empty
                (partial / member).replace(final)
            finally:
                _remove(partial)
    except OSError as error:
        raise DataError(
            f"{archive} cannot be extracted to {destination}: {error.strerror or error}. Make room, or set "
            "data_path to a folder that can be written to and raw_data_path to that of the archives"
        ) from error


def _extract(archive: Path, partial: Path, member: str) -> None:
    compressed = check_download(archive).startswith(GZIP_MAGIC)
    size = archive.stat().st_size
    bar = progress_bar(description=f"extracting {archive.name}", unit="B", total=size, unit_scale=True)
    try:
        with bar, archive.open("rb") as file:
            watched = CallbackIOWrapper(bar.update, file, "read")
            stream = gzip.GzipFile(fileobj=watched) if compressed else watched
            plain = _Unpacked(stream, MAX_RATIO * size + MAX_EXTRA_BYTES)
            with tarfile.open(fileobj=plain, mode="r|") as tar:
                for count, info in enumerate(tar, start=1):
                    if count > MAX_MEMBERS:
                        raise DataError(f"it has more than {MAX_MEMBERS:,} members")
                    parts = _checked_parts(info)
                    if parts[:1] == (member,):
                        _write(tar, info, partial.joinpath(*parts))
            while plain.read(CHUNK):  # to the very end, where the checksum stands
                pass
            if plain.tail != END_OF_ARCHIVE:
                raise EOFError("it has no end mark")
        if not (partial / member).is_dir() or not any((partial / member).iterdir()):
            raise DataError(f"it holds no folder {member}/ with something in it")
    except DataError as error:
        raise DataError(f"{archive} is not extracted: {error}") from error
    except OSError as error:
        if not isinstance(error, gzip.BadGzipFile):
            raise
        raise DataError(f"{archive} is damaged ({error}); download it again") from error
    except Exception as error:  # tarfile and zlib answer damaged bytes with errors of a dozen kinds
        raise DataError(f"{archive} is damaged or cut short ({error}); download it again") from error


def _checked_parts(info: tarfile.TarInfo) -> tuple[str, ...]:
    """Returns the parts of a member's path, which is that of a plain file or folder inside the archive."""
    path = PurePosixPath(info.name)
    if path.is_absolute() or ".." in path.parts or "\\" in info.name or ":" in info.name:  # the last two for Windows
        raise DataError(f"its member {info.name!r:.200} lies outside of the folder it is extracted to")
    if info.issym() or info.islnk():
        raise DataError(f"its member {info.name!r:.200} is a link to {info.linkname!r:.200}")
    if not (info.isreg() or info.isdir()) or info.issparse():  # a sparse file grows beyond what the limit sees
        raise DataError(f"its member {info.name!r:.200} is neither a plain file nor a folder")
    if len(path.parts) > MAX_DEPTH:
        raise DataError(f"its member {info.name[:200]!r} lies more than {MAX_DEPTH} folders deep")
    return path.parts


def _write(tar: tarfile.TarFile, info: tarfile.TarInfo, path: Path) -> None:
    """Writes a member's content and time, but neither its owner nor its permissions."""
    if info.isdir():
        path.mkdir(parents=True, exist_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if info.size + SPARE_BYTES > shutil.disk_usage(path.parent).free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # before other programs meet a full disk
    with path.open("wb") as target:
        shutil.copyfileobj(tar.extractfile(info), target)
    os.utime(path, (info.mtime, info.mtime))


class _Unpacked:
    """Reads a decompressed stream up to a limit, and remembers its last bytes."""

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
def _alone(lock: Path) -> Iterator[None]:
    """Holds a lock file, which the system frees when its owner dies, and removes it at the end."""
    if fcntl is None:
        yield
        return
    while True:
        with lock.open("w") as file:
            _wait_for(file)
            if not _is_same(file, lock):
                continue  # its last owner has removed it meanwhile; another run would now lock a new one
            try:
                yield
            finally:
                lock.unlink()
            return


def _wait_for(file: TextIO) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        logger.info("Another run is extracting (%s); waiting for it", file.name)
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:  # some network file systems have no locks
        logger.warning("%s cannot be locked (%s): let no other run extract it now", file.name, error.strerror)


def _is_same(file: TextIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
