"""Builds what surrounds a training: record, callbacks, and the checkpoint of a branch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback

from assembly.model import build_network
from datamodules import DataSplits
from losses.groupings import group_classes
from models import count_parameters
from models.classifier import Classifier
from models.optimization import build_optimizer
from training.branching import branch_checkpoint, read_trunk
from training.checkpoint_callback import Checkpoints
from training.checkpoints import ABOUT, check_targets, read_checkpoint
from training.early_stopping import EarlyStopping
from training.kernels import KernelChoice
from training.progress import TrainingProgress
from training.recorder import Recorder
from training.run_record import RunRecord
from training.signals import SignalHandler
from utils.config import Config
from utils.errors import ConfigError
from utils.runs.branches import Trunk
from utils.runs.teachers import TeacherFile, digests
from utils.tracking.parameters import study_parameters


def build_record(
    config: Config,
    folder: Path,
    classifier: Classifier,
    annotations: DataSplits,
    *,
    trunk: Trunk | None = None,
    teachers: Sequence[TeacherFile] = (),
) -> RunRecord:
    """Returns the record of a run in `folder`, a branch of `trunk` if there is one, with the files of its teachers."""
    model = classifier.model
    if classifier.num_groups:  # whose rows are dropped from what is kept
        with torch.device("meta"):
            model = build_network(config, len(annotations.class_names))
    optimizer = build_optimizer(config.optimizer, config.optimizer_params, [torch.nn.Parameter(torch.zeros(1))])
    parameters = study_parameters(
        config,
        architecture=type(model).__name__,
        num_params=count_parameters(model),
        weight_decay=optimizer.defaults.get("weight_decay"),
    )
    return RunRecord(
        folder,
        config,
        parameters=parameters,
        data={
            "num_classes": len(annotations.class_names),
            "train_photos": len(annotations.train),
            "valid_photos": len(annotations.valid),
            "test_photos": len(annotations.test),
            "valid_from": annotations.valid_from,
            "split_digest": annotations.split_digest,
        }
        | ({"branch": trunk.origin()} if trunk else {})
        | ({"teachers": digests(teachers)} if teachers else {}),
    )


def build_callbacks(
    config: Config,
    record: RunRecord,
    *,
    class_names: tuple[str, ...],
    signals: SignalHandler,
    stop_after: int | None = None,
) -> list[Callback]:
    """Returns the callbacks in the order in which they must run."""
    patience = config.stopping_patience
    about = {
        "config": config.plain(),
        "class_names": list(class_names),
        "split_digest": record.values["split_digest"],
    } | _about_targets(config, record.values.get("teachers"), class_names)
    return [
        TrainingProgress(),
        *([] if config.deterministic else [KernelChoice(config.batch_size)]),
        *([EarlyStopping(patience, extend_finished_run=record.was_finished)] if patience else []),
        Recorder(record.folder, record.trackers),
        Checkpoints(
            record.folder,
            about,
            best_metric=config.best_metric,
            interval=config.checkpoint_interval,
            kept=config.keep_checkpoints or (),
            signals=signals,
            stop_after=stop_after,
        ),
    ]


def _about_targets(config: Config, teachers: dict[str, str] | None, class_names: Sequence[str]) -> dict[str, Any]:
    """Returns what checkpoints hold of a run's teachers, path → digest, and auxiliary targets."""
    about: dict[str, Any] = {"teachers": teachers} if teachers else {}
    if config.auxiliary_targets is not None:
        about["auxiliary_targets"] = group_classes(config.auxiliary_targets, class_names)
    return about


def read_branch(
    config: Config, classifier: Classifier, trunk: Trunk, teachers: Sequence[TeacherFile], *, class_names: Sequence[str]
) -> dict[str, Any]:
    """Returns the checkpoint from which a branch of `trunk` begins.

    Raises:
        ConfigError: The trunk's checkpoint is of another epoch, or the configuration is not that of a branch.
        DamagedCheckpoint: The trunk's checkpoint cannot be read.
    """
    checkpoint = read_trunk(trunk)
    about = {"class_names": list(class_names)} | _about_targets(config, digests(teachers), class_names)
    check_targets(checkpoint[ABOUT], about)
    return branch_checkpoint(checkpoint, classifier, patience=config.stopping_patience, config=config.plain())


def read_best(config: Config, classifier: Classifier, trunk: Trunk) -> dict[str, Any] | None:
    """Returns the best checkpoint of a branch until its first epoch, which is the trunk's; None where there is none.

    Raises:
        ConfigError: The trunk is still being trained, and its best checkpoint is of a later epoch.
    """
    if not trunk.best.is_file():
        return None
    best = read_checkpoint(trunk.best)
    if best["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"] > trunk.epochs:
        raise ConfigError(
            f"--branch {trunk.folder}: it is being trained, and has more than {trunk.epochs} epochs by now; branch it when it "
            f"has ended, or train it with keep_checkpoints: [{trunk.epochs}]"
        )
    return branch_checkpoint(best, classifier, patience=config.stopping_patience, config=config.plain())
