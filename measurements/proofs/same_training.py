"""Whether the fast path trains equally well: best validation accuracies of several seeds per variant, compared.

    python -m measurements.proofs.same_training -d FOLDER --runs FOLDER [--seeds 5] [--set num_epochs=30]

Trains config.yml with each seed in each variant: augmented per image on the CPU in fp32, as in the study; batched on the
device in fp32; the same in bf16; and, with --compile, the same compiled. Runs are kept in --runs: finished ones are not
trained again and interrupted ones are resumed, so that the command can be repeated. Without CUDA, small images and few
epochs are set first, which --set may change.

Two variants differ if the 95 % interval of the difference of their means (Welch) does not contain zero. If it does, its
half width is the difference that would have been detected; more seeds detect smaller ones.
"""

import statistics
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy import stats

import train
from measurements.measuring import (
    at_least,
    best_device,
    build_parser,
    conditions,
    data_override,
    print_conditions,
    write_report,
)
from utils.cli import run_command, set_options
from utils.config import load_config, load_run_config
from utils.errors import ConfigError
from utils.progress import progress_bar
from utils.runs.folder import CONFIG, LAST, has_ended, read_record

SMALL = ("image_size=[32, 32]", "num_epochs=3", "batch_size=64")  # without CUDA
COMMON = ("trackers=[]", "log_to_neptune=False")
VARIANTS = {
    "per image, fp32": ("augmentation_device=cpu", "precision=32-true"),
    "batched, fp32": ("augmentation_device=device", "precision=32-true"),
    "batched, bf16": ("augmentation_device=device", "precision=bf16-mixed"),
}
PATHS = {"output_path", "cache_path"}  # without influence on the training
CONFIDENCE = 0.95
BEST = "best_valid_acc"


def train_or_resume(folder: Path, overrides: Sequence[str]) -> float:
    """Returns the best validation accuracy of the run in `folder`, which is trained or resumed if it is not finished.

    Raises:
        ConfigError: The folder has a run with other settings.
    """
    wanted = load_config(overrides=overrides).plain()
    runs = sorted(path.parent for path in folder.glob(f"*/{CONFIG}"))
    for run in runs:
        found = load_run_config(run).plain()
        if others := [f"{key}: {found[key]!r}" for key in wanted if key not in PATHS and found[key] != wanted[key]]:
            raise ConfigError(f"{run} was trained with {', '.join(others)}; give --runs another folder")
    ended = next((run for run in runs if has_ended(run)), None)
    if ended is not None:
        return read_record(ended)["best"][BEST]
    interrupted = next((run for run in runs if (run / LAST).is_file()), None)
    if interrupted is not None:
        return train.main(["--resume", str(interrupted)])[BEST]
    return train.main(set_options(overrides))[BEST]


def welch(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """Returns Welch's confidence interval of the mean of `second` minus that of `first`."""
    if not statistics.pvariance(first) + statistics.pvariance(second):
        return (statistics.mean(second) - statistics.mean(first),) * 2
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # seeds with nearly the same accuracy
        interval = stats.ttest_ind(second, first, equal_var=False).confidence_interval(CONFIDENCE)
    return float(interval.low), float(interval.high)


def tabulate(found: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """Returns mean and deviation of each variant in percent, and the interval of its difference from the first."""
    first, *_ = found.values()
    rows = []
    for variant, accuracies in found.items():
        mean, deviation = statistics.mean(accuracies), statistics.stdev(accuracies)
        row = {"variant": variant, "accuracies": accuracies, "mean": round(mean, 3), "deviation": round(deviation, 3)}
        if accuracies is not first:
            low, high = welch(first, accuracies)
            row |= {"difference": [round(low, 3), round(high, 3)], "differs": not low <= 0 <= high}
            row |= {"detectable": round((high - low) / 2, 3)}
        rows.append(row)
    return rows


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    parser = build_parser(__doc__)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs and of their cache")
    parser.add_argument("--seeds", type=at_least(2), default=3, help="at least 2 (3)")
    parser.add_argument("--compile", metavar="MODE", help="a fourth variant: batched, bf16, compiled")
    arguments = parser.parse_args(argv)
    device = best_device()
    variants = dict(VARIANTS)
    if arguments.compile:
        variants[f"batched, bf16, compile {arguments.compile}"] = (*VARIANTS["batched, bf16"],
                                                                      f"compile={arguments.compile}")  # fmt: skip
    changes = [*(() if device.type == "cuda" else SMALL), *arguments.set]
    rule = f"the {CONFIDENCE:.0%} Welch interval of the difference from the first variant does not contain zero"
    if any(change.startswith("seed=") for change in arguments.set):
        raise ConfigError("--set seed: use --seeds; the seeds are 0, 1, 2 …")
    for variant in variants.values():
        load_config(overrides=[*COMMON, *changes, *variant])  # errors are reported before the first training
    stated = conditions(device, data=Path(arguments.data).name, changes=changes, differs_if=rule)
    found: dict[str, list[float]] = {variant: [] for variant in variants}
    turns = [(seed, variant) for seed in range(arguments.seeds) for variant in variants]
    for seed, variant in progress_bar(turns, description="training", unit=" runs"):
        folder = arguments.runs / variant.replace(", ", "-").replace(" ", "-") / f"seed-{seed}"
        where = (f"seed={seed}", f"output_path={folder}", f"cache_path={arguments.runs / 'cache'}")
        found[variant].append(
            100
            * train_or_resume(folder, [data_override(arguments.data), *COMMON, *changes, *variants[variant], *where])
        )
        if seed > 0 and variant == list(variants)[-1]:  # all variants have this seed
            rows = tabulate(found)
            write_report(arguments.output, stated | {"seeds": seed + 1}, rows)
    for row in rows:
        text = f"{row['variant']:<45}{row['mean']:>7.2f} % ± {row['deviation']:.2f}"
        if "difference" in row:
            low, high = row["difference"]
            result = f"no difference; one of {row['detectable']:.1f} points would have been detected"
            text += f"   {low:+.2f} … {high:+.2f} points: {'DIFFERS' if row['differs'] else result}"
        print(text)
    print_conditions(stated)
    return rows


if __name__ == "__main__":
    sys.exit(run_command(main))
