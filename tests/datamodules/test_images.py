"""Images of every color mode, size and orientation, damaged ones, and what is cut from them."""

import io
import sys
from dataclasses import replace

import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageOps

from datamodules import BoundingBox, ImageRecord, clip_boxes, images, read_data
from datamodules.hashes import hash_images
from datamodules.images import DecodedImages, cut_to_box, read_image, read_size
from tests.support.data_sets import write_updated_release
from utils.errors import DataError

COLOR = (200, 120, 40)


def picture(size: tuple[int, int] = (40, 30)) -> Image.Image:
    """An image whose four corners differ, without noise that a JPEG would lose."""
    x, y = np.meshgrid(np.linspace(0, 200, size[0]), np.linspace(0, 255, size[1]))
    return Image.fromarray(np.stack([x, y, 255 - x], 2).astype(np.uint8))


def jpeg(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("mode", "suffix", "expected"),
    [
        ("RGB", "jpg", COLOR),
        ("L", "jpg", (135, 135, 135)),
        ("CMYK", "jpg", COLOR),
        ("RGB", "png", COLOR),
        ("RGBA", "png", COLOR),
        ("P", "png", COLOR),
        ("L", "png", (135, 135, 135)),
        ("LA", "png", (135, 135, 135)),
        ("P", "gif", COLOR),
    ],
)
def test_each_color_mode_is_read_as_rgb(tmp_path, mode, suffix, expected):
    image = Image.new("RGB", (40, 30), COLOR)
    image = image.quantize(4) if mode == "P" else image.convert(mode)
    image.save(tmp_path / f"a.{suffix}", **({"quality": 95} if suffix == "jpg" else {}))
    read = read_image(tmp_path / f"a.{suffix}")
    assert (read.mode, read.size) == ("RGB", (40, 30))
    assert np.abs(np.asarray(read, int) - np.array(expected)).max() <= (4 if suffix == "jpg" else 0)


def test_one_bit_is_black_or_white(tmp_path):
    image = Image.new("1", (4, 2))
    image.putpixel((3, 1), 1)
    image.save(tmp_path / "a.png")
    expected = np.zeros((2, 4, 3))
    expected[1, 3] = 255
    assert np.array_equal(np.asarray(read_image(tmp_path / "a.png")), expected)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, suffix):
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(tmp_path / f"deep.{suffix}")
    assert read_image(tmp_path / f"deep.{suffix}").getpixel((0, 0)) == (156, 156, 156)


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_an_image_of_32_bits_is_refused_instead_of_being_black(tmp_path, kind):
    Image.fromarray(np.full((8, 8), 200, kind)).save(tmp_path / "deep.tif")
    with pytest.raises(DataError, match=r"deep\.tif: this image cannot be decoded \(32 bits a pixel.*save it with 8"):
        read_image(tmp_path / "deep.tif")


@pytest.mark.parametrize("suffix", ["png", "webp", "gif"])
def test_of_an_animation_the_first_frame_is_read(tmp_path, suffix):
    first, second = (Image.new("RGB", (40, 30), color) for color in (COLOR, "blue"))
    options = {"lossless": True} if suffix == "webp" else {}
    first.save(tmp_path / f"a.{suffix}", save_all=True, append_images=[second], duration=100, **options)
    with Image.open(tmp_path / f"a.{suffix}") as written:
        assert written.n_frames == 2
    assert read_image(tmp_path / f"a.{suffix}").getpixel((20, 15)) == COLOR


def test_an_intact_image_of_another_format_gets_the_formats_that_are_read(tmp_path):
    Image.new("RGB", (8, 8), COLOR).save(tmp_path / "a.ppm")
    with pytest.raises(DataError, match=r"a\.ppm: .* not those of JPEG, PNG, WEBP, BMP, TIFF, GIF or HEIC$"):
        read_image(tmp_path / "a.ppm")


