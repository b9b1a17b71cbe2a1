"""`train.py --check`: planted faults are found and named, figures equal references, samples are the training's own."""

import re
import shutil
import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import assembly
import train
from datamodules import read_data
from datamodules.check.check import SAMPLE_EPOCHS, draw_samples, examine_data, mix_samples
from datamodules.check.report import full_report, summary_lines, write_report, yaml_lines
from tests.support.data_sets import UPDATED_FIELDS, Photo, write_mat, write_updated_release
from utils.cli import run_command, set_options
from utils.config import Config, load_config
from utils.errors import DataError

SETTINGS = (
    "architecture=shuff_v2_x05", "dropout=null", "out_channels=null", "image_size=[32, 48]", "batch_size=4",
    "accelerator=cpu", "num_workers=0",
)  # fmt: skip
NAMES = ("Audi A", "BMW B", "Fiat C")
CROPS: dict[str, Callable[[Image.Image, Photo], Image.Image]] = {
    "crop_to_bboxes=False": lambda image, photo: image,
    "crop_to_bboxes=True": lambda image, photo: image.crop(photo.box),
}


@pytest.fixture
def photos(tmp_path) -> list[Photo]:
    """Three classes with four training and two validation photos each."""
    return write_updated_release(tmp_path / "data", train_per_class=4, class_names=NAMES)


def arguments(tmp_path: Path, *settings: str) -> list[str]:
    paths = (f"output_path={tmp_path / 'output'}", f"cache_path={tmp_path / 'cache'}")
    words = set_options([*SETTINGS, *paths, *settings])
    return ["--check", "-d", str(tmp_path / "data"), *words]


def check(tmp_path: Path, *settings: str) -> int:
    """Returns the exit code of the command."""
    return run_command(lambda _: train.main(arguments(tmp_path, *settings)))


def configuration(tmp_path: Path, *settings: str) -> Config:
    return load_config(overrides=arguments(tmp_path, *settings)[4::2])


def examine(tmp_path: Path, *settings: str) -> tuple[str, str]:
    """Returns the short and the full report, without pictures."""
    build_data = partial(assembly.build_data, configuration(tmp_path, *settings))
    data = read_data(tmp_path / "data")
    findings = examine_data(data, build_data, folder=tmp_path / "data")
    lines = summary_lines(findings)
    return "\n".join(lines), full_report(findings, lines)


def section(text: str, title: str) -> list[str]:
    """Returns the list under a heading of the report, which must give its length."""
    found = re.search(rf"## {re.escape(title)}.*: (\d+)\n\n((?:- .*\n)+)", text)
    items = [line.removeprefix("- ") for line in found[2].splitlines()]
    items = [] if items == ["none"] else items
    assert len(items) == int(found[1])
    return items


def of(photos: list[Photo], split: str, label: int) -> list[Photo]:
    return [photo for photo in photos if (photo.split, photo.label) == (split, label)]


def test_sound_data_passes_and_nothing_is_trained(tmp_path, photos, capsys):
    assert train.main(arguments(tmp_path, "mixup_alpha=0.4", "batch_size=8")) == {}
    (folder,) = (tmp_path / "output").iterdir()
    assert re.fullmatch(r"check_\d{14}", folder.name)
    assert sorted(path.name for path in folder.iterdir()) == [
        "class_balance.png", "classes", "mixed.png", "report.md", "samples.png", "sizes.png",
    ]  # fmt: skip
    for path in folder.glob("*.png"):
        with Image.open(path) as image:
            assert image.width > 800
            assert np.asarray(image.convert("L")).std() > 10  # not an empty page
    sheets = sorted((folder / "classes").iterdir())
    assert [path.name[:3] for path in sheets] == ["000", "001", "002"]
    with Image.open(sheets[0]) as image:
        assert image.width == 6 * 140 and np.asarray(image.convert("L")).std() > 10
    assert not (tmp_path / "cache").exists()
    messages = capsys.readouterr().out
    assert "18 images of 3 classes" in messages
    assert re.search(
        r"damaged +none\n +training +12 images, 4 per class\n +validation +6 images, 2 per class\n", messages
    )
    widths, heights = zip(*(photo.size for photo in photos), strict=True)
    for name, values in (("width", widths), ("height", heights)):
        expected = f"{name} +{min(values)} … {max(values)} pixels, median {statistics.median(values):g}\n"
        assert re.search(expected, messages)
    assert "RGB 18; 0 are gray" in messages
    assert re.search(r"identical files +none\n", messages)
    assert f"full report: {folder}/report.md" in messages
    assert messages.endswith("\n  next: the same command without --check\n")


