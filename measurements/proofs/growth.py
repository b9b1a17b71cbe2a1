"""How cost grows with the number of images: time of an epoch of input, and memory of the process that reads.

    python -m measurements.proofs.growth [--images 800] [--factors 1 10 100] [--image-size 48 48] [--rounds 3]

Writes caches of random images; a loader then serves a whole epoch of C-50's augmentations, per image in one worker, and
batched on the device (with the cache in a file, on CUDA also in device memory). Time per image should not depend on the
number of images, nor should the reading process's own memory (anonymous pages) and unique memory (USS): cached pages of
the file belong to the system. Each epoch runs in a new process, and the sizes take turns. Printed are medians, and the
number of images from which the cache of a real run no longer fits into memory.

To measure a cache larger than memory, limit the memory, by a container or by

    systemd-run --scope -p MemoryMax=2G python -m measurements.proofs.growth --image-size 227 227 --images 1000 --factors 1 30
"""

import multiprocessing
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

import assembly
from datamodules.cache import ImageCache
from datamodules.sampler import EpochBatchSampler
from measurements.generated import generated_splits, write_cache
from measurements.measuring import (
    at_least,
    best_device,
    build_parser,
    conditions,
    existing_folder,
    print_conditions,
    spread,
    synchronize,
    write_report,
)
from utils.cli import run_command
from utils.config import Config, load_config
from utils.errors import ConfigError
from utils.progress import progress_bar

INTERVAL = 0.05  # seconds between two memory readings
MEGABYTE = 1e6
MEMORY, GROUPS, LIMITS = map(Path, ("/proc/meminfo", "/proc/self/cgroup", "/sys/fs/cgroup"))  # Linux only
NO_LIMIT = 2**60  # cgroup v1 reports nearly 2⁶³ for no limit


class PeakMemory(threading.Thread):
    """Polls the memory of a process and keeps the peak.

    Attributes:
        own: Anonymous memory, bytes, including pages inherited from the parent.
        unique: Unique set size (USS), bytes, including pages of files.
    """

    def __init__(self, process: int | str) -> None:
        super().__init__(daemon=True)
        self.path = Path("/proc", str(process), "smaps_rollup")  # Linux only
        self.own = self.unique = 0
        self.ended = threading.Event()

    def run(self) -> None:
        while True:
            try:
                lines = self.path.read_text().splitlines()[1:]
            except OSError:
                return
            kilobytes = {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines)}
            self.own = max(self.own, 1024 * kilobytes["Anonymous"])
            self.unique = max(self.unique, 1024 * (kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]))
            if self.ended.wait(INTERVAL):
                return

    def stop(self) -> None:
        self.ended.set()
        self.join()


def epoch(config: Config, cache: ImageCache) -> dict[str, float]:
    """Measures an epoch after its first batch: time, time per image, and peak memory of the reading process."""
    device = best_device()
    data = assembly.build_data(config, generated_splits(len(cache)))
    data.train.source = cache
    batches = EpochBatchSampler(len(cache), config.batch_size, shuffle=True)
    iterator = iter(data.loader(data.train, batches, device))
    next(iterator)
    workers = getattr(iterator, "_workers", None)
    memory = PeakMemory(workers[0].pid if workers else "self")
    memory.start()
    synchronize(device)
    started = time.perf_counter()
    for _ in iterator:
        pass
    synchronize(device)
    each = (time.perf_counter() - started) / (len(cache) - config.batch_size)
    memory.stop()
    return {
        "seconds": each * len(cache), "microseconds_per_image": 1e6 * each,
        "own_mb": memory.own / MEGABYTE, "unique_mb": memory.unique / MEGABYTE,
    }  # fmt: skip


def in_new_process(config: Config, cache: ImageCache) -> dict[str, float]:
    """Runs `epoch` in a new process, as workers inherit the memory of their parent."""
    spawn = multiprocessing.get_context("spawn")
    # Workers are started as in a training.
    with ProcessPoolExecutor(1, spawn, multiprocessing.set_start_method, (None, True)) as pool:
        return pool.submit(epoch, config, cache).result()


def memory_limit() -> int | None:
    """Returns the memory limit of this process's container or control group, bytes, page cache included; None: no limit."""
    found = []
    for line in GROUPS.read_text().splitlines() if GROUPS.exists() else ():
        _, controllers, group = line.split(":", 2)
        folder, name = (LIMITS, "memory.max") if not controllers else (LIMITS / "memory", "memory.limit_in_bytes")
        if controllers in ("", "memory"):
            # A container's root is the group that the line names from outside.
            paths = (path for path in (folder / group.strip("/") / name, folder / name) if path.exists())
            found += [int(text) for path in paths if (text := path.read_text().strip()).isdigit()]
    return min((limit for limit in found if limit < NO_LIMIT), default=None)


