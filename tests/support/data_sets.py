"""Writes small data sets in the layouts that Stanford Cars was published in.

The box of each photo has a colour of its own (up to 512 photos) and the rest of the photo the opposite one, so that
neither a wrong box nor a wrong label can pass; file numbers have gaps, and the files are created in shuffled order.
"""

import itertools
import random
import shutil
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import scipy.io
from PIL import Image, ImageDraw

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"  # real data, which is not part of the project
PUBLISHED = SHARED / "stanford_cars_annotations"
needs_published = pytest.mark.skipif(not PUBLISHED.is_dir(), reason=f"the published annotations are not in {PUBLISHED}")

CLASS_NAMES = ("AM General Hummer SUV 2000", "Ram C/V Cargo Van Minivan 2012", "Audi TT RS Coupe 2012")
IMAGE_SIZES = ((64, 48), (48, 64), (90, 60), (300, 200))  # width, height; boxes in 8 bits and in 16
LEVELS = (0, 32, 64, 96, 160, 192, 224, 255)
BOX_FIELDS = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")
UPDATED_FIELDS = ("relative_im_path", *BOX_FIELDS, "class", "test")
ORIGINAL_FIELDS = (*BOX_FIELDS, "class", "fname")

Box = tuple[int, int, int, int]
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Photo:
    """What was written: `name` within the data set's folder, `box` from 0 and without x2 and y2, `label` from 0."""

    name: str
    split: Literal["train", "valid"]
    label: int
    size: tuple[int, int]
    box: Box
    box_colour: Colour

    @property
    def background(self) -> Colour:
        return tuple(255 - level for level in self.box_colour)

    @property
    def row(self) -> dict[str, Any]:
        """The photo's row of an annotation file, with boxes from 1 that include x2 and y2."""
        x1, y1, x2, y2 = self.box
        return {
            "relative_im_path": self.name,
            "fname": Path(self.name).name,
            **dict(zip(BOX_FIELDS, (x1 + 1, y1 + 1, x2, y2), strict=True)),
            "class": self.label + 1,
            "test": int(self.split == "valid"),
        }


def write_updated_release(
    folder: Path,
    *,
    archives: bool = False,
    train_per_class: int = 3,
    valid_per_class: int = 2,
    class_names: Sequence[str] = CLASS_NAMES,
    image_sizes: Sequence[tuple[int, int]] = IMAGE_SIZES,
    names_in_devkit: bool = False,
    seed: int = 0,
) -> list[Photo]:
    """Writes car_ims/ or car_ims.tgz and cars_annos.mat; returns its rows.

    Args:
        folder: Where to; made if need be.
        archives: Whether to write archives instead of folders.
        train_per_class, valid_per_class: How many photos of each class the splits have.
        class_names: One each class.
        image_sizes: (width, height), taken in turn.
        names_in_devkit: Whether the class names are in the devkit instead of in cars_annos.mat.
        seed: Of colours, boxes, numbers and order.
    """
    generator = random.Random(seed)
    kinds = [
        (split, label)
        for label in range(len(class_names))
        for split, count in (("train", train_per_class), ("valid", valid_per_class))
        for _ in range(count)
    ]
    numbers = sorted(generator.sample(range(1, 3 * len(kinds) + 1), len(kinds)))
    names = [f"car_ims/{number:06d}.jpg" for number in numbers]
    photos = _photos(names, kinds, image_sizes, generator, _colours(generator))
    write_photos(folder, photos, generator)
    names_variable = {} if names_in_devkit else {"class_names": class_names}
    write_mat(folder / "cars_annos.mat", [photo.row for photo in photos], UPDATED_FIELDS, **names_variable)
    if names_in_devkit:
        write_mat(folder / "devkit" / "cars_meta.mat", class_names=class_names)
    if archives:
        pack(folder / "car_ims", folder / "car_ims.tgz", generator)
        if names_in_devkit:
            pack(folder / "devkit", folder / "car_devkit.tgz", generator)
    return photos


