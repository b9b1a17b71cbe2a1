"""The results of a data check: a summary for the terminal, and report.md with pictures."""

import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path

import numpy as np

from datamodules.check.figures import (
    SPLITS,
    MixedSample,
    SampleRow,
    draw_class_balance,
    draw_contact_sheets,
    draw_mixed,
    draw_samples,
    draw_sizes,
)
from datamodules.readers.records import WRONG_BOXES, are_most, raise_data_errors
from datamodules.transforms import Aspect
from utils.files import make_timestamped_folder, write_text
from utils.runs.summary import duration

REPORT, BALANCE, SIZES, SAMPLES, MIXED = "report.md", "class_balance.png", "sizes.png", "samples.png", "mixed.png"
SOURCES = {
    "test": "the test split of the data set is the validation split",
    "valid": "as in the data set",
    "train": "validation_fraction, by class and content; copies stay together",
}
CROPS = {"no": "", "box": ", cut to their boxes", "box on white": ", cut to their boxes on white"}
SHEETS = "classes"  # folder of the contact sheets
MIN_SIDE = 32  # pixels; smaller images show no car model
MAX_RATIO = 4  # of the longer side to the shorter one
MIN_CLASS_IMAGES = 10  # for training
MIN_PLACEHOLDERS = 10  # identical files, as of a dealer's "image follows"
MAX_LISTED_PAIRS = 500
MAX_NAMED = 2  # classes with the same number of images that the summary names


@dataclass(frozen=True, slots=True)
class CheckedImage:
    """A decoded image; `size` is its width and height in pixels, `digest` that of the file."""

    path: Path
    split: str
    label: int
    size: tuple[int, int]
    mode: str
    is_gray: bool
    lacks_end: bool
    digest: str
    has_one_color: bool
    perceptual: int

    @property
    def oddity(self) -> str | None:
        """What looks wrong with the image; None if nothing does."""
        if self.has_one_color:
            return "one color"
        if min(self.size) < MIN_SIDE:
            return "tiny"
        return "long and narrow" if max(self.size) > MAX_RATIO * min(self.size) else None


