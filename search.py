"""Searches for the best settings: tries configurations of a space and judges what it finds: python search.py --help."""

import argparse
import json
import logging
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from searching.reading import check_corners, read_space
from searching.space import COSTS, METRICS
from utils.cli import run_command
from utils.config import load_config
from utils.errors import ConfigError, RunError
from utils.logs import start_logging

FOLDER = "searches"  # in output_path
NO_TERMINAL = (120, 24)  # columns and lines
EPILOG = f"""The same command resumes an interrupted search, and extends a finished one whose budget was raised. Start it once
more for each further process or machine that shares the search. Metrics: {", ".join(METRICS)}; costs: {", ".join(COSTS)}."""

logger = logging.getLogger(__name__)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Searches for the best settings in a space of configurations.", epilog=EPILOG
    )
    parser.add_argument("space", metavar="SPACE.yml", type=Path, help="file that says what varies; see docs/search.md")
    parser.add_argument("-d", "--data", metavar="FOLDER", help="folder of the data set, instead of data_path")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="change one key in all trials; repeatable"
    )
    parser.add_argument("--output", metavar="FOLDER", type=Path, help="where to write, instead of output_path")
    parser.add_argument("--trials", metavar="N", type=int, help="another number of trials than the budget of the space")
    parser.add_argument(
        "--confirm", metavar="N", type=int, default=0, help="train the three best trials again with N other seeds"
    )
    parser.add_argument(
        "--storage",
        metavar="URL",
        help="storage of Optuna that machines share, such as postgresql://…; default: SQLite",
    )
    parser.add_argument("--report", action="store_true", help="train nothing; report the trials so far")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> Path | None:
    """Trains the trials that are left, writes the report, and returns its path; None if no trial has finished."""
    arguments = parse_arguments(argv)
    if arguments.confirm < 0 or arguments.confirm == 1:
        raise ConfigError(f"--confirm {arguments.confirm}: expected 2 seeds or more, which show how much they differ")
    if arguments.trials is not None and arguments.trials < 1:
        raise ConfigError(f"--trials {arguments.trials}: expected at least 1")
    data = [f"data_path={json.dumps(arguments.data)}"] if arguments.data else []
    space = read_space(arguments.space, overrides=[*arguments.set, *data], trials=arguments.trials)
    start_logging("INFO")

    # Torch takes seconds to import: by now, errors in the space have been reported.
    from assembly import load_annotations
    from reproduction.planning import digest_of_data
    from searching.final import test_accuracy
    from searching.report import Findings, terminal_text, write_report
    from searching.results import BEST_FEW, judge, pareto_front, ranked, read_trials, repeats_of
    from searching.study import STORE, Search
    from searching.trials import device_environments, run_trials

    if not arguments.report:
        check_corners(space)
    config = space.config(space.corners()[0])
    splits = load_annotations(config)
    if config.validation_fraction is None and not splits.test:
        logger.warning(
            "validation_fraction is null: the images that choose the best settings are the only ones that can judge them; set "
            "validation_fraction, such as 0.15, in the space"
        )
    folder = (arguments.output or load_config().output_path) / FOLDER
    if arguments.report and arguments.storage is None and not (folder / STORE).exists():
        raise RunError(f"{folder} has no search yet; without --report the same command starts one")
    digest = digest_of_data(splits)
    search = Search(space, folder, data=digest, storage=arguments.storage)
    environments = [] if arguments.report else device_environments(config)
    run_trials(search, environments)
    results = read_trials(search)
    best = ranked(space, pareto_front(search, results) if len(space.metrics) > 1 else results)[:BEST_FEW]
    others = search.count_elsewhere()
    if others:
        waiting = "; the last of them makes the repeats" if arguments.confirm else ""
        print(f"{others} trials are being trained by other processes{waiting}")
    if not best:
        raise RunError(f"no trial of {space.name} has finished; {folder / 'queue'} has the output of each")
    repeats = []
    seeds = arguments.confirm if arguments.report or not others else 0
    repeating = repeats_of(space, best, seeds, results)
    if seeds or search.has(repeating.name):
        confirming = Search(repeating, folder, data=digest, storage=arguments.storage)
        if seeds:
            run_trials(confirming, environments)
        repeats = read_trials(confirming)
    judged = judge(space, best, repeats)
    found = Findings(search, results, judged, test_accuracy(search, judged[0]))
    paths = write_report(found)
    print(terminal_text(found, width=shutil.get_terminal_size(NO_TERMINAL).columns), end="\n\n")
    print(f"report: {paths[2]}; configuration: python train.py --config {paths[-1]}")
    return paths[2]


if __name__ == "__main__":
    sys.exit(run_command(main, outlives_terminal=True))
