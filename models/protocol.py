"""The part of timm's model protocol that fine-tuning and feature extraction need, for the architectures written here.

https://huggingface.co/docs/timm/feature_extraction
"""

from torch import Tensor, nn


class TimmProtocol(nn.Module):
    """A model of `features`, global average pooling and a head that ends in a linear layer.

    Attributes:
        num_features: Channels of the last feature map.
        head_name: Attribute of the head.
    """

    num_features: int
    head_name = "classifier"

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits (N, num_classes) of images (N, in_channels, H, W)."""
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """Returns the last feature map (N, num_features, H / 32, W / 32) of images (N, in_channels, H, W)."""
        return self.features(images)

    def forward_head(self, features: Tensor) -> Tensor:
        """Returns logits (N, num_classes) of feature maps (N, num_features, h, w)."""
        return getattr(self, self.head_name)(features.mean(dim=(2, 3)))

    def get_classifier(self) -> nn.Linear:
        """Returns the last layer."""
        return self.get_submodule(self._classifier_name)

    def reset_classifier(self, num_classes: int) -> None:
        """Replaces the last layer by one of `num_classes`, initialized as PyTorch does."""
        self.set_submodule(self._classifier_name, nn.Linear(self.get_classifier().in_features, num_classes))

    @property
    def _classifier_name(self) -> str:
        head = getattr(self, self.head_name)
        return f"{self.head_name}.{len(head) - 1}" if isinstance(head, nn.Sequential) else self.head_name
