"""Measures what each part of the recipe costs, as a ratio to the plain step: python -m measurements.recipe_cost.

Each turn trains one part for some steps, by the trainer of train.py, on a batch that stays in memory; the parts take turns,
and each ratio is that of two turns of one round. The input is not measured.
"""

import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningDataModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

import assembly
from datamodules import DataSplits
from losses.distillation import Teacher
from measurements.measuring import at_least, build_parser, conditions, print_conditions, spread, write_report
from models.classifier import Classifier
from utils.cli import run_command
from utils.config import Config, load_config
from utils.config.architectures import ARCHITECTURE_LIMITS
from utils.logs import start_logging

WARM_UP_STEPS = 2
BODIES = ("Sedan", "Coupe", "SUV", "Convertible", "Hatchback", "Van", "Wagon")
CLASS_NAMES = tuple(f"Make{number % 49} Model{number} {BODIES[number % 7]} 2012" for number in range(196))
TEACHER = "teacher of the same size"
PARTS = {
    "plain": (),
    "mixup": ("mixup_alpha=0.2",),
    "CutMix": ("cutmix_alpha=1.0",),
    "averaged weights (EMA)": ("ema_decay=0.5",),
    "gradient clipping": ("gradient_clip_norm=1.0",),
    "layer decay": ("layer_decay=0.8",),
    "no decay of norms and biases": ("decay_norm_and_bias=False",),
    "warm-up, schedule by step": ("warmup_epochs=0.5", "scheduler_step=batch"),
    "drop path": ("drop_path=0.1",),
    "auxiliary targets": ("auxiliary_targets=[make, body_type]",),
    TEACHER: (),
}


class HeldBatch(LightningDataModule):
    """Serves the same batch in each of `steps` steps, and two images of it in the validation."""

    def __init__(self, images: Tensor, labels: Tensor, steps: int) -> None:
        super().__init__()
        self.batch, self.batches_per_epoch = (images, labels), steps

    def train_dataloader(self) -> DataLoader:
        return DataLoader([self.batch] * self.batches_per_epoch, batch_size=None)

    def val_dataloader(self) -> DataLoader:
        images, labels = self.batch
        return DataLoader([(images[:2], labels[:2])], batch_size=None)


class Clock(Callback):
    """Notes the end of each step."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, module: Classifier, *_: Any) -> None:
        if module.device.type == "cuda":
            torch.cuda.synchronize(module.device)
        self.ends.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        """The median of the steps after the first ones."""
        return statistics.median(end - start for start, end in pairwise(self.ends[WARM_UP_STEPS:]))


def parts_of(config: Config) -> list[str]:
    """Returns the parts that the architecture has."""
    limits = ARCHITECTURE_LIMITS.get(config.architecture)
    return [part for part in PARTS if part != "drop path" or limits is None or limits.drop_path]


def build(config: Config, part: str) -> Classifier:
    """Returns the classifier of a part."""
    splits = DataSplits((), (), CLASS_NAMES, kind="held batch", description="")
    teachers = []
    if part == TEACHER:
        model = assembly.build_classifier(config, len(CLASS_NAMES)).model
        teachers = [Teacher(model, assembly.view_of(config, config.image_size), torch.arange(len(CLASS_NAMES)))]
    return assembly.build_classifier(config, len(CLASS_NAMES), splits=splits, teachers=teachers)


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    parser = build_parser(__doc__, data=False)
    parser.add_argument("--rounds", type=at_least(1), default=5)
    parser.add_argument("--steps", type=at_least(WARM_UP_STEPS + 3), default=12, help="of each turn (12)")
    arguments = parser.parse_args(argv)
    start_logging("WARNING")
    small = ["image_size=[96, 96]", "batch_size=32", "num_epochs=1", "lr_scheduler_params={milestones: [1]}"]
    configs = {
        part: load_config(overrides=[*small, *arguments.set, *PARTS[part]])
        for part in parts_of(load_config(overrides=[*small, *arguments.set]))
    }
    plain = configs["plain"]
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(plain.batch_size, *assembly.image_shape(plain), generator=generator)
    data = HeldBatch(images, torch.randint(len(CLASS_NAMES), (plain.batch_size,), generator=generator), arguments.steps)
    classifiers = {part: build(config, part) for part, config in configs.items()}
    seconds: dict[str, list[float]] = {part: [] for part in configs}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.rounds):
            for part in random.Random(number).sample(list(configs), len(configs)):
                trainer = assembly.build_trainer(configs[part], Path(folder), [clock := Clock()])
                trainer.callbacks = [clock]  # without Lightning's own checkpoints
                trainer.fit(classifiers[part], data)
                seconds[part].append(clock.seconds)
            rows = [
                {
                    "part": part,
                    "milliseconds": spread([1000 * each for each in times]),
                    "ratio": spread(
                        [one / other for one, other in zip(times, seconds["plain"], strict=True)], digits=3
                    ),
                }
                for part, times in seconds.items()
            ]
            stated = conditions(
                trainer.strategy.root_device, architecture=plain.architecture, image_size=plain.image_size,
                batch_size=plain.batch_size, steps=arguments.steps, rounds=number + 1, precision=str(trainer.precision),
            )  # fmt: skip
            write_report(arguments.output, stated, rows)
    print_conditions(stated)
    print(
        f"{plain.architecture}, {'×'.join(map(str, plain.image_size))}, batches of {plain.batch_size}, {stated['precision']}"
    )
    for row in rows:
        ratio, took = row["ratio"], row["milliseconds"]
        print(
            f"  {row['part']:<30}{ratio['median']:6.3f} ({ratio['min']:.3f} … {ratio['max']:.3f})  {took['median']:8.1f} ms"
        )
    return rows


if __name__ == "__main__":
    sys.exit(run_command(main))
