"""Runs experiments and compares their results with the published ones: python reproduce.py --help."""

import argparse
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from reproduction.comparison import Comparison
from reproduction.planning import FOLDER, plan
from reproduction.published import ALL, choose_experiments, read_published
from reproduction.queue import Unfinished, run_jobs
from reproduction.readme import MEASURED, README, update_readme
from reproduction.report import TEXT, summary_text, write_report
from reproduction.results import read_results
from utils.cli import run_command
from utils.config import load_config
from utils.errors import ConfigError, RunError
from utils.logs import start_logging

NO_TERMINAL = (120, 24)  # columns and lines
EPILOG = """The same command resumes an interrupted list. Several GPUs or machines share a list through one folder: start the
command once for each, such as CUDA_VISIBLE_DEVICES=1 python reproduce.py all."""


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Runs experiments one after another and compares their results with the published ones.",
        epilog=EPILOG,
    )
    parser.add_argument(
        "experiments", metavar="EXPERIMENT|FILE", nargs="*",
        help=f"experiments of the study, such as C-1 C-7, or configuration files; {ALL}: the whole study",
    )  # fmt: skip
    parser.add_argument("-d", "--data", metavar="FOLDER", help="folder of the data set, instead of data_path")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="change one key in all; can be repeated"
    )
    parser.add_argument("--repeat", metavar="N", type=int, default=1, help="run each with N seeds; default: 1")
    parser.add_argument(
        "--divide-epochs", "--shorten", metavar="K", type=int, default=1,
        help="divide all epoch counts of the schedules by K, for a slow machine",
    )  # fmt: skip
    parser.add_argument("--output", metavar="FOLDER", type=Path, help="where to write, instead of output_path")
    parser.add_argument("--report", action="store_true", help="run nothing; compare the finished runs")
    parser.add_argument(
        "--table", action="store_true", help="run nothing; add the finished runs to experiments/README.md"
    )
    return parser.parse_args(argv)


def check_arguments(arguments: argparse.Namespace) -> None:
    only = next((option for option in ("report", "table") if getattr(arguments, option)), None)
    if only and (arguments.set or arguments.data or (arguments.repeat, arguments.divide_epochs) != (1, 1)):
        raise ConfigError(
            f"--{only} runs nothing: --set, --data, --repeat and --divide-epochs cannot be combined with it"
        )
    if not only and not arguments.experiments:
        raise ConfigError(f"name the experiments to run, such as C-1 C-7, or {ALL}; --report compares finished runs")
    if arguments.repeat < 1:
        raise ConfigError(f"--repeat {arguments.repeat}: expected at least 1 seed")
    if arguments.divide_epochs < 1:
        raise ConfigError(f"--divide-epochs {arguments.divide_epochs}: expected at least 1, which changes nothing")


def main(argv: Sequence[str] | None = None) -> list[Comparison]:
    """Runs what is not finished, writes the comparison, and returns it."""
    arguments = parse_arguments(argv)
    check_arguments(arguments)
    files = choose_experiments(arguments.experiments or [ALL])
    folder = (arguments.output or load_config().output_path) / FOLDER
    start_logging("INFO")
    unfinished = Unfinished()
    if not (arguments.report or arguments.table):
        data = [f"data_path={json.dumps(arguments.data)}"] if arguments.data else []
        jobs = plan(
            files,
            overrides=[*arguments.set, *data],
            repeat=arguments.repeat,
            folder=folder,
            divisor=arguments.divide_epochs,
        )
        unfinished = run_jobs(jobs, folder)
    comparisons = report(folder, files, add_to_table=arguments.table)
    for key in unfinished.elsewhere:
        print(f"{key.name} is being trained by another process")
    if unfinished.failed:
        failed = "".join(f"\n  {key.name}: {why}" for key, why in unfinished.failed.items())
        raise RunError(f"{len(unfinished.failed)} runs failed; the same command tries them again{failed}")
    return comparisons


def report(folder: Path, files: Mapping[str, Path], *, add_to_table: bool) -> list[Comparison]:
    """Writes and prints the comparison of the finished runs in `folder`, and returns it."""
    measured, not_counted = read_results(folder, files)
    if add_to_table:
        print(f"{update_readme(measured)} runs in {MEASURED}, shown in {README}")
    for line in not_counted:
        print(line)
    if not measured:
        print(f"no finished run in {folder}")
        return []
    published = read_published()
    comparisons = write_report(folder, measured, published)
    print(summary_text(comparisons, published, width=shutil.get_terminal_size(NO_TERMINAL).columns), end="\n\n")
    print(f"comparison: {folder / TEXT}")
    return comparisons


if __name__ == "__main__":
    sys.exit(run_command(main, outlives_terminal=True))
