"""Images per second of C-50's augmentations: batched on the device, and by torchvision per image.

    python -m measurements.batched_augmentations [--batch-size 64] [--rounds 5] [--threads 1] [--compile]

All variants start from uint8 images in memory and end in normalized float32 tensors. They are timed in turns.
"""

import statistics
import sys
from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms

from datamodules.on_device.augmentations import BatchedAugmentations
from deployment.profiling.measure import interleaved, restored_threads
from deployment.profiling.measure import spread as quartiles
from measurements.measuring import (
    at_least,
    best_device,
    build_parser,
    conditions,
    print_conditions,
    synchronize,
    write_report,
)
from utils.cli import run_command

AUGMENTATIONS = {
    "RandomHorizontalFlip": {"p": 0.5},
    "RandomAffine": {"degrees": 25, "translate": [0.1, 0.1], "scale": [0.9, 1.1], "shear": 8},
    "ColorJitter": {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.1},
}
MEAN, STD = [0.4707, 0.4602, 0.455], [0.2594, 0.2585, 0.2635]
IMAGE_SIZE = (227, 227)
EPOCH = 8144  # training images of Stanford Cars
TURN_SECONDS = 0.5
BASELINE = "torchvision on PIL images"
DRAWS = "parameters of an epoch"


def build_variants(batch_size: int, *, compiled: bool) -> dict[str, Callable[[], Tensor]]:
    """Returns name → a function that augments one batch and waits for the result."""
    coarse = torch.rand(batch_size, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 255
    images = torch.nn.functional.interpolate(coarse, IMAGE_SIZE, mode="bilinear").to(torch.uint8)
    arrays = images.permute(0, 2, 3, 1).contiguous().numpy()
    steps = [getattr(transforms, name)(**parameters) for name, parameters in AUGMENTATIONS.items()]
    on_pil = transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    on_tensors = transforms.Compose([*steps, transforms.Normalize(MEAN, STD)])
    batched = BatchedAugmentations(AUGMENTATIONS, {}, image_size=IMAGE_SIZE, mean=MEAN, std=STD)
    generator = torch.Generator().manual_seed(0)
    variants: dict[str, Callable[[], Tensor]] = {
        BASELINE: lambda: torch.stack([on_pil(Image.fromarray(array)) for array in arrays]),
        "torchvision on float tensors": lambda: torch.stack([on_tensors(image / 255) for image in images]),
        DRAWS: lambda: batched.draw(EPOCH, generator),
    }
    params = batched.draw(batch_size, generator)
    for device in dict.fromkeys((torch.device("cpu"), best_device())):
        inputs = images.to(device), params.to(device)
        augments = {"": batched} | ({", compiled": torch.compile(batched, fullgraph=True)} if compiled else {})
        for suffix, augment in augments.items():

            def call(augment: Callable = augment, inputs: tuple = inputs, device: torch.device = device) -> Tensor:
                result = augment(*inputs)
                synchronize(device)
                return result

            variants[f"batched, {device.type}{suffix}"] = call
    return variants


@restored_threads()
def main(argv: list[str] | None = None) -> list[dict[str, object]]:
    """Prints the table and returns its rows."""
    parser = build_parser(__doc__, data=False, overrides=False)
    parser.add_argument("--batch-size", type=at_least(1), default=64)
    parser.add_argument("--rounds", type=at_least(1), default=5)
    parser.add_argument("--threads", type=at_least(1), default=1, help="CPU threads of torch (1: images/s per core)")
    parser.add_argument("--compile", action="store_true", help="also measure the batched variants with torch.compile")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    variants = build_variants(arguments.batch_size, compiled=arguments.compile)
    times = interleaved(variants, rounds=arguments.rounds, seconds=TURN_SECONDS)
    stated = conditions(best_device(), batch_size=arguments.batch_size, rounds=arguments.rounds, image_size=IMAGE_SIZE)
    draws = statistics.median(times.pop(DRAWS))
    rows = []
    for name, seconds in times.items():
        median, low, high = (arguments.batch_size / value for value in quartiles(seconds))
        rows.append({"variant": name, "images_per_second": median, "quartiles": [high, low]})
    print(f"{'images per second':30} {'median':>9} {'quartiles':>19} {'× PIL':>7}")
    for row in rows:
        low, high = row["quartiles"]
        ratio = row["images_per_second"] / rows[0]["images_per_second"]
        print(f"{row['variant']:30} {row['images_per_second']:9.0f} {low:8.0f} … {high:8.0f} {ratio:7.2f}")
    print(f"drawing the parameters of {EPOCH} images: {1e3 * draws:.0f} ms")
    print_conditions(stated)
    write_report(arguments.output, stated | {"draw_seconds": draws}, rows)
    return rows


if __name__ == "__main__":
    sys.exit(run_command(main))
