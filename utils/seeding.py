"""Random numbers that depend on their purpose, not on how many were drawn before.

Each draw is seeded with (seed, epoch, index) or (seed, step). So results do not depend on the number of workers, and a
resumed run draws the same numbers as an uninterrupted one.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def mix(*numbers: int | str) -> int:
    """Returns a hash of `numbers` in 0 … 2⁶³ − 1."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*numbers: int | str) -> torch.Generator:
    """Returns a CPU generator seeded with `mix(*numbers)`."""
    return torch.Generator().manual_seed(mix(*numbers))


def seed_device(device: torch.device, number: int) -> None:
    """Seeds the default generators of the CPU and of `device`.

    Unlike torch.manual_seed, it does not visit every device type that torch knows: on a fast GPU, that alone takes a tenth
    of a step.
    """
    torch.default_generator.manual_seed(number)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(number)


@contextmanager
def seeded(*numbers: int | str) -> Iterator[None]:
    """Seeds torch's default CPU generator with `mix(*numbers)` within the block, and restores its state afterwards."""
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(mix(*numbers))
    try:
        yield
    finally:
        torch.set_rng_state(state)
