"""Optimizers and schedulers of torch by name, and the study's patience of early stopping."""

import inspect
from collections.abc import Iterable
from typing import Any, Literal

from torch import nn, optim

from utils.config.expressions import parse_expression

STUDY_PATIENCE = 15  # epochs
PLATEAU_FACTOR = 3  # with ReduceLROnPlateau: times its own patience


def build_optimizer(name: str, params: dict[str, Any] | None, parameters: Iterable[nn.Parameter]) -> optim.Optimizer:
    """Builds the optimizer `torch.optim.<name>`, fused where torch has that and no other implementation is configured.

    Raises:
        AttributeError, TypeError, ValueError: There is no such optimizer, or it does not take `params`.
    """
    cls, parameters, params = getattr(optim, name), list(parameters), dict(params or {})
    if "fused" in inspect.signature(cls).parameters and not params.keys() & {"fused", "foreach", "differentiable"}:
        params["fused"] = all(parameter.device.type in ("cpu", "cuda") for parameter in parameters)
    if "betas" in params:
        params["betas"] = tuple(params["betas"])
    return cls(parameters, **params)


def build_lr_scheduler(
    name: str | None, params: dict[str, Any] | None, optimizer: optim.Optimizer
) -> optim.lr_scheduler.LRScheduler | None:
    """Builds the scheduler `torch.optim.lr_scheduler.<name>`, or none; functions are given as expressions.

    Raises:
        AttributeError, TypeError, ValueError: There is no such scheduler, or it does not take `params`.
    """
    if name is None:
        return None
    params = dict(params or {})
    for key in ("lr_lambda", "scale_fn"):
        if params.get(key) is not None:
            params[key] = parse_expression(params[key])
    return getattr(optim.lr_scheduler, name)(optimizer, **params)


def step_lr_scheduler(lr_scheduler: optim.lr_scheduler.LRScheduler | None, *, valid_loss: float) -> None:
    """Steps the scheduler at the end of an epoch; ReduceLROnPlateau follows the validation loss."""
    if isinstance(lr_scheduler, optim.lr_scheduler.ReduceLROnPlateau):
        lr_scheduler.step(valid_loss)
    elif lr_scheduler is not None:
        lr_scheduler.step()


def stopping_patience(
    configured: Literal["auto"] | int | None, *, lr_scheduler: str | None, lr_scheduler_params: dict[str, Any] | None
) -> int | None:
    """Returns the epochs without a lower validation loss after which training stops; None for never.

    The study waited 15 epochs, with ReduceLROnPlateau three times the scheduler's own patience (torch's default: 10).
    """
    if configured != "auto":
        return configured
    if lr_scheduler == "ReduceLROnPlateau":
        return PLATEAU_FACTOR * (lr_scheduler_params or {}).get("patience", 10)
    return STUDY_PATIENCE
