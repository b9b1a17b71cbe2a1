"""Measures networks side by side: python benchmark.py --help."""

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
    from deployment.profiling.benchmark import Row

ROUNDS, QUICK_ROUNDS = 7, 2


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Measures size, speed and memory of networks, and shows the accuracy of those that are trained."
    )
    parser.add_argument(
        "networks", metavar="ARCHITECTURE|RUN|CHECKPOINT", nargs="*", help="none: all architectures but those of timm"
    )
    parser.add_argument(
        "--image-size", metavar=("HEIGHT", "WIDTH"), type=int, nargs=2, default=(227, 227),
        help="of architectures; a trained network has its own (default: 227 227)",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds instead of {ROUNDS}")
    parser.add_argument("--output", metavar="FOLDER", type=Path, help="where to, instead of benchmark/ in output_path")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> list["Row"]:
    """Measures, and returns what was measured."""
    arguments = parse_arguments(argv)
    start_logging("WARNING")
    check_image_size(arguments.networks or list(ARCHITECTURE_LIMITS), arguments.image_size)
    folder = make_folder(arguments.output or load_config().output_path / "benchmark")

    # Torch takes seconds to import: a wrong argument has been answered by now.
    from deployment.profiling.benchmark import build_rows, measure
    from deployment.profiling.figure import draw
    from deployment.profiling.report import as_csv, as_markdown, as_text, conditions, table

    rounds = QUICK_ROUNDS if arguments.quick else ROUNDS
    said = conditions(rounds)  # before this program itself keeps the machine busy
    rows = build_rows(arguments.networks, arguments.image_size)
    with tempfile.TemporaryDirectory() as scratch:
        measure(rows, Path(scratch), rounds=rounds)
    cells = table(rows)
    write_text(folder / "benchmark.csv", as_csv(rows))
    write_text(folder / "benchmark.md", as_markdown(cells, said))
    draw(rows, folder / "benchmark.png", title=said[0])
    print("\n".join([as_text(cells), "", *said]))
    print(f"  all of it is in {folder}: benchmark.csv, benchmark.md, benchmark.png")
    print(
        "  next: python train.py --set architecture=NAME   then   python benchmark.py RUN …   to see accuracy beside cost"
    )
    return rows


def check_image_size(networks: Sequence[str], image_size: Sequence[int]) -> None:
    """Raises a ConfigError for all architectures among `networks` that do not take images of that size."""
    architectures = [name for name in networks if name in ARCHITECTURE_LIMITS or name.startswith("timm/")]
    problems = [problem for name in architectures if (problem := image_size_problem(name, image_size))]
    if problems:
        raise ConfigError(f"--image-size: {'; '.join(problems)}")


if __name__ == "__main__":
    sys.exit(run_command(main))
