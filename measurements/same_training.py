"""Whether the fast path is the same training: best validation accuracies of several seeds each, compared.

    python -m measurements.same_training -d FOLDER --runs FOLDER [--seeds 5] [--set num_epochs=30]

Trains config.yml (C-50) with each seed in each way: photos augmented one at a time on the CPU in fp32, which is the
study's; whole batches on the device in fp32; the same in bf16; and, with --compile, the same compiled. Runs lie in
--runs; those that came to their end are not trained again, and those that were broken off go on, so that the command can
be given again and again. Where there is no CUDA, small photos and few epochs are set first, which --set may change.

Two ways differ if the 95 % interval of the difference of their means (Welch: each has a spread of its own) does not hold
zero. Where it does, its half width says how large a difference would have been seen: more seeds see smaller ones.
"""

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy import stats

import train
from measurements.arguments import at_least, report
from measurements.measuring import best_device, conditions, data_override, say_where, settings, write_report
from utils.cli import run_command
from utils.config import load_config, load_run_config
from utils.errors import ConfigError
from utils.progress import progress_bar
from utils.runs.folder import CONFIG, LAST, has_ended, read_record

SMALL = ("image_size=[32, 32]", "num_epochs=3", "batch_size=64")  # without CUDA
COMMON = ("trackers=[]", "log_to_neptune=False")
WAYS = {
    "photo by photo, fp32": ("augmentation_device=cpu", "precision=32-true"),
    "whole batches, fp32": ("augmentation_device=device", "precision=32-true"),
    "whole batches, bf16": ("augmentation_device=device", "precision=bf16-mixed"),
}
PLACES = {"output_path", "cache_path"}  # where a run lies is no part of what it is
CONFIDENCE = 0.95
BEST = "best_valid_acc"


def trained(folder: Path, overrides: Sequence[str]) -> float:
    """Returns the best validation accuracy of the run in `folder`: a finished one, or one that is trained or goes on now.

    Raises:
        ConfigError: A run is there that was trained with other settings.
    """
    wanted = load_config(overrides=overrides).plain()
    runs = sorted(path.parent for path in folder.glob(f"*/{CONFIG}"))
    for run in runs:
        found = load_run_config(run).plain()
        if others := [f"{key}: {found[key]!r}" for key in wanted if key not in PLACES and found[key] != wanted[key]]:
            raise ConfigError(f"{run} was trained with {', '.join(others)}; give --runs another folder")
    ended = next((run for run in runs if has_ended(run)), None)
    if ended is not None:
        return read_record(ended)["best"][BEST]
    broken_off = next((run for run in runs if (run / LAST).is_file()), None)
    if broken_off is not None:
        return train.main(["--resume", str(broken_off)])[BEST]
    return train.main(settings(overrides))[BEST]


def welch(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """Returns Welch's confidence interval of the mean of `second` minus that of `first`."""
    if not statistics.pvariance(first) + statistics.pvariance(second):
        return (statistics.mean(second) - statistics.mean(first),) * 2
    interval = stats.ttest_ind(second, first, equal_var=False).confidence_interval(CONFIDENCE)
    return float(interval.low), float(interval.high)


def tabulate(found: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """Returns mean and deviation of each way in percent, and the interval of its difference from the first."""
    first, *_ = found.values()
    rows = []
    for way, accuracies in found.items():
        mean, deviation = statistics.mean(accuracies), statistics.stdev(accuracies)
        row = {"way": way, "accuracies": accuracies, "mean": round(mean, 3), "deviation": round(deviation, 3)}
        if accuracies is not first:
            low, high = welch(first, accuracies)
            row |= {"difference": [round(low, 3), round(high, 3)], "differs": not low <= 0 <= high}
            row |= {"would_have_seen": round((high - low) / 2, 3)}
        rows.append(row)
    return rows


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-d", "--data", required=True, help="folder of the data set")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs and of their cache")
    parser.add_argument("--seeds", type=at_least(2), default=3, help="at least 2 (3): one has no spread")
    parser.add_argument("--compile", metavar="MODE", help="a fourth way: whole batches, bf16, compiled")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="as of train.py")
    parser.add_argument("--output", type=report, default="measurements/same_training.json")
    arguments = parser.parse_args(argv)
    device = best_device()
    ways = dict(WAYS)
    if arguments.compile:
        ways[f"whole batches, bf16, compile {arguments.compile}"] = (*WAYS["whole batches, bf16"],
                                                                      f"compile={arguments.compile}")  # fmt: skip
    changes = [*(() if device.type == "cuda" else SMALL), *arguments.set]
    rule = f"the {CONFIDENCE:.0%} Welch interval of the difference to the first way does not hold zero"
    if any(change.startswith("seed=") for change in arguments.set):
        raise ConfigError("--set seed: the seeds are 0, 1, 2 … as --seeds says")
    for way in ways.values():
        load_config(overrides=[*COMMON, *changes, *way])  # wrong ones are answered before the first training
    stated = conditions(device, data=Path(arguments.data).name, changes=changes, differs_if=rule)
    found: dict[str, list[float]] = {way: [] for way in ways}
    turns = [(seed, way) for seed in range(arguments.seeds) for way in ways]
    for seed, way in progress_bar(turns, description="training", unit=" runs"):
        folder = arguments.runs / way.replace(", ", "-").replace(" ", "-") / f"seed-{seed}"
        where = (f"seed={seed}", f"output_path={folder}", f"cache_path={arguments.runs / 'cache'}")
        found[way].append(100 * trained(folder, [data_override(arguments.data), *COMMON, *changes, *ways[way], *where]))
        if seed > 0 and way == list(ways)[-1]:  # every way has this seed, and a spread
            rows = tabulate(found)
            write_report(arguments.output, stated | {"seeds": seed + 1}, rows)
    for row in rows:
        text = f"{row['way']:<45}{row['mean']:>7.2f} % ± {row['deviation']:.2f}"
        if "difference" in row:
            low, high = row["difference"]
            seen = f"one of {row['would_have_seen']:.1f} points would have been seen"
            text += (
                f"   {low:+.2f} … {high:+.2f} points: {'DIFFERS' if row['differs'] else f'no difference seen, {seen}'}"
            )
        print(text)
    say_where(arguments.output, stated)
    return rows


if __name__ == "__main__":
    sys.exit(run_command(main))
