"""Random numbers that depend on what they are for, not on how many were drawn before.

Every draw starts from a seed made of (seed, epoch, index) or (seed, step). So a run does not depend on the number of
workers, and a resumed run goes on as if it had never been broken off.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def mix(*numbers: int | str) -> int:
    """Returns a number in 0 … 2⁶³ − 1 that differs, and looks random, for each sequence of `numbers`."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*numbers: int | str) -> torch.Generator:
    """Returns a generator on the CPU that starts from `mix(*numbers)`."""
    return torch.Generator().manual_seed(mix(*numbers))


def seed_device(device: torch.device, number: int) -> None:
    """Lets the default generators of the CPU and of `device` start from `number`.

    Unlike torch.manual_seed it does not go through all kinds of devices that torch knows, which takes longer at each step
    than a fast card takes for a tenth of it.
    """
    torch.default_generator.manual_seed(number)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(number)


@contextmanager
def seeded(*numbers: int | str) -> Iterator[None]:
    """Lets torch's default generator of the CPU start from `mix(*numbers)` within, and go on as before afterwards."""
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(mix(*numbers))
    try:
        yield
    finally:
        torch.set_rng_state(state)
