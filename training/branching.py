"""The checkpoint from which a branch of a run begins: the trunk's, as the branch's own schedule would have left it.

The learning rate and early stopping of the branch are replayed over the trunk's epochs. So a branch equals, to the bit, a run
of its own whose configuration gives the same training up to there.
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch

from models.classifier import Classifier
from models.optimization import step_lr_scheduler
from training.checkpoints import ABOUT, read_checkpoint
from training.early_stopping import EarlyStopping
from training.recorder import Recorder
from utils.errors import ConfigError
from utils.runs.branches import Trunk
from utils.runs.metrics import Row

OWN_OF_DEVICE = ("params", "fused")  # of a parameter group: places of its parameters, and what depends on their device


def branch_checkpoint(
    checkpoint: dict[str, Any], classifier: Classifier, *, patience: int | None, config: dict[str, Any]
) -> dict[str, Any]:
    """Returns the checkpoint of a trunk, of the end of an epoch, as that of a branch.

    Args:
        checkpoint: The trunk's.
        classifier: The branch's.
        patience: Of the branch's early stopping; None for none.
        config: The branch's configuration, as plain values.

    Raises:
        ConfigError: With this schedule the epochs until then would have had another learning rate, other epochs would have
            been mixed, or the run would have stopped early.
    """
    rows: list[Row] = checkpoint["callbacks"][Recorder.__name__]["rows"]
    steps = checkpoint["global_step"] // len(rows)
    _check_mixed_epochs(checkpoint[ABOUT]["config"], config, epochs=len(rows))
    state = checkpoint["optimizer_states"][0]
    groups, scheduler = _replay_schedule(classifier, rows, steps)
    state = state | {
        "param_groups": [
            old | {name: value for name, value in new.items() if name not in OWN_OF_DEVICE}
            for old, new in zip(state["param_groups"], groups, strict=True)
        ]
    }
    callbacks = {key: value for key, value in checkpoint["callbacks"].items() if not key.startswith("EarlyStopping")}
    if patience is not None:
        stopper = _replay_early_stopping(rows, patience)
        callbacks[stopper.state_key] = stopper.state_dict()
    branch = {name: value for name, value in checkpoint.items() if name != "lr_scheduler"}
    branch |= {} if scheduler is None else {"lr_scheduler": scheduler}
    return branch | {
        "optimizer_states": [state],
        "callbacks": callbacks,
        ABOUT: checkpoint[ABOUT] | {"config": config},
    }


def read_trunk(trunk: Trunk) -> dict[str, Any]:
    """Reads the checkpoint of a trunk.

    Raises:
        ConfigError: It is of another epoch, or from within one.
        DamagedCheckpoint: It cannot be read.
    """
    checkpoint = read_checkpoint(trunk.checkpoint)
    progress = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
    if not progress["ready"] == progress["processed"] == trunk.epochs:
        raise ConfigError(
            f"--at {trunk.epochs}: {trunk.checkpoint} is from within epoch {progress['processed']}; resume the run first"
        )
    return checkpoint


def _check_mixed_epochs(trunk: dict[str, Any], branch: dict[str, Any], *, epochs: int) -> None:
    """Checks that of the first `epochs` both configurations mix the same ones, where both mix."""
    mixed = {
        min(epochs, each["num_epochs"] - each.get("mix_off_epochs", 0))
        for each in (trunk, branch)
        if each.get("mixup_alpha") or each.get("cutmix_alpha")
    }
    if len(mixed) > 1:
        raise ConfigError(
            "--branch: mix_off_epochs counts from the end: with this num_epochs the run would have mixed other epochs before "
            f"epoch {epochs}; change mix_off_epochs too"
        )


def _replay_schedule(
    classifier: Classifier, rows: Sequence[Row], steps: int
) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """Returns the parameter groups and the scheduler's state after the epochs `rows` of `steps` steps each."""
    by_step = classifier.scheduler_step == "batch"
    with warnings.catch_warnings(action="ignore"):  # the scheduler is stepped without its optimizer
        optimizer, scheduler = classifier.build_optimization(steps if by_step else 1)
        for epoch, row in enumerate(rows):
            for _ in range(steps if by_step else 1):
                lr = optimizer.param_groups[0]["lr"]
                step_lr_scheduler(scheduler, valid_loss=row["valid_loss"])
            lr *= classifier.warmup_factor((epoch + 1) * steps - 1, steps)
            if not math.isclose(lr, row["lr"], rel_tol=1e-9):
                raise ConfigError(
                    f"--branch: with this schedule epoch {epoch} would have had the learning rate {lr:.6g}; the run had "
                    f"{row['lr']:.6g}. A branch can change the schedule from epoch {len(rows)} on"
                )
    return optimizer.param_groups, None if scheduler is None else scheduler.state_dict()


def _replay_early_stopping(rows: Sequence[Row], patience: int) -> EarlyStopping:
    stopper = EarlyStopping(patience, extend_finished_run=False)
    for row in rows:
        should_stop, _ = stopper._evaluate_stopping_criteria(torch.tensor(row["valid_loss"]))
        if should_stop:
            raise ConfigError(
                f"--branch: with a patience of {patience} epochs the run would have stopped after epoch {int(row['epoch'])}"
            )
    return stopper
