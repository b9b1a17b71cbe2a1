import gzip
import io
import random
import resource
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given

from datamodules.readers import archives
from datamodules.readers.archives import extract_archive
from tests.support.hostile import damaged, examples, outcome
from utils.errors import DataError
from utils.machine import PROJECT

FILES = {f"car_ims/{number:06d}.jpg": random.Random(number).randbytes(300 * number) for number in range(1, 6)}
EXTRACT = """
import sys
from pathlib import Path
from datamodules.readers.archives import extract_archive
from utils.errors import DataError
try:
    extract_archive(Path(sys.argv[1]), Path(sys.argv[2]) / "car_ims", "car_ims")
except DataError as error:
    sys.exit(f"DataError: {error}")
"""


# Ends as by a power cut before the 52nd file.
KILLED = """
import os, signal
from datamodules.readers import archives
wanted = archives._is_wanted
def checked(name, is_plain, size, count, *rest):
    if count > 51:
        os.kill(os.getpid(), signal.SIGKILL)
    return wanted(name, is_plain, size, count, *rest)
archives._is_wanted = checked
"""


def write_archive(path: Path, *last: tarfile.TarInfo, files: dict[str, bytes] = FILES) -> Path:
    """Writes an archive of files, and at its end members without content."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return path
    with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            info.mtime = 1_000_000_000
            tar.addfile(info, io.BytesIO(content))
        for info in last:
            tar.addfile(info)
    return path


def extract(archive: Path, destination: Path) -> None:
    extract_archive(archive, destination / "car_ims", "car_ims")


def contents(folder: Path) -> dict[str, bytes]:
    """Returns every file below a folder, hidden ones too, and empty folders as None."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() or not any(path.iterdir())]
    return {path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None for path in paths}


def refused(archive: Path, destination: Path) -> str:
    """Returns the message of the error, and sees to it that nothing is left."""
    with pytest.raises(DataError) as error:
        extract(archive, destination)
    assert str(archive) in str(error.value)
    assert contents(destination) == {}
    return str(error.value)


def start_extraction(archive: Path, destination: Path, script: str = EXTRACT) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", script, str(archive), str(destination)], cwd=PROJECT, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("name", ["car_ims.tgz", "car_ims.tar.gz", "car_ims.tar", "car_ims.zip"])
@pytest.mark.parametrize("dot", ["", "./"])
def test_the_folder_is_extracted_and_nothing_else_is_left(tmp_path: Path, name: str, dot: str) -> None:
    files = {dot + path: content for path, content in FILES.items()} | {"._car_ims": b"x", "other/a.txt": b"y"}
    archive = write_archive(tmp_path / name, files=files)

    extract(archive, tmp_path / "new" / "data")

    assert contents(tmp_path / "new") == {f"data/{path}": content for path, content in FILES.items()}


@pytest.mark.parametrize("suffix", [".tgz", ".zip"])
def test_a_whole_archive_is_extracted_to_a_folder_of_its_name(tmp_path: Path, suffix: str) -> None:
    files = {"Citroën/1.jpg": b"x", "b.txt": b"y"}
    archive = write_archive(tmp_path / f"cars{suffix}", files=files)
    extract_archive(archive, tmp_path / "cars")
    assert contents(tmp_path / "cars") == files


def test_the_names_of_a_zip_archive_of_macos_are_utf_8(tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "cars.zip", files={"Citroen/1.jpg": b"x"})
    archive.write_bytes(archive.read_bytes().replace(b"Citroen/", "Citroë/".encode()))  # not marked as UTF-8
    extract_archive(archive, tmp_path / "cars")
    assert contents(tmp_path / "cars") == {"Citroë/1.jpg": b"x"}


def test_what_is_extracted_is_left_alone_and_an_empty_folder_filled(tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "car_ims.tgz")
    folder = tmp_path / "data" / "car_ims"
    folder.mkdir(parents=True)
    extract(archive, tmp_path / "data")
    assert contents(tmp_path / "data") == FILES

    (folder / "000001.jpg").write_bytes(b"mine")
    extract(archive, tmp_path / "data")
    assert (folder / "000001.jpg").read_bytes() == b"mine"