def write_original_release(
    folder: Path,
    *,
    archives: bool = False,
    nested: bool = False,
    train_per_class: int = 3,
    valid_per_class: int = 2,
    class_names: Sequence[str] = CLASS_NAMES,
    labels: str = "cars_test_annos_withlabels.mat",
    seed: int = 0,
) -> list[Photo]:
    """Writes cars_train/, cars_test/ and devkit/, or their archives; returns the rows of both .mat, training first.

    Args:
        nested: Whether to nest the folders as cars_train/cars_train/ and car_devkit/devkit/.
        labels: Where the labels of the test split are, such as devkit/cars_test_annos_withlabels.mat.

    The other arguments are those of `write_updated_release`.
    """
    generator = random.Random(seed)
    photos, colours = [], _colours(generator)
    for split, part, count in (("train", "cars_train", train_per_class), ("valid", "cars_test", valid_per_class)):
        kinds = [(split, label) for label in range(len(class_names)) for _ in range(count)]
        generator.shuffle(kinds)
        numbers = sorted(generator.sample(range(1, 3 * len(kinds) + 1), len(kinds)))
        names = [f"{part}/{part}/{n:05d}.jpg" if nested else f"{part}/{n:05d}.jpg" for n in numbers]
        photos += _photos(names, kinds, IMAGE_SIZES, generator, colours)
    write_photos(folder, photos, generator)

    rows = {split: [photo.row for photo in photos if photo.split == split] for split in ("train", "valid")}
    devkit = folder / "car_devkit" / "devkit" if nested else folder / "devkit"
    write_mat(devkit / "cars_meta.mat", class_names=class_names)
    write_mat(devkit / "cars_train_annos.mat", rows["train"], ORIGINAL_FIELDS)
    write_mat(devkit / "cars_test_annos.mat", rows["valid"], (*BOX_FIELDS, "fname"))
    write_mat(folder / labels, rows["valid"], ORIGINAL_FIELDS)
    if archives:
        for part in ("cars_train", "cars_test"):
            pack(folder / part, folder / f"{part}.tgz", generator)
        pack(devkit, folder / "car_devkit.tgz", generator)
    return photos


def write_mat(
    path: Path,
    rows: Sequence[dict[str, Any]] | None = None,
    fields: Sequence[str] = (),
    *,
    class_names: Sequence[str] | None = None,
) -> None:
    """Writes a .mat as published: (1, N) structs, each number a (1, 1) array of the smallest unsigned type."""
    variables = {}
    if rows is not None:
        variables["annotations"] = np.empty((1, len(rows)), dtype=[(field, object) for field in fields])
        for index, row in enumerate(rows):
            variables["annotations"][0, index] = tuple(_mat_value(row[field]) for field in fields)
    if class_names is not None:
        variables["class_names"] = np.empty((1, len(class_names)), dtype=object)
        variables["class_names"][0] = class_names
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, variables, do_compression=True)


def change_rows(folder: Path, photos: Sequence[Photo], changes: dict[int, dict[str, Any]]) -> None:
    """Rewrites the cars_annos.mat of `write_updated_release` with other values in some rows, by their index."""
    rows = [photo.row | changes.get(index, {}) for index, photo in enumerate(photos)]
    write_mat(folder / "cars_annos.mat", rows, UPDATED_FIELDS, class_names=CLASS_NAMES)


def write_photos(folder: Path, photos: Sequence[Photo], generator: random.Random) -> None:
    """Writes the JPEGs in shuffled order."""
    for photo in generator.sample(photos, len(photos)):
        image = Image.new("RGB", photo.size, photo.background)
        x1, y1, x2, y2 = photo.box
        ImageDraw.Draw(image).rectangle((x1, y1, x2 - 1, y2 - 1), fill=photo.box_colour)
        path = folder / photo.name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, quality=100, subsampling=0)


def pack(folder: Path, archive: Path, generator: random.Random | None = None) -> None:
    """Moves a folder into an archive, its files in shuffled order."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    (generator or random.Random(0)).shuffle(files)
    if archive.suffix.lower() == ".zip":
        with zipfile.ZipFile(archive, "w") as writer:
            for path in files:
                writer.write(path, path.relative_to(folder.parent).as_posix())
    else:
        with tarfile.open(archive, "w:gz") as tar:
            for path in files:
                tar.add(path, path.relative_to(folder.parent).as_posix())
    shutil.rmtree(folder)


def _colours(generator: random.Random) -> Iterator[Colour]:
    """Returns the 512 colours in random order, over and over."""
    return itertools.cycle(generator.sample(list(itertools.product(LEVELS, repeat=3)), len(LEVELS) ** 3))


def _photos(
    names: Sequence[str],
    kinds: Sequence[tuple],
    image_sizes: Sequence[tuple[int, int]],
    generator: random.Random,
    colours: Iterator[Colour],
) -> list[Photo]:
    sizes = itertools.islice(itertools.cycle(image_sizes), len(names))
    return [
        Photo(name, split, label, size, _box(size, generator), next(colours))
        for name, (split, label), size in zip(names, kinds, sizes, strict=True)
    ]


def _box(size: tuple[int, int], generator: random.Random) -> Box:
    width, height = size
    x1, y1 = generator.randrange(width // 3), generator.randrange(height // 3)
    return x1, y1, generator.randint(2 * width // 3, width), generator.randint(2 * height // 3, height)


def _mat_value(value: Any) -> Any:
    return np.array([[value]], dtype=np.min_scalar_type(value)) if isinstance(value, int) else value


def write_images(folder: Path, *names: str, size: tuple[int, int] = (20, 10)) -> None:
    """Writes small images, each of a color of its own."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        color = tuple(random.Random(name).randbytes(3))
        Image.new("RGB", size, color).save(path, "PNG" if path.suffix.lower() == ".png" else "JPEG")
