"""The ways from a data set to a trained step that `throughput` compares."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import datasets, transforms

import assembly
from datamodules import DataSplits
from datamodules.on_device.loader import DeviceLoader
from datamodules.sampler import EpochBatchSampler
from measurements.measuring import Step
from utils.config import Config
from utils.machine import worker_count
from utils.seeding import generator

TIMM_NETWORK = "ghostnet_100"  # timm's nearest; it has the paper's width of 1280


@dataclass
class Way:
    """One way: `loader` makes it ready for a turn, so that nobody's workers read on in the turn of another.

    Attributes:
        network: What ways of one name share is the step.
        augments: Whether the loader gives whole batches that the device has augmented.
    """

    loader: Callable[[], Iterable]
    network: str
    step: Step = field(repr=False)
    augments: bool = False

    @property
    def work(self) -> str:
        """What the device has to do for a batch that it holds; ways of one such name share the measurement of it."""
        return f"{self.network}, augmentation" if self.augments else self.network


class Photos(Dataset):
    """Photos as torchvision's ImageFolder has them; timm's loader sets the transform itself."""

    def __init__(self, annotations: DataSplits, transform: Callable | None) -> None:
        self.samples = [(str(photo.path), photo.label) for photo in annotations.train]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.samples[index]
        return self.transform(datasets.folder.default_loader(path)), label


def torchvision_loader(config: Config, annotations: DataSplits) -> DataLoader:
    """Torchvision alone: its transforms on PIL images, in a DataLoader, as its references have it."""
    normalization = config.normalization_params_rgb
    steps = [
        transforms.Resize(config.image_size),
        *(getattr(transforms, name)(**(params or {})) for name, params in (config.image_augmentations or {}).items()),
        transforms.ToTensor(),
        transforms.Normalize(normalization.mean, normalization.std),
    ]
    workers = worker_count(config.num_workers)
    return DataLoader(
        Photos(annotations, transforms.Compose(steps)), config.batch_size, shuffle=True, num_workers=workers,
        persistent_workers=workers > 0, pin_memory=torch.cuda.is_available(),
    )  # fmt: skip


def timm_loader(config: Config, annotations: DataSplits, device: torch.device) -> Iterable:
    """timm's loader, uint8 until the device, with what comes nearest to C-50: no rotation and no shear."""
    from timm.data import create_loader

    normalization = config.normalization_params_rgb
    workers = worker_count(config.num_workers)
    return create_loader(
        Photos(annotations, None), (3, *config.image_size), config.batch_size, is_training=True,
        scale=(0.81, 1.0), hflip=0.5, color_jitter=(0.2, 0.2, 0.2, 0.1), mean=normalization.mean, std=normalization.std,
        num_workers=workers, persistent_workers=workers > 0, pin_memory=device.type == "cuda", device=device,
    )  # fmt: skip


def own_loader(config: Config, annotations: DataSplits, device: torch.device) -> Iterable:
    """This project's loader of the training split."""
    data = assembly.build_data(config, annotations)
    data.setup("fit")
    batches = EpochBatchSampler(len(annotations.train), config.batch_size, shuffle=True, seed=config.seed)
    return data.loader(data.train, batches, device)


def held_batch(loader: DeviceLoader) -> Iterator[tuple[Tensor, Tensor]]:
    """Augments the first batch of the split without end: what `loader` would give if nothing had to be brought."""
    count = loader.batch_sampler.batch_size
    images = loader.photos.batch(range(count)).to(loader.device)
    rows = loader.augmentations.draw(count, generator(0, "rows", 0)).to(loader.device)
    while True:
        yield loader.full(images, rows), loader.labels[:count]


def own_step(config: Config, device: torch.device, num_classes: int) -> Step:
    """One training step in precision and compilation of the configuration, nothing else."""
    classifier = assembly.build_classifier(config, num_classes).to(device).train()
    classifier.setup("fit")
    return _step(config, device, classifier, classifier.loss, classifier.configure_optimizers())


def timm_step(config: Config, device: torch.device, num_classes: int) -> Step:
    """The step of timm's training script: its network, loss and optimizer, automatic mixed precision, channels last."""
    import timm
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.optim import create_optimizer_v2

    model = timm.create_model(TIMM_NETWORK, num_classes=num_classes, drop_rate=config.dropout or 0.0)
    model = model.to(device, memory_format=torch.channels_last).train()
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.6)

    def logits(images: Tensor) -> Tensor:
        return model(images.contiguous(memory_format=torch.channels_last))

    return _step(config, device, logits, LabelSmoothingCrossEntropy(0.1), optimizer)


def _step(
    config: Config, device: torch.device, network: Callable, loss: Callable, optimizer: torch.optim.Optimizer
) -> Step:
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(assembly.precision(config))
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)

    def step(images: Tensor, labels: Tensor) -> None:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            value = loss(network(images), labels)
        optimizer.zero_grad()
        scaler.scale(value).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


def build_ways(
    config: Config, annotations: DataSplits, device: torch.device, cache_path: Path, compile_modes: Iterable[str]
) -> dict[str, Way]:
    """Returns name → way; those that stand for this project's settings last, the fastest at the end."""
    num_classes = len(annotations.class_names)

    def changed(**changes: object) -> Config:
        return config.model_copy(update={"cache_path": cache_path, "compile": None, **changes})

    cached = changed(augmentation_device="cpu")
    batches = changed(augmentation_device="device")
    step = own_step(cached, device, num_classes)
    ways = {"torchvision on PIL": Way(lambda: torchvision_loader(config, annotations), "ghost", step)}
    try:
        ways[f"timm, {TIMM_NETWORK}"] = Way(
            lambda: timm_loader(config, annotations, device), TIMM_NETWORK, timm_step(config, device, num_classes)
        )
    except ImportError as error:
        print(f"timm is left out: {error}")
    uncached = changed(augmentation_device="cpu", cache_path=None)
    ways["no cache"] = Way(lambda: own_loader(uncached, annotations, device), "ghost", step)
    ways["cache"] = Way(lambda: own_loader(cached, annotations, device), "ghost", step)
    # Loaders of whole batches have no workers, and their cache on a device is not to be copied there for each turn.
    whole = cache(lambda: own_loader(batches, annotations, device))
    ways["whole batches"] = Way(whole, "ghost", step, augments=True)
    if assembly.precision(config) != "32-true":
        exact = own_step(changed(precision="32-true"), device, num_classes)
        ways["whole batches, 32-true"] = Way(whole, "ghost, 32-true", exact, augments=True)
    for mode in compile_modes:
        fused = changed(augmentation_device="device", compile=mode)
        ways[f"whole batches, compile {mode}"] = Way(
            cache(lambda fused=fused: own_loader(fused, annotations, device)),
            f"ghost, compile {mode}",
            own_step(fused, device, num_classes),
            augments=True,
        )
    return ways
