"""The data module: which split gets what, and that photo, box and label are never confused."""

import multiprocessing
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import to_tensor

from datamodules import DataSplits, clip_boxes, datamodule, read_data
from datamodules.datamodule import CarsDataModule, with_boxes_of_others
from datamodules.transforms import build_transforms
from tests.support.data_sets import Photo, write_original_release, write_updated_release
from utils import machine

PLAIN = build_transforms(image_size=[16, 16])
NOISY = build_transforms(image_size=[16, 16], image_augmentations={"RandomRotation": {"degrees": 90}})


def by_name(photos: list[Photo]) -> dict[tuple[str, ...], Photo]:
    return {name(photo.name): photo for photo in photos}


def name(path: Path | str) -> tuple[str, ...]:
    return Path(path).parts[-2:]  # both splits of the original release have a 00001.jpg


def colour(photo: Photo, box: bool) -> torch.Tensor:
    return torch.tensor(photo.box_colour if box else photo.background) / 255


def data_module(annotations: DataSplits, **changes) -> CarsDataModule:
    settings = {"train_transform": PLAIN, "valid_transform": PLAIN, "batch_size": 4, "num_workers": 0} | changes
    return CarsDataModule(annotations, **settings)


@pytest.mark.parametrize("write", [write_updated_release, write_original_release])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_photo_comes_with_its_own_box_and_label(tmp_path, write, seed):
    written = write(tmp_path, train_per_class=5, valid_per_class=3, seed=seed)
    annotations = read_data(tmp_path)
    assert clip_boxes(annotations) == annotations
    data = data_module(annotations, crop="box")
    photos = by_name(written)
    for split in (data.train, data.valid):
        for index, annotation in enumerate(split.records):
            photo = photos[name(annotation.path)]
            image, label = data.dataset(split)[0, index]
            assert label == photo.label and tuple(annotation.bounding_box) == photo.box
            if split is data.train:  # cut to the box: its colour alone, to the last row and column
                assert (image - colour(photo, box=True)[:, None, None]).abs().max() < 0.06
            else:  # validation photos are never cut
                whole = Image.open(annotation.path).resize((16, 16), Image.Resampling.BILINEAR)
                assert torch.equal(image, to_tensor(whole))
    assert len(data.train.records) + len(data.valid.records) == len(written)


def test_erased_backgrounds_are_white_around_the_box(tmp_path):
    photos = by_name(write_updated_release(tmp_path))
    data = data_module(read_data(tmp_path), crop="box on white")
    for index, annotation in enumerate(data.train.records):
        image, _ = data.dataset(data.train)[0, index]
        assert (image[:, 8, 8] - colour(photos[name(annotation.path)], box=True)).abs().max() < 0.06
        assert (image[:, 0, 0] > 0.95).all()


def test_only_training_photos_are_augmented(tmp_path):
    write_updated_release(tmp_path)
    data = data_module(read_data(tmp_path), train_transform=NOISY)
    assert not torch.equal(data.dataset(data.train)[0, 0][0], data.dataset(data.train)[1, 0][0])
    assert torch.equal(data.dataset(data.valid)[0, 0][0], data.dataset(data.valid)[1, 0][0])


def test_shuffled_boxes_are_a_fixed_shuffle_that_leaves_none_in_its_place(tmp_path):
    write_updated_release(tmp_path, train_per_class=20)
    right = read_data(tmp_path).train
    wrong = with_boxes_of_others(right)
    assert wrong == with_boxes_of_others(right)
    assert [(a.path, a.label) for a in wrong] == [(a.path, a.label) for a in right]
    assert sorted(a.bounding_box for a in wrong) == sorted(a.bounding_box for a in right)
    moved = [old.bounding_box != new.bounding_box for old, new in zip(right, wrong, strict=True)]
    assert sum(moved) > 0.9 * len(moved)  # some boxes are equal by chance, none is the photo's own by position


