"""Augments whole batches on the device of the model, in place of per-image transforms in worker processes.

    loader.py         DeviceLoader: batches by index from the cache, augmented; takes the place of a DataLoader
    augmentations.py  BatchedAugmentations: the configured chain, and BATCHED, the transforms that it knows
    draws.py          BatchedStep: the protocol of one transform; torchvision's random draws for many samples
    geometry.py       flips, RandomAffine, RandomRotation, RandomPerspective
    rectangles.py     RandomCrop, CenterCrop, RandomResizedCrop, RandomErasing
    color.py          ColorJitter, RandomGrayscale, Normalize
    automatic.py      TrivialAugmentWide, RandAugment

An epoch in three calls: `draw` makes a row of parameters for each image from (seed, epoch, index), the loader gathers a
batch of uint8 images and their rows, and the augmentations map both to float32.

To add a transform: subclass BatchedStep (`sample` draws what torchvision draws, `params` packs it, `apply` uses it), add
it to BATCHED, and compare it with torchvision's functional in tests/datamodules/on_device. A step may change the size of
the images (`size`), so the cache can hold larger images than the model sees.
"""