def limits(device: torch.device) -> dict[str, int]:
    """Returns the number of images of the configured size that fit into memory, and on CUDA into the device's share."""
    size = np.prod(load_config().image_size) * 3
    found = {}
    if MEMORY.exists():
        free = next(line for line in MEMORY.read_text().splitlines() if line.startswith("MemAvailable"))
        available = 1024 * int(free.split()[1])
        found["memory"] = int(min(available, memory_limit() or available) // size)
    if device.type == "cuda":
        found["device"] = int(torch.cuda.mem_get_info(device)[0] // (2 * size))
    return found


def tabulate(found: dict[tuple[str, int], list[dict[str, float]]], smallest: int) -> list[dict[str, Any]]:
    """Returns a row for each variant and number of images, relative to its smallest number."""
    rows = []
    for (variant, count), epochs in found.items():
        figures = {name: [one[name] for one in epochs] for name in epochs[0]}
        first = statistics.median(one["microseconds_per_image"] for one in found[variant, smallest])
        rows.append(
            {"variant": variant, "images": count, "rounds": len(epochs)}
            | {name: spread(values, 2) for name, values in figures.items()}
            | {"times_first": round(statistics.median(figures["microseconds_per_image"]) / first, 3)}
        )
    return rows


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    parser = build_parser(__doc__, data=False)
    parser.add_argument("--images", type=at_least(1), default=800)
    parser.add_argument("--factors", type=at_least(1), nargs="+", default=[1, 10, 100])
    parser.add_argument("--image-size", type=at_least(1), nargs=2, default=[48, 48], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--rounds", type=at_least(1), default=3)
    parser.add_argument("--folder", type=existing_folder, help="folder for the temporary caches")
    arguments = parser.parse_args(argv)
    device = best_device()
    config = load_config(overrides=[*arguments.set, f"image_size={arguments.image_size}"])
    one = config.model_copy(update={"num_workers": 1, "augmentation_device": "cpu"})
    batched = config.model_copy(update={"augmentation_device": "device", "cache_on_device": False})
    variants = {"per image, one worker": one, "batched, cache in a file": batched}
    if device.type == "cuda":
        variants["batched, cache on the device"] = batched.model_copy(update={"cache_on_device": True})
    counts = [arguments.images * factor for factor in arguments.factors]
    if min(counts) <= config.batch_size:
        raise ConfigError(f"--images {arguments.images}: expected more than one batch of {config.batch_size}")
    fits = limits(device)
    stated = conditions(
        device, image_size=arguments.image_size, batch_size=config.batch_size, rounds=arguments.rounds, fits_below=fits,
        memory_limit=memory_limit(),
    )  # fmt: skip
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        caches = {
            count: write_cache(Path(folder, f"{count}.photos"), (count, 3, *arguments.image_size))
            for count in progress_bar(counts, description="generating", unit=" caches")
        }
        turns = [(variant, count) for _ in range(arguments.rounds) for variant in variants for count in counts]
        for variant, count in progress_bar(turns, description="measuring", unit=" epochs"):
            found.setdefault((variant, count), []).append(in_new_process(variants[variant], caches[count]))
            rows = tabulate(found, counts[0])
            write_report(arguments.output, stated, rows)
    print(f"{'':36}{'images':>9}{'epoch, s':>10}{'µs/image':>12}{'× first':>9}{'own MB':>9}{'unique MB':>12}")
    for row in rows:
        print(
            f"{row['variant']:36}{row['images']:>9,}{row['seconds']['median']:>10.2f}"
            f"{row['microseconds_per_image']['median']:>12.1f}{row['times_first']:>9.2f}{row['own_mb']['median']:>9.0f}"
            f"{row['unique_mb']['median']:>12.0f}"
        )
    size = "×".join(map(str, load_config().image_size))
    for place, count in fits.items():
        effect = "stays in a file" if place == "device" else "is read from the disk repeatedly"
        print(f"a cache of more than {count:,} images of {size} {effect} (free {place} memory)")
    print_conditions(stated)
    return rows


if __name__ == "__main__":
    sys.exit(run_command(main))
