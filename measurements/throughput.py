"""Photos per second of the ways from a data set to a trained step, measured in turn.

    python -m measurements.throughput -d FOLDER [--compile default reduce-overhead] [--rounds 3] [--seconds 4]

Compares, with the settings of config.yml, a plain torchvision pipeline on PIL in a DataLoader (as torchvision's own
references have it), timm's own loader and training step with its nearest network, and this project without its cache, with
it, with whole batches on the device, and with those compiled. Each way has its turn in each round, three times: the input
alone; the training; and, once for all ways that have it in common, the device's work alone: the step, after the augmentation
where the device does it, of one batch that stays there. Printed are medians over the rounds. How long the device waits for
data is how much slower the training was than that work alone; on a CPU this counts the cores that the input takes from the
training. Beside it stands the share of the time in which the training loop stood in the loader.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import repeat
from pathlib import Path

import torch

import assembly
from measurements.arguments import at_least, report, some_seconds
from measurements.measuring import Turn, best_device, conditions, data_override, say_where, spread, walk, write_report
from measurements.ways import Way, build_ways, held_batch
from utils.cli import run_command
from utils.config import load_config
from utils.errors import ConfigError
from utils.progress import progress_bar

MODES = ("default", "reduce-overhead", "max-autotune")
WARM_UP = 3  # steps, of which the first compile and record


def measure(
    ways: dict[str, Way], batch: tuple[torch.Tensor, torch.Tensor], device: torch.device, rounds: int, seconds: float
) -> Iterator[dict[tuple[str, str], list[Turn]]]:
    """Yields (kind, way or network) → what each round gave, after every round."""
    steps = {way.network: way.step for way in ways.values()}
    for step in progress_bar(steps.values(), description="warming up", unit=" networks"):
        for _ in range(WARM_UP):
            step(*batch)
    works = {way.work: way for way in ways.values()}
    one_round = [(kind, name) for name in ways for kind in ("input", "training")] + [("work", name) for name in works]
    found: dict[tuple[str, str], list[Turn]] = {turn: [] for turn in one_round}
    turns = progress_bar(one_round * rounds, description="measuring", unit=" turns")
    for number, (kind, name) in enumerate(turns, start=1):
        if kind == "work":
            way = works[name]
            turn = walk(held_batch(way.loader()) if way.augments else repeat(batch), device, seconds, way.step)
        else:
            turn = walk(ways[name].loader(), device, seconds, ways[name].step if kind == "training" else None)
        found[kind, name].append(turn)
        if number % len(one_round) == 0:
            yield found


def tabulate(ways: dict[str, Way], found: dict[tuple[str, str], list[Turn]]) -> list[dict[str, object]]:
    """Returns one row for each way and kind; ratios and shares are medians of those within a round."""
    rows = []
    for kind, name in found:
        if kind == "work":
            continue
        turns = found[kind, name]
        plain = found[kind, next(iter(ways))]
        speeds = [turn.photos_per_second for turn in turns]
        ratios = [speed / base.photos_per_second for speed, base in zip(speeds, plain, strict=True)]
        row = {"what": kind, "way": name, "photos_per_second": spread(speeds), "times_first": spread(ratios, 2)}
        if kind == "training":
            alone = [turn.photos_per_second for turn in found["work", ways[name].work]]
            row |= {
                "work_alone": spread(alone),
                "waiting": round(statistics.median(1 - s / a for s, a in zip(speeds, alone, strict=True)), 4),
                "stood_in_loader": round(statistics.median(turn.blocked for turn in turns), 4),
            }
        rows.append(row)
    return sorted(rows, key=lambda row: row["what"])


def print_table(rows: list[dict[str, object]]) -> None:
    print(f"{'':9}{'':38}{'photos/s':>10}{'least':>10}{'most':>10}{'×':>8}{'waiting':>9}{'in loader':>11}")
    for row in rows:
        speed = row["photos_per_second"]
        shares = [row.get("waiting"), row.get("stood_in_loader")]
        text = [f"{100 * share:.1f} %" if share is not None else "" for share in shares]
        print(
            f"{row['what']:<9}{row['way']:<38}{speed['median']:>10,.1f}{speed['least']:>10,.1f}{speed['most']:>10,.1f}"
            f"{row['times_first']['median']:>8.2f}{text[0]:>9}{text[1]:>11}"
        )


def main(argv: Sequence[str] | None = None) -> list[dict[str, object]]:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-d", "--data", required=True, help="folder of the data set")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="as of train.py")
    parser.add_argument("--compile", metavar="MODE", nargs="*", choices=MODES, default=[], help=", ".join(MODES))
    parser.add_argument("--ways", metavar="WORD", nargs="*", help="only those whose name holds one of these words")
    parser.add_argument("--rounds", type=at_least(1), default=3)
    parser.add_argument("--seconds", type=some_seconds, default=4, help="of each measurement")
    parser.add_argument("--output", type=report, default="measurements/throughput.json")
    arguments = parser.parse_args(argv)
    config = load_config(overrides=[data_override(arguments.data), *arguments.set])
    device = best_device()
    torch.backends.cudnn.benchmark = True  # as train.py has it, timm's script and torchvision's references
    annotations = assembly.load_annotations(config)
    with tempfile.TemporaryDirectory() as folder:
        ways = build_ways(config, annotations, device, Path(folder), arguments.compile)
        if arguments.ways:
            named = {name: way for name, way in ways.items() if any(word in name for word in arguments.ways)}
            if not named:
                raise ConfigError(f"--ways {' '.join(arguments.ways)}: expected words of {', '.join(ways)}")
            ways = named
        images = torch.randn(config.batch_size, 3, *config.image_size)
        batch = images.to(device), torch.randint(len(annotations.class_names), (config.batch_size,)).to(device)
        stated = conditions(
            device, data=Path(arguments.data).name, photos=len(annotations.train), image_size=config.image_size,
            batch_size=config.batch_size, precision=assembly.precision(config), num_workers=config.num_workers,
            rounds=arguments.rounds, seconds=arguments.seconds, changes=arguments.set,
        )  # fmt: skip
        for found in measure(ways, batch, device, arguments.rounds, arguments.seconds):
            rows = tabulate(ways, found)
            write_report(arguments.output, stated, rows)  # of the rounds so far, should this be ended
        del ways
    print_table(rows)
    say_where(arguments.output, stated)
    return rows


if __name__ == "__main__":
    sys.exit(run_command(main))
