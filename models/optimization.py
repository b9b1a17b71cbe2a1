"""Optimizers and schedulers of torch by name."""

import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn, optim

from utils.config.expressions import parse_expression

# Parameters of schedulers that count epochs, and those that are learning rates of all parameter groups.
LENGTHS = ("T_0", "T_max", "epochs", "step_size", "step_size_down", "step_size_up", "total_iters", "total_steps")
RATES = ("base_lr", "max_lr", "min_lr")


def build_optimizer(
    name: str,
    params: dict[str, Any] | None,
    parameters: Iterable[nn.Parameter] | list[dict[str, Any]],
    *,
    may_fuse: bool = True,
) -> optim.Optimizer:
    """Builds the optimizer `torch.optim.<name>`, fused where torch has that and no other implementation is configured.

    Args:
        name, params: Name and parameters of the optimizer.
        parameters: Parameters, or groups of `models.finetuning.parameter_groups`.
        may_fuse: False where gradients are clipped, which Lightning's mixed precision cannot do for fused optimizers.

    Raises:
        AttributeError, TypeError, ValueError: There is no such optimizer, or it does not take `params`.
    """
    cls, parameters, params = getattr(optim, name), list(parameters), dict(params or {})
    if "fused" in inspect.signature(cls).parameters and not params.keys() & {"fused", "foreach", "differentiable"}:
        flat = [each for part in parameters for each in (part["params"] if isinstance(part, dict) else [part])]
        params["fused"] = may_fuse and all(parameter.device.type in ("cpu", "cuda") for parameter in flat)
    if "betas" in params:
        params["betas"] = tuple(params["betas"])
    optimizer = cls(parameters, **params)
    for group in optimizer.param_groups:
        group["lr"] *= group.get("lr_scale", 1)
    return optimizer


def build_lr_scheduler(
    name: str | None, params: dict[str, Any] | None, optimizer: optim.Optimizer, *, steps_per_epoch: int = 1
) -> optim.lr_scheduler.LRScheduler | None:
    """Builds the scheduler `torch.optim.lr_scheduler.<name>`, or none; functions are given as expressions.

    Args:
        name, params: Name and parameters of the scheduler; lengths are in epochs.
        optimizer: Of `build_optimizer`.
        steps_per_epoch: How often the scheduler is stepped in an epoch.

    Raises:
        AttributeError, TypeError, ValueError: There is no such scheduler, or it does not take `params`.
    """
    if name is None:
        return None
    params = dict(params or {})
    for key in ("lr_lambda", "scale_fn"):
        if params.get(key) is not None:
            params[key] = parse_expression(params[key])
    if steps_per_epoch > 1:
        params |= _in_steps(_default_lengths(name) | params, steps_per_epoch)
        if name == "ExponentialLR" or params.get("mode") == "exp_range":
            params["gamma"] = params.get("gamma", 1.0) ** (1 / steps_per_epoch)
    if len(optimizer.param_groups) > 1:  # these would replace the learning rates of the groups
        scales = [group.get("lr_scale", 1) for group in optimizer.param_groups]
        params |= {key: [params[key] * scale for scale in scales] for key in params.keys() & {*RATES}}
    return getattr(optim.lr_scheduler, name)(optimizer, **params)


def _default_lengths(name: str) -> dict[str, int]:
    """Returns torch's own lengths, except the 2000 of CyclicLR, which are meant as steps."""
    defaults = {
        key: parameter.default
        for key, parameter in inspect.signature(getattr(optim.lr_scheduler, name)).parameters.items()
        if key in LENGTHS and name != "CyclicLR"
    }
    return {key: value for key, value in defaults.items() if isinstance(value, int)}


def _in_steps(params: dict[str, Any], steps_per_epoch: int) -> dict[str, Any]:
    """Returns the parameters of a scheduler that count epochs, in steps."""
    changed: dict[str, Any] = {
        key: round(value * steps_per_epoch) for key, value in params.items() if key in LENGTHS and value is not None
    }
    if "milestones" in params:
        changed["milestones"] = [epoch * steps_per_epoch for epoch in params["milestones"]]
    if (of_epoch := params.get("lr_lambda")) is not None:
        changed["lr_lambda"] = lambda step: of_epoch(step / steps_per_epoch)
    return changed


@contextmanager
def scaled_lr(optimizer: optim.Optimizer, factor: float) -> Iterator[None]:
    """Multiplies the learning rates by `factor` for one step; the scheduler does not see it."""
    rates = [group["lr"] for group in optimizer.param_groups]
    try:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        yield
    finally:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


def step_lr_scheduler(lr_scheduler: optim.lr_scheduler.LRScheduler | None, *, valid_loss: float | None = None) -> None:
    """Steps the scheduler after a batch or at the end of an epoch; ReduceLROnPlateau follows the validation loss."""
    if isinstance(lr_scheduler, optim.lr_scheduler.ReduceLROnPlateau):
        lr_scheduler.step(valid_loss)
    elif lr_scheduler is not None:
        lr_scheduler.step()
