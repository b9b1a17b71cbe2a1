"""Formats the measurements of models as a table for the terminal, Markdown and CSV."""

import os
import platform
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from deployment.profiling.benchmark import BATCH_SIZE, GPU_BATCH_SIZE, Profile
from deployment.profiling.measure import Seconds
from utils.files import write_csv
from utils.machine import available_cores, cpu_name

MILLION = 1e6


def conditions(rounds: int) -> list[str]:
    """Returns the conditions of a measurement that starts now, one per line."""
    gpu = f"; GPU {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    load = "" if busy is None else f", load {busy:.1f} at the start"
    cores = os.cpu_count() or 1  # of the whole machine, as the load
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "onnx", "onnxruntime"))
    lines = [
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC on {cpu_name()}, {available_cores()} cores{load}{gpu}",
        f"Python {platform.python_version()}, {packages}; {platform.system()}",
        f"Latency of one image: median ± half the interquartile range of {rounds} interleaved rounds, each after a warm-up. "
        "eager is PyTorch in NHWC, 32 bits; onnxruntime runs the 32-bit file.",
        f"Throughput: eager, batches of {BATCH_SIZE} on all cores (GPU: {GPU_BATCH_SIZE}).",
        "Multiply-adds of one image: half of what torch.utils.flop_counter counts.",
        "Memory: peak of one image on one thread in onnxruntime, 32-bit file (GPU: peak that PyTorch allocates).",
        "Sizes: ONNX files; int8 has 8-bit weights and activations (static, QDQ).",
        "Accuracy: the training's, on the validation images that also chose the checkpoint.",
    ]
    if busy is not None and busy > cores / 2:
        lines.append(
            f"Warning: other processes were running (load {busy:.1f} on {cores} cores): latencies are too high."
        )
    return lines


def table(profiles: Sequence[Profile]) -> list[list[str]]:
    """Returns the cells of the table, the header first; empty columns are left out."""
    threads = sorted({count for profile in profiles for runtime, count in profile.seconds if runtime != "gpu"})
    columns: dict[str, Callable[[Profile], str]] = {
        "model": lambda one: one.name,
        "image": lambda one: "×".join(map(str, one.image.shape[2:])),
        "accuracy, %": lambda one: "" if one.accuracy is None else f"{100 * one.accuracy:.2f}",
        "parameters, M": lambda one: f"{one.parameters / MILLION:.2f}",
        "multiply-adds, M": lambda one: f"{one.multiply_adds / MILLION:,.0f}",
        "fp32, MB": lambda one: f"{one.fp32_size / MILLION:.1f}",
        "int8, MB": lambda one: f"{one.int8_size / MILLION:.1f}",
    }
    for runtime in ("eager", "onnxruntime"):
        for count in threads:
            title = f"{runtime} {count} thread{'s' * (count > 1)}, ms"
            columns[title] = lambda one, key=(runtime, count): _milliseconds(one.seconds.get(key))
    columns |= {
        "images/s": lambda one: f"{one.images_per_second:,.1f}",
        "memory, MB": lambda one: "" if one.memory is None else f"{one.memory / MILLION:,.0f}",
        "GPU, ms": lambda one: _milliseconds(one.seconds.get(("gpu", 1))),
        "GPU images/s": lambda one: "" if one.gpu_images_per_second is None else f"{one.gpu_images_per_second:,.0f}",
        "GPU memory, MB": lambda one: "" if one.gpu_memory is None else f"{one.gpu_memory / MILLION:,.0f}",
    }
    cells = {title: [cell(profile) for profile in profiles] for title, cell in columns.items()}
    shown = {title: column for title, column in cells.items() if any(column)}
    return [list(shown), *map(list, zip(*shown.values(), strict=True))]


def as_text(cells: list[list[str]]) -> str:
    """Returns the table for a terminal; long headings are wrapped."""
    headings = [title.replace(", ", " ").split() for title in cells[0]]
    depth = max(map(len, headings))
    lines = [list(line) for line in zip(*([""] * (depth - len(words)) + words for words in headings), strict=True)]
    lines += cells[1:]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    )  # fmt: skip


def as_markdown(cells: list[list[str]], conditions: Sequence[str]) -> str:
    """Returns the table and its conditions in Markdown."""
    rule = ["---"] + ["---:"] * (len(cells[0]) - 1)
    lines = [f"| {' | '.join(line)} |" for line in (cells[0], rule, *cells[1:])]
    return "\n".join(["# Models side by side", "", *lines, "", *(f"- {line}" for line in conditions), ""])


def write_profiles(path: Path, profiles: Sequence[Profile]) -> None:
    """Writes every measurement as CSV, unrounded: sizes in bytes, times in milliseconds, accuracy in 0 … 1."""
    rows = []
    for profile in profiles:
        height, width = profile.image.shape[2:]
        times = {
            f"{runtime}_{count}_{part}_ms": 1e3 * value
            for (runtime, count), seconds in sorted(profile.seconds.items())
            for part, value in zip(("median", "quartile_1", "quartile_3"), seconds, strict=True)
        }
        rows.append(
            {"model": profile.name, "architecture": profile.architecture, "height": height, "width": width,
             "accuracy": profile.accuracy, "parameters": profile.parameters, "multiply_adds": profile.multiply_adds,
             "fp32_bytes": profile.fp32_size, "int8_bytes": profile.int8_size, **times,
             "images_per_second": profile.images_per_second, "memory_bytes": profile.memory,
             "gpu_images_per_second": profile.gpu_images_per_second, "gpu_memory_bytes": profile.gpu_memory}
        )  # fmt: skip
    write_csv(path, rows)


def _milliseconds(seconds: Seconds | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds.median:.2f} ±{1e3 * (seconds.high - seconds.low) / 2:.2f}"
