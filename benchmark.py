"""Measures models side by side: python benchmark.py --help."""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils.cli import run_command
from utils.config import load_config
from utils.config.architectures import ARCHITECTURE_LIMITS, image_size_problem
from utils.errors import ConfigError
from utils.files import make_folder, write_text
from utils.logs import start_logging

if TYPE_CHECKING:
    from deployment.profiling.benchmark import Profile

ROUNDS, QUICK_ROUNDS = 7, 2


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Measures size, speed and memory of models, and shows the accuracy of trained ones."
    )
    parser.add_argument(
        "models", metavar="ARCHITECTURE|RUN|CHECKPOINT", nargs="*", help="none: all architectures but those of timm"
    )
    parser.add_argument(
        "--image-size", metavar=("HEIGHT", "WIDTH"), type=int, nargs=2, default=(227, 227),
        help="of architectures; a trained model has its own (default: 227 227)",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds instead of {ROUNDS}")
    parser.add_argument(
        "--output", metavar="FOLDER", type=Path, help="report folder, instead of benchmark/ in output_path"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> list["Profile"]:
    """Measures, writes a report, and returns the measurements."""
    arguments = parse_arguments(argv)
    start_logging("WARNING")
    check_image_size(arguments.models or list(ARCHITECTURE_LIMITS), arguments.image_size)
    folder = make_folder(arguments.output or load_config().output_path / "benchmark")

    # Torch takes seconds to import: wrong arguments are reported before.
    from deployment.profiling.benchmark import build_profiles, measure
    from deployment.profiling.figure import draw
    from deployment.profiling.report import as_markdown, as_text, conditions, table, write_profiles

    rounds = QUICK_ROUNDS if arguments.quick else ROUNDS
    lines = conditions(rounds)  # before this program itself loads the machine
    profiles = build_profiles(arguments.models, arguments.image_size)
    with tempfile.TemporaryDirectory() as scratch:
        measure(profiles, Path(scratch), rounds=rounds)
    cells = table(profiles)
    write_profiles(folder / "benchmark.csv", profiles)
    write_text(folder / "benchmark.md", as_markdown(cells, lines))
    draw(profiles, folder / "benchmark.png", title=lines[0])
    print("\n".join([as_text(cells), "", *lines]))
    print(f"  report in {folder}: benchmark.csv, benchmark.md, benchmark.png")
    print(
        "  next: python train.py --set architecture=NAME --set out_channels=null (ghost: without the latter),\n"
        "  then python benchmark.py RUN … to compare accuracy and cost"
    )
    return profiles


def check_image_size(names: Sequence[str], image_size: Sequence[int]) -> None:
    """Raises a ConfigError that lists the architectures among `names` that do not support this image size."""
    architectures = [name for name in names if name in ARCHITECTURE_LIMITS or name.startswith("timm/")]
    problems = [problem for name in architectures if (problem := image_size_problem(name, image_size))]
    if problems:
        raise ConfigError(f"--image-size: {'; '.join(problems)}")


if __name__ == "__main__":
    sys.exit(run_command(main))
