"""What the configuration must know of each architecture; no torch here, so that a typo is answered at once."""

from typing import NamedTuple


class ArchitectureLimits(NamedTuple):
    """What an architecture takes.

    Attributes:
        smallest_image_size: Least height and width, pixels, that its downsampling leaves something of.
        dropout: Whether it has a dropout layer.
        out_channels: Whether its widths can be chosen: that of the last hidden layer, and a factor of all others.
    """

    smallest_image_size: int
    dropout: bool = True
    out_channels: bool = False


# The smallest image is the larger of two: the least at which training and evaluation run at all, found by trying (21 for
# sq_10, 17 for sq_11, 29 for hard_39, hard_68 and hard_85, 9 for SqueezeNext, 1 for the others, which pad), and the product
# of the network's strides (16 for SqueezeNet, 32 for the others), below which the last feature map stems from padding.
ARCHITECTURE_LIMITS = {
    "ghost": ArchitectureLimits(smallest_image_size=32, out_channels=True),
    "sq_10": ArchitectureLimits(smallest_image_size=21),
    "sq_11": ArchitectureLimits(smallest_image_size=17),
    "sqnxt_1": ArchitectureLimits(smallest_image_size=32, dropout=False),
    "sqnxt_1v5": ArchitectureLimits(smallest_image_size=32, dropout=False),
    "sqnxt_2": ArchitectureLimits(smallest_image_size=32, dropout=False),
    "sqnxt_2v5": ArchitectureLimits(smallest_image_size=32, dropout=False),
    "mob_v2": ArchitectureLimits(smallest_image_size=32),
    "eff_b0": ArchitectureLimits(smallest_image_size=32),
    "eff_b1": ArchitectureLimits(smallest_image_size=32),
    "eff_b2": ArchitectureLimits(smallest_image_size=32),
    "eff_b3": ArchitectureLimits(smallest_image_size=32),
    "eff_b4": ArchitectureLimits(smallest_image_size=32),
    "eff_b5": ArchitectureLimits(smallest_image_size=32),
    "eff_b6": ArchitectureLimits(smallest_image_size=32),
    "eff_b7": ArchitectureLimits(smallest_image_size=32),
    "hard_39": ArchitectureLimits(smallest_image_size=32),
    "hard_39dw": ArchitectureLimits(smallest_image_size=32),
    "hard_68": ArchitectureLimits(smallest_image_size=32),
    "hard_68dw": ArchitectureLimits(smallest_image_size=32),
    "hard_85": ArchitectureLimits(smallest_image_size=32),
    "hard_85dw": ArchitectureLimits(smallest_image_size=32),
    "shuff_v2_x05": ArchitectureLimits(smallest_image_size=32, dropout=False),
    "shuff_v2_x10": ArchitectureLimits(smallest_image_size=32, dropout=False),
    "shuff_v2_x15": ArchitectureLimits(smallest_image_size=32, dropout=False),
    "shuff_v2_x20": ArchitectureLimits(smallest_image_size=32, dropout=False),
}
