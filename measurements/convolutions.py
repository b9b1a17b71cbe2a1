"""Why bf16 does not pay on a CPU: convolutions of GhostNet forward and backward, in 32 bit and in bf16, in turns.

    python -m measurements.convolutions [--rounds 5]

Each convolution has 240 output channels and a batch of 32 images of 16×16, channels last, on one thread.
"""

import sys
import time
from collections.abc import Sequence

import torch
from torch import nn

from measurements.measuring import at_least, build_parser, conditions, print_conditions, spread, write_report
from utils.cli import run_command

SIZE, CHANNELS, BATCH = 16, 240, 32
CONVOLUTIONS = {
    "1×1, 80 → 240": (80, {"kernel_size": 1}),
    "3×3 depthwise": (CHANNELS, {"kernel_size": 3, "padding": 1, "groups": CHANNELS}),
    "5×5 depthwise": (CHANNELS, {"kernel_size": 5, "padding": 2, "groups": CHANNELS}),
}
PRECISIONS = ("fp32", "bf16")


def time_convolution(convolution: nn.Module, images: torch.Tensor, precision: str) -> tuple[float, float]:
    """Returns the milliseconds of the forward and of the backward pass."""
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        started = time.perf_counter()
        outputs = convolution(images)
    gradients = torch.ones_like(outputs)
    middle = time.perf_counter()
    outputs.backward(gradients)
    return 1000 * (middle - started), 1000 * (time.perf_counter() - middle)


def main(argv: Sequence[str] | None = None) -> list[dict[str, object]]:
    parser = build_parser(__doc__, data=False, overrides=False)
    parser.add_argument("--rounds", type=at_least(1), default=5)
    arguments = parser.parse_args(argv)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows = []
    for name, (channels, settings) in CONVOLUTIONS.items():
        convolution = nn.Conv2d(channels, CHANNELS, bias=False, **settings).to(memory_format=torch.channels_last)
        images = torch.randn(BATCH, channels, SIZE, SIZE).to(memory_format=torch.channels_last).requires_grad_()
        rounds = [
            [time_convolution(convolution, images, precision) for precision in PRECISIONS]
            for _ in range(arguments.rounds + 1)
        ]
        for precision, times in zip(PRECISIONS, zip(*rounds[1:], strict=True), strict=True):  # the first one warms up
            forward, backward = map(spread, zip(*times, strict=True))
            rows.append({"convolution": name, "precision": precision, "forward": forward, "backward": backward})
    stated = conditions(torch.device("cpu"), rounds=arguments.rounds)
    torch.set_num_threads(threads)
    write_report(arguments.output, stated, rows)
    for row in rows:
        cells = (f"{row[key]['median']} ({row[key]['min']} … {row[key]['max']})" for key in ("forward", "backward"))
        print(f"{row['convolution']:<16}{row['precision']:<6}" + "".join(f"{cell:>24} ms" for cell in cells))
    print_conditions(stated)
    return rows


if __name__ == "__main__":
    sys.exit(run_command(main))
