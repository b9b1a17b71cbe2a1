"""Reads images, cuts them to their boxes and resizes them."""

import functools
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from utils.errors import DataError

if TYPE_CHECKING:  # readers.records reads the sizes of images through this module
    from datamodules.readers.parquet import ParquetImage
    from datamodules.readers.records import BoundingBox, ImageRecord

# The formats of photos only: Pillow would hand PostScript under the name of a photo to another program.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".heic", ".heif")
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")  # ISO/IEC 23008-12

MAX_FULL_PIXELS = 89_478_485  # Pillow's own limit; larger images are read at half their width and height
MAX_PIXELS = 4 * MAX_FULL_PIXELS
Image.MAX_IMAGE_PIXELS = MAX_PIXELS  # else Pillow takes the photo of a phone for an attack

JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"

Crop = Literal["no", "box", "box on white"]
Source: TypeAlias = "Path | ParquetImage | bytes"

logger = logging.getLogger(__name__)


def read_image(
    source: Source, *, upright: bool = False, name: str | None = None, size: int | None = None
) -> Image.Image:
    """Reads an image of any color mode as RGB; of an animation, the first frame.

    An image of more than `MAX_FULL_PIXELS` is read at half its width and height (`info["reduction"]` is 2). A JPEG whose
    file ends before its end marker, but after its last pixel, is read with a warning (`info["lacks_end"]` is True).
    `info["mode"]` is the color mode of the file.

    Args:
        source: The path of a file, its content, or an image in a Parquet file.
        upright: Whether to turn the image as its EXIF orientation asks. HEIC and TIFF are always turned.
        name: Of the image in messages; by default its path.
        size: A JPEG is read at the smallest of its sizes (1, 1/2, 1/4, 1/8) whose shorter side has so many pixels.

    Raises:
        DataError: The file cannot be read or decoded.
    """
    name = name or _name(source)
    source = _content(source)
    with _errors_naming(name), _open(source) as opened:
        try:
            if size is not None:
                opened.draft("RGB", (size, size))
            image = _decode(opened)
        except OSError as error:
            if "truncated" not in str(error) or not _has_all_pixels(content := _read_bytes(source)):
                raise
            _warn_lacks_end(name)
            image = _decode(_open(content + JPEG_END))
            image.info["lacks_end"] = True
        if upright:
            ImageOps.exif_transpose(image, in_place=True)
    return image


def read_size(source: Source, *, upright: bool = False, name: str | None = None) -> tuple[int, int]:
    """Returns the width and height of an image, pixels, from the head of its file; the arguments are `read_image`'s.

    Raises:
        DataError: The head of the file cannot be read.
    """
    with _errors_naming(name or _name(source)), _open(_content(source)) as image:
        width, height = image.size
        # Pillow turns a TIFF by itself.
        turned = upright and image.format != "TIFF" and image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
        return (height, width) if turned else (width, height)


