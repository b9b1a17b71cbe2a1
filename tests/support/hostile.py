"""What the tests of hostile input share: how many examples, how long each may take, and damaged bytes."""

import faulthandler
import time
from collections.abc import Callable

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from utils.errors import MAX_MESSAGE_LENGTH, UserError

SECONDS = 2  # far above what any example needs, far below a hang


def examples(count: int) -> settings:
    """Returns settings for as many examples, the same ones each time, none of them kept on disk."""
    return settings(
        max_examples=count, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )


def outcome(call: Callable[[], object], *clean: type[UserError], seconds: float = SECONDS) -> str | None:
    """Returns the message of the clean error that `call` ends with, or None where it ends well, both in time."""
    faulthandler.dump_traceback_later(60 * seconds, exit=True)  # where it hangs for good
    started = time.process_time()  # the time of this process alone: others may have the cores
    message = None
    try:
        call()
    except clean as error:
        message = str(error)
        assert 0 < len(message) <= MAX_MESSAGE_LENGTH + 2
        message.encode()
    finally:
        faulthandler.cancel_dump_traceback_later()
    took = time.process_time() - started
    assert took < seconds, f"{took:.1f} s"
    return message


@st.composite
def damaged(draw: st.DrawFn, originals: list[bytes]) -> bytes:
    """Draws one of the originals with bits flipped, bytes overwritten, parts cut out, repeated, spliced or lost."""
    kinds = ["flip", "flip", "overwrite", "overwrite", "extreme", "cut", "repeat", "splice", "truncate"]
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 3))):
        where = draw(st.integers(0, max(len(data) - 1, 0)))
        length = draw(st.sampled_from([1, 2, 4, 8, 64, 512]))
        match draw(st.sampled_from(kinds)):
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
