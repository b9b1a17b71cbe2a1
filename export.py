"""Exports a trained network for phones and servers: python export.py --help."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils.cli import run_command
from utils.errors import ConfigError
from utils.logs import start_logging

if TYPE_CHECKING:
    from deployment.exporter import Exported

SUFFIXES = {
    "onnx": ".onnx", "onnx-int8": "-int8.onnx", "executorch": ".pte", "torchscript": ".torchscript"
}  # fmt: skip
NEXT = {
    "onnx": "onnxruntime runs it; --format onnx-int8 makes it smaller",
    "onnx-int8": "onnxruntime runs it",
    "executorch": "the ExecuTorch runtime for Android and iOS runs it",
    "torchscript": "torch.jit.load runs it; PyTorch has deprecated this format, --format onnx or executorch will last",
}


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Exports a trained network, and compares the file with it on real validation photos."
    )
    parser.add_argument("trained", metavar="RUN|CHECKPOINT", help="a run's folder or name, 'last', or a checkpoint")
    parser.add_argument("--format", choices=SUFFIXES, required=True)
    parser.add_argument("-d", "--data", metavar="FOLDER", type=Path, help="data set, instead of that of the training")
    parser.add_argument(
        "--photos", metavar="N", type=positive, default=500, help="validation photos to compare on (500)"
    )
    parser.add_argument("--output", metavar="FILE", type=Path, help="where to, instead of the run's export/")
    return parser.parse_args(argv)


def positive(text: str) -> int:
    """Returns the number from 1 on that `text` is."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of photos; expected 1 or more")
    return int(text)


def main(argv: Sequence[str] | None = None) -> "Exported":
    """Exports, and returns the file with what was measured of it."""
    arguments = parse_arguments(argv)
    start_logging("WARNING")
    if arguments.output is not None and arguments.output.is_dir():
        raise ConfigError(f"--output takes a file; {arguments.output} is a folder")

    # Torch takes seconds to import: a wrong argument has been answered by now.
    from deployment.evaluation.evaluation import read_photos
    from deployment.exporter import export
    from deployment.trained import load_trained

    trained = load_trained(arguments.trained)
    _, annotations = read_photos(trained, arguments.data, "valid")
    output = arguments.output or trained.folder / "export" / f"{trained.path.stem}{SUFFIXES[arguments.format]}"
    exported = export(trained, arguments.format, annotations, output, photos=arguments.photos)
    print(describe(exported, arguments.format))
    return exported


def describe(exported: "Exported", format_name: str) -> str:
    """Returns what a person wants to know of an exported file."""
    compared = exported.comparison
    lines = [
        f"{exported.path}: {exported.size / 1e6:.2f} MB",
        f"  on {compared.photos:,} validation photos its logits differ from the network's by at most "
        f"{compared.largest_difference:.2g} (largest logit {compared.largest_logit:.3g}),",
        f"  its first choice is the same in {compared.agreement:.2%}, its accuracy {compared.exported_accuracy:.2%}, the "
        f"network's {compared.accuracy:.2%}; these photos also chose the checkpoint",
        "  one photo on one thread, median and quartiles:",
        *(
            f"    {name:<12}{1e3 * time.median:8.2f} ms   {1e3 * time.low:.2f} … {1e3 * time.high:.2f}"
            for name, time in exported.seconds.items()
        ),
        "  image size, channels, mean, std and class names travel in the file",
        f"  next: {NEXT[format_name]}",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run_command(main))
