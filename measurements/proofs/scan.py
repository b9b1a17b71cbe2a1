"""Seconds and memory that reading the records of a large data set takes: class folders, a table and Parquet.

    python -m measurements.proofs.scan [--images 100000] [--output FILE]

The images are empty files, which reading the records does not open. Memory is the growth of the peak of a process that
reads them once.
"""

import csv
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from datamodules import read_data
from deployment.profiling.peak_memory import resident
from measurements.measuring import at_least, best_device, build_parser, conditions, print_conditions, write_report
from utils.cli import run_command

CLASSES = 196


def write_class_folders(folder: Path, images: int) -> None:
    for number in range(CLASSES):
        (folder / f"class {number:03d}").mkdir(parents=True)
    for number in range(images):
        (folder / f"class {number % CLASSES:03d}" / f"{number:06d}.jpg").touch()


def write_table(folder: Path, images: int) -> None:
    write_class_folders(folder, images)
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "class", "x1", "y1", "x2", "y2"])
        for number in range(images):
            name = f"class {number % CLASSES:03d}"
            writer.writerow([f"{name}/{number:06d}.jpg", name, 0, 0, 10, 10])


def write_parquet(folder: Path, images: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True)
    content = [{"bytes": bytes(100), "path": f"{number:06d}.jpg"} for number in range(images)]
    table = pa.table({"image": content, "label": [f"class {number % CLASSES:03d}" for number in range(images)]})
    pq.write_table(table, folder / "train.parquet", row_group_size=100)


KINDS: dict[str, Callable[[Path, int], None]] = {
    "class folders": write_class_folders,
    "table": write_table,
    "Parquet": write_parquet,
}


def measure(folder: Path) -> tuple[int, float, float]:
    """Reads a data set, and returns the number of images, seconds and megabytes; to be called in a new process."""
    before, started = resident("VmHWM"), time.perf_counter()
    data = read_data(folder)
    return len(data.train), time.perf_counter() - started, (resident("VmHWM") - before) / 2**20


def main(argv: Sequence[str] | None = None) -> list[dict[str, object]]:
    """Prints the table and returns its rows."""
    parser = build_parser(__doc__, data=False, overrides=False)
    parser.add_argument("--images", type=at_least(CLASSES), default=100_000)
    arguments = parser.parse_args(argv)
    stated = conditions(best_device(), classes=CLASSES, load=round(os.getloadavg()[0], 1))
    rows = []
    print(f"{'data set':<15}{'images':>9}{'seconds':>10}{'memory, MB':>12}")
    for images in (arguments.images // 10, arguments.images):
        for kind, write in KINDS.items():
            with tempfile.TemporaryDirectory() as folder:
                write(Path(folder) / "data", images)
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                    count, seconds, megabytes = pool.submit(measure, Path(folder) / "data").result()
            rows.append(
                {"data_set": kind, "images": count, "seconds": round(seconds, 2), "memory_mb": round(megabytes, 1)}
            )
            print(f"{kind:<15}{count:>9,}{seconds:>10.2f}{megabytes:>12,.0f}")
            write_report(arguments.output, stated, rows)
    print_conditions(stated)
    return rows


if __name__ == "__main__":
    sys.exit(run_command(main))
