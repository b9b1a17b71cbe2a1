"""Photos per second of the augmentations of experiment C-50: whole batches here, against torchvision on one photo at a time.

    python -m measurements.batched_augmentations [--batch-size 64] [--rounds 15] [--threads 1] [--compile]

All ways start from uint8 photos in memory and end in normalised float32 tensors, one batch on the device that works on it.
They take turns, so that a slow moment of the machine meets all of them; printed are the median of the rounds and the
quarter and three-quarter marks.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
import torchvision
from PIL import Image
from torch import Tensor
from torchvision import transforms

from datamodules.on_device.augmentations import BatchedAugmentations
from measurements.arguments import at_least

AUGMENTATIONS = {
    "RandomHorizontalFlip": {"p": 0.5},
    "RandomAffine": {"degrees": 25, "translate": [0.1, 0.1], "scale": [0.9, 1.1], "shear": 8},
    "ColorJitter": {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.1},
}
MEAN, STD = [0.4707, 0.4602, 0.455], [0.2594, 0.2585, 0.2635]
IMAGE_SIZE = (227, 227)
EPOCH = 8144  # photos of the training split


def build_ways(batch_size: int, compiled: bool) -> dict[str, Callable[[], Tensor]]:
    """Returns name → a function that augments one batch and returns it, finished or still under way on the device."""
    coarse = torch.rand(batch_size, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 255
    photos = torch.nn.functional.interpolate(coarse, IMAGE_SIZE, mode="bilinear").to(torch.uint8)
    arrays = photos.permute(0, 2, 3, 1).contiguous().numpy()
    steps = [getattr(transforms, name)(**parameters) for name, parameters in AUGMENTATIONS.items()]
    on_pil = transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    on_tensors = transforms.Compose([*steps, transforms.Normalize(MEAN, STD)])
    batched = BatchedAugmentations(AUGMENTATIONS, {}, image_size=IMAGE_SIZE, mean=MEAN, std=STD)
    rows = batched.draw(batch_size, torch.Generator().manual_seed(0))
    ways = {
        "torchvision on PIL images": lambda: torch.stack([on_pil(Image.fromarray(array)) for array in arrays]),
        "torchvision on float tensors": lambda: torch.stack([on_tensors(photo / 255) for photo in photos]),
        "batched, cpu": lambda: batched(photos, rows),
    }
    if compiled:
        graph = torch.compile(batched, fullgraph=True)
        ways["batched, cpu, compiled"] = lambda: graph(photos, rows)
    if torch.cuda.is_available():
        on_device, rows_on_device = photos.cuda(), rows.cuda()
        ways["batched, cuda"] = lambda: batched(on_device, rows_on_device)
        if compiled:
            graph_on_device = torch.compile(batched, fullgraph=True)
            ways["batched, cuda, compiled"] = lambda: graph_on_device(on_device, rows_on_device)
    return ways


def seconds_of(way: Callable[[], Tensor], repeats: int) -> float:
    """Returns the time of one call, the device's work included."""
    start = time.perf_counter()
    for _ in range(repeats):
        batch = way()
    if batch.is_cuda:
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def main(argv: list[str] | None = None) -> dict[str, list[float]]:
    """Runs the benchmark, prints its table and returns name → photos per second of each round."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--batch-size", type=at_least(1), default=64, help="photos a batch (64)")
    parser.add_argument("--rounds", type=at_least(2), default=15, help="measurements of each way (15), at least 2")
    parser.add_argument(
        "--threads", type=at_least(1), default=1, help="threads of torch on the CPU (1: photos per second a core)"
    )
    parser.add_argument("--compile", action="store_true", help="torch.compile the batched ways too")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    rounds = arguments.rounds

    ways = build_ways(arguments.batch_size, arguments.compile)
    for way in ways.values():
        seconds_of(way, 2)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            rates[name].append(arguments.batch_size / seconds_of(way, 20 if "cuda" in name else 1))

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no accelerator"
    print(
        f"{platform.processor() or platform.machine()}, {arguments.threads} threads, {device}, torch {torch.__version__}, "
        f"torchvision {torchvision.__version__}; batches of {arguments.batch_size}, {IMAGE_SIZE[0]}×{IMAGE_SIZE[1]}"
    )
    print(f"{'photos per second':30} {'median':>9} {'quarter':>9} {'three quarters':>15} {'× PIL':>7}")
    baseline = statistics.median(rates["torchvision on PIL images"])
    for name, of_rounds in rates.items():
        low, median, high = statistics.quantiles(of_rounds, n=4)
        print(f"{name:30} {median:9.0f} {low:9.0f} {high:15.0f} {median / baseline:7.2f}")
    batched = BatchedAugmentations(AUGMENTATIONS, {}, image_size=IMAGE_SIZE, mean=MEAN, std=STD)
    generator = torch.Generator().manual_seed(0)
    draws = [seconds_of(lambda: batched.draw(EPOCH, generator), 1) for _ in range(rounds)]
    print(f"drawing the parameters of an epoch of {EPOCH} photos: {statistics.median(draws) * 1e3:.0f} ms")
    return rates


if __name__ == "__main__":
    main()
