"""Reads images, cuts them to their boxes and resizes them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from PIL import Image, UnidentifiedImageError

from utils.errors import DataError

if TYPE_CHECKING:  # readers.records reads the headers of images through this module
    from datamodules.readers.records import BoundingBox, ImageRecord

# Of all that Pillow can open, what photos are: it would hand PostScript under the name of a photo to another program.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
Crop = Literal["no", "box", "box on white"]


def read_image(path: Path) -> Image.Image:
    """Reads a photo of any colour mode as an RGB image; its rotation note (EXIF) is left alone, as boxes are.

    Raises:
        DataError: The file cannot be read or decoded.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            if (
                image.mode in ("I", "F") and image.format != "PNG"
            ):  # "I" is what older Pillows call the 16 bits of a PNG
                raise DataError(
                    f"{path}: this photo has 32 bits a pixel and does not say which value is white; save it with 8 bits"
                )
            if image.mode.startswith("I"):  # 16 bits a pixel, which PIL would clip instead of scale
                image = image.convert("I").point(lambda value: value / 256).convert("L")
            elif "transparency" in image.info:
                image = image.convert("RGBA")
            return image.convert("RGB")
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(
            f"{path}: this photo cannot be decoded: by its first bytes it is no {', '.join(FORMATS[:-1])} or "
            f"{FORMATS[-1]}, and no other formats are read; save it as one of these"
        ) from error
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: this photo has disappeared; bring it or its folder back and start again, a training that has a "
            "checkpoint with --resume"
        ) from error
    except Exception as error:  # Pillow's plugins answer damaged bytes with errors of a dozen kinds
        raise DataError(
            f"{path}: this photo cannot be decoded ({str(error) or type(error).__name__}); replace it by a whole copy"
        ) from error


def cut_to_box(image: Image.Image, box: "BoundingBox", *, erase_background: bool) -> Image.Image:
    """Cuts `image` to `box`; with `erase_background` the cut-out lies in the centre of a white image of the old size."""
    cut_out = image.crop(box)
    if not erase_background:
        return cut_out
    canvas = Image.new("RGB", image.size, "white")
    canvas.paste(cut_out, ((image.width - cut_out.width) // 2, (image.height - cut_out.height) // 2))
    return canvas


class ImageSource(Protocol):
    """The photos of a split at the size that the network sees, before any augmentation."""

    def __len__(self) -> int: ...

    def image(self, index: int) -> Image.Image:
        """Returns a photo, RGB or gray."""
        ...


class DecodedImages:
    """Decodes, cuts and resizes a photo each time it is asked for.

    Args:
        annotations: Path and box of each photo.
        resize: From an RGB image of any size to the size and colours that the network sees.
        crop: Whether to cut each photo to its box, or also to paste the cut-out on white.
    """

    def __init__(
        self, annotations: "Sequence[ImageRecord]", resize: Callable[[Image.Image], Image.Image], *, crop: Crop = "no"
    ) -> None:
        self.annotations = annotations
        self.resize = resize
        self.crop = crop

    def __len__(self) -> int:
        return len(self.annotations)

    def image(self, index: int) -> Image.Image:
        annotation = self.annotations[index]
        photo = read_image(annotation.path)
        if self.crop != "no":
            photo = cut_to_box(photo, annotation.bounding_box, erase_background=self.crop == "box on white")
        return self.resize(photo)
