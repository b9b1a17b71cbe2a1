"""Groups of the classes, such as makes, as further targets of the same features.

Their logits are further rows of the model's last layer, which are dropped from what is kept, evaluated and exported.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

GROUPS_CHANGED = "auxiliary_targets: the groups of a table have changed since the run began"


class AuxiliaryTargets(nn.Module):
    """Cross entropy and accuracy of groupings of the classes.

    Args:
        groups: For each grouping, by name, the group of each class, from 0.
        weight: Of the loss of each grouping.
    """

    def __init__(self, groups: Mapping[str, Sequence[int]], *, weight: float) -> None:
        super().__init__()
        self.names = tuple(groups)
        self.sizes = [max(of_class) + 1 for of_class in groups.values()]
        self.num_logits = sum(self.sizes)
        self.weight = weight
        # (groupings, classes); not in checkpoints.
        self.register_buffer("groups", torch.tensor(list(groups.values())), persistent=False)

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Returns the sum of the cross entropies of each image, (N,).

        Args:
            logits: (N, num_logits).
            labels: Of the classes (N,), or their probabilities (N, classes).
        """
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        total = logits.new_zeros(len(logits))
        for part, size, groups in zip(logits.split(self.sizes, dim=1), self.sizes, self.groups, strict=True):
            if labels.is_floating_point():
                targets = part.new_zeros(len(part), size).index_add(1, groups, labels.to(part.dtype))
            else:
                targets = groups[labels]
            total = total + functional.cross_entropy(part, targets, reduction="none")
        return total

    @torch.no_grad()
    def hits(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Returns the number of correct predictions of each grouping, (groupings,); of probabilities, the largest's label."""
        labels = labels.argmax(1) if labels.is_floating_point() else labels
        predictions = torch.stack([part.argmax(1) for part in logits.split(self.sizes, dim=1)])
        return (predictions == self.groups[:, labels]).sum(dim=1)
