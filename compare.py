"""Compares runs by their folders: python compare.py --help."""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.cli import run_command
from utils.config import load_config
from utils.errors import ConfigError
from utils.nearest import nearest
from utils.runs.comparison import SORTS, Run, describe_runs, draw_runs, find_runs, read_run, sort_runs, write_table

PICTURE = "comparison.png"
PIPE = (160, 24)  # columns and lines without a terminal


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compares runs: best metrics, differing settings, curves.")
    parser.add_argument(
        "runs",
        metavar="RUN",
        nargs="*",
        help="a run's folder, name or checkpoint, or 'last'; default: all in output_path",
    )
    parser.add_argument("--output", metavar="FOLDER", type=Path, help="folder of the runs, instead of output_path")
    parser.add_argument("--sort", metavar="METRIC", default=SORTS[0], help=f"{', '.join(SORTS)}; default: {SORTS[0]}")
    parser.add_argument("--csv", metavar="FILE", type=Path, help="also write the table as CSV, accuracies as fractions")
    parser.add_argument(
        "--picture", metavar="FILE", type=Path, help=f"PNG of the curves; default: {PICTURE} in output_path"
    )
    return parser.parse_args(argv)


def check_arguments(arguments: argparse.Namespace) -> None:
    if arguments.sort not in SORTS:
        raise ConfigError(f"--sort {arguments.sort}: unknown metric.{nearest(arguments.sort, SORTS)}")
    if arguments.picture and arguments.picture.suffix.lower() != ".png":
        raise ConfigError(f"--picture {arguments.picture}: expected a name that ends in .png")
    for option in ("csv", "picture"):
        path = getattr(arguments, option)
        if path and path.is_dir():
            raise ConfigError(f"--{option} {path}: expected a file, this is a folder")
        if path and not path.parent.is_dir():
            raise ConfigError(f"--{option} {path}: the folder {path.parent} does not exist")


def main(argv: Sequence[str] | None = None) -> list[Run]:
    """Prints and plots the comparison, and returns the runs in its order."""
    arguments = parse_arguments(argv)
    check_arguments(arguments)
    output_path = arguments.output or load_config().output_path
    runs = sort_runs([read_run(folder) for folder in find_runs(arguments.runs, output_path)], arguments.sort)
    for problem in (problem for run in runs for problem in run.problems):
        print(f"warning: {problem}", file=sys.stderr)
    print(describe_runs(runs, width=shutil.get_terminal_size(PIPE).columns, sort=arguments.sort), end="\n\n")
    if arguments.csv:
        write_table(runs, arguments.csv)
        print(f"table:  {arguments.csv}")
    if any(run.rows for run in runs):
        # Without an output_path, as for runs given by their folders, in the working folder.
        picture = arguments.picture or (output_path if output_path.is_dir() else Path()) / PICTURE
        draw_runs(runs, picture)
        print(f"curves: {picture}")
    else:
        print("curves: none, no run has completed an epoch")
    return runs


if __name__ == "__main__":
    sys.exit(run_command(main))
