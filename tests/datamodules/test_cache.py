"""The cache and the loader of whole batches: the same photos to the bit, rebuilt when stale, the same order and labels."""

import hashlib
import os
import pickle
import threading
import time
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from PIL import Image

from datamodules import read_data
from datamodules.cache import check_cache_folder, open_cache
from datamodules.datamodule import ImageDataset, with_boxes_of_others
from datamodules.images import DecodedImages
from datamodules.on_device.augmentations import BatchedAugmentations
from datamodules.on_device.loader import PREFETCH, DeviceLoader
from datamodules.sampler import EpochBatchSampler
from datamodules.transforms import build_transforms
from tests.support.data_sets import write_updated_release
from tests.support.small_runs import run
from utils.errors import ConfigError, DataError

NORMALIZATION = {"mean": [0.4707, 0.4602, 0.455], "std": [0.2594, 0.2585, 0.2635]}
AUGMENTATIONS = {"RandomHorizontalFlip": {"p": 0.5}, "ColorJitter": {"brightness": 0.2, "hue": 0.1}}


def photos(folder: Path, *, gray: bool = False, crop: str = "no", aspect: str = "squash") -> DecodedImages:
    pipeline = build_transforms(image_size=[24, 32], convert_to_grayscale=gray, aspect=aspect)
    return DecodedImages(read_data(folder).train, pipeline.resize, aspect=pipeline.aspect, crop=crop)


@pytest.fixture
def data(tmp_path) -> Path:
    write_updated_release(tmp_path / "data", train_per_class=6)
    return tmp_path / "data"


@pytest.mark.parametrize("gray", [False, True])
@pytest.mark.parametrize("crop", ["no", "box", "box on white"])
def test_a_cached_photo_equals_the_decoded_one_to_the_bit(data, tmp_path, gray, crop):
    decoded = photos(data, gray=gray, crop=crop)
    cached = open_cache(tmp_path / "cache", "train", decoded, (1 if gray else 3, 24, 32))
    assert len(cached) == len(decoded) == 18
    for index in range(18):
        assert cached.image(index).mode == ("L" if gray else "RGB")
        assert np.array_equal(np.asarray(cached.image(index)), np.asarray(decoded.image(index)))
    assert torch.equal(cached.batch([3, 1]), cached.to(torch.device("cpu"))[[3, 1]])


def test_each_way_to_resize_has_a_cache_of_its_own(data, tmp_path):
    caches = {
        each: open_cache(tmp_path, "train", photos(data, aspect=each), (3, 24, 32))
        for each in ("squash", "crop", "pad")
    }
    assert len({cache.path for cache in caches.values()}) == 3 and "squash" not in caches["squash"].path.name
    for aspect, cache in caches.items():
        assert np.array_equal(np.asarray(cache.image(3)), np.asarray(photos(data, aspect=aspect).image(3)))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_it_is_built_once_and_again_when_an_image_or_its_orientation_changes(data, tmp_path):
    folder = tmp_path / "cache"
    first = open_cache(folder, "train", photos(data), (3, 24, 32))
    written = first.path.stat().st_ino
    assert open_cache(folder, "train", photos(data), (3, 24, 32)).path.stat().st_ino == written
    path = photos(data).records[5].path
    Image.new("RGB", (50, 40), "red").save(path)
    second = open_cache(folder, "train", photos(data), (3, 24, 32))
    assert second.image(5).getpixel((0, 0))[0] > 250
    upright = photos(data)
    upright.upright = True
    others = [
        open_cache(folder, "valid", photos(data), (3, 24, 32)),
        open_cache(folder, "train", photos(data, crop="box"), (3, 24, 32)),
        open_cache(folder, "train", upright, (3, 24, 32)),
    ]
    assert names(folder) == {cache.path.name for cache in (first, second, *others)}


