"""Images per second of whole training epochs: the study's training in a plain loop, and this trainer, in turns.

    python -m measurements.plain_loop -d FOLDER [--rounds 3] [--epochs 3] [--images 1018] [--allocator] [--set KEY=VALUE]

Both train C-50 on the same images in a process of their own, on all cores. The plain loop is the study's: each image is
decoded and augmented anew by torchvision, in four workers; batches are NCHW in 32 bit. The trainer runs as `train.py` does,
with its cache built before. The plain loop leaves memory and threads to the C library and OpenMP; with --allocator, a second
train.py leaves them its memory. Each epoch counts from its start to its last training step; validation does not count.
"""

import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

import assembly
from datamodules import DataSplits
from deployment.export import evenly_spaced
from measurements.measuring import (
    at_least,
    best_device,
    build_parser,
    command,
    conditions,
    data_override,
    print_conditions,
    spread,
    synchronize,
    write_report,
)
from measurements.variants import torchvision_loader
from models import build_model
from models.optimization import build_optimizer
from utils.cli import run_command, set_options
from utils.config import Config, load_config
from utils.errors import RunError
from utils.machine import PROJECT
from utils.progress import progress_bar
from utils.runs.folder import SPEED
from utils.runs.metrics import read_rows

C_50 = PROJECT / "experiments" / "C-50.yml"
WORKERS = 4  # of the plain loop, as in the study
VARIANTS = ("plain loop", "train.py")
RETURNING = "train.py, memory returned"
# Any variable of glibc's allocator makes our commands leave the memory to it; this one has no other effect.
OWN_MEMORY = {"MALLOC_CHECK_": "0"}


def write_table(splits: DataSplits, folder: Path, count: int) -> Path:
    """Writes a table of `count` training images, evenly spaced, and of one validation image of each class."""
    chosen = evenly_spaced(splits.train, count)
    valid = {record.label: record for record in splits.valid}.values()
    path = folder / "images.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "class", "split"))
        for split, records in (("train", chosen), ("valid", valid)):
            for number, record in enumerate(records):
                link = folder / "images" / f"{split}-{number}{record.path.suffix}"
                link.parent.mkdir(exist_ok=True)
                link.symlink_to(record.path.resolve())
                writer.writerow((link.relative_to(folder), splits.class_names[record.label], split))
    return path


def train_plainly(config: Config) -> list[float]:
    """Trains in a plain loop, and returns the images per second of each epoch."""
    torch.manual_seed(config.seed)
    device = best_device()
    splits = assembly.load_annotations(config)
    model = build_model(
        config.architecture, num_classes=len(splits.class_names), dropout=config.dropout,
        out_channels=config.out_channels, width_multiplier=config.width_multiplier,
    ).to(device).train()  # fmt: skip
    loss = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    optimizer = build_optimizer(config.optimizer, config.optimizer_params, model.parameters())
    loader = torchvision_loader(config, splits)
    speeds = []
    for _ in range(config.num_epochs):
        started, images = time.perf_counter(), 0
        for batch, labels in loader:
            optimizer.zero_grad()
            loss(model(batch.to(device)), labels.to(device)).backward()
            optimizer.step()
            images += len(labels)
        synchronize(device)
        speeds.append(images / (time.perf_counter() - started))
    return speeds


def run_turn(variant: str, overrides: Sequence[str], folder: Path) -> list[float]:
    """Trains in a process of its own, and returns the images per second of each epoch."""
    environment = dict(os.environ)
    if variant == "plain loop":
        environment.pop("OMP_WAIT_POLICY", None)  # set by this command
        words = command("-m", "measurements.plain_loop", "--turn", *set_options(overrides))
    else:
        environment |= OWN_MEMORY if variant == RETURNING else {}
        words = command("train.py", "--config", str(C_50), *set_options([*overrides, f"output_path={folder}"]))
    done = subprocess.run(words, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RunError(f"{variant} failed: {done.stderr.strip()[-2000:]}")
    if variant != "plain loop":
        return [row["images_per_second"] for row in read_rows(next(folder.glob(f"*/{SPEED}")))]
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: Sequence[str] | None = None) -> list[dict[str, object]]:
    parser = build_parser(__doc__)
    parser.add_argument("--rounds", type=at_least(1), default=3)
    parser.add_argument("--epochs", type=at_least(2), default=3)
    parser.add_argument("--images", type=at_least(2), default=1018, help="training images")
    parser.add_argument("--allocator", action="store_true", help=f"train as '{RETURNING}' too")
    arguments = parser.parse_args(argv)
    variants = (*VARIANTS, *([RETURNING] if arguments.allocator else []))
    chosen = [data_override(arguments.data), *arguments.set]
    config = load_config(C_50, overrides=chosen)
    stated = conditions(
        best_device(), data=Path(arguments.data).name, images=arguments.images, epochs=arguments.epochs,
        image_size=config.image_size, batch_size=config.batch_size, changes=arguments.set,
    )  # fmt: skip
    found: dict[str, list[list[float]]] = {variant: [] for variant in variants}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table = write_table(assembly.load_annotations(config), folder, arguments.images)
        overrides = [
            "trackers=[]", f"cache_path={folder / 'cache'}", "early_stopping_patience=null", *arguments.set,
            data_override(str(table)), f"num_epochs={arguments.epochs}",
        ]  # fmt: skip
        run_turn("train.py", [*overrides, "num_epochs=1"], folder / "warm-up")  # fills the cache
        turns = [(number, variant) for number in range(arguments.rounds) for variant in variants]
        for number, variant in progress_bar(turns, description="training", unit=" turns"):
            found[variant].append(run_turn(variant, overrides, folder / f"{variant} {number}"))
            rows = tabulate(found)
            write_report(arguments.output, stated, rows)
    print(f"{'images/s':<26}{'first epoch':>24}{'later epochs':>24}{'× plain loop, later':>24}")
    for row in rows:
        cells = (f"{cell['median']} ({cell['min']} … {cell['max']})" for cell in list(row.values())[1:])
        print(f"{row['variant']:<26}" + "".join(f"{cell:>24}" for cell in cells))
    print_conditions(stated)
    return rows


def tabulate(found: dict[str, list[list[float]]]) -> list[dict[str, object]]:
    """Returns a row for each variant; ratios are of the epochs of the same number in the same round."""
    rows = []
    for variant, rounds in found.items():
        if rounds:
            pairs = zip(rounds, found["plain loop"], strict=False)
            ratios = [own / plain for ours, theirs in pairs for own, plain in zip(ours[1:], theirs[1:], strict=True)]
            rows.append({
                "variant": variant,
                "first_epoch": spread([speeds[0] for speeds in rounds]),
                "later_epochs": spread([speed for speeds in rounds for speed in speeds[1:]]),
                "times_plain": spread(ratios, 2),
            })  # fmt: skip
    return rows


def turn(argv: Sequence[str]) -> None:
    """Trains in a plain loop with the settings `argv`, for another process."""
    config = load_config(C_50, overrides=argv[1::2])
    print(json.dumps(train_plainly(config.model_copy(update={"num_workers": WORKERS}))))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--turn"]:
        turn(sys.argv[2:])
    else:
        sys.exit(run_command(main))
