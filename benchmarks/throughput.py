"""Photos per second of the ways from a data set to a trained step, measured in turn: python -m benchmarks.throughput --help.

Compares, with the settings of config.yml, a plain torchvision pipeline on PIL in a DataLoader (as torchvision's own
references have it), this project without its cache, with it, and with whole batches on the device; each as input alone and
as training. Medians and spread over rounds in which each way has its turn.
"""

import argparse
import datetime
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

import assembly
from datamodules.sampling import EpochBatches
from utils.commands import run_command
from utils.config import Config, load_config
from utils.machine import available_cores, versions
from utils.progress import progress_bar


def plain_loader(config: Config, annotations: assembly.Annotations) -> DataLoader:
    """Torchvision alone: a folder of photos, its transforms, its DataLoader."""
    normalization = config.normalization_params_rgb
    steps = [
        transforms.Resize(config.image_size),
        *(getattr(transforms, name)(**(params or {})) for name, params in config.image_augmentations.items()),
        transforms.ToTensor(),
        transforms.Normalize(normalization.mean, normalization.std),
    ]
    pipeline = transforms.Compose(steps)
    samples = [(str(photo.image_path), photo.label) for photo in annotations.train]

    class Photos(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(samples)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            path, label = samples[index]
            return pipeline(datasets.folder.default_loader(path)), label

    workers = assembly.worker_count(config.num_workers)
    return DataLoader(
        Photos(), config.batch_size, shuffle=True, num_workers=workers, persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )  # fmt: skip


def own_loader(config: Config, annotations: assembly.Annotations, device: torch.device, **changes: object) -> Iterable:
    """This project's loader with `changes` of the configuration."""
    data = assembly.build_data(config.model_copy(update=changes), annotations)
    data.setup("fit")
    batches = EpochBatches(len(annotations.train), config.batch_size, shuffle=True, seed=config.seed)
    return data.loader(data.train, batches, device)


def trainer_step(
    config: Config, device: torch.device, num_classes: int
) -> Callable[[torch.Tensor, torch.Tensor], None]:
    """One training step in the precision of the configuration, nothing else."""
    classifier = assembly.build_classifier(config, num_classes).to(device).train()
    optimizer = classifier.configure_optimizers()
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(assembly.precision(config))

    def step(images: torch.Tensor, labels: torch.Tensor) -> None:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            loss = classifier.loss(classifier(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def photos_per_second(loader: Iterable, device: torch.device, seconds: float, step: Callable | None) -> float:
    """Walks through `loader`, over and over, for `seconds` after a first, uncounted batch."""
    count, started = 0, None
    while started is None or time.perf_counter() - started < seconds:
        for images, labels in loader:
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            if step is not None:
                step(images, labels)
            if started is None:
                _wait(device)
                started = time.perf_counter()
                continue
            count += len(labels)
            if time.perf_counter() - started >= seconds:
                break
    _wait(device)
    return count / (time.perf_counter() - started)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main(argv: Sequence[str] | None = None) -> list[dict[str, object]]:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-d", "--data", required=True, help="folder of the data set")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="as of train.py")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement")
    parser.add_argument("--output", type=Path, default=Path("throughput.json"))
    arguments = parser.parse_args(argv)
    config = load_config(overrides=[f"stanford_data_path={json.dumps(arguments.data)}", *arguments.set])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    annotations = assembly.load_annotations(config)
    with tempfile.TemporaryDirectory() as cache:
        ways = {
            "torchvision on PIL": plain_loader(config, annotations),
            "this project, no cache": own_loader(
                config, annotations, device, cache_path=None, augmentation_device="cpu"
            ),
            "this project, cache": own_loader(
                config, annotations, device, cache_path=Path(cache), augmentation_device="cpu"
            ),
            "this project, whole batches": own_loader(
                config, annotations, device, cache_path=Path(cache), augmentation_device="device"
            ),
        }
        step = trainer_step(config, device, len(annotations.class_names))
        figures: dict[tuple[str, str], list[float]] = {}
        turns = [(kind, way) for _ in range(arguments.rounds) for kind in ("input", "training") for way in ways]
        for kind, way in progress_bar(turns, description="measuring", unit=" turns"):
            speed = photos_per_second(ways[way], device, arguments.seconds, step if kind == "training" else None)
            figures.setdefault((kind, way), []).append(speed)
    rows = []
    for (kind, way), speeds in figures.items():
        base = figures[kind, "torchvision on PIL"]
        ratio = statistics.median(speed / plain for speed, plain in zip(speeds, base, strict=True))
        rows.append(
            {
                "what": kind, "way": way, "photos_per_second": round(statistics.median(speeds), 1),
                "least": round(min(speeds), 1), "most": round(max(speeds), 1), "times_torchvision": round(ratio, 2),
            }
        )  # fmt: skip
        print(f"{kind:<9}{way:<30}{rows[-1]['photos_per_second']:>10,.1f} photos/s  ×{ratio:.2f}")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    conditions = {
        "date": str(datetime.date.today()), "device": name, "cores": available_cores(), "versions": versions(),
        "threads": torch.get_num_threads(), "photos": len(annotations.train), "image_size": config.image_size,
        "batch_size": config.batch_size, "precision": assembly.precision(config), "rounds": arguments.rounds,
    }  # fmt: skip
    arguments.output.write_text(json.dumps({"conditions": conditions, "rows": rows}, indent=2) + "\n")
    print(f"on {name}, {conditions['cores']} cores: {arguments.output}")
    return rows


if __name__ == "__main__":
    sys.exit(run_command(main))