def test_what_another_run_uses_stays_and_what_no_run_has_used_for_a_week_goes(data, tmp_path):
    """Two experiments that differ in their boxes alone, as C-10 and C-10-published-boxes, share a folder."""
    folder = tmp_path / "cache"
    images = photos(data, crop="box")
    first = open_cache(folder, "train", images, (3, 24, 32))
    others = DecodedImages(with_boxes_of_others(images.records), images.resize, crop="box")
    second = open_cache(folder, "train", others, (3, 24, 32))
    assert first.batch([3]).ne(second.batch([3])).any()  # in a process that opens it only now
    old = time.time() - 8 * 24 * 3600
    for cache in (first, second):
        os.utime(cache.path, (old, old))
    assert open_cache(folder, "train", images, (3, 24, 32)).path == first.path  # which is used again
    third = open_cache(folder, "valid", images, (3, 24, 32))
    assert names(folder) == {first.path.name, third.path.name}
    assert second.batch([3]).shape == (1, 3, 24, 32)  # still open here


def test_the_key_of_a_cache_is_that_of_version_3(data, tmp_path):
    """Caches of the present version are used by later ones; a new key is a new FORMAT."""
    images = photos(data, crop="box")
    digest = hashlib.blake2b(repr((3, PIL.__version__, (3, 24, 32), "box")).encode(), digest_size=8)
    for record in images.records:
        state = record.path.stat()
        digest.update(repr((str(record.path), state.st_size, state.st_mtime_ns, tuple(record.bounding_box))).encode())
    folder = hashlib.blake2b(str(data / "car_ims").encode(), digest_size=4).hexdigest()
    expected = f"train-18x3x24x32-box-{folder}-{digest.hexdigest()}.photos"
    assert open_cache(tmp_path / "cache", "train", images, (3, 24, 32)).path.name == expected


def test_a_cache_that_was_cut_off_is_built_anew(data, tmp_path):
    first = open_cache(tmp_path / "cache", "train", photos(data), (3, 24, 32))
    whole = first.path.read_bytes()
    first.path.write_bytes(whole[:-1])
    assert open_cache(tmp_path / "cache", "train", photos(data), (3, 24, 32)).path.read_bytes() == whole


@pytest.mark.parametrize("place", [0, 5 * 3 * 24 * 32 + 7, 18 * 3 * 24 * 32 - 1, 18 * 3 * 24 * 32, -1])
def test_a_cache_of_which_a_bit_has_changed_is_built_anew(data, tmp_path, caplog, place):
    first = open_cache(tmp_path / "cache", "train", photos(data), (3, 24, 32))
    whole = first.path.read_bytes()
    assert len(whole) == 18 * (3 * 24 * 32 + 4) and "damaged" not in caplog.text
    changed = bytearray(whole)
    changed[place] ^= 1
    first.path.write_bytes(changed)
    assert open_cache(tmp_path / "cache", "train", photos(data), (3, 24, 32)).path.read_bytes() == whole
    assert "is damaged; it is rebuilt" in caplog.text


