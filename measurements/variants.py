"""The input pipelines and training steps that `throughput` compares."""

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
from measurements.measuring import Step
from utils.config import Config
from utils.machine import worker_count
from utils.seeding import generator

TIMM_MODEL = "ghostnet_100"  # timm's nearest, with the paper's 1280 out_channels


@dataclass
class Variant:
    """An input pipeline and a training step.

    Attributes:
        loader: Builds the loader for one turn, so that no workers keep running in the next.
        model: Variants with the same name share the step.
        step: The training step.
        on_device: Whether batches are augmented on the device.
    """

    loader: Callable[[], Iterable]
    model: str
    step: Step = field(repr=False)
    on_device: bool = False

    @property
    def work(self) -> str:
        """The work of the device on a batch it holds; variants with the same name share its measurement."""
        return f"{self.model}, augmentation" if self.on_device else self.model


class Images(Dataset):
    """Images as in torchvision's ImageFolder; timm's loader sets the transform itself."""

    def __init__(self, splits: DataSplits, transform: Callable | None) -> None:
        self.samples = [(str(image.path), image.label) for image in splits.train]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.samples[index]
        return self.transform(datasets.folder.default_loader(path)), label


def torchvision_loader(config: Config, splits: DataSplits) -> DataLoader:
    """Torchvision alone: its transforms on PIL images in a DataLoader, as in its reference scripts."""
    normalization = config.normalization_params_rgb
    steps = [
        transforms.Resize(config.image_size),
        *(getattr(transforms, name)(**(params or {})) for name, params in (config.image_augmentations or {}).items()),
        transforms.ToTensor(),
        transforms.Normalize(normalization.mean, normalization.std),
    ]
    workers = worker_count(config.num_workers)
    return DataLoader(
        Images(splits, transforms.Compose(steps)), config.batch_size, shuffle=True, num_workers=workers,
        persistent_workers=workers > 0, pin_memory=torch.cuda.is_available(),
    )  # fmt: skip


def timm_loader(config: Config, splits: DataSplits, device: torch.device) -> Iterable:
    """timm's loader, uint8 up to the device, with augmentations close to C-50's: no rotation and no shear."""
    from timm.data import create_loader

    normalization = config.normalization_params_rgb
    workers = worker_count(config.num_workers)
    return create_loader(
        Images(splits, None), (3, *config.image_size), config.batch_size, is_training=True,
        scale=(0.81, 1.0), hflip=0.5, color_jitter=(0.2, 0.2, 0.2, 0.1), mean=normalization.mean, std=normalization.std,
        num_workers=workers, persistent_workers=workers > 0, pin_memory=device.type == "cuda", device=device,
    )  # fmt: skip


def own_loader(config: Config, splits: DataSplits, device: torch.device) -> Iterable:
    """This project's loader of the training split."""
    data = assembly.build_data(config, splits)
    data.setup("fit")
    return data.loader(data.train, data.sampler(data.train, shuffle=True), device)


def held_batch(loader: DeviceLoader) -> Iterator[tuple[Tensor, Tensor]]:
    """Augments the first batch of the split endlessly: `loader` without reading and copying."""
    count = loader.batch_sampler.batch_size
    images = loader.images.batch(range(count)).to(loader.device)
    params = loader.augmentations.draw(count, generator(0, "rows", 0)).to(loader.device)
    while True:
        yield loader.full(images, params), loader.labels[:count]


def own_step(config: Config, device: torch.device, num_classes: int) -> Step:
    """One training step with the configured precision and compilation."""
    classifier = assembly.build_classifier(config, num_classes).to(device).train()
    classifier.setup("fit")
    return _step(config, device, classifier, classifier.loss, classifier.configure_optimizers())


def timm_step(config: Config, device: torch.device, num_classes: int) -> Step:
    """The step of timm's training script: its model, loss, optimizer, automatic mixed precision and channels last."""
    import timm
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.optim import create_optimizer_v2

    model = timm.create_model(TIMM_MODEL, num_classes=num_classes, drop_rate=config.dropout or 0.0)
    model = model.to(device, memory_format=torch.channels_last).train()
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.6)

    def logits(images: Tensor) -> Tensor:
        return model(images.contiguous(memory_format=torch.channels_last))

    return _step(config, device, logits, LabelSmoothingCrossEntropy(0.1), optimizer)


def _step(
    config: Config, device: torch.device, model: Callable, loss: Callable, optimizer: torch.optim.Optimizer
) -> Step:
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(assembly.precision(config))
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)

    def step(images: Tensor, labels: Tensor) -> None:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            value = loss(model(images), labels)
        optimizer.zero_grad()
        scaler.scale(value).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


def build_variants(
    config: Config, splits: DataSplits, device: torch.device, cache_path: Path, compile_modes: Iterable[str]
) -> dict[str, Variant]:
    """Returns name → variant, the baseline first."""
    num_classes = len(splits.class_names)

    def changed(**changes: object) -> Config:
        return config.model_copy(update={"cache_path": cache_path, "compile": None, **changes})

    cached = changed(augmentation_device="cpu")
    batches = changed(augmentation_device="device")
    step = own_step(cached, device, num_classes)
    variants = {"torchvision on PIL": Variant(lambda: torchvision_loader(config, splits), "ghost", step)}
    variants[f"timm, {TIMM_MODEL}"] = Variant(
        lambda: timm_loader(config, splits, device), TIMM_MODEL, timm_step(config, device, num_classes)
    )
    uncached = changed(augmentation_device="cpu", cache_path=None)
    variants["no cache"] = Variant(lambda: own_loader(uncached, splits, device), "ghost", step)
    variants["cache"] = Variant(lambda: own_loader(cached, splits, device), "ghost", step)
    # Device loaders have no workers, and copy their cache to the device only once.
    on_device = cache(lambda: own_loader(batches, splits, device))
    variants["batched on the device"] = Variant(on_device, "ghost", step, on_device=True)
    if assembly.precision(config) != "32-true":
        exact = own_step(changed(precision="32-true"), device, num_classes)
        variants["batched on the device, 32-true"] = Variant(on_device, "ghost, 32-true", exact, on_device=True)
    for mode in compile_modes:
        fused = changed(augmentation_device="device", compile=mode)
        variants[f"batched on the device, compile {mode}"] = Variant(
            cache(lambda fused=fused: own_loader(fused, splits, device)),
            f"ghost, compile {mode}",
            own_step(fused, device, num_classes),
            on_device=True,
        )
    return variants
