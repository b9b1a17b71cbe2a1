"""Images per second from a data set to a training step, for several input pipelines measured in turns.

    python -m measurements.throughput -d FOLDER [--compile default reduce-overhead] [--rounds 3] [--seconds 4]

Compares, with the settings of config.yml: torchvision's transforms on PIL images in a DataLoader, timm's loader and
training step with its nearest model, and this project without cache, with cache, batched on the device, and compiled.
Each round measures, for each variant, the input alone and the training; and once for all variants that share it, the
device's work alone on a batch that it holds: the step, and the augmentation where the device does it. Printed are medians.

`waiting` is how much slower the training is than the device's work alone; on a CPU it includes the cores that the input
takes from the training. `data_wait` is the share of the time that the training loop waits for its loader.
"""

import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import repeat
from pathlib import Path
from typing import get_args

import torch

import assembly
from measurements.measuring import (
    Turn,
    at_least,
    best_device,
    build_parser,
    conditions,
    data_override,
    duration,
    measure_batches,
    print_conditions,
    spread,
    write_report,
)
from measurements.variants import Variant, build_variants, held_batch
from models.compilation import CompileMode
from utils.cli import run_command
from utils.config import load_config
from utils.errors import ConfigError
from utils.progress import progress_bar

MODES = get_args(CompileMode)
MAX_SECONDS = 24 * 3600
WARM_UP_STEPS = 3  # the first ones compile and record


def measure(
    variants: dict[str, Variant],
    batch: tuple[torch.Tensor, torch.Tensor],
    device: torch.device,
    rounds: int,
    seconds: float,
) -> Iterator[dict[tuple[str, str], list[Turn]]]:
    """Yields (kind, variant or work) → the turns so far, after every round."""
    steps = {variant.model: variant.step for variant in variants.values()}
    for step in progress_bar(steps.values(), description="warming up", unit=" models"):
        for _ in range(WARM_UP_STEPS):
            step(*batch)
    works = {variant.work: variant for variant in variants.values()}
    one_round = [(kind, name) for name in variants for kind in ("input", "training")] + [
        ("work", name) for name in works
    ]
    found: dict[tuple[str, str], list[Turn]] = {turn: [] for turn in one_round}
    turns = progress_bar(one_round * rounds, description="measuring", unit=" turns")
    for number, (kind, name) in enumerate(turns, start=1):
        if kind == "work":
            variant = works[name]
            batches = held_batch(variant.loader()) if variant.on_device else repeat(batch)
            turn = measure_batches(batches, device, seconds, variant.step)
        else:
            step = variants[name].step if kind == "training" else None
            turn = measure_batches(variants[name].loader(), device, seconds, step)
        found[kind, name].append(turn)
        if number % len(one_round) == 0:
            yield found


def tabulate(variants: dict[str, Variant], found: dict[tuple[str, str], list[Turn]]) -> list[dict[str, object]]:
    """Returns a row for each variant and kind; ratios and shares are medians over rounds."""
    rows = []
    for kind, name in found:
        if kind == "work":
            continue
        turns = found[kind, name]
        plain = found[kind, next(iter(variants))]
        speeds = [turn.images_per_second for turn in turns]
        ratios = [speed / base.images_per_second for speed, base in zip(speeds, plain, strict=True)]
        row = {"kind": kind, "variant": name, "images_per_second": spread(speeds), "times_first": spread(ratios, 2)}
        if kind == "training":
            alone = [turn.images_per_second for turn in found["work", variants[name].work]]
            row |= {
                "work_alone": spread(alone),
                "waiting": round(statistics.median(1 - s / a for s, a in zip(speeds, alone, strict=True)), 4),
                "data_wait": round(statistics.median(turn.data_wait for turn in turns), 4),
            }
        rows.append(row)
    return sorted(rows, key=lambda row: row["kind"])


def print_table(rows: list[dict[str, object]]) -> None:
    print(f"{'':9}{'':38}{'images/s':>10}{'min':>10}{'max':>10}{'×':>8}{'waiting':>9}{'data wait':>11}")
    for row in rows:
        speed = row["images_per_second"]
        shares = [row.get("waiting"), row.get("data_wait")]
        text = [f"{100 * share:.1f} %" if share is not None else "" for share in shares]
        print(
            f"{row['kind']:<9}{row['variant']:<38}{speed['median']:>10,.1f}{speed['min']:>10,.1f}{speed['max']:>10,.1f}"
            f"{row['times_first']['median']:>8.2f}{text[0]:>9}{text[1]:>11}"
        )


def main(argv: Sequence[str] | None = None) -> list[dict[str, object]]:
    parser = build_parser(__doc__)
    parser.add_argument("--compile", metavar="MODE", nargs="*", choices=MODES, default=[], help=", ".join(MODES))
    parser.add_argument("--variants", metavar="WORD", nargs="*", help="only those whose name has one of these words")
    parser.add_argument("--rounds", type=at_least(1), default=3)
    parser.add_argument(
        "--seconds", type=duration("seconds", above=0, at_most=MAX_SECONDS), default=4, help="of each turn"
    )
    arguments = parser.parse_args(argv)
    config = load_config(overrides=[data_override(arguments.data), *arguments.set])
    device = best_device()
    torch.backends.cudnn.benchmark = True  # as train.py for full batches, timm's script and torchvision's references
    splits = assembly.load_annotations(config)
    with tempfile.TemporaryDirectory() as folder:
        variants = build_variants(config, splits, device, Path(folder), arguments.compile)
        if arguments.variants:
            chosen = {name: one for name, one in variants.items() if any(word in name for word in arguments.variants)}
            if not chosen:
                raise ConfigError(f"--variants {' '.join(arguments.variants)}: expected words of {', '.join(variants)}")
            variants = chosen
        images = torch.randn(config.batch_size, 3, *config.image_size)
        batch = images.to(device), torch.randint(len(splits.class_names), (config.batch_size,)).to(device)
        stated = conditions(
            device, data=Path(arguments.data).name, images=len(splits.train), image_size=config.image_size,
            batch_size=config.batch_size, precision=assembly.precision(config), num_workers=config.num_workers,
            rounds=arguments.rounds, seconds=arguments.seconds, changes=arguments.set,
        )  # fmt: skip
        for found in measure(variants, batch, device, arguments.rounds, arguments.seconds):
            rows = tabulate(variants, found)
            write_report(arguments.output, stated, rows)
        del variants
    print_table(rows)
    print_conditions(stated)
    return rows


if __name__ == "__main__":
    sys.exit(run_command(main))