def test_duplicates_photos_in_both_splits_and_gray_photos_are_named(tmp_path, photos):
    first, second, third, _ = of(photos, "train", 0)
    other, also_gray = of(photos, "train", 1)[:2]
    again = of(photos, "valid", 0)[0]
    data = tmp_path / "data"
    shutil.copyfile(data / first.name, data / other.name)
    shutil.copyfile(data / second.name, data / again.name)
    noise = np.random.default_rng(0).integers(0, 256, (first.size[1], first.size[0]), dtype=np.uint8)
    for photo, mode in ((third, "L"), (also_gray, "RGB")):
        Image.fromarray(noise).resize(photo.size).convert(mode).save(data / photo.name, quality=70)
    messages, text = examine(tmp_path)
    pair = f"{first.name} (training, Audi A) = {other.name} (training, BMW B)"
    assert section(text, "Identical files under two labels") == [pair]
    both = f"{second.name} (training, Audi A) = {again.name} (validation, Audi A)"
    assert section(text, "Identical files in several splits") == [both]
    assert section(text, "Identical files under one label") == [both]
    gray = [f"{third.name} (training, Audi A)", f"{also_gray.name} (training, BMW B)"]
    assert section(text, "Images that are gray in content") == gray
    assert "2 groups, 1 under two labels, 1 in several splits" in messages
    assert "RGB 17, L 1; 2 are gray in content" in messages


def test_every_broken_photo_is_listed_at_the_end_with_exit_code_2(tmp_path, photos, capsys):
    broken = [photo for label in (0, 1, 2) for photo in of(photos, "train", label)[1:]] + of(photos, "valid", 2)
    empty, *truncated = [tmp_path / "data" / photo.name for photo in broken]
    empty.write_bytes(b"")
    for path in truncated:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert check(tmp_path) == 2
    messages = capsys.readouterr()
    assert "18 images" in messages.out
    assert "11 images cannot be used" in messages.out
    assert "3 images, 1 per class" in messages.out
    assert re.search(r"validation +4 images, 2 per class; none: Fiat C\n", messages.out)
    assert "next: replace the damaged images" in messages.out
    assert "\nerror: 11 problems in the images" in messages.err
    assert "… and 1 more" in messages.err
    assert sum(path.name in messages.err for path in (empty, *truncated)) == 10
    (report,) = (tmp_path / "output").glob("check_*/report.md")
    listed = section(report.read_text(encoding="utf-8"), "Images that cannot be used")
    assert {Path(line.partition(": ")[0]) for line in listed} == {empty, *truncated}


def test_a_box_outside_its_image_and_a_jpeg_without_its_end_are_listed(tmp_path, photos):
    outside, open_ended = of(photos, "train", 1)[0], of(photos, "valid", 1)[0]
    path = tmp_path / "data" / open_ended.name
    path.write_bytes(path.read_bytes()[:-2])
    rows = [replace(photo, box=(900, 900, 950, 950)) if photo is outside else photo for photo in photos]
    write_mat(tmp_path / "data" / "cars_annos.mat", [each.row for each in rows], UPDATED_FIELDS, class_names=NAMES)
    messages, text = examine(tmp_path)
    assert section(text, "JPEGs that lack only their end marker") == [f"{open_ended.name} (validation, BMW B)"]
    (problem,) = section(text, "Images that cannot be used")
    assert problem.startswith(f"{tmp_path / 'data' / outside.name}: its box (900, 900, 950, 950) lies outside")
    assert "1 image cannot be used" in messages and "1 JPEG without end marker" in messages


def test_data_without_boxes_and_with_a_test_split(tmp_path, photos):
    data = read_data(tmp_path / "data")
    train, valid = (tuple(replace(record, bounding_box=None) for record in split) for split in (data.train, data.valid))
    data = replace(data, train=train, valid=valid[:3], test=valid[3:])
    findings = examine_data(data, partial(assembly.build_data, configuration(tmp_path)), folder=tmp_path / "data")
    write_report(findings, tmp_path / "output")
    (report,) = (tmp_path / "output").glob("check_*/report.md")
    text = report.read_text(encoding="utf-8")
    assert re.search(r"\n +test +3 images, 1 … 2 per class", text)
    assert re.search(r"\n +boxes +none\n", text) and "training images (3): add images\n" in text  # all have four
    assert text.endswith("| class | training | validation | test |\n|---|---:|---:|---:|\n"
                         "| Audi A | 4 | 2 | 0 |\n| BMW B | 4 | 1 | 1 |\n| Fiat C | 4 | 0 | 2 |\n")  # fmt: skip


@pytest.mark.parametrize(
    ("split", "kept", "found"), [("train", 1, "1 training and 6"), ("valid", 0, "12 training and 0")]
)
def test_with_too_few_usable_photos_there_is_no_report(tmp_path, photos, capsys, split, kept, found):
    for photo in [photo for photo in photos if photo.split == split][kept:]:
        (tmp_path / "data" / photo.name).write_bytes(b"no JPEG")
    assert check(tmp_path) == 2
    assert f"{found} validation images can be used, expected at least 2 and 1" in capsys.readouterr().err
    assert not (tmp_path / "output").exists()


