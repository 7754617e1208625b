"""Weather on a picture: fog, snow, another brightness, each of a drawn strength.

After the weather corruptions of Michaelis et al. (2019), which are those of ImageNet-C; frost needs photographs of
frost, and is not here. Images (1, 3, H, W) in [0, 1].
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

KINDS = ("fog", "snow", "brightness")


def weather(image: Tensor, draws: torch.Generator) -> Tensor:
    """One of the three, drawn, of a strength from 0 to 1."""
    kind = KINDS[int(torch.randint(len(KINDS), (1,), generator=draws))]
    strength = float(torch.rand(1, generator=draws))
    if kind == "fog":
        return fog(image, strength, draws)
    if kind == "snow":
        return snow(image, strength, draws)
    return (image + 0.1 + 0.4 * strength).clamp(0, 1)


def fog(image: Tensor, strength: float, draws: torch.Generator) -> Tensor:
    """Uneven white, which takes contrast away."""
    thickness = 0.5 + 2.0 * strength
    veil = thickness * fractal(image.shape[-2:], draws).to(image.device)
    brightest = image.amax()
    return ((image + veil) * brightest / (brightest + thickness)).clamp(0, 1)


def snow(image: Tensor, strength: float, draws: torch.Generator) -> Tensor:
    """Streaks of flakes over a whiter, greyer picture."""
    height, width = image.shape[-2:]
    coarse = (1, 1, -(-height // 2), -(-width // 2))
    flakes = torch.randn(coarse, generator=draws) * 0.3 + 0.1 + 0.25 * strength
    flakes = torch.where(flakes > 0.5, flakes, 0).clamp(max=1)
    angle = math.pi * (0.5 + 0.25 * (2 * float(torch.rand(1, generator=draws)) - 1))  # nearly downwards
    length = max(round(height / 24), 2)
    streaks = torch.stack([_shifted(flakes, angle, step) for step in range(length)]).mean(0) * 2
    layer = F.interpolate(streaks, size=(height, width), mode="bilinear", align_corners=False).to(
        image.device
    )
    whiter = image.mean(1, keepdim=True) * 1.2 + 0.2
    pale = 0.3 + 0.2 * strength
    return ((1 - pale) * image + pale * torch.maximum(image, whiter) + layer).clamp(0, 1)


def fractal(size: tuple[int, ...], draws: torch.Generator) -> Tensor:
    """Clouds in [0, 1], (1, 1, *size): noise of ever finer grids, each half as strong."""
    total, cells, share = torch.zeros(1, 1, *size), 2, 1.0
    while cells <= max(size):
        grid = torch.rand(1, 1, cells, cells, generator=draws)
        total += share * F.interpolate(grid, size=size, mode="bilinear", align_corners=False)
        cells, share = 2 * cells, share / 2
    total -= total.amin()
    return total / total.amax().clamp(min=1e-6)


def _shifted(plane: Tensor, angle: float, step: int) -> Tensor:
    return plane.roll((round(step * math.sin(angle)), round(step * math.cos(angle))), (-2, -1))
