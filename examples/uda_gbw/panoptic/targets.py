"""What the instance heads learn: a heat map of the instances' centres, and each pixel's way to its centre."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Targets(NamedTuple):
    """`heat` (N, H, W) in [0, 1]; `offset` (N, 2, H, W), rows and columns to the centre, 0 where no instance is."""

    heat: Tensor
    offset: Tensor


def targets_of(instance: Tensor, sigma: float) -> Targets:
    """The targets of instance numbers (N, H, W), 0 for none; `sigma` in pixels."""
    heat, offset = zip(*(_of_one(numbers, sigma) for numbers in instance), strict=True)
    return Targets(torch.stack(heat), torch.stack(offset))


def centres_of(instance: Tensor) -> tuple[Tensor, Tensor]:
    """The instances' numbers (K,), ascending, and the means (K, 2) of their pixels' rows and columns."""
    places = instance.nonzero()
    numbers, which = torch.unique(instance[instance > 0], return_inverse=True)
    total = places.new_zeros(len(numbers), 2).index_add_(0, which, places)
    return numbers, total / torch.bincount(which, minlength=len(numbers))[:, None]


def grid_of(height: int, width: int, device: torch.device) -> Tensor:
    """The rows and columns (2, H, W) of an image's pixels, float32."""
    sides = (torch.arange(side, device=device, dtype=torch.float32) for side in (height, width))
    return torch.stack(torch.meshgrid(*sides, indexing="ij"))


def _of_one(instance: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """Heat (H, W) and offset (2, H, W) of one image."""
    numbers, centres = centres_of(instance)
    grid = grid_of(instance.shape[0], instance.shape[1], instance.device)
    if not len(numbers):
        return torch.zeros_like(grid[0]), torch.zeros_like(grid)
    # A peak is a pixel's own: at the centre itself, between pixels, no heat would be 1.
    square = (grid - centres.round()[:, :, None, None]).square().sum(1)
    heat = torch.exp(-square / (2 * sigma**2)).amax(0)
    which = torch.searchsorted(numbers, instance.clamp(min=1)).clamp(max=len(numbers) - 1)
    offset = centres[which].permute(2, 0, 1) - grid
    return heat, torch.where(instance > 0, offset, 0)