def cut_to_box(image: Image.Image, box: "BoundingBox", *, erase_background: bool) -> Image.Image:
    """Cuts an image of `read_image` to a box.

    Args:
        image: The whole image.
        box: Pixels of the image in its full size.
        erase_background: Whether to paste the cut-out in the center of a white image of the old size.
    """
    cut_out = image.crop(box_within(image, box))
    if not erase_background:
        return cut_out
    canvas = Image.new("RGB", image.size, "white")
    canvas.paste(cut_out, ((image.width - cut_out.width) // 2, (image.height - cut_out.height) // 2))
    return canvas


def box_within(image: Image.Image, box: "BoundingBox") -> tuple[int, int, int, int]:
    """Returns a box in pixels of an image of `read_image`, which may have been read at a reduced size."""
    reduction = image.info.get("reduction", 1)
    x1, y1, x2, y2 = box
    return x1 // reduction, y1 // reduction, -(-x2 // reduction), -(-y2 // reduction)


@dataclass(eq=False)
class DecodedImages:
    """Decodes, cuts and resizes an image at each access; `ImageCache` reads the results of all.

    Args:
        records: File and box of each image.
        resize: From an RGB image of any size to the size and colors that the augmentations take.
        aspect: What `resize` does to images of another aspect ratio.
        crop: Whether to cut each image to its box, or also to paste the cut-out on white.
        upright: Whether to turn images by their EXIF orientation.
    """

    records: "Sequence[ImageRecord]"
    resize: Callable[[Image.Image], Image.Image]
    _: KW_ONLY
    aspect: str = "squash"
    crop: Crop = "no"
    upright: bool = False

    def __len__(self) -> int:
        return len(self.records)

    @functools.cached_property
    def files(self) -> list[tuple[int, int]]:
        """The size in bytes and the time of the last change, in nanoseconds, of each file."""
        return [(state.st_size, state.st_mtime_ns) for state in (record.path.stat() for record in self.records)]

    def image(self, index: int) -> Image.Image:
        return self.resize(self.cut(read_image(self.records[index].path, upright=self.upright), index))

    def cut(self, image: Image.Image, index: int) -> Image.Image:
        """Cuts a whole image to its box, where `crop` asks for it."""
        if self.crop == "no":
            return image
        return cut_to_box(image, self.records[index].bounding_box, erase_background=self.crop == "box on white")


def _name(source: Source) -> str:
    return "an image without a name" if isinstance(source, bytes) else str(source)


def _content(source: Source) -> Path | bytes:
    return source if isinstance(source, (Path, bytes)) else source.read_bytes()


def _read_bytes(source: Path | bytes, count: int = -1) -> bytes:
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        return file.read(count)


def _open(source: Path | bytes) -> Image.Image:
    """Opens an image without decoding it."""
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        head = _read_bytes(source, 12)
        if not head:
            raise ValueError("the file is empty") from None
        if head[4:8] != b"ftyp" or head[8:] not in HEIF_BRANDS:
            raise
        try:
            import pillow_heif
        except ImportError as error:
            raise ImportError("to read HEIC, run: pip install pillow-heif") from error
        pillow_heif.register_heif_opener()
        image = Image.open(file, formats=("HEIF",))
    if (pixels := image.width * image.height) > MAX_PIXELS:
        image.close()
        raise ValueError(f"{pixels / 1e6:,.0f} megapixels; at most {MAX_PIXELS / 1e6:,.0f} are read")
    return image


def _decode(image: Image.Image) -> Image.Image:
    """Returns the pixels of an opened image as RGB."""
    mode, size, is_large = image.mode, image.size, image.width * image.height > MAX_FULL_PIXELS
    if is_large:
        image.draft(None, (image.width // 2, image.height // 2))  # only a JPEG can be decoded at half its size
    # "I" is the name of a PNG's 16 bits in older versions of Pillow.
    if image.mode in ("I", "F") and image.format != "PNG":
        raise ValueError("32 bits a pixel without a value for white; save it with 8 bits")
    image.load()
    if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow would clip instead of scale
        image = image.convert("I").point(lambda value: value / 256).convert("L")
    elif image.has_transparency_data:  # behind it lies any color; pages show white, and so does the app for phones
        info, image = image.info, image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image.info = info
    if image.mode != "RGB":
        image = image.convert("RGB")
    if is_large:
        image = image.reduce(2) if image.size == size else image
        image.info["reduction"] = 2
    image.info["mode"] = mode
    return image


def _has_all_pixels(content: bytes) -> bool:
    """Whether a file that ends too early is a JPEG whose decoder needs no more of it.

    Where pixels are missing, they depend on the bits that follow the end.
    """
    if not content.startswith(JPEG_START):
        return False
    content = content.removesuffix(JPEG_END[:1])
    images = [
        np.asarray(_decode(_open(content + 64 * bits + JPEG_END))) for bits in (b"\x00", b"\x55", b"\xaa", b"\xfe")
    ]
    return all(np.array_equal(images[0], image) for image in images[1:])


@functools.cache  # once a process, not once an epoch
def _warn_lacks_end(name: str) -> None:
    logger.warning("%s lacks the end of its file; its pixels are complete, and it is used", name)


@contextmanager
def _errors_naming(name: str) -> Iterator[None]:
    """Turns all that can be wrong with an image into a DataError that names it."""
    try:
        yield
    except DataError:
        raise
    except UnidentifiedImageError as error:
        formats = f"{', '.join(FORMATS)} or HEIC"
        raise DataError(f"{name}: this image cannot be decoded: its first bytes are not those of {formats}") from error
    except FileNotFoundError as error:
        if (path := Path(name)).is_symlink():
            raise DataError(f"{name}: broken link to {path.readlink()}; mend or delete it") from error
        raise DataError(
            f"{name}: no such file; restore it and start again, with --resume where there is a checkpoint"
        ) from error
    except Exception as error:  # Pillow's plugins raise a dozen kinds for damaged bytes
        raise DataError(
            f"{name}: this image cannot be decoded ({str(error) or type(error).__name__}); replace it with an intact copy"
        ) from error
