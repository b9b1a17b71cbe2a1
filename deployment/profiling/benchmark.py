"""Measures models side by side: parameters, multiply-adds, file sizes, latency, throughput and memory."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from assembly import image_shape
from deployment.formats import FORMATS, Run
from deployment.profiling.measure import (
    Seconds,
    count_multiply_adds,
    interleaved,
    restored_threads,
    spread,
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
GHOST_OUT_CHANNELS = 320  # of C-50, the study's best experiment
BATCH_SIZE = 16  # of the CPU throughput
GPU_BATCH_SIZE = 256
TURN_SECONDS = 0.2
THROUGHPUT_ROUNDS = 2


@dataclass
class Profile:
    """One model and its measurements; sizes in bytes, accuracy in 0 … 1.

    Attributes:
        name: The architecture, the run, or <run>/<file> for a checkpoint.
        architecture: Its name in a configuration.
        model: On the CPU, in evaluation mode.
        image: One image (1, C, H, W).
        accuracy: The training's validation accuracy; None for an untrained model.
        seconds: Latency by runtime ("eager", "onnxruntime" or "gpu") and number of threads.
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


def build_profiles(names: Sequence[str], image_size: Sequence[int]) -> list[Profile]:
    """Returns the models to measure: architectures with random weights, and trained models.

    Args:
        names: Architectures, runs and checkpoints; empty for all architectures.
        image_size: Height and width for the architectures; a trained model has its own.

    Raises:
        ConfigError: A name is neither an architecture nor a run or checkpoint.
        RunError: A checkpoint cannot be loaded.
    """
    profiles = []
    for name in names or ARCHITECTURES:
        if name in ARCHITECTURES or name.startswith(TIMM):
            torch.manual_seed(0)
            has_width = not name.startswith(TIMM) and ARCHITECTURE_LIMITS[name].out_channels
            model = build_model(
                name,
                num_classes=NUM_CLASSES,
                out_channels=GHOST_OUT_CHANNELS if has_width else None,
                image_size=image_size,
            )
            profile = Profile(name, name, model, torch.randn(1, 3, *image_size))
        else:
            try:
                trained = load_trained(name)
            except ConfigError as error:
                raise ConfigError(
                    f"'{name}' is not an architecture, run or checkpoint.{nearest(name, ARCHITECTURES)}"
                ) from error
            image = torch.randn(1, *image_shape(trained.config, testing=True))
            accuracy = trained.metrics.get("valid_acc")
            run = trained.folder.resolve().name
            label = f"{run}/{trained.path.stem}" if Path(name).is_file() else run  # a run has two checkpoints
            profile = Profile(label, trained.config.architecture, trained.exportable(), image, accuracy)
        profile.model.eval().to(memory_format=torch.channels_last)
        profile.image = profile.image.contiguous(memory_format=torch.channels_last)
        profiles.append(profile)
    return profiles


@restored_threads()
def measure(profiles: Sequence[Profile], folder: Path, *, rounds: int) -> None:
    """Measures `profiles` in turns, so that a temporary disturbance of the machine affects all of them.

    Args:
        profiles: The models; their measurements are filled in.
        folder: For the exported files, some 1.6 GB for the 26 architectures.
        rounds: Turns of each latency measurement.

    Raises:
        RunError: onnxruntime is not installed, or cannot run a model.
    """
    runs: dict[tuple[int, int], Run] = {}
    threads = (1, available_cores()) if available_cores() > 1 else (1,)
    bar = progress_bar(list(enumerate(profiles)), description="exporting", unit=" models")
    for index, profile in bar:
        bar.set_postfix_str(profile.name, refresh=False)
        path, small = folder / f"{index}.onnx", folder / f"{index}-int8.onnx"
        profile.parameters = count_parameters(profile.model)
        profile.multiply_adds = count_multiply_adds(profile.model, profile.image)
        plain = copy.deepcopy(profile.model).to(memory_format=torch.contiguous_format)
        FORMATS["onnx"].write(plain, [profile.image.contiguous()], {}, path)
        FORMATS["onnx-int8"].write(path, [profile.image.contiguous()], {}, small)
        profile.fp32_size, profile.int8_size = path.stat().st_size, small.stat().st_size
        profile.memory = peak_memory(path)
        for count in threads:
            runs[index, count] = FORMATS["onnx"].load(path, count).run

    calls: dict[tuple[int, str, int], Callable[[], object]] = {}
    for index, profile in enumerate(profiles):
        for count in threads:
            calls[index, "eager", count] = partial(_eager, profile.model, profile.image, count)
            calls[index, "onnxruntime", count] = partial(runs[index, count], profile.image.contiguous())
    times = interleaved(calls, rounds=rounds, seconds=TURN_SECONDS, description="latency")
    for (index, runtime, count), values in times.items():
        profiles[index].seconds[runtime, count] = spread(values)

    batches = {
        index: partial(_eager, profile.model, _batch(profile.image, BATCH_SIZE), threads[-1])
        for index, profile in enumerate(profiles)
    }
    times = interleaved(
        batches, rounds=min(rounds, THROUGHPUT_ROUNDS), seconds=0, min_calls=2, description="throughput"
    )
    for index, values in times.items():
        profiles[index].images_per_second = BATCH_SIZE / spread(values).median
    if torch.cuda.is_available():
        _measure_gpu(profiles, rounds=rounds)


def _measure_gpu(profiles: Sequence[Profile], *, rounds: int) -> None:
    device = torch.device("cuda")
    torch.ones(1, 8, device=device) @ torch.ones(
        8, 8, device=device
    )  # so that cuBLAS's workspace is not charged to the first model
    calls: dict[tuple[int, int], Callable[[], object]] = {}
    for index, profile in enumerate(progress_bar(profiles, description="copying to the GPU", unit=" models")):
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        model, image = copy.deepcopy(profile.model).to(device), profile.image.to(device)
        _on_gpu(model, image)
        profile.gpu_memory = torch.cuda.max_memory_allocated() - before
        calls[index, 1] = partial(_on_gpu, model, image)
        calls[index, GPU_BATCH_SIZE] = partial(_on_gpu, model, _batch(profile.image, GPU_BATCH_SIZE).to(device))
    times = interleaved(calls, rounds=rounds, seconds=TURN_SECONDS, description="GPU")
    for (index, count), values in times.items():
        if count == 1:
            profiles[index].seconds["gpu", 1] = spread(values)
        else:
            profiles[index].gpu_images_per_second = count / spread(values).median


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
