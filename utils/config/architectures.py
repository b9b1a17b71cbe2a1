"""Which sizes and settings each architecture takes; no torch here, so that a wrong configuration is reported at once."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from utils.nearest import nearest

TIMM = "timm/"  # before the name of a model of timm
MAX_IMAGE_SIZE = 4096  # pixels


class ArchitectureLimits(NamedTuple):
    """What an architecture takes.

    Attributes:
        min_image_size: Minimum height and width, pixels.
        dropout: Whether it has a dropout layer.
        out_channels: Whether its widths can be set: that of the last hidden layer, and a factor of all others.
        drop_path: Whether it has stochastic depth.
    """

    min_image_size: int
    dropout: bool = True
    out_channels: bool = False
    drop_path: bool = False


# min_image_size is the larger of two: the smallest size at which training and evaluation run (found by trying: 21 for sq_10, 17
# for sq_11, 29 for hard_39, hard_68 and hard_85, 9 for SqueezeNext, 1 for the others, which pad), and the product of the
# model's strides (16 for SqueezeNet, 32 for the others), below which the last feature map consists of padding.
ARCHITECTURE_LIMITS = {
    "ghost": ArchitectureLimits(32, out_channels=True),
    "sq_10": ArchitectureLimits(21),
    "sq_11": ArchitectureLimits(17),
    **dict.fromkeys(("sqnxt_1", "sqnxt_1v5", "sqnxt_2", "sqnxt_2v5"), ArchitectureLimits(32, dropout=False)),
    "mob_v2": ArchitectureLimits(32),
    **{f"eff_b{size}": ArchitectureLimits(32, drop_path=True) for size in range(8)},
    **{f"hard_{depth}{kind}": ArchitectureLimits(32) for depth in (39, 68, 85) for kind in ("", "dw")},
    **{f"shuff_v2_x{width}": ArchitectureLimits(32, dropout=False) for width in ("05", "10", "15", "20")},
}


def architecture_problems(
    architecture: str,
    *,
    image_size: Sequence[int] | None,
    dropout: float | None,
    out_channels: int | None,
    width_multiplier: float,
    drop_path: float | None = None,
) -> Iterator[tuple[str, str]]:
    """Yields the key and the message of each setting that the architecture does not take.

    Args:
        image_size: [height, width], pixels; None: not known. The other arguments are those of `models.build_model`.
    """
    if architecture not in ARCHITECTURE_LIMITS and not architecture.startswith(TIMM):
        hint = nearest(architecture, [*ARCHITECTURE_LIMITS, f"{TIMM}<name>"])
        yield "architecture", f"{architecture!r} is not an architecture.{hint}"
        return
    limits = ARCHITECTURE_LIMITS.get(architecture, ArchitectureLimits(1))
    if limits.out_channels and out_channels is None:
        yield "out_channels", f"{architecture} needs a width, such as 320"
    if not limits.out_channels and out_channels is not None:
        yield "out_channels", f"{architecture} does not take a width; write out_channels: null"
    if not limits.out_channels and width_multiplier != 1.0:
        yield "width_multiplier", f"{architecture} does not take a factor; write width_multiplier: 1.0"
    if not limits.drop_path and drop_path is not None and architecture in ARCHITECTURE_LIMITS:
        yield "drop_path", f"{architecture} has no stochastic depth; write drop_path: null"
    if not limits.dropout and dropout is not None:
        yield "dropout", f"{architecture} has no dropout layer; write dropout: null"
    if image_size is not None and (problem := image_size_problem(architecture, image_size)):
        yield "image_size", problem


def image_size_problem(architecture: str, image_size: Sequence[int]) -> str | None:
    """Returns why the architecture does not take images of [height, width] pixels, or None; models of timm have no minimum."""
    least = ARCHITECTURE_LIMITS[architecture].min_image_size if architecture in ARCHITECTURE_LIMITS else 1
    if min(image_size) < least:
        return f"{list(image_size)} is too small for {architecture}; expected at least {least} pixels a side"
    if max(image_size) > MAX_IMAGE_SIZE:
        return f"{list(image_size)} is too large; expected at most {MAX_IMAGE_SIZE} pixels a side"
    return None
