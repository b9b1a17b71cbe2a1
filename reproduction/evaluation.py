"""Adds to a finished run what a comparison needs: its device, and the two means that an accuracy can be.

The published accuracy is the mean of batch accuracies, in which the images of a smaller last batch weigh more.

    python -m reproduction.evaluation RUN
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.cli import run_command
from utils.files import write_text
from utils.machine import available_cores, cpu_name

FACTS = "reproduction.json"  # in the run folder


def mean_of_batch_means(correct: Sequence[bool], batch_size: int) -> float:
    """Returns the accuracy as published: the mean over batches of the share of correct images, in 0 … 1.

    Args:
        correct: Whether each image is correct, in the order of the batches.
        batch_size: Images per batch. The last one may have fewer.
    """
    batches = [correct[first : first + batch_size] for first in range(0, len(correct), batch_size)]
    return sum(sum(batch) / len(batch) for batch in batches) / len(batches)


def max_difference(images: int, batch_size: int) -> float:
    """Returns the largest possible difference between the two means, in 0 … 1.

    With b batches, r images in the last one, accuracy p in it and q in all others, the mean of batch means minus the mean
    over images is (p − q)(1 / b − r / images), and |p − q| is at most 1.
    """
    batches = math.ceil(images / batch_size)
    last = images - (batches - 1) * batch_size
    return 0.0 if batches == 1 else 1 / batches - last / images


def read_facts(run: Path) -> dict[str, Any]:
    """Returns what `main` added to a run folder, nothing if it did not."""
    try:
        return json.loads((run / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Evaluates the best checkpoint of a run on its validation images."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("run", metavar="RUN", help="a finished run: folder or name")
    run = parser.parse_args(argv).run

    import torch

    from deployment.evaluation.evaluation import evaluate, load_split
    from deployment.trained import load_trained

    trained = load_trained(run)
    images, splits = load_split(trained, None, "valid")
    evaluation = evaluate(trained, images, splits)
    correct = (evaluation.ranking[:, 0] == evaluation.labels).tolist()
    device = torch.device(evaluation.device)
    names = {"cpu": f"{cpu_name()}, {available_cores()} cores"}
    facts = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else names.get(device.type, device.type),
        "checkpoint_acc": evaluation.metrics["valid_acc"],
        "checkpoint_acc_over_batches": mean_of_batch_means(correct, trained.config.batch_size),
        "batch_size": trained.config.batch_size,
    }
    write_text(trained.folder / FACTS, json.dumps(facts, indent=2) + "\n")
    return facts


if __name__ == "__main__":
    sys.exit(run_command(main))
