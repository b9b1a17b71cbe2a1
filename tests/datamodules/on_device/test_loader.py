"""The loader of whole batches on the device with balanced classes, which draws some images several times an epoch."""

from collections import defaultdict

import torch

from datamodules.cache import ImageCache
from datamodules.on_device.augmentations import BatchedAugmentations
from datamodules.on_device.loader import DeviceLoader
from datamodules.sampler import EpochBatchSampler

LABELS = [0, 0, 0, 0, 0, 0, 0, 0, 0, 1]
SHAPE = (10, 3, 8, 8)


def epoch(path, augmentations, *, on_device: bool):
    sampler = EpochBatchSampler(10, 4, shuffle=True, seed=1, labels=LABELS)
    steps = BatchedAugmentations(augmentations, {}, image_size=(8, 8), mean=[0.0] * 3, std=[1.0] * 3)
    images = ImageCache(path, SHAPE)
    loader = DeviceLoader(images, LABELS, sampler, steps, device=torch.device("cpu"), on_device=on_device, seed=1)
    drawn = [draw for batch in sampler for _, draw in batch]
    batches = list(loader)
    return drawn, torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches]).tolist()


def test_balanced_batches_hold_the_drawn_images_each_augmented_anew(tmp_path):
    stored = torch.randint(256, SHAPE, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    (path := tmp_path / "photos").write_bytes(stored.numpy().tobytes())
    for on_device in (True, False):
        drawn, images, labels = epoch(path, {}, on_device=on_device)
        assert max(drawn) >= 10 and labels.count(1) >= 3  # the only image of the rare class is drawn again
        assert labels == [LABELS[draw % 10] for draw in drawn]
        torch.testing.assert_close(images, stored[[draw % 10 for draw in drawn]] / 255)

    brighter = {"ColorJitter": {"brightness": 0.9}}
    drawn, images, _ = epoch(path, brighter, on_device=True)
    of_image = defaultdict(list)
    for draw, image in zip(drawn, images, strict=True):
        of_image[draw % 10].append(image.mean().item())
    assert all(len(set(means)) == len(means) for means in of_image.values())
    torch.testing.assert_close(images, epoch(path, brighter, on_device=True)[1], rtol=0, atol=0)
