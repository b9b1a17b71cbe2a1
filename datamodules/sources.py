"""The photos of a split at the size that the network sees, decoded each time; the cache is another such source."""

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

from PIL import Image

from datamodules.images import cut_to_box, read_photo
from datamodules.readers.annotations import Annotation

Crop = Literal["no", "box", "box on white"]


class Source(Protocol):
    """The photos of a split at the size that the network sees, before any augmentation."""

    def __len__(self) -> int: ...

    def image(self, index: int) -> Image.Image:
        """Returns a photo, RGB or gray."""
        ...


class DecodedPhotos:
    """Decodes, cuts and resizes a photo each time it is asked for.

    Args:
        annotations: Path and box of each photo.
        resize: From an RGB image of any size to the size and colours that the network sees.
        crop: Whether to cut each photo to its box, or also to paste the cut-out on white.
    """

    def __init__(
        self, annotations: Sequence[Annotation], resize: Callable[[Image.Image], Image.Image], *, crop: Crop = "no"
    ) -> None:
        self.annotations = annotations
        self.resize = resize
        self.crop = crop

    def __len__(self) -> int:
        return len(self.annotations)

    def image(self, index: int) -> Image.Image:
        annotation = self.annotations[index]
        photo = read_photo(annotation.image_path)
        if self.crop != "no":
            photo = cut_to_box(photo, annotation.bounding_box, erase_background=self.crop == "box on white")
        return self.resize(photo)
