"""Splits by content: stratified, the same in any order and under any names, and copies of an image never on both sides."""

import json
import logging
import random
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import evaluate
from datamodules import read_data, read_splits
from datamodules.hashes import ImageHashes, hash_images, near_pairs
from datamodules.readers.records import DataSplits
from datamodules.splits import Fractions, group_images, split_data
from tests.support.data_sets import SHARED
from tests.support.small_runs import run
from training.checkpoints import ABOUT, read_checkpoint
from utils.config import load_config
from utils.errors import ConfigError, DataError
from utils.runs.folder import BEST, read_record


def write_noise(path: Path, seed: int, quality: int = 90) -> None:
    """Writes an image of 8×8 random gray fields, whose perceptual hash is far from that of any other seed."""
    levels = np.random.default_rng(seed).integers(0, 256, (8, 8), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(levels).resize((48, 40), Image.Resampling.NEAREST).convert("RGB").save(path, quality=quality)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Class folders: 20 images of `a`, 10 of `b` of which 0.jpg … 2.jpg are one file and 3.jpg is its copy in lower quality."""
    folder = tmp_path / "photos"
    for number in range(20):
        write_noise(folder / "a" / f"{number}.jpg", number)
    for number in range(10):
        write_noise(folder / "b" / f"{number}.jpg", 100 + max(0, number - 3), 60 if number == 3 else 90)
    return folder


def split(folder: Path, fraction: float = 0.2, *, test="auto", distance=4, seed=0, cache_path=None) -> DataSplits:
    fractions = Fractions(fraction, test, distance, seed)
    return split_data(read_data(folder), fractions, cache_path=cache_path, name=str(folder))


def sides(data: DataSplits) -> dict[str, str]:
    return {
        f"{record.path.parent.name}/{record.path.name}": side
        for side in ("train", "valid", "test")
        for record in getattr(data, side)
    }


def test_each_class_is_split_by_its_share_and_copies_stay_together(folder):
    data = split(folder)
    found = Counter((name[0], side) for name, side in sides(data).items())
    assert (found["a", "train"], found["a", "valid"]) == (12, 4)
    assert (found["a", "test"], found["b", "train"], found["b", "valid"], found["b", "test"]) == (4, 6, 2, 2)
    assert data.valid_from == "train"
    for seed in range(5):
        assert len({sides(split(folder, seed=seed))[f"b/{number}.jpg"] for number in range(4)}) == 1


def test_only_identical_files_stay_together_without_a_distance(folder):
    together = [sides(split(folder, 0.4, test=None, distance=None, seed=seed)) for seed in range(8)]
    assert all(len({each[f"b/{number}.jpg"] for number in range(3)}) == 1 for each in together)
    assert len({each["b/3.jpg"] == each["b/0.jpg"] for each in together}) == 2


def test_the_split_depends_on_content_and_seed_and_not_on_names_or_order(folder, tmp_path):
    draws = random.Random(1)
    copied = tmp_path / "copied"
    names = {}
    for path in draws.sample(sorted(folder.rglob("*.jpg")), 30):
        new = copied / path.parent.name / f"{draws.randrange(10**9)}.jpg"
        new.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, new)
        names[f"{path.parent.name}/{path.name}"] = f"{new.parent.name}/{new.name}"
    first, second = split(folder), split(copied)
    assert {names[name]: side for name, side in sides(first).items()} == sides(second)
    assert first.split_digest == second.split_digest
    assert sides(split(folder, seed=1)) != sides(first)
    tests = [  # which do not depend on validation_fraction
        {name for name, side in sides(split(folder, fraction, test=0.2)).items() if side == "test"}
        for fraction in (0.1, 0.3)
    ]
    assert tests[0] == tests[1] and len(tests[0]) == 6


def test_held_out_images_stay_and_become_the_test_split(folder, tmp_path, caplog):
    for name in ("train", "test"):
        shutil.copytree(folder, tmp_path / "split" / name)
    with caplog.at_level(logging.WARNING):
        data = split(tmp_path / "split")
    assert len(data.test) == 30 and all("test" in record.path.parts for record in data.test)
    assert (len(data.train), len(data.valid)) == (24, 6)
    assert "30 images of the test split are identical to images outside of it" in caplog.text


def split_as_configured(folder: Path, caplog) -> tuple[DataSplits, str]:
    """Returns the data as a training reads it, and the messages."""
    with caplog.at_level(logging.INFO):
        changes = {"data_path": folder, "validation_fraction": 0.2, "cache_path": None}
        data = read_splits(load_config().model_copy(update=changes))
    return data, caplog.text


def test_a_test_split_that_is_kept_apart_is_named_as_one(folder, tmp_path, caplog):
    shutil.copytree(folder, tmp_path / "data" / "train")
    write_noise(tmp_path / "data" / "test" / "a" / "new.jpg", 999)
    data, messages = split_as_configured(tmp_path / "data", caplog)
    assert "images: 30 train, 1 test" in messages and "and 1 test images (those of its test split)" in messages
    assert "is used for validation" not in messages and len(data.test) == 1


def test_a_class_of_the_validation_images_is_trained_and_one_of_the_test_images_named_once(folder, tmp_path, caplog):
    shutil.copytree(folder, tmp_path / "data" / "train")
    for number in range(6):
        write_noise(tmp_path / "data" / "val" / "c" / f"{number}.jpg", 500 + number)
        write_noise(tmp_path / "data" / "test" / "d" / f"{number}.jpg", 600 + number)
    data, messages = split_as_configured(tmp_path / "data", caplog)
    assert data.class_counts[2] == 5 and messages.count("no prediction can hit: 'd'") == 1
    assert "'c'" not in messages.split("Allowed")[0] and "too few distinct images" not in messages
    shutil.rmtree(tmp_path / "data" / "train")
    caplog.clear()
    assert (
        "its 6 validation images are split in place of training images"
        in split_as_configured(tmp_path / "data", caplog)[1]
    )


def test_a_class_with_too_few_images_is_named(tmp_path, caplog):
    for name, count in (("one", 1), ("two", 2), ("three", 3), ("many", 20)):
        for number in range(count):
            write_noise(tmp_path / name / f"{number}.jpg", len(name) * 100 + ord(name[0]) * 1000 + number)
    for number in range(3):
        shutil.copy(tmp_path / "many" / "0.jpg", tmp_path / "many" / f"copy{number}.jpg")
    data = split(tmp_path, 0.15)
    found = Counter((name.split("/")[0], side) for name, side in sides(data).items())
    assert [found["one", side] for side in ("train", "valid", "test")] == [1, 0, 0]
    assert [found["two", side] for side in ("train", "valid", "test")] == [1, 1, 0]
    assert [found["three", side] for side in ("train", "valid", "test")] == [1, 1, 1]
    assert "one: 1 image (1 train), none in valid and test" in caplog.text
    assert "two: 2 images (1 train, 1 valid), none in test" in caplog.text
    assert "three" not in caplog.text


def test_a_class_of_copies_stays_in_training_and_one_of_pairs_is_split(tmp_path):
    for number in range(6):
        write_noise(tmp_path / "same" / f"{number}.jpg", 1)
        write_noise(tmp_path / "pairs" / f"{number}.jpg", 10 + number // 2)
    found = Counter((name.split("/")[0], side) for name, side in sides(split(tmp_path, 0.1)).items())
    assert found["same", "train"] == 6
    assert [found["pairs", side] for side in ("train", "valid", "test")] == [2, 2, 2]


def test_pairs_equal_those_of_a_comparison_bit_by_bit():
    draws = random.Random(0)
    values = [draws.getrandbits(64) for _ in range(60)]
    values += [value ^ (1 << draws.randrange(64)) ^ (1 << draws.randrange(64)) for value in values[:30]] + values[:5]
    hashes = ImageHashes([bytes([i]) for i in range(95)], np.array(values, np.uint64), np.arange(95) != 7)
    groups = {frozenset(group) for group in group_images(hashes, 2)}
    expected = [{index} for index in range(95)]
    for one in range(95):
        for other in range(one):
            if 7 not in (one, other) and (values[one] ^ values[other]).bit_count() <= 2:
                merged = expected[one] | expected[other]
                for index in merged:
                    expected[index] = merged
    assert groups == {frozenset(group) for group in expected}
    pairs, distances = near_pairs(hashes, 2)
    assert all((values[a] ^ values[b]).bit_count() == d for (a, b), d in zip(pairs, distances, strict=True))


def test_hashes_are_kept_and_a_damaged_or_changed_file_is_hashed_again(folder, tmp_path, monkeypatch, caplog):
    settings = {"perceptual": True, "upright": True, "cache_path": tmp_path / "cache", "name": "photos"}
    records = read_data(folder).records
    first = hash_images(records, **settings)
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} is read again"))
    again = hash_images(records, **settings)
    assert again.digests == first.digests and (again.perceptual == first.perceptual).all()
    monkeypatch.undo()
    write_noise(records[0].path, 999)
    assert [a == b for a, b in zip(hash_images(records, **settings).digests, first.digests, strict=True)].count(
        False
    ) == 1
    (file,) = (tmp_path / "cache").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert hash_images(records, **settings).digests[1:] == first.digests[1:]
    assert "is damaged" in caplog.text


def test_fractions_that_leave_nothing_are_an_error(folder):
    with pytest.raises(ConfigError, match=r"0\.5 and 0\.5; expected a sum below 1"):
        split(folder, 0.5)


def test_the_test_split_of_a_run_is_what_it_never_saw(folder, tmp_path, caplog, capsys):
    changes = ("validation_fraction=0.2", "best_metric=valid_acc", "class_weights=balanced", "sampler=balanced")
    trained = run(folder, tmp_path / "output", *changes)
    out = capsys.readouterr().out
    record = read_record(trained)
    assert (record["train_photos"], record["valid_photos"], record["test_photos"]) == (18, 6, 6)
    assert (record["valid_from"], record["best_metric"]) == ("train", "valid_acc")
    assert "The validation images (split off from the training images) also chose the checkpoint" in out
    assert "--split test (6 images that chose nothing)" in out
    checkpoint = read_checkpoint(trained / BEST)
    lowest = next(state["lowest"] for state in checkpoint["callbacks"].values() if "lowest" in state)
    assert lowest == -record["best"]["best_valid_acc"]  # which chose the checkpoint
    assert checkpoint[ABOUT]["split_digest"] == record["split_digest"] == split(folder).split_digest
    torch_weights = checkpoint["state_dict"]["loss.weight"].tolist()
    assert torch_weights == pytest.approx([18 / (2 * 12), 18 / (2 * 6)])

    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    seen = {name for name, side in sides(split(folder)).items() if side != "test"}
    for arguments in ([], ["-d", str(moved)]):
        evaluate.main([str(trained), "--split", "test", *arguments, "--output", str(tmp_path / "report")])
        rows = (tmp_path / "report" / "images.csv").read_text().splitlines()[1:]
        images = {"/".join(Path(row.split(",")[0]).parts[-2:]) for row in rows}
        assert len(images) == 6 and not images & seen
        assert "an independent result" in capsys.readouterr().out

    write_noise(folder / "a" / "new.jpg", 12345)
    capsys.readouterr()
    evaluate.main([str(trained), "--split", "test", "--output", str(tmp_path / "report")])
    assert "its images are not those that" in caplog.text
    out = capsys.readouterr().out
    assert "split anew: the model was trained on some of these" in out and "independent" not in out
    assert json.loads((tmp_path / "report" / "summary.json").read_text())["is_same_split"] is False


def test_without_a_fraction_the_test_split_is_the_validation_split(trained_run):
    with pytest.raises(DataError, match="its test split is the validation split"):
        evaluate.main([str(trained_run), "--split", "test"])


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the real data lies in ../shared, which is not here")
def test_somebodys_own_photos_are_split_without_a_leak(tmp_path):
    shutil.unpack_archive(SHARED / "own_photos" / "car_photos.tgz", tmp_path / "data", filter="data")
    data = split(tmp_path / "data", 0.15)
    assert (len(data.train), len(data.valid), len(data.test)) == (1884, 403, 403)
    hashes = hash_images(data.records, perceptual=True, upright=data.upright, cache_path=None, name="own")
    side_of = [side for side in ("train", "valid", "test") for _ in getattr(data, side)]
    groups = group_images(hashes, None)
    assert sum(len(group) > 1 for group in groups) == 167 and sum(len(group) - 1 for group in groups) == 671
    assert all(len({side_of[index] for index in group}) == 1 for group in group_images(hashes, 4))
