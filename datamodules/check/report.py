"""What a data check found, in a few lines for the terminal and at length in report.md, with its pictures beside it."""

import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path

import numpy as np

from datamodules.check.figures import SampleRow, draw_class_balance, draw_samples, draw_sizes
from utils.files import make_timestamped_folder, write_text
from utils.runs.summary import duration

REPORT, BALANCE, SIZES, SAMPLES = "report.md", "class_balance.png", "sizes.png", "samples.png"
SPLITS = {"train": "training", "valid": "validation"}
CROPS = {"no": "", "box": ", cut to their boxes", "box on white": ", cut to their boxes on white"}
NAMED = 2  # classes of the same number of photos that the terminal names


@dataclass(frozen=True, slots=True)
class CheckedPhoto:
    """A photo that was decoded; `size` is width and height in pixels, `digest` that of the file's bytes."""

    path: Path
    split: str
    label: int
    size: tuple[int, int]
    mode: str
    is_gray: bool
    digest: str


@dataclass(frozen=True)
class Findings:
    """All that was found.

    Attributes:
        folder: The data set.
        description: What the reader found, such as "updated release of Stanford Cars".
        class_names: By label.
        photos: All that could be decoded, training first.
        broken: A line for each photo that cannot be decoded.
        clipped: A line for each box that reached past its photo.
        levels: (C, 256), how often each of 0 … 255 occurs in the training photos as resized, before any augmentation.
        image_size: Height and width to which they were resized.
        crop: How they were cut before that.
        configured: Mean and standard deviation by which the training will normalise; None: it will not.
        samples: Training photos as the network will see them.
        sampled_by: The augmentations, in words.
        began: When the check began, by `time.monotonic`.
    """

    folder: Path
    description: str
    class_names: Sequence[str]
    photos: list[CheckedPhoto]
    broken: list[str]
    clipped: list[str]
    levels: np.ndarray
    image_size: tuple[int, int]
    crop: str
    configured: tuple[list[float], list[float]] | None
    samples: list[SampleRow]
    sampled_by: str
    began: float

    @cached_property
    def class_counts(self) -> dict[str, list[int]]:
        """Number of photos of each label in each split."""
        counts = Counter((photo.split, photo.label) for photo in self.photos)
        return {split: [counts[split, label] for label in range(len(self.class_names))] for split in SPLITS}

    @cached_property
    def duplicates(self) -> list[list[CheckedPhoto]]:
        """Groups of files with the same bytes."""
        groups = defaultdict(list)
        for photo in self.photos:
            groups[photo.digest].append(photo)
        return [group for group in groups.values() if len(group) > 1]

    @property
    def in_two_classes(self) -> list[list[CheckedPhoto]]:
        return [group for group in self.duplicates if len({photo.label for photo in group}) > 1]

    @property
    def in_both_splits(self) -> list[list[CheckedPhoto]]:
        return [group for group in self.duplicates if len({photo.split for photo in group}) > 1]

    @cached_property
    def normalization(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel over all pixels, in [0, 1]; float64 from exact counts."""
        shares = self.levels / self.levels.sum(axis=1, keepdims=True)
        values = np.arange(256) / 255
        mean = shares @ values
        variance = (shares * (values - mean[:, None]) ** 2).sum(axis=1)
        return mean.tolist(), np.sqrt(variance).tolist()


def write_report(findings: Findings, output_path: Path) -> Path:
    """Writes report.md and three pictures into a new folder `check_<timestamp>`, prints the short report, returns it.

    Raises:
        RunError: The folder cannot be written.
    """
    folder = make_timestamped_folder(output_path, "check")
    draw_class_balance(findings.class_counts, findings.class_names, folder / BALANCE)
    sizes = {split: [photo.size for photo in findings.photos if photo.split == split] for split in SPLITS}
    draw_sizes(sizes, findings.image_size, folder / SIZES)
    draw_samples(findings.samples, findings.class_names, folder / SAMPLES, title=findings.sampled_by)
    lines = summary_lines(findings)
    write_text(folder / REPORT, full_report(findings, lines))
    print("\n".join(lines))
    print(f"  all of it is in {folder}: {REPORT}, {BALANCE}, {SIZES}, {SAMPLES}")
    print(
        "  next: the same command without --check"
        if not findings.broken
        else "  next: replace the broken photos and check again"
    )
    return folder


def summary_lines(findings: Findings) -> list[str]:
    """Returns the short report."""
    photos, duplicates = findings.photos, findings.duplicates
    gray = sum(photo.is_gray for photo in photos)
    modes = ", ".join(f"{mode} {count:,}" for mode, count in Counter(photo.mode for photo in photos).most_common())
    return [
        f"{len(photos) + len(findings.broken):,} photos of {len(findings.class_names):,} classes in {findings.folder}, "
        f"checked in {duration(time.monotonic() - findings.began)}",
        _line("broken", f"{len(findings.broken):,} photos cannot be decoded" if findings.broken else "none"),
        *(_line(SPLITS[split], text) for split, text in _balance(findings)),
        *(_line(name, _range(photo.size[axis] for photo in photos)) for axis, name in enumerate(("width", "height"))),
        _line("colours", f"{modes}; {gray:,} {'is' if gray == 1 else 'are'} gray in content"),
        _line("boxes", f"{len(findings.clipped):,} reached past their photos and were clipped"),
        _line(
            "identical files",
            f"{len(duplicates):,} group{'s' * (len(duplicates) > 1)}, {len(findings.in_two_classes):,} under two labels, "
            f"{len(findings.in_both_splits):,} in both splits"
            if duplicates
            else "none",
        ),
        _line("normalisation", f"{_basis(findings)}, to paste into config.yml:"),
        *yaml_lines(findings),
        f"  {_comparison(findings)}",
    ]


def yaml_lines(findings: Findings) -> list[str]:
    """Returns mean and standard deviation as the key of config.yml that the training reads."""
    mean, std = findings.normalization
    key = "normalization_params_grayscale" if len(mean) == 1 else "normalization_params_rgb"
    return [f"{key}:", f"  mean: {_numbers(mean)}", f"  std: {_numbers(std)}"]


def _basis(findings: Findings) -> str:
    height, width = findings.image_size
    return f"all pixels of the training photos at {height}×{width}{CROPS[findings.crop]}"


def _comparison(findings: Findings) -> str:
    if findings.configured is None:
        return "The configuration normalises by nothing."
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
            yield split, "no photos"
            continue
        text = f"{sum(counts):,} photos, {min(present)} a class"
        if min(present) < max(present):
            text = f"{sum(counts):,} photos, {min(present)} … {max(present)} a class, median {_middle(present)}"
            least, most = (_named(findings, counts, number) for number in (min(present), max(present)))
            text += f"; least: {least}; most: {most}"
        if len(present) < len(counts):
            text += f"; without any: {_named(findings, counts, 0)}"
        yield split, text


def _named(findings: Findings, counts: list[int], number: int) -> str:
    names = [name for name, count in zip(findings.class_names, counts, strict=True) if count == number]
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _range(values: Iterable[int]) -> str:
    values = list(values)
    return f"{min(values):,} … {max(values):,} pixels, median {_middle(values)}"


def _middle(values: Sequence[int]) -> str:
    return f"{statistics.median(values):,g}"


def _line(name: str, text: str) -> str:
    return f"  {name:<16}{text}"


def full_report(findings: Findings, lines: Sequence[str]) -> str:
    """Returns report.md: the short report's lines, the pictures, and every photo that there is something to say of."""

    def photo_name(photo: CheckedPhoto) -> str:
        where = f"{photo.path.parent.name}/{photo.path.name}"
        return f"{where} ({SPLITS[photo.split]}, {findings.class_names[photo.label]})"

    def listed(title: str, items: Iterable[str]) -> list[str]:
        items = list(items)
        return [f"## {title}: {len(items):,}", "", *(f"- {item}" for item in items or ["none"]), ""]

    def groups(which: list[list[CheckedPhoto]]) -> Iterable[str]:
        return (" = ".join(photo_name(photo) for photo in group) for group in which)

    same_label = [group for group in findings.duplicates if group not in findings.in_two_classes]
    counts = findings.class_counts
    return "\n".join(
        [
            f"# Data check of {findings.folder}", "",
            f"{datetime.now():%Y-%m-%d %H:%M}, {findings.description}. Nothing was trained.", "",
            "```", *lines, "```", "",
            f"![Samples]({SAMPLES})", "", f"![Class balance]({BALANCE})", "", f"![Sizes]({SIZES})", "",
            *listed("Photos that cannot be decoded", findings.broken),
            *listed("Photos that stand in both splits", groups(findings.in_both_splits)),
            *listed("Identical files under two labels", groups(findings.in_two_classes)),
            *listed("Identical files under one label", groups(same_label)),
            *listed("Photos that are gray in content", (photo_name(each) for each in findings.photos if each.is_gray)),
            *listed("Boxes that were clipped (x1, y1, x2, y2 from 0, x2 and y2 outside)", findings.clipped),
            "## Photos of each class", "", "| class | training | validation |", "|---|---:|---:|",
            *(
                f"| {name.replace('|', chr(92) + '|')} | {train} | {valid} |"
                for name, train, valid in zip(findings.class_names, counts["train"], counts["valid"], strict=True)
            ),
            "",
        ]
    )  # fmt: skip
