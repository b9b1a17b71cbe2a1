"""Exports a trained model for phones and servers: python export.py --help."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deployment.formats import FORMATS
from utils.cli import run_command
from utils.errors import ConfigError
from utils.logs import start_logging

if TYPE_CHECKING:
    from deployment.export import ExportedFile


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Exports a trained model, and compares the exported file with it on real validation images."
    )
    parser.add_argument("trained", metavar="RUN|CHECKPOINT", help="a run's folder or name, 'last', or a checkpoint")
    parser.add_argument("--format", choices=FORMATS, required=True)
    parser.add_argument(
        "--input",
        choices=("tensor", "image"),
        default="tensor",
        help="image: the file takes 8-bit RGB pixels of any size and returns probabilities; of ONNX files (tensor)",
    )
    parser.add_argument("-d", "--data", metavar="FOLDER", type=Path, help="data set, instead of the training's")
    parser.add_argument(
        "--images", "--photos", metavar="N", type=positive, default=500, help="validation images to compare on (500)"
    )
    parser.add_argument(
        "--output", metavar="FILE", type=Path, help="file to write, instead of one in the run's export/"
    )
    return parser.parse_args(argv)


def positive(text: str) -> int:
    """Parses a positive integer."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a positive number of images")
    return int(text)


def main(argv: Sequence[str] | None = None) -> "ExportedFile":
    """Exports, prints and returns the exported file with its measurements."""
    arguments = parse_arguments(argv)
    start_logging("WARNING")
    if arguments.output is not None and arguments.output.is_dir():
        raise ConfigError(f"--output takes a file; {arguments.output} is a folder")

    chosen, image_input = FORMATS[arguments.format], arguments.input == "image"
    if image_input and not chosen.image_input:
        able = " or ".join(name for name, each in FORMATS.items() if each.image_input)
        raise ConfigError(f"--input image needs --format {able}; --format is {arguments.format}")

    # Torch takes seconds to import: wrong arguments are reported before.
    from deployment.evaluation.evaluation import load_split
    from deployment.export import export
    from deployment.trained import load_trained

    trained = load_trained(arguments.trained)
    _, splits = load_split(trained, arguments.data, "valid")
    output = (
        arguments.output or trained.folder / "export" / f"{trained.path.stem}{'-image' * image_input}{chosen.suffix}"
    )
    exported = export(
        trained,
        arguments.format,
        splits,
        output,
        num_images=arguments.images,
        image_input=image_input,
        data=arguments.data,
    )
    print("\n".join([*describe(exported), f"  next: {chosen.hint}"]))
    if trained.config.mlflow_artifacts:
        from utils.tracking.mlflow import log_artifact

        for path in (exported.path, exported.card):
            log_artifact(trained.folder, path)
    return exported


def describe(exported: "ExportedFile") -> list[str]:
    """Returns lines on how well the file agrees with the model, its size and its speed."""
    agreement = exported.agreement
    compared = ["  not run and not compared: this format cannot be run on this machine"]
    if agreement:
        compared = [
            f"  on {agreement.images:,} validation images: {agreement.output} differ by at most {agreement.max_difference:.2g} "
            f"(largest: {agreement.max_logit:.3g}),",
            f"  same top-1 prediction for {agreement.top1:.2%}, accuracy {agreement.exported_accuracy:.2%}, the model's "
            f"{agreement.accuracy:.2%}" + ("" if exported.data else "; these images also chose the checkpoint"),
        ]
    return [
        f"{exported.path}: {list(exported.sizes.values())[-1] / 1e6:.2f} MB",
        *compared,
        "  one image on one thread, median and quartiles:",
        *(
            f"    {name:<20}{1e3 * time.median:8.2f} ms   {1e3 * time.low:.2f} … {1e3 * time.high:.2f}"
            for name, time in exported.seconds.items()
        ),
        "  preprocessing, class names, temperature and threshold are in the file's metadata",
        f"  model card: {exported.card}",
    ]


if __name__ == "__main__":
    sys.exit(run_command(main))