@pytest.mark.parametrize(("needed", "on_device"), [(0.49, True), (0.51, False)])
def test_the_cache_lies_on_the_device_if_both_splits_take_at_most_half_of_its_free_memory(
    tmp_path, monkeypatch, caplog, needed, on_device
):
    write_updated_release(tmp_path / "data", train_per_class=5, valid_per_class=4)
    data = data_module(read_data(tmp_path / "data"), cache_path=tmp_path / "cache")
    data.setup("fit")
    free = (data.train.source.size + data.valid.source.size) / needed
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 0))
    with caplog.at_level("INFO"):
        assert data._fits(torch.device("cuda")) == on_device
    assert ("lies on the device" if on_device else "stays in its files") in caplog.text
    # What the training split has taken by then does not change the decision for the validation split.
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free / 2 if on_device else 10 * free, 0))
    assert data._fits(torch.device("cuda")) == on_device
    assert not data_module(read_data(tmp_path / "data"))._fits(torch.device("cpu"))


@pytest.mark.parametrize(("cores", "processes", "expected"), [(8, 1, 8), (8, 4, 2), (96, 2, 8), (2, 4, 1)])
def test_automatic_workers_are_one_a_core_for_all_processes_of_a_machine(monkeypatch, cores, processes, expected):
    monkeypatch.setattr(machine, "available_cores", lambda: cores)
    assert machine.worker_count("auto", processes=processes) == expected
    assert machine.worker_count(5, processes=processes) == 5


@pytest.mark.skipif(multiprocessing.get_start_method() != "fork", reason="workers that are not forked stay")
def test_workers_of_validation_end_with_it_and_all_end_with_the_data_module(tmp_path):
    write_updated_release(tmp_path, train_per_class=5)
    data = data_module(read_data(tmp_path), num_workers=2)
    others = len(multiprocessing.active_children())  # of other tests in this process
    training, loader = iter(data.train_dataloader()), data.val_dataloader()
    validation = iter(loader)
    for _ in range(len(loader) - 1):
        next(validation)
        assert len(multiprocessing.active_children()) == others + 4
    next(validation)  # the last: nothing asks for the end
    assert len(multiprocessing.active_children()) == others + 2
    next(iter(data.val_dataloader()))
    next(training)
    data.close()
    assert len(multiprocessing.active_children()) == others


BATCH = 4 * 4 * 3 * 16 * 16  # bytes of four images


@pytest.mark.parametrize(("free", "workers"), [(2 * BATCH, 0), (4 * BATCH, 1), (100 * BATCH, 2)])
def test_fewer_workers_are_used_where_shared_memory_is_small(tmp_path, monkeypatch, caplog, free, workers):
    """As in Docker, whose 64 MB hold one batch of 64 images of 227×227 pixels."""
    write_updated_release(tmp_path, train_per_class=5)
    monkeypatch.setattr(datamodule, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    data = data_module(read_data(tmp_path), num_workers=2)
    assert data.train_dataloader().num_workers == data.val_dataloader().num_workers == workers
    warning = f"{tmp_path} is too small for 2 processes that load images; {workers} are used. "
    warned = [warning in record.getMessage() for record in caplog.records if record.name.endswith("datamodule")]
    assert warned == [True] * (workers < 2)
    assert workers == 2 or "docker run --shm-size=2g" in caplog.text
    large = build_transforms(image_size=[32, 32])  # validation images of four times the size
    data = data_module(read_data(tmp_path), num_workers=2, valid_transform=large)
    data.setup("fit")
    assert data.num_workers == (2 if free == 100 * BATCH else 0)


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_the_number_of_workers(tmp_path, workers):
    write_updated_release(tmp_path, train_per_class=5)
    annotations = read_data(tmp_path)

    def batches(num_workers: int) -> list:
        loader = data_module(annotations, train_transform=NOISY, num_workers=num_workers, seed=3).train_dataloader()
        made = []
        for epoch in (0, 1):
            loader.batch_sampler.set_epoch(epoch)
            made += list(loader)
        return made

    for (images, labels), (others, other_labels) in zip(batches(0), batches(workers), strict=True):
        assert torch.equal(images, others) and torch.equal(labels, other_labels)
    assert not torch.equal(batches(0)[0][0], batches(0)[4][0])  # another epoch, another order
