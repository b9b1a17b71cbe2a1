"""Measures networks side by side: parameters, multiply-adds, file sizes, latency, throughput and memory."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from deployment.formats import FORMATS, open_onnx, write_int8
from deployment.profiling.measure import (
    Seconds,
    count_multiply_adds,
    interleaved,
    spread,
    threads_restored,
)
from deployment.profiling.peak_memory import peak_memory
from deployment.trained import load_trained
from models import ARCHITECTURES, TIMM, build_model, count_parameters
from utils.config.architectures import ARCHITECTURE_LIMITS
from utils.errors import ConfigError
from utils.machine import available_cores
from utils.nearest import nearest
from utils.progress import progress_bar

NUM_CLASSES = 196
GHOST_WIDTH = 320  # out_channels of the study's best experiment
BATCH_SIZE = 16  # of the throughput on the CPU
GPU_BATCH_SIZE = 256
TURN = 0.2  # seconds
THROUGHPUT_ROUNDS = 2


@dataclass
class Row:
    """One network and what is known of it; sizes in bytes, accuracy in 0 … 1.

    Attributes:
        name: Of the architecture, or of the run; <run>/<file> for a checkpoint.
        architecture: Its name in a configuration.
        model: On the CPU, in evaluation mode.
        image: One image (1, C, H, W).
        accuracy: What the training measured on its validation photos; None without a training.
        seconds: By runtime ("eager", "onnxruntime" or "gpu") and number of threads.
    """

    name: str
    architecture: str
    model: nn.Module
    image: Tensor
    accuracy: float | None = None
    parameters: int = 0
    multiply_adds: int = 0
    fp32_size: int = 0
    int8_size: int = 0
    memory: int | None = None
    seconds: dict[tuple[str, int], Seconds] = field(default_factory=dict)
    images_per_second: float = 0.0
    gpu_images_per_second: float | None = None
    gpu_memory: int | None = None


def build_rows(names: Sequence[str], image_size: Sequence[int]) -> list[Row]:
    """Returns the networks to measure: architectures with random weights, runs and checkpoints as they were trained.

    Args:
        names: Architectures, runs and checkpoints; none for all architectures.
        image_size: Height and width for the architectures; a trained network has its own.

    Raises:
        ConfigError: A name is neither.
        RunError: A checkpoint cannot be loaded.
    """
    rows = []
    for name in names or ARCHITECTURES:
        if name in ARCHITECTURES or name.startswith(TIMM):
            torch.manual_seed(0)
            has_width = not name.startswith(TIMM) and ARCHITECTURE_LIMITS[name].out_channels
            model = build_model(
                name, num_classes=NUM_CLASSES, out_channels=GHOST_WIDTH if has_width else None, image_size=image_size
            )
            row = Row(name, name, model, torch.randn(1, 3, *image_size))
        else:
            try:
                trained = load_trained(name)
            except ConfigError as error:
                raise ConfigError(
                    f"'{name}' is no architecture, run or checkpoint.{nearest(name, ARCHITECTURES)}"
                ) from error
            config = trained.config
            image = torch.randn(1, 1 if config.convert_to_grayscale else 3, *config.image_size)
            accuracy = trained.metrics.get("valid_acc")
            run = trained.folder.resolve().name
            label = f"{run}/{trained.path.stem}" if Path(name).is_file() else run  # a run has two files
            row = Row(label, config.architecture, trained.classifier.model.float(), image, accuracy)
        row.model.eval().to(memory_format=torch.channels_last)
        row.image = row.image.contiguous(memory_format=torch.channels_last)
        rows.append(row)
    return rows


@threads_restored()
def measure(rows: Sequence[Row], folder: Path, *, rounds: int) -> None:
    """Measures all of `rows`, taking turns, so that what disturbs the machine for a while disturbs all of them.

    Args:
        rows: What was measured is written into them.
        folder: For the exported files, some 1.6 GB for the 26 architectures.
        rounds: Turns of each measurement of latency.

    Raises:
        RunError: onnxruntime is not installed, or cannot run one of the networks.
    """
    sessions: dict[tuple[int, int], Callable[[Tensor], Tensor]] = {}
    threads = (1, available_cores()) if available_cores() > 1 else (1,)
    bar = progress_bar(list(enumerate(rows)), description="exporting", unit=" networks")
    for index, row in bar:
        bar.set_postfix_str(row.name, refresh=False)
        path, small = folder / f"{index}.onnx", folder / f"{index}-int8.onnx"
        row.parameters = count_parameters(row.model)
        row.multiply_adds = count_multiply_adds(row.model, row.image)
        plain = copy.deepcopy(row.model).to(memory_format=torch.contiguous_format)
        FORMATS["onnx"].write(plain, row.image.contiguous(), {}, path)
        write_int8(path, [row.image.contiguous()], {}, small)
        row.fp32_size, row.int8_size = path.stat().st_size, small.stat().st_size
        row.memory = peak_memory(path)
        for count in threads:
            sessions[index, count] = open_onnx(path, count).run

    calls: dict[tuple[int, str, int], Callable[[], object]] = {}
    for index, row in enumerate(rows):
        for count in threads:
            calls[index, "eager", count] = partial(_eager, row.model, row.image, count)
            calls[index, "onnxruntime", count] = partial(sessions[index, count], row.image.contiguous())
    times = interleaved(calls, rounds=rounds, seconds=TURN, description="latency")
    for (index, runtime, count), values in times.items():
        rows[index].seconds[runtime, count] = spread(values)

    batches = {
        index: partial(_eager, row.model, _batch(row.image, BATCH_SIZE), threads[-1]) for index, row in enumerate(rows)
    }
    times = interleaved(
        batches, rounds=min(rounds, THROUGHPUT_ROUNDS), seconds=0, least_calls=2, description="throughput"
    )
    for index, values in times.items():
        rows[index].images_per_second = BATCH_SIZE / spread(values).median
    if torch.cuda.is_available():
        _measure_gpu(rows, rounds=rounds)


def _measure_gpu(rows: Sequence[Row], *, rounds: int) -> None:
    device = torch.device("cuda")
    torch.ones(1, 8, device=device) @ torch.ones(8, 8, device=device)  # what cuBLAS takes for good is no network's
    calls: dict[tuple[int, int], Callable[[], object]] = {}
    for index, row in enumerate(progress_bar(rows, description="to the GPU", unit=" networks")):
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        model, image = copy.deepcopy(row.model).to(device), row.image.to(device)
        _on_gpu(model, image)
        row.gpu_memory = torch.cuda.max_memory_allocated() - before
        calls[index, 1] = partial(_on_gpu, model, image)
        calls[index, GPU_BATCH_SIZE] = partial(_on_gpu, model, _batch(row.image, GPU_BATCH_SIZE).to(device))
    times = interleaved(calls, rounds=rounds, seconds=TURN, description="GPU")
    for (index, count), values in times.items():
        if count == 1:
            rows[index].seconds["gpu", 1] = spread(values)
        else:
            rows[index].gpu_images_per_second = count / spread(values).median


def _batch(image: Tensor, size: int) -> Tensor:
    return image.expand(size, -1, -1, -1).contiguous(memory_format=torch.channels_last)


def _eager(model: nn.Module, images: Tensor, threads: int) -> Tensor:
    torch.set_num_threads(threads)
    with torch.inference_mode():
        return model(images)


def _on_gpu(model: nn.Module, images: Tensor) -> None:
    with torch.inference_mode():
        model(images)
    torch.cuda.synchronize()
