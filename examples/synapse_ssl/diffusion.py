"""Diffusion of label volumes for A&D: what noise does to them, and how they are sampled from a network.

Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models", NeurIPS 2020, and Song, Meng and Ermon, "Denoising
Diffusion Implicit Models", ICLR 2021. A label is one-hot, scaled to -1 and 1. The network predicts it, not the noise.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

TIMES = 1000  # of the forward process
_PASSES = 10  # of sampling: times 0, 111, ..., 999


def kept_signal() -> Tensor:
    """The signal's share of the variance after each time, (1000,) float64: products of 1 - beta, linear betas."""
    return (1 - torch.linspace(1e-4, 0.02, TIMES, dtype=torch.float64)).cumprod(0)


def noised(clean: Tensor, time: Tensor, noise: Tensor) -> Tensor:
    """Volumes (N, C, *) after `time` (N,) int64 with the given noise, of their shape."""
    kept = kept_signal().to(clean.device)[time].view(-1, *[1] * (clean.ndim - 1))
    return (kept.sqrt() * clean + (1 - kept).sqrt() * noise).to(clean)


def sample(denoise: Callable[[Tensor, Tensor], Tensor], noise: Tensor) -> Tensor:
    """A clean volume from noise (N, C, *), in ten deterministic (DDIM) steps; values in [-1, 1].

    Args:
        denoise: (noisy volume, time (N,) int64) -> what it thinks the clean volume is; clipped to [-1, 1].
        noise: standard normal.
    """
    times = torch.linspace(0, TIMES - 1, _PASSES, dtype=torch.float64).round().long().tolist()
    kept = [float(kept_signal()[time]) for time in times]
    volume, clean = noise, noise
    for place in reversed(range(_PASSES)):
        time = torch.full((len(noise),), times[place], device=noise.device)
        clean = denoise(volume, time).clamp(-1, 1)
        left = (volume - kept[place] ** 0.5 * clean) / (1 - kept[place]) ** 0.5
        before = kept[place - 1] if place else 1.0
        volume = before**0.5 * clean + (1 - before) ** 0.5 * left
    return clean
