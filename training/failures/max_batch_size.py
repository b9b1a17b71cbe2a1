"""Finds a batch size that fits into the device's memory, after one did not."""

import gc
import traceback

import torch

from models.classifier import Classifier
from models.optimization import build_optimizer
from training.failures.error_hints import is_out_of_memory

MIN_BATCH_SIZE = 2  # batch norm needs two images


def find_max_batch_size(
    classifier: Classifier, batch_size: int, image_shape: tuple[int, int, int], error: BaseException
) -> int | None:
    """Tries a training step with half of `batch_size`, a quarter and so on, and returns the first that fits.

    Call it only after a training ran out of memory: it changes the weights of `classifier`, and clears the frames of `error`,
    which hold all that the failed step had in memory.

    Args:
        classifier: The classifier of that training.
        batch_size: Images that did not fit.
        image_shape: (C, H, W).
        error: What ended that training.

    Returns:
        None if not even two images fit, or with several processes, where a trial step would wait for the others.
    """
    if classifier.trainer.world_size > 1:
        return None
    if classifier.full_batches is not None:
        classifier.full_batches = None
        torch.compiler.reset()  # CUDA graphs keep the memory of a full batch
    while (batch_size := batch_size // 2) >= MIN_BATCH_SIZE:
        _free_memory(error)
        try:
            _step(classifier, batch_size, image_shape)
            return batch_size
        except RuntimeError as again:
            if not is_out_of_memory(again):
                raise
            error = again
    return None


def _step(classifier: Classifier, batch_size: int, image_shape: tuple[int, int, int]) -> None:
    """Trains on all-zero images; only this function's frame holds what that needs."""
    classifier.to(classifier.trainer.strategy.root_device).train()
    optimizer = build_optimizer(*classifier.optimizer, classifier.parameters())
    precision = classifier.trainer.precision_plugin
    optimizer.zero_grad()
    images = precision.convert_input(torch.zeros(batch_size, *image_shape, device=classifier.device))
    labels = torch.zeros(batch_size, dtype=torch.int64, device=classifier.device)
    with precision.forward_context():
        loss, *_ = classifier.batch_loss(images, labels)
    loss.backward()
    optimizer.step(loss.detach)


def _free_memory(error: BaseException | None) -> None:
    """Frees what the frames of `error` and of its causes hold."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__
    gc.collect()
    torch.cuda.empty_cache()  # does nothing unless CUDA was used