def test_a_transparent_palette_is_read_without_a_warning(tmp_path):
    Image.new("RGB", (8, 8), COLOR).quantize(4).save(tmp_path / "p.png", transparency=b"\x00\x80")
    assert read_image(tmp_path / "p.png").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_what_is_transparent_is_white_as_in_the_app_and_still_turned(tmp_path, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    image = Image.new("RGBA", (8, 4), (*COLOR, 0))
    image.paste((*COLOR, 255), (0, 0, 4, 4))
    image.save(tmp_path / f"a.{suffix}", exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    read = read_image(tmp_path / f"a.{suffix}", upright=True)
    assert (read.mode, read.size) == ("RGB", (4, 8))
    assert (read.getpixel((2, 1)), read.getpixel((2, 6))) == (COLOR, (255, 255, 255))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_the_image_only_where_asked(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned.{suffix}"
    picture().save(path, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    stored = picture() if suffix != "jpg" else Image.open(io.BytesIO(jpeg(picture())))
    for upright in (False, True):
        image = stored
        if upright or suffix == "tif":  # Pillow turns TIFF by itself
            stored.getexif()[0x0112] = orientation
            image = ImageOps.exif_transpose(stored)
        read = read_image(path, upright=upright)
        assert read.size == read_size(path, upright=upright) == image.size
        assert np.abs(np.asarray(read, int) - np.asarray(image, int)).max() <= (20 if suffix == "jpg" else 0)


def test_heic_is_read_and_turned(tmp_path):
    path = tmp_path / "a.heic"
    pillow_heif.from_pillow(picture((64, 48))).save(path, quality=90)
    for source in (path, path.read_bytes()):
        read = read_image(source)
        assert (read.mode, read.size, read_size(source)) == ("RGB", (64, 48), (64, 48))
        assert np.abs(np.asarray(read, int) - np.asarray(picture((64, 48)), int)).mean() < 6


def test_heic_without_its_package_is_answered_with_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "a.heic").write_bytes(b"\x00\x00\x00\x1cftypheic\x00\x00\x00\x00mif1heic" + bytes(40))
    with pytest.raises(DataError, match=r"a\.heic: .*pip install pillow-heif"):
        read_image(tmp_path / "a.heic")


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_large_image_is_read_at_half_its_size_and_its_box_with_it(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr(images, "MAX_FULL_PIXELS", 80 * 60)
    image = Image.new("RGB", (161, 121), "white")
    image.paste((0, 0, 0), (41, 20, 81, 60))
    image.save(tmp_path / f"a.{suffix}", quality=95)
    read = read_image(tmp_path / f"a.{suffix}")
    assert read.size == (81, 61) and read_size(tmp_path / f"a.{suffix}") == (161, 121)
    cut = np.asarray(cut_to_box(read, BoundingBox(41, 20, 81, 60), erase_background=False))
    assert cut.shape == (20, 21, 3) and cut[2:-2, 3:-2].max() < 20
    small = tmp_path / f"small.{suffix}"
    image.crop((0, 0, 80, 60)).save(small)
    assert read_image(small).size == (80, 60)


def test_the_photos_of_todays_phones_are_within_the_limit_and_more_is_refused_with_it(tmp_path, monkeypatch):
    assert images.MAX_PIXELS > 16_320 * 12_240
    monkeypatch.setattr(images, "MAX_PIXELS", 1_000_000)
    picture((2000, 1000)).save(tmp_path / "a.jpg")
    with pytest.raises(DataError, match=r"a\.jpg: this image cannot be decoded \(2 megapixels; at most 1 are read\)"):
        read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "missing"])
def test_an_image_that_cannot_be_decoded_is_named(tmp_path, damage):
    path = tmp_path / "000123.jpg"
    Image.effect_noise((200, 200), 90).save(path)
    content = {"truncated": path.read_bytes()[:3000], "empty": b"", "text": b"<html>", "missing": b""}[damage]
    path.write_bytes(content)
    if damage == "missing":
        path.unlink()
    reason = "no such file; restore it" if damage == "missing" else "this image cannot be decoded"
    with pytest.raises(DataError, match=rf"000123\.jpg: {reason}"):
        read_image(path)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("lost", [1, 2])
def test_a_jpeg_that_lacks_only_its_end_marker_is_read_with_a_warning(tmp_path, caplog, progressive, lost):
    image = Image.merge("RGB", [Image.effect_noise((200, 150), sigma) for sigma in (60, 70, 80)])
    whole, path = jpeg(image, progressive=progressive), tmp_path / f"{progressive}{lost}.jpg"
    path.write_bytes(whole[:-lost])
    read, expected = read_image(path), read_image(whole)
    assert np.array_equal(np.asarray(read), np.asarray(expected)) and read.info["lacks_end"]
    assert caplog.messages == [f"{path} lacks the end of its file; its pixels are complete, and it is used"]
    caplog.clear()
    path = path.rename(tmp_path / "another.jpg")  # each is named once
    hash_images([ImageRecord(path, 0, None)], perceptual=True, upright=False, cache_path=None, name="x")
    assert caplog.messages == [f"{path} lacks the end of its file; its pixels are complete, and it is used"]
    assert "lacks_end" not in expected.info
    for missing in (6, 20, 60, 600):
        with pytest.raises(DataError, match=r"row 7: this image cannot be decoded .*truncated"):
            read_image(whole[:-missing], name="row 7")


def test_cut_to_box_takes_its_edges_as_pil_does():
    pixels = np.zeros((10, 20, 3), np.uint8)
    pixels[2:5, 7:19] = 255
    image = Image.fromarray(pixels)
    cut = np.asarray(cut_to_box(image, BoundingBox(7, 2, 19, 5), erase_background=False))
    assert cut.shape == (3, 12, 3) and cut.min() == 255
    wider = np.asarray(cut_to_box(image, BoundingBox(6, 1, 20, 6), erase_background=False))
    assert wider.shape == (5, 14, 3)
    assert wider[0].max() == wider[-1].max() == wider[:, 0].max() == wider[:, -1].max() == 0


def test_erased_background_is_white_and_the_cut_out_stands_in_the_center():
    image = Image.new("RGB", (21, 11), (10, 20, 30))
    erased = np.asarray(cut_to_box(image, BoundingBox(0, 0, 6, 3), erase_background=True))
    assert erased.shape == (11, 21, 3)
    inside = (erased == (10, 20, 30)).all(axis=2)
    assert inside.sum() == 18 and inside[4:7, 7:13].all()
    assert (erased[~inside] == 255).all()


@pytest.mark.parametrize(("setting", "upright"), [("auto", False), (False, False), (True, True)])
def test_stanford_cars_is_read_as_stored_unless_configured_otherwise(tmp_path, setting, upright):
    first = write_updated_release(tmp_path, train_per_class=1)[0]
    image, exif = Image.new("RGB", (64, 48), "white"), Image.Exif()
    exif[0x0112] = 6
    image.paste((0, 0, 0), (0, 0, 64, 20))  # at the right once it is turned
    image.save(tmp_path / first.name, exif=exif)
    data = read_data(tmp_path, exif_orientation=setting)
    width, height = (48, 64) if upright else (64, 48)
    record = replace(data.train[0], bounding_box=BoundingBox(0, 0, 99, 99))
    data = clip_boxes(replace(data, train=(record,)))
    assert data.train[0].bounding_box == (0, 0, width, height)
    read = DecodedImages(data.train, lambda image: image, crop="box", upright=data.upright).image(0)
    assert read.size == (width, height)
    assert read.getpixel((width - 5, height // 2 + 5))[0] < 30 if upright else read.getpixel((width - 5, 5))[0] < 30
