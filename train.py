"""Trains a model with the settings of config.yml: python train.py --help."""

import argparse
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any

from training.signals import SignalHandler
from utils.cli import run_command
from utils.config import Config, load_branch_config, load_config, load_run_config
from utils.config.recipe import recipe_lines
from utils.errors import ConfigError, DataError, Interrupted
from utils.logs import log_to_file, start_logging
from utils.machine import PROJECT
from utils.processes import end_with_parent, is_first_process
from utils.runs import resolve_checkpoint
from utils.runs.branches import Trunk, find_trunk
from utils.runs.folder import BEST, LAST, LOG, METRICS, has_ended, make_run_folder, read_record
from utils.runs.metrics import read_rows
from utils.runs.summary import summarize
from utils.runs.teachers import TeacherFile, find_teachers

DEMO = PROJECT / "experiments" / "demo.yml"
EXTENDING = ("num_epochs=", "early_stopping_patience=")  # changes that let a finished run train further

logger = logging.getLogger(__name__)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Trains a model with the settings of config.yml.")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--config", metavar="FILE", help="YAML file with the keys that differ from config.yml")
    source.add_argument("--demo", action="store_true", help="train on drawn cars: needs no data, takes three minutes")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="change one key; repeatable")
    parser.add_argument("-d", "--data", metavar="FOLDER", help="folder of the data set, instead of data_path")
    work = parser.add_mutually_exclusive_group()
    work.add_argument(
        "--resume", metavar="RUN", help="resume a run: its folder, name or last.ckpt, or 'last', the newest"
    )
    work.add_argument(
        "--branch", metavar="RUN", help="continue a run with another schedule, in a run of its own; with --at"
    )
    work.add_argument("--check", action="store_true", help="check configuration and data without training")
    parser.add_argument(
        "--at", metavar="EPOCHS", type=int, help="with --branch: after so many epochs (see keep_checkpoints)"
    )
    parser.add_argument(
        "--stop-after", metavar="N", type=int,
        help="stop when N epochs are finished; the schedule keeps its length, and --resume continues it",
    )  # fmt: skip
    arguments = parser.parse_args(argv)
    if (arguments.branch is None) != (arguments.at is None):
        parser.error("--branch RUN and --at EPOCHS belong together")
    if arguments.check and arguments.stop_after is not None:
        parser.error("--stop-after has no effect with --check")
    if arguments.demo and arguments.data is not None:
        parser.error(
            "--demo draws its own cars; for its settings on your data: --config experiments/demo.yml -d FOLDER"
        )
    return arguments


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Trains a model, resumes or branches a run, or checks configuration and data.

    Returns:
        The best value of each metric and its epoch; with --check nothing.
    """
    arguments = parse_arguments(argv)
    trunk = find_branched_run(arguments)
    config, resumed = read_configuration(arguments, trunk)
    start_logging(config.loglevel)
    if config.neptune_api_token:
        logger.warning(
            "neptune_api_token: set the environment variable NEPTUNE_API_TOKEN instead, files are not for secrets"
        )
    if resumed and has_ended(resumed) and not any(change.startswith(EXTENDING) for change in arguments.set):
        if is_first_process():
            longer = f"--resume {quote(str(resumed))} --set num_epochs=N"
            print(f"{summarize(resumed)}\n  Nothing is left to do; to train longer: {longer}")
        return read_record(resumed)["best"]

    teachers = find_teachers(config, trunk.folder if trunk else resumed)
    # Torch takes seconds to import: by now, errors in the configuration have been reported.
    import assembly

    if not resumed and not trunk:
        config = assembly.resolve_pretrained(config)
    assembly.check_buildable(config)
    if arguments.demo:
        from datamodules.demo import write_demo_data

        write_demo_data(config.data_path)
    if arguments.check:
        from datamodules import read_splits
        from datamodules.check.check import examine_data
        from datamodules.check.report import write_report

        splits = read_splits(config)
        assembly.build_targets(config, splits.class_names, _load(teachers, splits.class_names))
        findings = examine_data(
            splits,
            partial(assembly.build_data, config),
            folder=config.data_path,
            near_duplicate_distance=config.near_duplicate_distance,
            mixing=assembly.build_mixing(config, len(splits.class_names)),
            accumulate_batches=config.accumulate_batches,
        )
        write_report(findings, config.output_path)
        return {}
    if argv is None:  # for the processes that Lightning starts: "last" may change until then
        sys.argv += [f"--resume={resumed}"] if resumed else [f"--branch={trunk.folder}"] if trunk else []
        sys.argv += [f"--set=teacher={json.dumps([each.path for each in teachers])}"] if teachers else []
        if isinstance(config.pretrained, str) and not resumed and not trunk:
            sys.argv += [f"--set=pretrained={json.dumps(config.pretrained)}"]
    return train(config, resumed, trunk, teachers=teachers, stop_after=arguments.stop_after)


def find_branched_run(arguments: argparse.Namespace) -> Trunk | None:
    """Returns the run that is branched, None without --branch."""
    if arguments.branch is None:
        return None
    if arguments.demo:
        raise ConfigError("--demo has no effect with --branch: a branch keeps the configuration of its run")
    where = [override for override in arguments.set if override.startswith("output_path=")]
    return find_trunk(arguments.branch, arguments.at, load_config(overrides=where).output_path)


def read_configuration(arguments: argparse.Namespace, trunk: Trunk | None = None) -> tuple[Config, Path | None]:
    """Returns the configuration and the folder of the resumed run, None for a new run or a branch of `trunk`."""
    if arguments.stop_after is not None and arguments.stop_after < 1:
        raise ConfigError(f"--stop-after {arguments.stop_after}: expected at least 1 epoch")
    overrides = arguments.set + ([f"data_path={json.dumps(arguments.data)}"] if arguments.data else [])
    if trunk is not None:
        config, changed = load_branch_config(trunk.folder, arguments.config, overrides=overrides)
        if (stop := arguments.stop_after) is not None and stop <= trunk.epochs:
            raise ConfigError(f"--stop-after {stop}: expected more than --at {trunk.epochs}")
        if config.num_epochs <= trunk.epochs:
            raise ConfigError(f"num_epochs: {config.num_epochs}; expected more than --at {trunk.epochs}")
        if not changed:
            raise ConfigError(
                f"--branch {trunk.folder}: nothing is changed; to continue the run: --resume {trunk.folder}"
            )
        return config, None
    if arguments.resume is None:
        return load_config(DEMO if arguments.demo else arguments.config, overrides=overrides), None
    if arguments.config:
        raise ConfigError("--config has no effect with --resume: a run keeps its configuration; change keys with --set")
    where = [override for override in overrides if override.startswith("output_path=")]
    checkpoint = resolve_checkpoint(arguments.resume, load_config(overrides=where).output_path, which=LAST)
    folder = checkpoint.parent.parent
    if checkpoint != folder / LAST:
        raise ConfigError(f"--resume {arguments.resume}: a run is resumed from its {LAST.name}; name the run's folder")
    config = load_run_config(folder, overrides=[override for override in overrides if override not in where])
    if arguments.demo and config.experiment_id != DEMO.stem:
        raise ConfigError(f"--demo: {folder} is no run of the demo, whose cars would be drawn again; leave --demo out")
    if (done := len(read_rows(folder / METRICS))) > config.num_epochs:
        raise ConfigError(f"--set num_epochs={config.num_epochs}: {folder} has {done} epochs already")
    if arguments.stop_after is not None and done >= arguments.stop_after:
        raise ConfigError(f"--stop-after {arguments.stop_after}: {folder} has {done} epochs already")
    return config, folder


def train(
    config: Config,
    resumed: Path | None,
    trunk: Trunk | None = None,
    *,
    teachers: Sequence[TeacherFile] = (),
    stop_after: int | None = None,
) -> dict[str, float]:
    """Trains a new run, a branch, or the resumed run in a folder, and returns its best metrics.

    Args:
        config: The configuration.
        resumed: The folder of the run; None for a new one.
        trunk: The run that is branched; None for no branch.
        teachers: Of `find_teachers`.
        stop_after: Number of finished epochs after which it stops, to be resumed; None: it ends as configured.
    """
    import assembly
    from datamodules.cache import check_cache_folder
    from training.checkpoints import resume_guard, write_checkpoint
    from training.failures.error_hints import error_hints
    from training.failures.max_batch_size import find_max_batch_size

    if resumed and config.raw_data_path is None and not config.data_path.exists():
        raise DataError(
            f"{config.data_path}, the data of this run, does not exist; if it was moved: python train.py --resume "
            f"{quote(str(resumed))} -d FOLDER"
        )
    splits = assembly.load_annotations(config)
    names = splits.class_names
    classifier = assembly.build_classifier(
        config, num_classes=len(names), splits=splits, teachers=_load(teachers, names)
    )
    data = assembly.build_data(config, splits)
    if config.cache_path is not None:
        check_cache_folder(config.cache_path)
    branch = assembly.read_branch(config, classifier, trunk, teachers, class_names=names) if trunk else None
    best = assembly.read_best(config, classifier, trunk) if trunk else None

    loaded = [] if resumed or trunk else assembly.load_pretrained_weights(config, classifier, names)
    if not is_first_process():
        end_with_parent()  # else it would wait half an hour for the other processes, and hold its device's memory
    folder = resumed or make_run_folder(config.output_path, config.architecture)
    where = config.logging_dir
    log_to_file(where / f"{folder.name}.log" if where else folder / LOG, key="logging_dir" if where else "output_path")
    record = assembly.build_record(config, folder, classifier, splits, trunk=trunk, teachers=teachers)
    for level, text in loaded:
        logger.log(level, text)
    checkpoint = trunk.checkpoint if trunk else folder / LAST if resumed else None
    signals = SignalHandler()
    hints = error_hints(
        batch_size=config.batch_size,
        num_workers=lambda: data.num_workers,
        find_max_batch_size=partial(find_max_batch_size, classifier, config.batch_size, assembly.image_shape(config)),
        signals=signals,
    )
    with _stopping(), signals, record, closing(data), resume_guard(checkpoint, folder / LAST), hints:
        callbacks = assembly.build_callbacks(
            config, record, class_names=splits.class_names, signals=signals, stop_after=stop_after
        )
        trainer = assembly.build_trainer(config, folder, callbacks, first_checkpoint=branch)
        record.start(trainer)
        if trunk:
            logger.info("branched from %s at epoch %d", trunk.folder, trunk.epochs)
            if best is not None and trainer.is_global_zero:
                write_checkpoint(best, folder / BEST)
        if lines := recipe_lines(config):
            logger.info("beyond the study's recipe:\n  %s", "\n  ".join(lines))
        logger.info(assembly.augmentation_path(config))
        trainer.fit(classifier, data, ckpt_path=checkpoint, weights_only=True)
    if trainer.is_global_zero:
        print(summarize(folder))
    return record.values["best"]


def _load(teachers: Sequence[TeacherFile], class_names: Sequence[str]) -> list[Any]:
    if not teachers:
        return []
    from deployment.teachers import load_teachers

    return load_teachers(teachers, class_names)


@contextmanager
def _stopping() -> Iterator[None]:
    """Takes the end that --stop-after asked for as a regular one."""
    try:
        yield
    except Interrupted as error:
        if error.exit_code:
            raise


if __name__ == "__main__":
    sys.exit(run_command(main, outlives_terminal=True))