def special(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (special("/tmp/car_ims/evil.jpg"), "'/tmp/car_ims/evil.jpg' lies outside"),
        (special("car_ims/../../evil.jpg"), "'car_ims/../../evil.jpg' lies outside"),
        (
            special("car_ims/a.jpg", tarfile.SYMTYPE, "/etc/passwd"),
            "'car_ims/a.jpg' is neither a plain file nor a folder",
        ),
        (special("car_ims", tarfile.SYMTYPE, "/tmp"), "but a link or a device"),
        (special("car_ims/a.jpg", tarfile.LNKTYPE, "car_ims/000001.jpg"), "but a link or a device"),
        (special("car_ims/a", tarfile.FIFOTYPE), "but a link or a device"),
        (special("car_ims/a", tarfile.BLKTYPE), "but a link or a device"),
        (special("/".join(["car_ims"] + ["a"] * 1500)), "more than 20 folders deep"),
    ],
    ids=["absolute", "parent", "link", "link of the folder", "hard link", "pipe", "device", "deep"],
)
def test_links_devices_and_paths_outside_are_refused(tmp_path: Path, member: tarfile.TarInfo, reason: str) -> None:
    archive = write_archive(tmp_path / "car_ims.tgz", member)
    before = contents(tmp_path)
    assert reason in refused(archive, tmp_path / "data")
    (tmp_path / "data").rmdir()
    assert contents(tmp_path) == before


def test_links_paths_outside_and_encryption_are_refused_in_zip_archives_too(tmp_path: Path) -> None:
    archive = tmp_path / "car_ims.zip"
    for name, attributes, reason in (
        ("car_ims/../../evil.jpg", 0o100644, "lies outside"),
        ("car_ims/a.jpg", 0o120777, "but a link or a device"),
    ):
        with zipfile.ZipFile(archive, "w") as writer:
            info = zipfile.ZipInfo(name)
            info.external_attr = attributes << 16
            writer.writestr(info, "/etc/passwd")
        assert reason in refused(archive, tmp_path / "data")
    content = bytearray(write_archive(archive).read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(content)
    assert "it is encrypted; extract it by hand" in refused(archive, tmp_path / "data")


@pytest.mark.parametrize("part", [0.01, 0.9, 0.9999])
@pytest.mark.parametrize("suffix", [".tgz", ".zip"])
def test_an_archive_cut_short_is_refused(tmp_path: Path, part: float, suffix: str) -> None:
    archive = write_archive(tmp_path / f"car_ims{suffix}")
    whole = archive.read_bytes()
    archive.write_bytes(whole[: int(part * len(whole))])
    assert "is damaged or cut short" in refused(archive, tmp_path / "data")


def test_a_plain_tar_that_ends_between_two_files_is_refused(tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "car_ims.tar")
    with tarfile.open(archive) as tar:
        end_of_the_third = tar.getmembers()[3].offset
    archive.write_bytes(archive.read_bytes()[:end_of_the_third])
    assert "it has no end mark" in refused(archive, tmp_path / "data")


def test_a_wrong_checksum_is_refused(tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "car_ims.tgz")
    whole = bytearray(archive.read_bytes())
    whole[-8] ^= 1
    archive.write_bytes(whole)
    assert "is damaged (CRC check failed" in refused(archive, tmp_path / "data")
    archive = write_archive(tmp_path / "car_ims.zip")
    content = archive.read_bytes()
    archive.write_bytes(content.replace(FILES["car_ims/000002.jpg"][:20], bytes(20)))
    assert archive.read_bytes() != content
    assert "is damaged or cut short (Bad CRC-32" in refused(archive, tmp_path / "data")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty (0 bytes)"),
        (
            b"<!DOCTYPE html><html><title>404</title>",
            'is a web page with the title "404", not a data file: its link is dead',
        ),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a Git LFS pointer"),
        (b"PK\x03\x04" + bytes(1000), "is damaged or cut short (File is not a zip file)"),
        (random.Random(0).randbytes(5000), "is damaged or cut short"),
        (gzip.compress(bytes(10240)), "holds no folder car_ims/"),
    ],
    ids=["empty", "web page", "git lfs", "zip", "noise", "other content"],
)
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    archive = tmp_path / "car_ims.tgz"
    archive.write_bytes(content)
    assert message in refused(archive, tmp_path / "data")


def test_an_archive_of_something_else_is_refused(tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "car_ims.tgz", files={"cars/000001.jpg": b"x", "car_ims_2/a": b"x"})
    assert "it holds no folder car_ims/ with files" in refused(archive, tmp_path / "data")
    write_archive(archive, files={"car_ims": b"a file"})
    assert "it holds no folder car_ims/ with files" in refused(archive, tmp_path / "data")