def test_a_rare_class_a_missing_class_and_a_clipped_box_are_named(tmp_path, photos):
    absent = [*of(photos, "valid", 1), *of(photos, "train", 0)[:2]]
    wide = of(photos, "train", 2)[0]
    width, height = wide.size
    kept = [
        replace(photo, box=(0, 0, width + 9, height)) if photo is wide else photo
        for photo in photos
        if photo not in absent
    ]
    write_mat(tmp_path / "data" / "cars_annos.mat", [each.row for each in kept], UPDATED_FIELDS, class_names=NAMES)
    messages, text = examine(tmp_path)
    training = r"training +10 images, 2 … 4 per class, median 4; fewest: Audi A; most: BMW B, Fiat C\n"
    assert re.search(training + r" +validation +4 images, 2 per class; none: BMW B\n", messages)
    assert text.endswith("| Audi A | 2 | 2 |\n| BMW B | 4 | 0 |\n| Fiat C | 4 | 2 |\n")
    assert "boxes           14, 1 of them clipped to its image\n" in messages and "boxes that extend" not in messages
    assert section(text, "Clipped boxes") == [
        f"{Path(wide.name).name}: {(0, 0, width + 9, height)} to {(0, 0, width, height)}"
    ]


@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize("gray", [False, True])
def test_mean_and_std_equal_those_of_all_pixels(tmp_path, photos, crop, gray):
    pixels = []
    for photo in photos:
        if photo.split == "train":
            with Image.open(tmp_path / "data" / photo.name) as image:
                resized = CROPS[crop](image.convert("RGB"), photo).resize((48, 32), Image.Resampling.BILINEAR)
            pixels.append(np.asarray(resized.convert("L") if gray else resized, np.float64).reshape(32 * 48, -1) / 255)
    pixels = np.concatenate(pixels)
    config = configuration(tmp_path, crop, f"convert_to_grayscale={gray}")
    data = read_data(tmp_path / "data")
    findings = examine_data(data, partial(assembly.build_data, config), folder=tmp_path / "data")
    mean, std = findings.normalization
    np.testing.assert_allclose(mean, pixels.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(std, pixels.std(axis=0), rtol=1e-12)

    key = "normalization_params_grayscale" if gray else "normalization_params_rgb"
    pasted = yaml.safe_load("\n".join(yaml_lines(findings)))
    assert pasted == {key: {"mean": [round(value, 4) for value in mean], "std": [round(value, 4) for value in std]}}
    configured = getattr(config, key)
    furthest = max(abs(here - there) for here, there in zip(mean, configured.mean, strict=True))
    assert f"at most {furthest:.4f} and" in next(
        line for line in summary_lines(findings) if "The configuration has" in line
    )


@pytest.mark.parametrize("device", ["cpu", "device"])
def test_the_samples_are_what_the_training_will_see(tmp_path, photos, device):
    config = configuration(tmp_path, f"augmentation_device={device}", "seed=3", "mixup_alpha=1.0", "cutmix_alpha=1.0")
    annotations = read_data(tmp_path / "data")
    usable = {annotation.path for annotation in annotations.train[1:]}
    rows = draw_samples(assembly.build_data(config, annotations), usable)
    assert len({row.name for row in rows}) == 6
    assert {row.label for row in rows} == {0, 1, 2}

    data = assembly.build_data(config, annotations)
    data.setup("fit")
    loader = data.train_dataloader()
    normalization = config.normalization_params_rgb
    for epoch in range(SAMPLE_EPOCHS):
        loader.batch_sampler.set_epoch(epoch)
        order = [index for batch in loader.batch_sampler for _, index in batch]
        seen = dict(zip(order, torch.cat([images for images, _ in loader]), strict=True))
        for row in rows:
            index = next(i for i, each in enumerate(annotations.train) if each.path.name == row.name)
            annotation = annotations.train[index]
            assert annotation.path in usable
            assert (row.label, row.bounding_box) == (annotation.label, annotation.bounding_box)
            expected = seen[index].permute(1, 2, 0).numpy() * normalization.std + normalization.mean
            np.testing.assert_allclose(row.draws[epoch], expected.clip(0, 1), rtol=0, atol=1e-6)
    assert not np.array_equal(rows[0].draws[0], rows[0].draws[1])

    loader.batch_sampler.set_epoch(0)
    mixing = assembly.build_mixing(config, 3)
    everything = {annotation.path for annotation in annotations.train}
    mixed = mix_samples(assembly.build_data(config, annotations), everything, mixing, 1)
    assert len(mixed) == len(loader) == 3
    for step, (row, (images, labels)) in enumerate(zip(mixed, loader, strict=True)):
        images, targets = mixing(images, labels, step)
        for sample, image, target in zip(row, images[1:], targets[1:], strict=True):
            expected = image.permute(1, 2, 0).numpy() * normalization.std + normalization.mean
            np.testing.assert_allclose(sample.image, expected.clip(0, 1), rtol=0, atol=1e-6)
            assert {label: pytest.approx(target[label].item()) for label, _ in sample.shares} == dict(sample.shares)

    # A damaged image leaves those before it in its batch; a row needs two images, of which the second is mixed with the first.
    order = [[annotations.train[index].path for _, index in batch] for batch in loader.batch_sampler]
    usable = everything - {order[0][1], order[1][3]}
    found = mix_samples(assembly.build_data(config, annotations), usable, mixing, 1)
    assert [len(row) for row in found] == [2, len(mixed[2])]
    for one, other in zip([*found[0], *found[1]], [*mixed[1][:2], *mixed[2]], strict=True):
        np.testing.assert_array_equal(one.image, other.image)


def test_an_output_that_cannot_be_written_and_a_wrong_configuration(tmp_path, photos, capsys):
    (tmp_path / "output").write_text("a file")
    assert check(tmp_path) == 2
    assert f"output_path: {tmp_path / 'output'} is a file; expected a folder" in capsys.readouterr().err
    assert check(tmp_path, "optimizer_params.momentum=0.9") == 2
    assert "momentum" in capsys.readouterr().err


def test_check_and_resume_exclude_each_other(capsys):
    with pytest.raises(SystemExit, match="2"):
        train.main(["--check", "--resume", "last"])
    assert "not allowed with" in capsys.readouterr().err


def test_images_that_look_alike_or_wrong_are_listed_with_what_to_do(tmp_path):
    draws = np.random.default_rng(0)
    folder = tmp_path / "mine"
    for number in range(24):
        levels = draws.integers(0, 256, (8, 8), np.uint8)
        image = Image.fromarray(levels).resize((64, 64), Image.Resampling.NEAREST).convert("RGB")
        for label in ("a", "b")[: 1 + (number == 0)]:
            path = folder / label / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path, quality=90 if label == "a" else 60)
    Image.new("RGB", (64, 64), "white").save(folder / "a" / "blank.png")
    for name, size in (("tiny", (20, 30)), ("banner", (400, 50))):
        Image.effect_noise(size, 90).convert("RGB").save(folder / "b" / f"{name}.png")
    words = [f"output_path={tmp_path / 'output'}", "cache_path=null", "validation_fraction=0.2", "test_fraction=null"]
    train.main(["--check", "-d", str(folder), *set_options(words)])
    (report,) = (tmp_path / "output").glob("check_*/report.md")
    text = report.read_text()
    (pair,) = section(text, "Pairs that look alike (at most 500 are listed)")
    assert pair.startswith("a/0.jpg") and "≈ b/0.jpg" in pair
    odd = [line.rpartition(": ")[::2] for line in section(text, "Odd images")]
    assert {(name.split()[0], what) for name, what in odd} == {
        ("a/blank.png", "one color"), ("b/tiny.png", "20×30 pixels"), ("b/banner.png", "400×50 pixels, long and narrow"),
    }  # fmt: skip
    assert section(text, "Classes with fewer than 10 training images") == ["b"]
    assert "pairs under two labels that look alike (1):" in text and "odd images (3): look at them" in text
    assert "validation_fraction, by class and content; copies stay together" in text


def test_a_check_of_one_class_is_an_error(tmp_path, photos):
    data = read_data(tmp_path / "data")
    train, valid = (tuple(each for each in split if each.label == 0) for split in (data.train, data.valid))
    one = replace(data, train=train, valid=valid, class_names=NAMES[:1])
    with pytest.raises(DataError, match="only the class 'Audi A', expected at least 2 classes"):
        examine_data(one, partial(assembly.build_data, configuration(tmp_path)), folder=tmp_path / "data")


def test_data_without_a_validation_split_says_how_to_make_one(tmp_path):
    for number in range(4):
        Image.effect_noise((32, 32), 90).save(tmp_path / f"{number}.png")
        (tmp_path / "mine" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{number}.png").rename(tmp_path / "mine" / "ab"[number % 2] / f"{number}.png")
    for check in (["--check"], []):
        with pytest.raises(DataError, match=r"set validation_fraction, as in --set validation_fraction=0\.15"):
            train.main(
                [*check, "-d", str(tmp_path / "mine"), "--set", "cache_path=null", "--set", f"output_path={tmp_path}"]
            )
