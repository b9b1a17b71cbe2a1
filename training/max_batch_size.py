"""Which batch fits into the memory of the device, after one did not."""

import gc
import traceback

import torch

from models.classifier import Classifier
from models.optimization import build_optimizer
from training.error_hints import is_out_of_memory

SMALLEST_BATCH = 2  # batch norm needs two images


def find_max_batch_size(
    classifier: Classifier, batch_size: int, image_shape: tuple[int, int, int], error: BaseException
) -> int | None:
    """Tries a training step with half of `batch_size` images, half of that and so on, and returns the first that fits.

    For after a training that ran out of memory: it changes the weights of `classifier`, and empties the variables that
    `error` holds on to, among them all that its step had in memory.

    Args:
        classifier: Whose training it was.
        batch_size: Images that did not fit.
        image_shape: (C, H, W).
        error: What that training ended with.

    Returns:
        None where not even two images fit, or where it cannot be tried: with several processes, each would wait for the
        others.
    """
    if classifier.trainer.world_size > 1:
        return None
    if classifier.full_batches is not None:
        classifier.full_batches = None
        torch.compiler.reset()  # CUDA graphs keep the memory of a full batch
    while (batch_size := batch_size // 2) >= SMALLEST_BATCH:
        _let_go(error)
        try:
            _step(classifier, batch_size, image_shape)
            return batch_size
        except RuntimeError as again:
            if not is_out_of_memory(again):
                raise
            error = again
    return None


def _step(classifier: Classifier, batch_size: int, image_shape: tuple[int, int, int]) -> None:
    """Trains with images of nothing; all that it has in memory belongs to this function."""
    classifier.to(classifier.trainer.strategy.root_device).train()
    optimizer = build_optimizer(*classifier.optimizer, classifier.parameters())
    precision = classifier.trainer.precision_plugin
    optimizer.zero_grad()
    images = precision.convert_input(torch.zeros(batch_size, *image_shape, device=classifier.device))
    labels = torch.zeros(batch_size, dtype=torch.int64, device=classifier.device)
    with precision.forward_context():
        loss = classifier.loss(classifier(images), labels)
    loss.backward()
    optimizer.step(loss.detach)


def _let_go(error: BaseException | None) -> None:
    """Frees the memory of what the functions had in hand that `error` went through."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__
    gc.collect()
    torch.cuda.empty_cache()  # does nothing where no CUDA device was used
