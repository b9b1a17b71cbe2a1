"""Parameter groups of an optimizer: learning rates by depth and weight decay by kind; and which parameters are the head.

Layer-wise decay: Clark et al., "ELECTRA", ICLR 2020: https://arxiv.org/abs/2003.10555
"""

from collections.abc import Iterator
from typing import Any

from torch import nn


def head_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Returns the modules that give the logits, by name: what timm names so, else the last module with parameters."""
    if hasattr(model, "pretrained_cfg"):
        names = model.pretrained_cfg["classifier"]
        names = [names] if isinstance(names, str) else names  # two in distilled models
    else:
        names = [name for name, module in model.named_modules() if module._parameters][-1:]
    return {name: model.get_submodule(name) for name in names}


def head_names(model: nn.Module) -> set[str]:
    """Returns the names of the head's parameters."""
    return {f"{name}.{part}" for name, head in head_modules(model).items() for part, _ in head.named_parameters()}


def backbone_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Returns all parameters but those of the head."""
    head = head_names(model)
    return [parameter for name, parameter in model.named_parameters() if name not in head]


def parameter_groups(
    model: nn.Module, *, head_lr_factor: float = 1.0, layer_decay: float = 1.0, decay_norm_and_bias: bool = True
) -> list[dict[str, Any]]:
    """Returns parameter groups: the backbone's from its last layer to its first, then the head's.

    A group has `params`, `lr_scale`, a factor of the optimizer's learning rate, and where it is not decayed weight_decay: 0.

    Args:
        model: Of `models.build_model`.
        head_lr_factor: Factor of the head's learning rate.
        layer_decay: Factor of the learning rate from each layer to the one before it; the last has 1.
        decay_norm_and_bias: Whether norms, biases and what timm excludes too are decayed.
    """
    layers, head = layer_ids(model) if layer_decay != 1 else {}, head_names(model)
    last = max(layers.values(), default=0)
    kept = set() if decay_norm_and_bias else _without_decay(model)
    groups: dict[tuple[bool, int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        key = (name in head, last - layers.get(name, last), id(parameter) in kept)
        groups.setdefault(key, []).append(parameter)
    return [
        {"params": params, "lr_scale": layer_decay**depth * (head_lr_factor if is_head else 1.0)}
        | ({"weight_decay": 0.0} if is_kept else {})
        for (is_head, depth, is_kept), params in sorted(groups.items(), key=lambda item: item[0])
    ]


def layer_ids(model: nn.Module) -> dict[str, int]:
    """Returns the layer of each parameter, from 0: timm's own grouping for its models, else blocks by depth."""
    if hasattr(model, "group_matcher"):
        from timm.models import group_parameters  # timm takes seconds to import

        return group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    blocks = list(_blocks(model))
    return {
        # A parameter of the model itself, such as an embedding of positions, belongs to the first layer.
        name: next((number for number, block in enumerate(blocks) if name.startswith(f"{block}.")), 0)
        for name, _ in model.named_parameters()
    }


def _blocks(module: nn.Module, prefix: str = "") -> Iterator[str]:
    """Yields the names of the blocks with parameters; a sequence of blocks is one block for each, one of layers is a block."""
    for name, child in module.named_children():
        is_sequence = isinstance(child, nn.Sequential | nn.ModuleList)
        if is_sequence and any(list(part.children()) for part in child):
            yield from _blocks(child, f"{prefix}{name}.")
        elif list(child.parameters()):
            yield prefix + name


def _without_decay(model: nn.Module) -> set[int]:
    from timm.optim import param_groups_weight_decay

    names = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    groups = param_groups_weight_decay(model, 1.0, no_weight_decay_list=names)
    return {id(parameter) for group in groups if group["weight_decay"] == 0 for parameter in group["params"]}
