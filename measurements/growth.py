"""How cost grows with the number of photos: time of an epoch of the input path, and memory of the process that reads.

    python -m measurements.growth [--photos 800] [--factors 1 10 100] [--image-size 48 48] [--rounds 3]

Caches of generated photos are written as they are, without any JPEG; a loader of this project then serves a whole epoch of
C-50's augmentations, photo by photo in one worker and in whole batches on the device (cache in a file, on CUDA also on the
card). Time per photo should not depend on the number of photos, nor should the worker's own memory: what no file stands
behind; nor its unique memory (USS), since what it has read of the cache lies in the system's memory, not in its own.
Each epoch has a process of its own, that has done nothing before. Printed are medians over rounds in which every size has
its turn, and from how many photos on the cache of a real run no longer fits. What happens then is measured where memory is
limited to less than the largest cache, as by

    systemd-run --scope -p MemoryMax=2G python -m measurements.growth --image-size 227 227 --photos 1000 --factors 1 30

or by a container; the limit stands beside the figures.
"""

import argparse
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
from measurements.arguments import at_least, existing_folder, report
from measurements.generated import generated_annotations, write_cache
from measurements.measuring import best_device, conditions, say_where, spread, wait_for, write_report
from utils.cli import run_command
from utils.config import Config, load_config
from utils.errors import ConfigError
from utils.progress import progress_bar

INTERVAL = 0.05  # seconds between two looks at a process's memory
MEGABYTE = 1e6
MEMORY, GROUPS, LIMITS = map(Path, ("/proc/meminfo", "/proc/self/cgroup", "/sys/fs/cgroup"))  # Linux alone has them
NO_LIMIT = 2**60  # what an unlimited group of the first version says is near 2⁶³


class Memory(threading.Thread):
    """Looks at the memory of a process, again and again, and keeps the most.

    Attributes:
        own: Bytes that no file stands behind, those it has from its parent included.
        unique: Bytes that no other process has, pages of files included (USS).
    """

    def __init__(self, process: int | str) -> None:
        super().__init__(daemon=True)
        self.path = Path("/proc", str(process), "smaps_rollup")  # Linux alone has it
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
    """Returns microseconds a photo of an epoch after its first batch, its seconds, and megabytes of the reading process."""
    device = best_device()
    data = assembly.build_data(config, generated_annotations(len(cache)))
    data.train.source = cache
    batches = EpochBatchSampler(len(cache), config.batch_size, shuffle=True)
    iterator = iter(data.loader(data.train, batches, device))
    next(iterator)
    workers = getattr(iterator, "_workers", None)
    memory = Memory(workers[0].pid if workers else "self")
    memory.start()
    wait_for(device)
    started = time.perf_counter()
    for _ in iterator:
        pass
    wait_for(device)
    each = (time.perf_counter() - started) / (len(cache) - config.batch_size)
    memory.stop()
    return {
        "seconds": each * len(cache), "microseconds_per_photo": 1e6 * each,
        "own_mb": memory.own / MEGABYTE, "unique_mb": memory.unique / MEGABYTE,
    }  # fmt: skip


def in_new_process(config: Config, cache: ImageCache) -> dict[str, float]:
    """As `epoch`, in a process that has done nothing yet: a worker's memory also tells what its parent did before."""
    spawn = multiprocessing.get_context("spawn")
    # Its own workers are to be started as in a training.
    with ProcessPoolExecutor(1, spawn, multiprocessing.set_start_method, (None, True)) as pool:
        return pool.submit(epoch, config, cache).result()


def memory_limit() -> int | None:
    """Returns how many bytes a container or control group leaves this process, the cache of files included; None: no limit."""
    found = []
    for line in GROUPS.read_text().splitlines() if GROUPS.exists() else ():
        _, controllers, group = line.split(":", 2)
        folder, name = (LIMITS, "memory.max") if not controllers else (LIMITS / "memory", "memory.limit_in_bytes")
        if controllers in ("", "memory"):
            # Within a container, what it sees as its root is the group that the line names by its outer name.
            paths = (path for path in (folder / group.strip("/") / name, folder / name) if path.exists())
            found += [int(text) for path in paths if (text := path.read_text().strip()).isdigit()]
    return min((limit for limit in found if limit < NO_LIMIT), default=None)


