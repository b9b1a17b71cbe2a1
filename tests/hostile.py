"""What the tests of hostile input share: how many examples, how long each may take, and damaged bytes."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from utils.errors import LONGEST_MESSAGE, UserError

SECONDS = 2  # far above what any example needs, far below a hang
SLOW = pytest.mark.slow


def examples(count: int) -> settings:
    """Returns settings for as many examples, the same ones each time, none of them kept on disk."""
    return settings(
        max_examples=count, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )


def outcome(call: Callable[[], object], *clean: type[UserError], seconds: float = SECONDS) -> str | None:
    """Returns the message of the clean error that `call` ends with, or None where it ends well, both in time."""
    started = time.perf_counter()
    message = None
    try:
        call()
    except clean as error:
        message = str(error)
        assert 0 < len(message) <= LONGEST_MESSAGE + 2
        message.encode()
    took = time.perf_counter() - started
    assert took < seconds, f"{took:.1f} s"
    return message


@st.composite
def damaged(draw: st.DrawFn, originals: list[bytes]) -> bytes:
    """Draws one of the originals with bits flipped, bytes overwritten, parts cut out, repeated, spliced or lost."""
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 6))):
        where = draw(st.integers(0, max(len(data) - 1, 0)))
        length = draw(st.sampled_from([1, 2, 4, 8, 64, 512]))
        match draw(st.sampled_from(["flip", "overwrite", "extreme", "cut", "repeat", "splice", "truncate"])):
            case "flip" if data:
                data[where] ^= 1 << draw(st.integers(0, 7))
            case "overwrite":
                data[where : where + length] = draw(st.binary(max_size=16))
            case "extreme":
                number = draw(st.sampled_from([b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\xff\xff\xff\x7f"]))
                data[where & ~3 : (where & ~3) + 4] = number  # where formats have their sizes
            case "cut":
                del data[where : where + length]
            case "repeat":
                data[where:where] = data[where : where + length] * draw(st.integers(1, 20))
            case "splice":
                other = draw(st.sampled_from(originals))
                start = draw(st.integers(0, max(len(other) - 1, 0)))
                data[where:where] = other[start : start + length]
            case "truncate":
                del data[where:]
    return bytes(data)


@contextmanager
def nothing_written(*folders) -> Iterator[None]:
    """Sees to it that there is the same in the folders afterwards."""
    before = [sorted(folder.rglob("*")) for folder in folders]
    yield
    assert [sorted(folder.rglob("*")) for folder in folders] == before
