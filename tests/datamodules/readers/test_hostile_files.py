"""Hostile annotations, photos and archives: each gives a valid result or one clean error, and nothing is left behind."""

import gzip
import io
import struct
import tarfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from datamodules import clip_boxes, read_data
from datamodules.images import MAX_FULL_PIXELS, read_image
from datamodules.readers import archives
from datamodules.readers.archives import extract_archive
from deployment.prediction import read_upright
from tests.datamodules.readers.test_mat_files import HEADER, array, element
from tests.support.data_sets import write_original_release, write_updated_release
from tests.support.hostile import damaged, examples, outcome
from utils.errors import DataError

# A photo of up to 179 million pixels is read, with a warning by Pillow; what is larger is refused.
pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning", "ignore:.*EXIF.*:UserWarning")
COUNTS = [pytest.param(150, id="some"), pytest.param(1000, marks=pytest.mark.slow, id="a thousand")]


def files_below(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


@pytest.fixture(params=["updated", "updated, compressed", "original"])
def release(request, tmp_path) -> tuple[Path, list[Path]]:
    """A data set's folder and its annotation files."""
    write = write_original_release if request.param == "original" else write_updated_release
    write(tmp_path, image_sizes=[(20, 16)])
    mats = sorted(tmp_path.rglob("*.mat"))
    if request.param == "updated":
        import scipy.io

        for path in mats:
            content = scipy.io.loadmat(path, chars_as_strings=True)
            scipy.io.savemat(path, {name: value for name, value in content.items() if name[0] != "_"})
    return tmp_path, [path for path in mats if path.name != "cars_test_annos.mat"]


@pytest.mark.parametrize("count", COUNTS)
def test_damaged_annotations_are_read_or_refused(release, count):
    folder, mats = release
    originals = {path: path.read_bytes() for path in mats}
    assert outcome(lambda: read_data(folder), DataError) is None
    before = files_below(folder)

    @examples(-(-count // 3))
    @given(st.sampled_from(mats), damaged(list(originals.values())))
    def check(path: Path, content: bytes) -> None:
        path.write_bytes(content)
        try:
            message = outcome(lambda: clip_boxes(read_data(folder)), DataError)
        finally:
            path.write_bytes(originals[path])
        assert message is None or str(folder) in message

    check()
    assert files_below(folder) == before


def compressed(data: bytes) -> bytes:
    return struct.pack("<II", 15, len(packed := zlib.compress(data, 9))) + packed


NUMBER = array(6, (1, 1), element(9, struct.pack("<d", 1)))
HOSTILE_MATS = {
    "many bombs": compressed(element(14, bytes(60_000_000))) * 40,
    "one bomb": compressed(element(14, bytes(2**27))),
    "many dimensions": array(1, (2**31 - 1,) * 500_000, NUMBER, b"annotations"),
    "many field names": array(2, (1, 1), element(5, struct.pack("<i", 1)) + element(1, b"x" * 10_000_000), b"annotations"),
    "wide field names": array(2, (1, 1), element(5, struct.pack("<i", 2**31 - 1)) + element(1, b"x" * 100), b"annotations"),
    "many empty cells": compressed(array(1, (1, 4_000_000), element(14, b"") * 4_000_000, b"class_names")),
    "many structs": array(2, (2**31 - 1, 2**31 - 1), element(5, struct.pack("<i", 8)) + element(1, b""), b"annotations"),
    "negative size": array(1, (-1, 1), b"", b"annotations"),
    "a huge element": struct.pack("<II", 14, 2**32 - 1) + bytes(100),
    "compressed in compressed": compressed(compressed(element(14, bytes(1000)))),
    "no elements at all": bytes(7),
    "floating sizes": element(14, element(6, bytes(8)) + element(9, bytes(16)) + element(1, b"annotations") + NUMBER),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_MATS)
def test_annotations_made_to_be_slow_or_huge(name, tmp_path):
    write_updated_release(tmp_path, image_sizes=[(20, 16)])
    (tmp_path / "cars_annos.mat").write_bytes(HEADER + HOSTILE_MATS[name])
    message = outcome(lambda: read_data(tmp_path), DataError, seconds=10)
    assert "cars_annos.mat" in message


def photos(*, jpeg: bool) -> list[bytes]:
    """Returns photos of one kind: all that a JPEG may be, or of other formats, which some data sets hide under its name."""
    contents = []
    for mode, form, more in (
        ("RGB", "JPEG", {}),
        ("RGB", "JPEG", {"progressive": True}),
        ("L", "JPEG", {}),
        ("CMYK", "JPEG", {}),
        ("RGB", "PNG", {}),
        ("P", "PNG", {"transparency": b"\x00\x80"}),
        ("I;16", "PNG", {}),
        ("RGB", "WEBP", {}),
        ("RGB", "BMP", {}),
        ("RGB", "TIFF", {"compression": "tiff_lzw"}),
    ):
        if (form == "JPEG") != jpeg:
            continue
        image = Image.effect_noise((40, 32), 60).convert(mode if mode != "I;16" else "I").convert(mode)
        exif = Image.Exif()
        exif[0x0112] = 6
        buffer = io.BytesIO()
        image.save(buffer, form, **more, **({"exif": exif} if form == "JPEG" else {}))
        contents.append(buffer.getvalue())
    return contents


def read_either_way(path: Path) -> None:
    for read in (read_image, read_upright):
        image = read(path)
        assert image.mode == "RGB" and image.width * image.height <= MAX_FULL_PIXELS
        image.close()


@pytest.mark.parametrize("jpeg", [True, False], ids=["JPEG", "other formats"])
@pytest.mark.parametrize("count", COUNTS)
def test_damaged_photos_are_read_or_refused(tmp_path, count, jpeg):
    path = tmp_path / "000001.jpg"
    for content in photos(jpeg=jpeg):
        path.write_bytes(content)
        assert outcome(lambda: read_either_way(path), DataError) is None

    @examples(count)
    @given(damaged(photos(jpeg=jpeg)))
    def check(content: bytes) -> None:
        path.write_bytes(content)
        message = outcome(lambda: read_either_way(path), DataError)
        assert message is None or str(path) in message

    check()
    assert files_below(tmp_path) == [path]


def with_size(content: bytes, width: int, height: int) -> bytes:
    """Returns a JPEG with other dimensions in its header."""
    where = content.index(b"\xff\xc0") + 5
    return content[:where] + struct.pack(">HH", height, width) + content[where + 4 :]


def png_bomb(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "content",
    [
        with_size(photos(jpeg=True)[0], 65_500, 65_500),
        with_size(photos(jpeg=True)[0], 0, 0),
        png_bomb(2**31 - 1, 2**31 - 1),
        png_bomb(8, 8),
    ],
    ids=["huge JPEG", "JPEG without size", "huge PNG", "text that grows"],
)
def test_photos_made_to_be_huge_are_refused(tmp_path, content):
    (tmp_path / "a.jpg").write_bytes(content)
    assert "a.jpg: this image cannot be decoded" in outcome(lambda: read_image(tmp_path / "a.jpg"), DataError)


def test_postscript_under_the_name_of_a_photo_is_not_handed_to_another_program(tmp_path, monkeypatch):
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/executed\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    head = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 30\n%%EndComments\n"
    (tmp_path / "a.jpg").write_bytes(head + b"(executed) (w) file\n%%EOF\n")
    assert "cannot be decoded" in outcome(lambda: read_image(tmp_path / "a.jpg"), DataError)
    assert not (tmp_path / "executed").exists()


KINDS = [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE,
         tarfile.FIFOTYPE, tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE, b"V", b"\x00"]  # fmt: skip
PARTS = st.sampled_from(
    ["car_ims", "a.jpg", "..", ".", "", "~", "C:", "\\", "x" * 255, "x" * 300, "\udcff", "é", "con", " ", "-rf"]
)
NAMES = st.lists(PARTS, min_size=1, max_size=5).map("/".join) | st.sampled_from(
    ["/etc/passwd", "/", "car_ims/" * 60 + "a"]
)
MEMBERS = st.tuples(NAMES, st.sampled_from(KINDS[:1] * 6 + KINDS), NAMES, st.integers(0, 3000), st.booleans())
TIMES = st.sampled_from([0, 1_000_000_000, 2**33, -1])


def packed(members: list[tuple], mtime: int, form: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, kind, link, size, inside in [("car_ims/000001.jpg", tarfile.REGTYPE, "", 100, False), *members]:
            info = tarfile.TarInfo(f"car_ims/{name}" if inside else name)
            info.type, info.linkname, info.mtime, info.mode = kind, link, mtime, 0o7777
            info.size = size if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(bytes(info.size)))
    return buffer.getvalue()


@pytest.mark.parametrize("count", COUNTS)
def test_archives_with_odd_members_and_damaged_bytes(tmp_path, count):
    archive, outside, destination = tmp_path / "car_ims.tgz", tmp_path / "outside", tmp_path / "outside" / "data"
    outside.mkdir()
    forms = st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
    whole = st.builds(packed, st.lists(MEMBERS, max_size=4), TIMES, forms)
    broken = whole.flatmap(lambda content: damaged([content]))

    @examples(count)
    @given(whole | broken, st.booleans(), st.booleans())
    def check(content: bytes, zipped: bool, cut_short: bool) -> None:
        content = gzip.compress(content, 1, mtime=0) if zipped else content
        archive.write_bytes(content[: -len(content) // 3] if cut_short else content)
        message = outcome(lambda: extract_archive(archive, destination, "car_ims"), DataError)
        there = [path.relative_to(outside).as_posix() for path in files_below(outside)]
        if message is None:
            assert there[:2] == ["data", "data/car_ims"] and all(name.startswith("data/car_ims") for name in there[1:])
            assert not any(path.is_symlink() or path.stat().st_mode & 0o6000 for path in files_below(outside))
        else:
            assert str(archive) in message and there in ([], ["data"])
        tear_down(destination)
        assert files_below(tmp_path) == [archive, outside]

    check()


def tear_down(folder: Path) -> None:
    for path in reversed(files_below(folder)):
        path.rmdir() if path.is_dir() else path.unlink()
    if folder.exists():
        folder.rmdir()


def test_folders_in_folders_without_end_are_refused_and_nothing_is_left(tmp_path):
    members = [("/".join(["car_ims"] + ["a"] * depth), tarfile.DIRTYPE, "", 0, False) for depth in range(1, 1500, 2)]
    (tmp_path / "car_ims.tgz").write_bytes(gzip.compress(packed(members, 0, tarfile.PAX_FORMAT)))
    message = outcome(lambda: extract_archive(tmp_path / "car_ims.tgz", tmp_path / "data", "car_ims"), DataError)
    assert "folders deep" in message and files_below(tmp_path / "data") == []


def test_an_archive_that_does_not_fit_on_the_disk_does_not_fill_it(tmp_path, monkeypatch):
    free = archives.SPARE_BYTES + 5000
    written = []

    def disk_usage(folder: Path):
        written.append(sum(path.stat().st_size for path in files_below(folder) if path.is_file()))
        return shutil_usage(10 * free, written[-1], free - written[-1])

    shutil_usage = type(archives.shutil.disk_usage(tmp_path))
    monkeypatch.setattr(archives.shutil, "disk_usage", disk_usage)
    (tmp_path / "car_ims.tgz").write_bytes(
        packed([(f"{n}.jpg", tarfile.REGTYPE, "", 900, True) for n in range(9)], 0, 2)
    )
    message = outcome(lambda: extract_archive(tmp_path / "car_ims.tgz", tmp_path / "data", "car_ims"), DataError)
    assert "No space left on device. Make room" in message and files_below(tmp_path / "data") == []
    assert 3000 < max(written) <= 5000


@pytest.mark.parametrize("zeros", [10**8, 3 * 10**8])
def test_a_bomb_is_refused_before_it_grows_a_hundredfold(tmp_path, zeros):
    info = tarfile.TarInfo("car_ims/000001.jpg")
    info.size = zeros
    archive = tmp_path / "car_ims.tgz"
    with gzip.open(archive, "wb", 9) as file:
        file.write(info.tobuf())
        for _ in range(zeros // 10**7):
            file.write(bytes(10**7))
        file.write(bytes(-zeros % 512 + 1024))
    message = outcome(lambda: extract_archive(archive, tmp_path / "data", "car_ims"), DataError, seconds=10)
    assert "grows to more than" in message and files_below(tmp_path / "data") == []
