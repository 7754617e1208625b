"""Images and labels that were decoded once and stay in memory as bytes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import Dataset


class StoredImages(Dataset[tuple[Tensor, Tensor]]):
    """An item is `(image, label)`: float32 (channels, H, W) in [0, 1] and int64 (H, W), where the bytes are.

    Args:
        images: uint8 (N, channels, H, W).
        labels: uint8 (N, H, W).
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index].float().div_(255), self.labels[index].long()

    def to(self, device: torch.device) -> StoredImages:
        """The same images on another device: all of them at once, so that no step copies any."""
        return StoredImages(self.images.to(device), self.labels.to(device))
