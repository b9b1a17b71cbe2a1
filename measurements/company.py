"""Images per second of a training alone and of two at once, with OpenMP's idle threads spinning or sleeping, or none.

    python -m measurements.company [--rounds 2] [--epochs 3] [--images 40]

Trains the demo with `train.py` itself, taking turns. A training's speed is the median of its epochs after the first.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from datamodules.demo import write_demo_data
from measurements.measuring import (
    at_least,
    best_device,
    build_parser,
    command,
    conditions,
    print_conditions,
    spread,
    write_report,
)
from utils.cli import run_command, set_options
from utils.errors import RunError
from utils.machine import PROJECT, SPIN_VARIABLES
from utils.progress import progress_bar
from utils.runs.folder import SPEED
from utils.runs.metrics import read_rows

DEMO = PROJECT / "experiments" / "demo.yml"
# Threads that spin, what the commands set where the user has set nothing, and trainings of one thread each.
SLEEPING = {"OMP_WAIT_POLICY": "PASSIVE"}
VARIANTS = {
    "spinning": {"GOMP_SPINCOUNT": "300000"},
    "sleeping": SLEEPING,
    "one thread": SLEEPING | {"OMP_NUM_THREADS": "1"},
}


def measure_trainings(overrides: Sequence[str], folder: Path, *, count: int, variables: dict[str, str]) -> list[float]:
    """Trains `count` runs at the same time and returns the images per second of each.

    Args:
        overrides: Changes of the demo's configuration.
        folder: A new folder for the runs.
        count: The number of trainings.
        variables: The environment variables that decide whether idle threads spin.
    """
    environment = {name: value for name, value in os.environ.items() if name not in SPIN_VARIABLES} | variables
    outputs = [folder / str(number) for number in range(count)]
    processes = []
    with tempfile.TemporaryFile("w+") as log:
        try:
            for output in outputs:
                words = command("train.py", "--config", str(DEMO), *set_options([*overrides, f"output_path={output}"]))
                processes.append(subprocess.Popen(words, cwd=PROJECT, env=environment, stdout=log, stderr=log))
            codes = [process.wait() for process in processes]
        finally:
            for process in processes:
                process.kill()
        if any(codes):
            log.seek(0)
            raise RunError(f"train.py failed: {log.read().strip()[-2000:]}")
    speeds = [read_rows(next(output.glob(f"*/{SPEED}")))[1:] for output in outputs]
    return [statistics.median(row["images_per_second"] for row in rows) for rows in speeds]


def main(argv: Sequence[str] | None = None) -> list[dict[str, object]]:
    parser = build_parser(__doc__, data=False, overrides=False)
    parser.add_argument("--rounds", type=at_least(1), default=2)
    parser.add_argument("--epochs", type=at_least(2), default=3)
    parser.add_argument("--images", type=at_least(3), default=40, help="training images of each of the 15 classes")
    arguments = parser.parse_args(argv)
    stated = conditions(
        best_device(),
        rounds=arguments.rounds,
        epochs=arguments.epochs,
        images=arguments.images,
        load=os.getloadavg()[0],
    )
    found: dict[tuple[str, int], list[float]] = {(variant, count): [] for variant in VARIANTS for count in (1, 2)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_demo_data(folder / "demo", training_photos=arguments.images, validation_photos=1)
        overrides = [
            f"data_path={folder / 'demo'}", f"cache_path={folder / 'cache'}", "trackers=[]", "num_workers=0",
            f"num_epochs={arguments.epochs}",
        ]  # fmt: skip
        measure_trainings(overrides, folder / "warm-up", count=1, variables=VARIANTS["sleeping"])  # fills the cache
        turns = [(number, *key) for number in range(arguments.rounds) for key in found]
        for number, variant, count in progress_bar(turns, description="training", unit=" turns"):
            run = folder / f"{variant}-{count}-{number}"
            found[variant, count] += measure_trainings(overrides, run, count=count, variables=VARIANTS[variant])
            rows = [
                {"idle_threads": variant, "trainings": count, "images_per_second": spread(speeds)}
                for (variant, count), speeds in found.items()
                if speeds
            ]
            write_report(arguments.output, stated, rows)
    print("idle threads   trainings   images/s each")
    for row in rows:
        speed = row["images_per_second"]
        print(
            f"{row['idle_threads']:<15}{row['trainings']:>9}   {speed['median']:.1f} ({speed['min']} … {speed['max']})"
        )
    print_conditions(stated)
    return rows


if __name__ == "__main__":
    sys.exit(run_command(main))
