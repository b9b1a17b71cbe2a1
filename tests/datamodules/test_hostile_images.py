"""Hostile images: each gives a valid result or one clean error, and nothing is left behind."""

import io
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from PIL import Image

from datamodules.images import MAX_FULL_PIXELS, read_image
from deployment.prediction import read_upright
from tests.support.hostile import damaged, examples, outcome
from utils.errors import DataError

# A photo of up to 179 million pixels is read, with a warning by Pillow; what is larger is refused.
pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning", "ignore:.*EXIF.*:UserWarning")
COUNTS = [pytest.param(150, id="some"), pytest.param(1000, marks=pytest.mark.slow, id="a thousand")]


def files_below(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


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
    "make",
    [
        lambda: with_size(photos(jpeg=True)[0], 65_500, 65_500),
        lambda: with_size(photos(jpeg=True)[0], 0, 0),
        lambda: png_bomb(2**31 - 1, 2**31 - 1),
        lambda: png_bomb(8, 8),
    ],
    ids=["huge JPEG", "JPEG without size", "huge PNG", "text that grows"],
)
def test_photos_made_to_be_huge_are_refused(tmp_path, make):
    (tmp_path / "a.jpg").write_bytes(make())
    assert "a.jpg: this image cannot be decoded" in outcome(lambda: read_image(tmp_path / "a.jpg"), DataError)


def test_postscript_under_the_name_of_a_photo_is_not_handed_to_another_program(tmp_path, monkeypatch):
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/executed\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    head = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 30\n%%EndComments\n"
    (tmp_path / "a.jpg").write_bytes(head + b"(executed) (w) file\n%%EOF\n")
    assert "cannot be decoded" in outcome(lambda: read_image(tmp_path / "a.jpg"), DataError)
    assert not (tmp_path / "executed").exists()