def limits(config: Config, device: torch.device) -> dict[str, int]:
    """Returns from how many photos on the cache of a run at the configured size no longer fits, as `auto` has it."""
    size = np.prod(load_config().image_size) * 3
    found = {}
    if MEMORY.exists():
        free = next(line for line in MEMORY.read_text().splitlines() if line.startswith("MemAvailable"))
        available = 1024 * int(free.split()[1])
        found["memory"] = int(min(available, memory_limit() or available) // size)
    if device.type == "cuda":
        found["card"] = int(torch.cuda.mem_get_info(device)[0] // (2 * size))
    return found


def tabulate(found: dict[tuple[str, int], list[dict[str, float]]], smallest: int) -> list[dict[str, Any]]:
    """Returns one row for each way and number of photos, beside the same way's `smallest`."""
    rows = []
    for (way, count), epochs in found.items():
        figures = {name: [one[name] for one in epochs] for name in epochs[0]}
        first = statistics.median(one["microseconds_per_photo"] for one in found[way, smallest])
        rows.append(
            {"way": way, "photos": count, "rounds": len(epochs)}
            | {name: spread(values, 2) for name, values in figures.items()}
            | {"times_first": round(statistics.median(figures["microseconds_per_photo"]) / first, 3)}
        )
    return rows


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--photos", type=at_least(1), default=800)
    parser.add_argument("--factors", type=at_least(1), nargs="+", default=[1, 10, 100])
    parser.add_argument("--image-size", type=at_least(1), nargs=2, default=[48, 48], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--rounds", type=at_least(1), default=3)
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="as of train.py")
    parser.add_argument(
        "--folder", type=existing_folder, help="where the caches are written and removed; default: a temporary one"
    )
    parser.add_argument("--output", type=report, default="measurements/growth.json")
    arguments = parser.parse_args(argv)
    device = best_device()
    config = load_config(overrides=[*arguments.set, f"image_size={arguments.image_size}"])
    one = config.model_copy(update={"num_workers": 1, "augmentation_device": "cpu"})
    whole = config.model_copy(update={"augmentation_device": "device", "cache_on_device": False})
    ways = {"photo by photo, one worker": one, "whole batches, cache in a file": whole}
    if device.type == "cuda":
        ways["whole batches, cache on the card"] = whole.model_copy(update={"cache_on_device": True})
    counts = [arguments.photos * factor for factor in arguments.factors]
    if min(counts) <= config.batch_size:
        raise ConfigError(f"--photos {arguments.photos}: expected more than one batch of {config.batch_size}")
    fits = limits(config, device)
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
        turns = [(way, count) for _ in range(arguments.rounds) for way in ways for count in counts]
        for way, count in progress_bar(turns, description="measuring", unit=" epochs"):
            found.setdefault((way, count), []).append(in_new_process(ways[way], caches[count]))
            rows = tabulate(found, counts[0])
            write_report(arguments.output, stated, rows)
    print(f"{'':36}{'photos':>9}{'epoch, s':>10}{'µs a photo':>12}{'× first':>9}{'own MB':>9}{'unique MB':>12}")
    for row in rows:
        print(
            f"{row['way']:36}{row['photos']:>9,}{row['seconds']['median']:>10.2f}"
            f"{row['microseconds_per_photo']['median']:>12.1f}{row['times_first']:>9.2f}{row['own_mb']['median']:>9.0f}"
            f"{row['unique_mb']['median']:>12.0f}"
        )
    for place, count in fits.items():
        then = "it stays in a file" if place == "card" else "it is read from the disk again and again"
        print(f"from {count:,} photos of {'×'.join(map(str, load_config().image_size))} on, {then} (now free: {place})")
    say_where(arguments.output, stated)
    return rows


if __name__ == "__main__":
    sys.exit(run_command(main))