@dataclass(frozen=True)
class Findings:
    """The results of a data check.

    Attributes:
        folder: The data set.
        description: What the reader found, such as "updated release of Stanford Cars".
        class_names: By label.
        images: All that can be decoded, training first.
        broken: A line for each image that cannot be decoded or that its box lies outside of.
        near_duplicates: Pairs of images that look alike and are not identical, and in how many bits their hashes differ.
        valid_from: As in `DataSplits`.
        upright: Whether images are turned by their EXIF orientation.
        clipped: A line for each box that extended beyond its image.
        boxes: Number of images with a box.
        levels: (C, 256), histogram of the resized training images, before any augmentation.
        image_size: Height and width of the resized images, pixels.
        aspect: What the resize does to images of another aspect ratio.
        crop: How training images are cut before that.
        configured: Mean and standard deviation of the configuration; None: no normalization.
        samples: Training images as the model will see them.
        mixed: Images of mixed batches as the model will see them; empty without mixing.
        augmentations: In words.
        began: Start of the check, by `time.monotonic`.
    """

    folder: Path
    description: str
    class_names: Sequence[str]
    images: list[CheckedImage]
    broken: list[str]
    clipped: list[str]
    boxes: int
    levels: np.ndarray
    image_size: tuple[int, int]
    crop: str
    configured: tuple[list[float], list[float]] | None
    samples: list[SampleRow]
    augmentations: str
    began: float
    near_duplicates: list[tuple[CheckedImage, CheckedImage, int]]
    mixed: list[list[MixedSample]]
    valid_from: str
    aspect: Aspect
    upright: bool

    @cached_property
    def class_counts(self) -> dict[str, list[int]]:
        """Number of images of each label, in each split that has any; training and validation always."""
        counts = Counter((image.split, image.label) for image in self.images)
        splits = {"train", "valid", *(image.split for image in self.images)}
        return {
            split: [counts[split, label] for label in range(len(self.class_names))]
            for split in SPLITS
            if split in splits
        }

    @cached_property
    def duplicates(self) -> list[list[CheckedImage]]:
        """Groups of identical files."""
        groups = defaultdict(list)
        for image in self.images:
            groups[image.digest].append(image)
        return [group for group in groups.values() if len(group) > 1]

    @property
    def in_two_classes(self) -> list[list[CheckedImage]]:
        return [group for group in self.duplicates if len({image.label for image in group}) > 1]

    @property
    def in_several_splits(self) -> list[list[CheckedImage]]:
        return [group for group in self.duplicates if len({image.split for image in group}) > 1]

    @property
    def odd(self) -> list[CheckedImage]:
        return [image for image in self.images if image.oddity]

    @property
    def small_classes(self) -> list[str]:
        """The classes with fewer than `MIN_CLASS_IMAGES` images for training."""
        counts = self.class_counts["train"]
        return [name for name, count in zip(self.class_names, counts, strict=True) if count < MIN_CLASS_IMAGES]

    @cached_property
    def normalization(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel over all pixels, in [0, 1]; float64 from exact counts."""
        shares = self.levels / self.levels.sum(axis=1, keepdims=True)
        values = np.arange(256) / 255
        mean = shares @ values
        variance = (shares * (values - mean[:, None]) ** 2).sum(axis=1)
        return mean.tolist(), np.sqrt(variance).tolist()


def write_report(findings: Findings, output_path: Path) -> None:
    """Writes report.md and pictures into a new folder `check_<timestamp>` of `output_path`, and prints the summary.

    Raises:
        DataError: Images cannot be used; the report is written before.
        RunError: The folder cannot be written.
    """
    folder = make_timestamped_folder(output_path, "check")
    draw_class_balance(findings.class_counts, findings.class_names, folder / BALANCE)
    sizes = {split: [image.size for image in findings.images if image.split == split] for split in SPLITS}
    draw_sizes(sizes, findings.image_size, folder / SIZES, aspect=findings.aspect)
    draw_samples(findings.samples, findings.class_names, folder / SAMPLES, title=findings.augmentations)
    if findings.mixed:
        draw_mixed(findings.mixed, findings.class_names, folder / MIXED)
    draw_contact_sheets(findings.images, findings.class_names, folder / SHEETS, upright=findings.upright)
    lines = summary_lines(findings)
    write_text(folder / REPORT, full_report(findings, lines))
    print("\n".join(lines))
    print(
        f"  full report: {folder}/{REPORT}, {BALANCE}, {SIZES}, {SAMPLES}{f', {MIXED}' if findings.mixed else ''}; a contact "
        f"sheet of each class in {SHEETS}/"
    )
    print(
        "  next: the same command without --check"
        if not findings.broken
        else "  next: replace the damaged images and check again"
    )
    raise_data_errors(findings.broken, f"the images; {folder / REPORT} lists all")


def summary_lines(findings: Findings) -> list[str]:
    """Returns the summary."""
    images, duplicates = findings.images, findings.duplicates
    gray = sum(image.is_gray for image in images)
    lacking = sum(image.lacks_end for image in images)
    modes = ", ".join(f"{mode} {count:,}" for mode, count in Counter(image.mode for image in images).most_common())
    return [
        f"{len(images) + len(findings.broken):,} images of {len(findings.class_names):,} classes in {findings.folder}, "
        f"checked in {duration(time.monotonic() - findings.began)}",
        _line("damaged", f"{_counted(len(findings.broken), 'image')} cannot be used" if findings.broken else "none"),
        *(_line(SPLITS[split], text) for split, text in _balance(findings)),
        *(_line(name, _range(image.size[axis] for image in images)) for axis, name in enumerate(("width", "height"))),
        _line("colors", f"{modes}; {gray:,} {'is' if gray == 1 else 'are'} gray in content"),
        *([_line("incomplete", f"{_counted(lacking, 'JPEG')} without end marker")] if lacking else []),
        _line("boxes", _boxes(findings)),
        _line(
            "identical files",
            f"{_counted(len(duplicates), 'group')}, {len(findings.in_two_classes):,} under two labels, "
            f"{len(findings.in_several_splits):,} in several splits"
            if duplicates
            else "none",
        ),
        _line("look alike", _near(findings)),
        _line("odd images", f"{len(findings.odd):,}: {_oddities(findings)}" if findings.odd else "none"),
        _line("splits", SOURCES[findings.valid_from]),
        _line("normalization", f"{_basis(findings)}; for config.yml:"),
        *yaml_lines(findings),
        f"  {_comparison(findings)}",
        *(_line("to do" if number == 0 else "", text) for number, text in enumerate(advice(findings))),
    ]


def advice(findings: Findings) -> list[str]:
    """Returns what to do about each finding."""
    near_labels = sum(one.label != other.label for one, other, _ in findings.near_duplicates)
    near_splits = sum(one.split != other.split for one, other, _ in findings.near_duplicates)
    split = "delete them from training" + (
        ""
        if findings.valid_from == "train"
        else ", or set validation_fraction: a split made here keeps copies together"
    )
    clipped = len(findings.clipped)
    balanced = ", or sampler: balanced" * (len(set(findings.class_counts["train"])) > 1)
    found = {
        "damaged images (#): replace or delete them": len(findings.broken),
        "identical files under two labels (#): keep the right one of each and delete the others": len(
            findings.in_two_classes
        ),
        f"boxes that extend beyond their images (#): {WRONG_BOXES}": clipped
        if are_most(clipped, findings.boxes)
        else 0,
        f"identical files in several splits (#), which flatter the accuracy: {split}": len(findings.in_several_splits),
        f"groups of {MIN_PLACEHOLDERS} or more identical files (#): delete them if they are placeholders, not photos": sum(
            len(group) >= MIN_PLACEHOLDERS for group in findings.duplicates
        ),
        "pairs under two labels that look alike (#): see whether one is mislabeled or a placeholder": near_labels,
        f"pairs in several splits that look alike (#): if they show the same car, {split}": near_splits,
        "odd images (#): look at them in the report and delete what shows no car": len(findings.odd),
        f"classes with fewer than {MIN_CLASS_IMAGES} training images (#): add images{balanced}": len(
            findings.small_classes
        ),
    }
    return [text.replace("#", f"{count:,}") for text, count in found.items() if count] or ["nothing"]


def _boxes(findings: Findings) -> str:
    text = f"{findings.boxes:,}" if findings.boxes else "none"
    count = len(findings.clipped)
    return text + (f", {count:,} of them clipped to {'their images' if count > 1 else 'its image'}" if count else "")


def _near(findings: Findings) -> str:
    pairs = findings.near_duplicates
    if not pairs:
        return "none"
    labels, splits = (
        sum(getattr(one, name) != getattr(other, name) for one, other, _ in pairs) for name in ("label", "split")
    )
    return f"{_counted(len(pairs), 'pair')}, {labels:,} under two labels, {splits:,} in several splits"


def _oddities(findings: Findings) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in Counter(image.oddity for image in findings.odd).items())


def _oddity(image: CheckedImage) -> str:
    """Returns what looks wrong with an image, with its size where that is it."""
    pixels = f"{image.size[0]}×{image.size[1]} pixels"
    return {"tiny": pixels, "long and narrow": f"{pixels}, long and narrow"}.get(image.oddity, image.oddity)


def yaml_lines(findings: Findings) -> list[str]:
    """Returns mean and standard deviation as a key of config.yml."""
    mean, std = findings.normalization
    key = "normalization_params_grayscale" if len(mean) == 1 else "normalization_params_rgb"
    return [f"{key}:", f"  mean: {_numbers(mean)}", f"  std: {_numbers(std)}"]


def _basis(findings: Findings) -> str:
    height, width = findings.image_size
    kept = {"squash": "", "crop": ", their sides cropped", "pad": ", padded with black"}[findings.aspect]
    return f"all pixels of the training images at {height}×{width}{CROPS[findings.crop]}{kept}"


def _comparison(findings: Findings) -> str:
    if findings.configured is None:
        return "The configuration does not normalize."
    configured_mean, configured_std = findings.configured
    mean, std = findings.normalization
    furthest = [
        max(abs(here - there) for here, there in zip(*pair, strict=True))
        for pair in ((mean, configured_mean), (std, configured_std))
    ]
    return (
        f"The configuration has mean {_numbers(configured_mean)} and std {_numbers(configured_std)}: at most "
        f"{furthest[0]:.4f} and {furthest[1]:.4f} away."
    )


def _numbers(values: Iterable[float]) -> str:
    return f"[{', '.join(f'{value:.4f}' for value in values)}]"


def _balance(findings: Findings) -> Iterable[tuple[str, str]]:
    for split, counts in findings.class_counts.items():
        present = [count for count in counts if count]
        if not present:
            yield split, "no images"
            continue
        text = f"{_counted(sum(counts), 'image')}, {min(present)} per class"
        if min(present) < max(present):
            text = f"{sum(counts):,} images, {min(present)} … {max(present)} per class, median {_middle(present)}"
            least, most = (_named(findings, counts, number) for number in (min(present), max(present)))
            text += f"; fewest: {least}; most: {most}"
        if len(present) < len(counts):
            text += f"; none: {_named(findings, counts, 0)}"
        yield split, text


def _named(findings: Findings, counts: list[int], number: int) -> str:
    names = [name for name, count in zip(findings.class_names, counts, strict=True) if count == number]
    return ", ".join(names[:MAX_NAMED]) + (f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else "")


def _range(values: Iterable[int]) -> str:
    values = list(values)
    if min(values) == max(values):
        return f"{values[0]:,} pixels"
    return f"{min(values):,} … {max(values):,} pixels, median {_middle(values)}"


def _middle(values: Sequence[int]) -> str:
    return f"{statistics.median(values):,g}"


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _line(name: str, text: str) -> str:
    return f"  {name:<16}{text}"


def full_report(findings: Findings, lines: Sequence[str]) -> str:
    """Returns report.md: the summary, the pictures, and lists of all images that need attention."""

    def describe(image: CheckedImage) -> str:
        where = f"{image.path.parent.name}/{image.path.name}"
        return f"{where} ({SPLITS[image.split]}, {findings.class_names[image.label]})"

    def listed(title: str, items: Iterable[str]) -> list[str]:
        items = list(items)
        return [f"## {title}: {len(items):,}", "", *(f"- {item}" for item in items or ["none"]), ""]

    def groups(which: list[list[CheckedImage]]) -> Iterable[str]:
        return (" = ".join(describe(image) for image in group) for group in which)

    near = [
        f"{describe(one)} ≈ {describe(other)}: {bits} of 64 bits"
        for one, other, bits in findings.near_duplicates[:MAX_LISTED_PAIRS]
    ]
    same_label = [group for group in findings.duplicates if group not in findings.in_two_classes]
    without_end = [image for image in findings.images if image.lacks_end]
    counts = findings.class_counts
    return "\n".join(
        [
            f"# Data check of {findings.folder}", "",
            f"{datetime.now():%Y-%m-%d %H:%M}, {findings.description}. Nothing was trained.", "",
            "```", *lines, "```", "",
            "## What to do", "", *(f"- {line}" for line in advice(findings)), "",
            f"A contact sheet of each class is in [{SHEETS}/]({SHEETS}).", "",
            f"![Samples]({SAMPLES})", "", *([f"![Mixed batches]({MIXED})", ""] if findings.mixed else []),
            f"![Class balance]({BALANCE})", "", f"![Sizes]({SIZES})", "",
            *listed("Images that cannot be used", findings.broken),
            *listed("JPEGs that lack only their end marker", map(describe, without_end)),
            *listed("Identical files in several splits", groups(findings.in_several_splits)),
            *listed("Identical files under two labels", groups(findings.in_two_classes)),
            *listed("Identical files under one label", groups(same_label)),
            *listed(f"Pairs that look alike (at most {MAX_LISTED_PAIRS} are listed)", near),
            *listed("Odd images", (f"{describe(image)}: {_oddity(image)}" for image in findings.odd)),
            *listed(f"Classes with fewer than {MIN_CLASS_IMAGES} training images", findings.small_classes),
            *listed("Images that are gray in content", (describe(image) for image in findings.images if image.is_gray)),
            *listed("Clipped boxes (x1, y1, x2, y2 from 0, x2 and y2 exclusive)", findings.clipped),
            "## Images of each class", "",
            f"| class | {' | '.join(SPLITS[split] for split in counts)} |", "|---" + "|---:" * len(counts) + "|",
            *(
                f"| {name.replace('|', chr(92) + '|')} | {' | '.join(map(str, values))} |"
                for name, *values in zip(findings.class_names, *counts.values(), strict=True)
            ),
            "",
        ]
    )  # fmt: skip