def test_a_cache_that_cannot_be_written_is_said_before_anything_is_begun(data, tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file/cache", Path("/proc/cache")):
        with pytest.raises(ConfigError, match=rf"^cache_path: {path} cannot be written to \(.+\); expected a folder"):
            run(data, tmp_path / "output", f"cache_path={path}")
    assert not (tmp_path / "output").exists()
    check_cache_folder(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def test_a_broken_photo_is_named_and_leaves_nothing(data, tmp_path):
    path = photos(data).records[7].path
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DataError, match=f"{path.name}: this image cannot be decoded"):
        open_cache(tmp_path / "cache", "train", photos(data), (3, 24, 32))
    assert not list((tmp_path / "cache").iterdir())


def test_workers_get_the_path_not_the_photos(data, tmp_path):
    cached = open_cache(tmp_path / "cache", "train", photos(data), (3, 24, 32))
    cached.image(0)
    assert len(pickle.dumps(cached)) < 1000
    assert np.array_equal(np.asarray(pickle.loads(pickle.dumps(cached)).image(3)), np.asarray(cached.image(3)))


def loader(
    cached, labels, augmentations, *, shuffle: bool, on_device: bool = False, batch_size: int = 8
) -> DeviceLoader:
    steps = BatchedAugmentations(augmentations, {}, image_size=(24, 32), **NORMALIZATION)
    batches = EpochBatchSampler(len(cached), batch_size, shuffle=shuffle, seed=3)
    return DeviceLoader(cached, labels, batches, steps, device=torch.device("cpu"), on_device=on_device, seed=3)


def test_validation_batches_equal_the_photos_one_at_a_time(data, tmp_path):
    decoded = photos(data)
    labels = [record.label for record in decoded.records]
    cached = open_cache(tmp_path / "cache", "train", decoded, (3, 24, 32))
    pipeline = build_transforms(image_size=[24, 32], normalization=NORMALIZATION)
    one_by_one = ImageDataset(decoded, labels, pipeline.augment)
    seen = 0
    for images, batch_labels in loader(cached, labels, {}, shuffle=False):
        for image, label in zip(images, batch_labels, strict=True):
            expected, expected_label = one_by_one[0, seen]
            torch.testing.assert_close(image, expected, rtol=0, atol=1e-6)
            assert label == expected_label
            seen += 1
    assert seen == 18


def test_batches_read_ahead_from_the_file_equal_those_on_the_device_in_their_order(data, tmp_path):
    cached = open_cache(tmp_path / "cache", "train", photos(data), (3, 24, 32))
    numbers = list(range(18))
    ahead, held = (
        list(loader(cached, numbers, AUGMENTATIONS, shuffle=True, on_device=on_device, batch_size=2))
        for on_device in (False, True)
    )
    assert len(ahead) == 9 > PREFETCH + 1
    for batch, same in zip(ahead, held, strict=True):
        assert torch.equal(batch[0], same[0]) and torch.equal(batch[1], same[1])


def test_an_epoch_that_is_given_up_leaves_no_thread(data, tmp_path):
    cached = open_cache(tmp_path / "cache", "train", photos(data), (3, 24, 32))
    before = threading.active_count()
    batches = iter(loader(cached, list(range(18)), {}, shuffle=True, batch_size=2))
    next(batches)
    assert threading.active_count() > before
    batches.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("index", [-1, 18])
def test_no_photo_stands_in_for_one_that_does_not_exist(data, tmp_path, index):
    cached = open_cache(tmp_path / "cache", "train", photos(data), (3, 24, 32))
    with pytest.raises(IndexError, match=rf"below 18, not \[2, {index}\]"):
        cached.batch([2, index])


@pytest.mark.parametrize("on_device", [False, True])
def test_augmented_batches_come_from_seed_epoch_and_photo_alone(data, tmp_path, on_device):
    cached = open_cache(tmp_path / "cache", "train", photos(data), (3, 24, 32))
    numbers = list(range(18))  # each photo's own number as its label

    def epoch(number: int, *, first_batch: int = 0) -> dict[int, torch.Tensor]:
        made = loader(cached, numbers, AUGMENTATIONS, shuffle=True, on_device=on_device)
        made.batch_sampler.set_epoch(number)
        made.batch_sampler.first_batch = first_batch
        assert len(made) == 3
        return {int(label): image for images, labels in made for image, label in zip(images, labels, strict=True)}

    first, again, next_epoch, rest = epoch(0), epoch(0), epoch(1), epoch(0, first_batch=1)
    assert sorted(first) == numbers and len(rest) == 10
    assert all(torch.equal(first[number], again[number]) for number in numbers)
    assert all(torch.equal(first[number], rest[number]) for number in rest)
    assert sum(not torch.equal(first[number], next_epoch[number]) for number in numbers) > 15


def test_a_cache_that_was_built_here_is_read_by_workers_after_it_was_removed(data, tmp_path):
    cache = open_cache(tmp_path / "cache", "train", photos(data), (3, 24, 32))
    cache.path.unlink()  # as one that no run has opened for a week
    assert np.array_equal(np.asarray(cache.image(3)), np.asarray(photos(data).image(3)))
