"""Photos of every colour mode, broken ones, and what is cut from them."""

import numpy as np
import pytest
from PIL import Image

from datamodules import BoundingBox
from datamodules.images import cut_to_box, read_image
from utils.errors import DataError

COLOUR = (200, 120, 40)


@pytest.mark.parametrize(
    ("mode", "suffix", "expected"),
    [
        ("RGB", "jpg", COLOUR),
        ("L", "jpg", (135, 135, 135)),
        ("CMYK", "jpg", COLOUR),
        ("RGB", "png", COLOUR),
        ("RGBA", "png", COLOUR),
        ("P", "png", COLOUR),
        ("L", "png", (135, 135, 135)),
        ("LA", "png", (135, 135, 135)),
        ("1", "png", (255, 255, 255)),
    ],
)
def test_each_colour_mode_is_read_as_rgb(tmp_path, mode, suffix, expected):
    image = Image.new("RGB", (40, 30), COLOUR)
    image = image.quantize(4) if mode == "P" else image.convert(mode)
    image.save(tmp_path / f"photo.{suffix}", **({"quality": 95} if suffix == "jpg" else {}))
    read = read_image(tmp_path / f"photo.{suffix}")
    assert (read.mode, read.size) == ("RGB", (40, 30))
    assert np.abs(np.asarray(read, int) - np.array(expected)).max() <= (
        0 if suffix == "png" and mode != "1" else 255 if mode == "1" else 4
    )


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "deep.png").getpixel((0, 0)) == (156, 156, 156)


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_a_photo_of_32_bits_is_refused_instead_of_being_black(tmp_path, kind):
    Image.fromarray(np.full((8, 8), 200, kind)).save(tmp_path / "deep.tif")
    with pytest.raises(DataError, match=r"deep\.tif: this photo has 32 bits a pixel.*save it with 8 bits"):
        read_image(tmp_path / "deep.tif")


def test_sixteen_bits_of_a_tiff_are_scaled_too(tmp_path):
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(tmp_path / "deep.tif")
    assert read_image(tmp_path / "deep.tif").getpixel((0, 0)) == (156, 156, 156)


@pytest.mark.parametrize("suffix", ["gif", "ppm"])
def test_a_sound_photo_of_another_format_is_answered_with_the_formats_that_are_read(tmp_path, suffix):
    Image.new("RGB", (8, 8), COLOUR).save(tmp_path / f"photo.{suffix}")
    with pytest.raises(DataError, match=r"no JPEG, PNG, WEBP, BMP or TIFF, and no other .* are read") as error:
        read_image(tmp_path / f"photo.{suffix}")
    assert "whole copy" not in str(error.value)


def test_a_transparent_palette_is_read_without_a_warning(tmp_path):
    Image.new("RGB", (8, 8), COLOUR).quantize(4).save(tmp_path / "p.png", transparency=b"\x00\x80")
    assert read_image(tmp_path / "p.png").getpixel((0, 0)) == COLOUR


def test_the_rotation_note_of_a_camera_is_left_alone(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").size == (40, 30)  # boxes were drawn on the photo as it is stored


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "missing"])
def test_a_photo_that_cannot_be_decoded_is_named(tmp_path, damage):
    path = tmp_path / "000123.jpg"
    Image.effect_noise((200, 200), 90).save(path)
    content = {"truncated": path.read_bytes()[:3000], "empty": b"", "text": b"<html>", "missing": b""}[damage]
    path.write_bytes(content)
    if damage == "missing":
        path.unlink()
    with pytest.raises(DataError, match=r"000123\.jpg: this photo (cannot be decoded|has disappeared; bring it or)"):
        read_image(path)


def test_cut_to_box_takes_its_edges_as_pil_does():
    pixels = np.zeros((10, 20, 3), np.uint8)
    pixels[2:5, 7:19] = 255
    image = Image.fromarray(pixels)
    cut = np.asarray(cut_to_box(image, BoundingBox(7, 2, 19, 5), erase_background=False))
    assert cut.shape == (3, 12, 3) and cut.min() == 255
    wider = np.asarray(cut_to_box(image, BoundingBox(6, 1, 20, 6), erase_background=False))
    assert (
        wider.shape == (5, 14, 3) and wider[0].max() == wider[-1].max() == wider[:, 0].max() == wider[:, -1].max() == 0
    )


def test_erased_background_is_white_and_the_cut_out_stands_in_the_centre():
    image = Image.new("RGB", (21, 11), (10, 20, 30))
    erased = np.asarray(cut_to_box(image, BoundingBox(0, 0, 6, 3), erase_background=True))
    assert erased.shape == (11, 21, 3)
    inside = (erased == (10, 20, 30)).all(axis=2)
    assert inside.sum() == 18 and inside[4:7, 7:13].all()
    assert (erased[~inside] == 255).all()
