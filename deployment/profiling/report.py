"""Shows measured networks as a table: in the terminal, in Markdown and in CSV."""

import os
import platform
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version

import torch

from deployment.profiling.benchmark import BATCH_SIZE, GPU_BATCH_SIZE, Row
from deployment.profiling.measure import Seconds
from utils.files import csv_text
from utils.machine import available_cores, cpu_name

MILLION = 1e6


def conditions(rounds: int) -> list[str]:
    """Returns the conditions of a measurement that begins now, a line each."""
    gpu = f"; GPU {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    load = "" if busy is None else f", load {busy:.1f} at the start"
    cores = os.cpu_count() or 1  # the load is that of the whole machine
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "onnx", "onnxruntime"))
    lines = [
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC on {cpu_name()}, {available_cores()} cores{load}{gpu}",
        f"Python {platform.python_version()}, {packages}; {platform.platform()}",
        f"Latency of one image: median ± half the distance of the quartiles, {rounds} rounds in which the networks take "
        "turns, each after a warm-up. eager is PyTorch in NHWC, 32 bits; onnxruntime runs the file of 32 bits.",
        f"Throughput: eager, batches of {BATCH_SIZE} on all cores (GPU: {GPU_BATCH_SIZE}). Multiply-adds: half of what "
        "torch.utils.flop_counter counts, one image. Memory: what a process grows by at most that runs the file of 32 bits "
        "in onnxruntime, one image, one thread (GPU: what PyTorch allocates at most).",
        "Sizes are of ONNX files; int8 has weights and activations of 8 bits (static, QDQ).",
        "Accuracy is the training's own, on the validation photos that also chose the checkpoint.",
    ]
    if busy is not None and busy > cores / 2:
        lines.append(f"Warning: other work was running (load {busy:.1f} on {cores} cores): latencies are too high.")
    return lines


def table(rows: Sequence[Row]) -> list[list[str]]:
    """Returns the cells of the table, the first line its heading; columns that nothing is known for are left out."""
    threads = sorted({count for row in rows for runtime, count in row.seconds if runtime != "gpu"})
    columns: dict[str, Callable[[Row], str]] = {
        "network": lambda row: row.name,
        "image": lambda row: "×".join(map(str, row.image.shape[2:])),
        "accuracy, %": lambda row: "" if row.accuracy is None else f"{100 * row.accuracy:.2f}",
        "parameters, M": lambda row: f"{row.parameters / MILLION:.2f}",
        "multiply-adds, M": lambda row: f"{row.multiply_adds / MILLION:,.0f}",
        "fp32, MB": lambda row: f"{row.fp32_size / MILLION:.1f}",
        "int8, MB": lambda row: f"{row.int8_size / MILLION:.1f}",
    }
    for runtime in ("eager", "onnxruntime"):
        for count in threads:
            title = f"{runtime} {count} thread{'s' * (count > 1)}, ms"
            columns[title] = lambda row, key=(runtime, count): _milliseconds(row.seconds.get(key))
    columns |= {
        "images/s": lambda row: f"{row.images_per_second:,.1f}",
        "memory, MB": lambda row: "" if row.memory is None else f"{row.memory / MILLION:,.0f}",
        "GPU, ms": lambda row: _milliseconds(row.seconds.get(("gpu", 1))),
        "GPU images/s": lambda row: "" if row.gpu_images_per_second is None else f"{row.gpu_images_per_second:,.0f}",
        "GPU memory, MB": lambda row: "" if row.gpu_memory is None else f"{row.gpu_memory / MILLION:,.0f}",
    }
    cells = {title: [cell(row) for row in rows] for title, cell in columns.items()}
    shown = {title: column for title, column in cells.items() if any(column)}
    return [list(shown), *map(list, zip(*shown.values(), strict=True))]


def as_text(cells: list[list[str]]) -> str:
    """Returns the table for a terminal; headings of several words stand on several lines."""
    headings = [title.replace(", ", " ").split() for title in cells[0]]
    depth = max(map(len, headings))
    lines = [list(line) for line in zip(*([""] * (depth - len(words)) + words for words in headings), strict=True)]
    lines += cells[1:]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    )  # fmt: skip


def as_markdown(cells: list[list[str]], said: Sequence[str]) -> str:
    """Returns the table with its conditions in Markdown."""
    rule = ["---"] + ["---:"] * (len(cells[0]) - 1)
    lines = [f"| {' | '.join(line)} |" for line in (cells[0], rule, *cells[1:])]
    return "\n".join(["# Networks side by side", "", *lines, "", *(f"- {line}" for line in said), ""])


def as_csv(rows: Sequence[Row]) -> str:
    """Returns every measured number, unrounded: sizes in bytes, times in milliseconds, accuracy in 0 … 1."""
    threads = sorted({key for row in rows for key in row.seconds})
    timed = [
        f"{runtime}_{count}_{part}_ms" for runtime, count in threads for part in ("median", "quartile_1", "quartile_3")
    ]
    columns = ["network", "architecture", "height", "width", "accuracy", "parameters", "multiply_adds", "fp32_bytes",
               "int8_bytes", *timed, "images_per_second", "memory_bytes", "gpu_images_per_second",
               "gpu_memory_bytes"]  # fmt: skip
    values = [
        [row.name, row.architecture, *row.image.shape[2:], row.accuracy, row.parameters, row.multiply_adds,
         row.fp32_size, row.int8_size, *(1e3 * value for key in threads for value in row.seconds[key]),
         row.images_per_second, row.memory, row.gpu_images_per_second, row.gpu_memory]
        for row in rows
    ]  # fmt: skip
    return csv_text([dict(zip(columns, row, strict=True)) for row in values], columns)


def _milliseconds(seconds: Seconds | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds.median:.2f} ±{1e3 * (seconds.high - seconds.low) / 2:.2f}"
