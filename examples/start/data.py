"""The data of the scripts, drawn from seeds on every machine: put your own `Dataset` of (image, label) in its place."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import TensorDataset

from examples.common.organs import render_organs
from examples.common.streets import IGNORE_INDEX, Streets

PATCH = 16


@cache
def streets(number: int, *, seed: int, size: tuple[int, int] = (48, 64)) -> TensorDataset:
    """Street scenes with CamVid's 11 classes: images (3, H, W) in [0, 1], labels (H, W) with 255 for unlabelled."""
    drawn = Streets(number, size=size, seed=seed, cache=False)
    return _stacked([drawn[i] for i in range(number)])


@cache
def organs(number: int, *, seed: int, size: tuple[int, int, int] = (16, 32, 32)) -> TensorDataset:
    """Volumes (1, D, H, W) of an abdomen, labels (D, H, W): background, which is 96 %, and 13 organs."""
    volumes = (render_organs(1000 * seed + i, size) for i in range(number))
    return _stacked([(image, label.long()) for image, label in volumes])


@cache
def cracks(number: int, *, seed: int, size: tuple[int, int] = (64, 64)) -> TensorDataset:
    """Asphalt (1, H, W) with a crack in it, two pixels wide and of little contrast; labels (H, W), 1 for crack."""
    draws = torch.Generator().manual_seed(seed)
    return _stacked([_crack(size, draws) for _ in range(number)])


@cache
def patches(number: int, *, seed: int, per_image: int = 50) -> TensorDataset:
    """What is in the middle of this patch of a street? Images (3, 16, 16), labels () of 11 classes.

    The middles are drawn from all labelled pixels, so the classes have the pixels' long tail.
    """
    draws = torch.Generator().manual_seed(seed)
    images, labels = streets(-(-number // per_image), seed=seed).tensors
    fringe = PATCH // 2
    inner = labels[:, fringe:-fringe, fringe:-fringe]
    valid = (inner != IGNORE_INDEX).nonzero()
    chosen = valid[torch.randperm(len(valid), generator=draws)[:number]].tolist()
    return _stacked([(images[n, :, y : y + PATCH, x : x + PATCH], inner[n, y, x]) for n, y, x in chosen])


def _stacked(samples: list[tuple[Tensor, Tensor]]) -> TensorDataset:
    images, labels = zip(*samples, strict=True)
    return TensorDataset(torch.stack(images), torch.stack(labels))


def _crack(size: tuple[int, int], draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """A random walk from the left edge to the right one, or turned by 90 degrees, on noise that is blotched."""
    height, width = size
    start = torch.randint(height, (1,), generator=draws)
    rows = (start + torch.randint(-1, 2, (width,), generator=draws).cumsum(0)).clamp(0, height - 2)
    label = torch.zeros(size, dtype=torch.long)
    columns = torch.arange(width)
    label[rows, columns] = label[rows + 1, columns] = 1
    if torch.rand((), generator=draws) < 0.5:
        label = label.mT.contiguous()
    coarse = torch.randn((1, 1, 8, 8), generator=draws)
    blotches = F.interpolate(coarse, size=tuple(label.shape), mode="bilinear", align_corners=False)[0]
    noise = torch.randn((1, *label.shape), generator=draws)
    return 0.5 * blotches + noise - 1.5 * label, label
