"""How much copies on both sides of a split flatter: python -m measurements.proofs.leak -d FOLDER --output FOLDER.

Trains two models from scratch on images without splits of their own. For the first, copies of an image stay in one split;
for the second, each image goes where chance puts it, as most people split. Reports their accuracy on their test images.
"""

import argparse
import csv
import json
import random
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import evaluate
import train
from datamodules import DataSplits, read_data
from datamodules.hashes import hash_images
from datamodules.splits import group_images
from deployment.evaluation.evaluation import wilson_interval
from utils.cli import run_command, set_options
from utils.errors import ConfigError
from utils.files import make_folder

FRACTION = 0.15
NEAR_DUPLICATE_DISTANCE = 4
SETTINGS = (
    "architecture=shuff_v2_x05", "dropout=null", "out_channels=null", "image_size=[64, 64]", "num_epochs=30", "batch_size=64",
    "lr_scheduler=CosineAnnealingLR", "lr_scheduler_params={T_max: 30}", "optimizer_params={lr: 0.003, weight_decay: 0.05}",
    "early_stopping_patience=null", "trackers=[]", "experiment_id=null", "description=null",
)  # fmt: skip


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measures how much copies on both sides of a split flatter.")
    parser.add_argument("-d", "--data", metavar="FOLDER", type=Path, required=True, help="class folders without splits")
    parser.add_argument("--output", metavar="FOLDER", type=Path, required=True, help="folder for runs and tables")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="change a setting; repeatable")
    return parser.parse_args(argv)


def write_random_split(data: DataSplits, root: Path, folder: Path, seed: int = 0) -> Path:
    """Writes a table that splits the images of each class by chance, beside a link to them; returns it."""
    make_folder(folder, key="--output")
    if (folder / "images").is_symlink():
        raise ConfigError(f"--output {folder} has a measurement already; give another folder")
    (folder / "images").symlink_to(root.resolve())
    by_label = defaultdict(list)
    for record in data.train:
        by_label[record.label].append(record.path.relative_to(root))
    with (folder / "random.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "class", "split"))
        for label, paths in sorted(by_label.items()):
            random.Random(f"{seed} {label}").shuffle(paths)
            count = round(FRACTION * len(paths))
            for number, path in enumerate(paths):
                split = "test" if number < count else "valid" if number < 2 * count else "train"
                writer.writerow((Path("images", path).as_posix(), data.class_names[label], split))
    return folder / "random.csv"


def measure(data_path: Path, output: Path, *settings: str) -> dict[str, Any]:
    """Trains on a data set, and returns the result on its test split."""
    words = set_options([*SETTINGS, *settings, f"output_path={output}"])
    train.main(["-d", str(data_path), *words])
    (run,) = output.glob("shuff*")
    evaluate.main([str(run), "--split", "test"])
    summary = json.loads((run / "evaluation" / "best_test" / "summary.json").read_text())
    return {
        "images": summary["images"], "accuracy": summary["valid_acc"],
        "interval": [summary["valid_acc_95_low"], summary["valid_acc_95_high"]], "run": str(run),
    }  # fmt: skip


def without_copies(result: dict[str, Any], random_split: Path) -> dict[str, Any]:
    """Returns the accuracy on the test images of a random split without a copy in training, and on the others."""
    data = read_data(random_split)
    hashes = hash_images(data.records, perceptual=True, upright=data.upright, cache_path=None, name="all")
    train_count, test_start = len(data.train), len(data.train) + len(data.valid)
    leaked = {
        str(data.records[index].path)
        for group in group_images(hashes, NEAR_DUPLICATE_DISTANCE)
        if min(group) < train_count
        for index in group
        if index >= test_start
    }
    with Path(result["run"], "evaluation/best_test/images.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found = {}
    for name, is_leaked in (("with a copy in training", True), ("without", False)):
        own = [int(row["correct"]) for row in rows if (row["image"] in leaked) == is_leaked]
        if own:
            found[name] = {
                "images": len(own), "accuracy": sum(own) / len(own), "interval": wilson_interval(sum(own), len(own)),
            }  # fmt: skip
    return found


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures, prints and writes leak.json."""
    arguments = parse_arguments(argv)
    data = read_data(arguments.data)
    table = write_random_split(data, arguments.data, arguments.output / "data")
    distance = f"near_duplicate_distance={NEAR_DUPLICATE_DISTANCE}"
    results = {
        "copies together": measure(
            arguments.data, arguments.output / "together", f"validation_fraction={FRACTION}", distance, *arguments.set
        ),
        "copies anywhere": measure(table, arguments.output / "anywhere", *arguments.set),
    }
    results["copies anywhere"]["test images"] = without_copies(results["copies anywhere"], table)
    (arguments.output / "leak.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    for name, result in results.items():
        low, high = result["interval"]
        print(
            f"{name}: {100 * result['accuracy']:.2f} % ({100 * low:.2f} … {100 * high:.2f} %) of {result['images']} test images"
        )
    return results


if __name__ == "__main__":
    sys.exit(run_command(main))