@pytest.mark.parametrize("suffix", [".tgz", ".zip"])
def test_decompression_bombs_are_refused(tmp_path: Path, monkeypatch, suffix: str) -> None:
    archive = write_archive(tmp_path / f"car_ims{suffix}", files={"car_ims/000001.jpg": bytes(3_000_000)})
    extract(archive, tmp_path / "small")  # 3 MB do no harm, whatever the ratio

    monkeypatch.setattr(archives, "MAX_EXTRA_BYTES", 0)
    assert "it grows to more than 100 times its size" in refused(archive, tmp_path / "data")

    write_archive(archive, files={f"car_ims/{number}": random.Random(0).randbytes(50) for number in range(11)})
    monkeypatch.setattr(archives, "MAX_MEMBERS", 10)
    assert "it has more than 10 members" in refused(archive, tmp_path / "data")


def test_sparse_files_are_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("car_ims/000001.jpg")
    info.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": "99"}
    with tarfile.open(tmp_path / "car_ims.tgz", "w:gz", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info)
    assert "neither a plain file nor a folder" in refused(tmp_path / "car_ims.tgz", tmp_path / "data")


@pytest.mark.parametrize("suffix", [".tgz", ".tar", ".zip"])
def test_mutated_archives_are_extracted_whole_or_not_at_all(tmp_path: Path, suffix: str) -> None:
    archive = write_archive(tmp_path / f"car_ims{suffix}")
    originals = [archive.read_bytes()]

    @examples(60)
    @given(damaged(originals))
    def check(content: bytes) -> None:
        archive.write_bytes(content)
        destination = tmp_path / "outside" / "data"
        message = outcome(lambda: extract(archive, destination), DataError)
        assert {path.name for path in tmp_path.iterdir()} <= {archive.name, "outside"}
        if message is None:
            assert [path.name for path in destination.iterdir()] == ["car_ims"]
        else:
            assert str(archive) in message and contents(destination) == {}
        shutil.rmtree(tmp_path / "outside", ignore_errors=True)

    check()


def test_an_archive_that_does_not_fit_on_the_disk_does_not_fill_it(tmp_path: Path, monkeypatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(archives, "SPARE_BYTES", usage.free)
    archive = write_archive(tmp_path / "car_ims.tgz")
    assert "No space left on device; make room on the disk" in refused(archive, tmp_path / "data")


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> tuple[Path, dict[str, bytes]]:
    files = {f"car_ims/{number:06d}.jpg": b"%06d" % number * 50 for number in range(1500)}
    return write_archive(tmp_path_factory.mktemp("large") / "car_ims.tgz", files=files), files


def test_after_a_killed_run_the_next_one_starts_cleanly(tmp_path: Path, large) -> None:
    archive, files = large
    extraction = start_extraction(archive, tmp_path, KILLED + EXTRACT)
    partial = tmp_path / ".car_ims.partial"
    extraction.communicate()
    assert extraction.returncode == -9
    assert not (tmp_path / "car_ims").exists()
    assert 0 < len(contents(partial)) <= 51

    (partial / "car_ims" / "stray.jpg").write_bytes(b"of an older archive")
    extract(archive, tmp_path)

    assert contents(tmp_path) == files


def test_two_runs_at_once_do_not_disturb_each_other(tmp_path: Path, large) -> None:
    archive, files = large
    extractions = [start_extraction(archive, tmp_path) for _ in range(3)]
    for extraction in extractions:
        _, errors = extraction.communicate(timeout=120)
        assert extraction.returncode == 0, errors
    assert contents(tmp_path) == files


def test_a_full_disk_is_said_and_nothing_is_left(tmp_path: Path) -> None:
    files = {"car_ims/a.jpg": bytes(100), "car_ims/b.jpg": bytes(90_000)}
    archive = write_archive(tmp_path / "car_ims.tgz", files=files)
    limits = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, {resource.RLIM_INFINITY}))"
    outcome = subprocess.run(
        [sys.executable, "-c", f"{limits}\n{EXTRACT}", str(archive), str(tmp_path / "data")],
        cwd=PROJECT,
        capture_output=True,
        text=True,
    )
    assert outcome.returncode == 1
    message = f"DataError: {archive} cannot be extracted to {tmp_path / 'data/car_ims'}: File too large; make room on the disk"
    assert message in outcome.stderr
    assert contents(tmp_path / "data") == {}


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "car_ims.tgz")
    with pytest.raises(DataError, match=r"cannot be extracted to .*/data/car_ims: .*.*set data_path"):
        extract(archive, archive / "data")
