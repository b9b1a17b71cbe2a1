"""How far the published accuracy, a mean of batch means, can be from the share of images that are right.

In the mean of batch means, the images of a smaller last batch weigh more than the others.
"""

import math
from collections.abc import Sequence


def mean_of_batch_means(correct: Sequence[bool], batch_size: int) -> float:
    """Returns the published figure: the mean over batches of the share that is right, in 0 … 1.

    Args:
        correct: For each image, in the order of the batches, whether it is right.
        batch_size: Images in a batch; the last one may have fewer.
    """
    batches = [correct[first : first + batch_size] for first in range(0, len(correct), batch_size)]
    return sum(sum(batch) / len(batch) for batch in batches) / len(batches)


def largest_difference(images: int, batch_size: int) -> float:
    """Returns how far the two can be apart at most, in 0 … 1.

    With b batches, r images in the last one, and accuracies p in it and q in all others, the mean of batch means less the
    mean over images is (p − q)(1 / b − r / images); and p − q is at most one.
    """
    batches = math.ceil(images / batch_size)
    last = images - (batches - 1) * batch_size
    return 0.0 if batches == 1 else 1 / batches - last / images
