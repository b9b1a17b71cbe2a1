"""Rows of the last layer that learn auxiliary targets: they train, and are kept apart from what is evaluated and exported."""

from collections.abc import Iterable

import torch
from torch import Tensor

State = dict[str, Tensor]


def cut_rows(state: State, head: Iterable[str], count: int) -> tuple[State, State]:
    """Returns a state_dict without the last `count` rows of the parameters `head`, and these rows."""
    rows = {name: state[name][-count:] for name in head}
    # Copies: a view would bring the whole tensor into a file.
    return state | {name: state[name][:-count].clone() for name in rows}, {n: row.clone() for n, row in rows.items()}


def join_rows(state: State, rows: State) -> State:
    """Reverses `cut_rows`."""
    return state | {name: torch.cat([state[name], row.to(state[name])]) for name, row in rows.items()}
