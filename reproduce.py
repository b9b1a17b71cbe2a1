"""Runs published experiments and compares what comes out with what was published: python reproduce.py --help."""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from reproduction.comparison import Comparison
from reproduction.jobs import FOLDER, plan
from reproduction.published import ALL, choose_experiments, read_published
from reproduction.readme_table import MEASURED, README, update_table
from reproduction.report import TEXT, summary_text, write_report
from reproduction.results import read_results
from reproduction.running import Unfinished, run_jobs
from utils.cli import run_command
from utils.config import load_config
from utils.errors import ConfigError, RunError
from utils.logs import start_logging

PIPE = (120, 24)  # columns and lines where there is no terminal
EPILOG = """The same command goes on with a list that was broken off. Several GPUs or machines share a list over one folder:
start it once for each, as in CUDA_VISIBLE_DEVICES=1 python reproduce.py all."""


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Runs published experiments one after another, and compares them with what was published.",
        epilog=EPILOG,
    )
    parser.add_argument("experiments", metavar="EXPERIMENT", nargs="*", help=f"such as C-1 C-7; {ALL}: every one")
    parser.add_argument("-d", "--data", metavar="FOLDER", help="folder of the data set, instead of data_path")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="change one key of all; may be repeated"
    )
    parser.add_argument("--repeat", metavar="N", type=int, default=1, help="run each with N seeds; default: 1")
    parser.add_argument(
        "--shorten",
        metavar="K",
        type=int,
        default=1,
        help="divide all that is counted in epochs by K, for a slow machine",
    )
    parser.add_argument("--output", metavar="FOLDER", type=Path, help="where to, instead of output_path")
    parser.add_argument("--report", action="store_true", help="run nothing, write the comparison of what is there")
    parser.add_argument(
        "--table", action="store_true", help="run nothing, add what is there to the table in experiments/"
    )
    return parser.parse_args(argv)


def check_arguments(arguments: argparse.Namespace) -> None:
    looks = [option for option in ("report", "table") if getattr(arguments, option)]
    if looks and (arguments.set or arguments.data or (arguments.repeat, arguments.shorten) != (1, 1)):
        raise ConfigError(f"--{looks[0]} runs nothing: it takes no --set, --data, --repeat or --shorten")
    if not looks and not arguments.experiments:
        raise ConfigError(f"name the experiments to run, such as C-1 C-7, or {ALL}; what is there already: --report")
    if arguments.repeat < 1:
        raise ConfigError(f"--repeat {arguments.repeat}: expected at least 1 seed")
    if arguments.shorten < 1:
        raise ConfigError(f"--shorten {arguments.shorten}: expected at least 1, which leaves the epochs as they were")


def main(argv: Sequence[str] | None = None) -> list[Comparison]:
    """Runs what is not finished, writes the comparison, and returns it."""
    arguments = parse_arguments(argv)
    check_arguments(arguments)
    names = choose_experiments(arguments.experiments or [ALL])
    folder = (arguments.output or load_config().output_path) / FOLDER
    start_logging("INFO")
    unfinished = Unfinished()
    if not (arguments.report or arguments.table):
        data = [f"data_path={json.dumps(arguments.data)}"] if arguments.data else []
        jobs = plan(
            names, overrides=[*arguments.set, *data], repeat=arguments.repeat, folder=folder, shorten=arguments.shorten
        )
        unfinished = run_jobs(jobs, folder)
    comparisons = report(folder, names, add_to_table=arguments.table)
    for key, who in unfinished.elsewhere.items():
        print(f"{key.experiment} with seed {key.seed} is being run by {who}")
    if unfinished.failed:
        failed = "".join(f"\n  {key.experiment} with seed {key.seed}: {why}" for key, why in unfinished.failed.items())
        raise RunError(f"runs that failed: {len(unfinished.failed)}; the same command tries them again{failed}")
    return comparisons


def report(folder: Path, names: Sequence[str], *, add_to_table: bool) -> list[Comparison]:
    """Writes and prints the comparison of the finished runs in `folder`; returns it."""
    measured, open_runs = read_results(folder, names)
    if add_to_table:
        print(f"runs in {MEASURED}, shown in {README}: {update_table(measured)}")
    for line in open_runs:
        print(f"not finished: {line}")
    if not measured:
        print(f"no run in {folder} is finished yet")
        return []
    published = read_published()
    comparisons = write_report(folder, measured, published)
    print(summary_text(comparisons, published, width=shutil.get_terminal_size(PIPE).columns), end="\n\n")
    print(f"comparison: {folder / TEXT}")
    return comparisons


if __name__ == "__main__":
    sys.exit(run_command(main, outlives_terminal=True))
