"""Which domain does an output come from? AdaptSegNet's discriminator, which ADVENT uses too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SOURCE, TARGET = 0.0, 1.0  # what a discriminator says of an output


def build_discriminator(num_classes: int, channels: int) -> nn.Sequential:
    """Five 4x4 layers of stride 2: maps (N, C, H, W) -> scores (N, 1, H / 32, W / 32), before the sigmoid."""
    widths = [num_classes, *(channels * 2**level for level in range(4))]
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Conv2d(inputs, outputs, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, stride=2, padding=1))


def says(discriminator: nn.Module, maps: Tensor, domain: float) -> Tensor:
    """The binary cross-entropy of a discriminator's scores against one domain."""
    scores = discriminator(maps)
    return F.binary_cross_entropy_with_logits(scores, torch.full_like(scores, domain))


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """A block in which a module's parameters collect no gradient, while what passes through it does."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)
