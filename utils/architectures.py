"""What the configuration must know of each architecture; no torch here, so that a typo is answered at once."""

from typing import NamedTuple


class ArchitectureLimits(NamedTuple):
    """What an architecture takes.

    Attributes:
        smallest_image_size: Least height and width, pixels, that its downsampling leaves something of.
        dropout: Whether it has a dropout layer.
        out_channels: Whether the width of its last hidden layer can be chosen.
    """

    smallest_image_size: int
    dropout: bool = True
    out_channels: bool = False


ARCHITECTURE_LIMITS = {
    "ghost": ArchitectureLimits(smallest_image_size=32, out_channels=True),
}
