"""Fourier domain adaptation: an image in the colours of another domain.

Yang and Soatto, "FDA: Fourier Domain Adaptation for Semantic Segmentation", CVPR 2020; equations 6 to 8 of T2S-DA.
"""

from __future__ import annotations

import torch
from torch import Tensor

WINDOWS = ("numpy", "torch")


def fourier_style(content: Tensor, style: Tensor, beta: float = 0.01, window: str = "numpy") -> Tensor:
    r"""Images with the phase of `content`, whose lowest frequencies have the amplitude of `style`.

    With F_A and F_P the amplitude and the phase of the Fourier transform of each channel, and M the window,

    .. math:: x = F^{-1}\bigl([M \cdot F_A(\mathrm{style}) + (1 - M) \cdot F_A(\mathrm{content}),\,
                               F_P(\mathrm{content})]\bigr)

    Readings. The equation writes a window of (βH, βW); the released code has b = ⌊β·min(H, W)⌋ for both axes, in two
    versions that differ: numpy's window is the (2b + 1)² frequencies −b to b around zero, torch's the (2b)² of −b to
    b − 1, whose missing partners leave an imaginary part that is dropped. So at b = 0 (β below 1 / min(H, W)) numpy's
    still exchanges the mean colours, and torch's exchanges nothing. As in that code nothing is clipped: values may
    leave [0, 1] a little.

    Args:
        content: what the image shows, float (N, channels, H, W).
        style: where the amplitude comes from, of the same shape.
        beta: β, in [0, 0.5]. T2S-DA does not give it; FDA's README has 0.01, for several bands 0.01, 0.05 and 0.09.
        window: "numpy" or "torch".

    Returns:
        Float (N, channels, H, W).

    Raises:
        ValueError: the shapes differ, β is out of range, or there is no such window.
    """
    if content.ndim != 4 or content.shape != style.shape:
        raise ValueError(
            f"expected content and style of one shape (N, channels, H, W), got {tuple(content.shape)} and "
            f"{tuple(style.shape)}: crop both to one size"
        )
    check_fourier(beta, window)
    height, width = content.shape[-2:]
    half = int(beta * min(height, width))
    rows, columns = (_lowest(size, half, window, content.device) for size in (height, width))
    own = torch.fft.fft2(content)
    other = torch.fft.fft2(style)
    amplitude = torch.where(rows[:, None] & columns, other.abs(), own.abs())
    return torch.fft.ifft2(torch.polar(amplitude, own.angle())).real


def check_fourier(beta: float, window: str) -> None:
    """Raise ValueError for options that `fourier_style` does not take."""
    if not 0 <= beta <= 0.5:
        raise ValueError(f"beta must be in [0, 0.5], a share of the image's shorter side, got {beta}")
    if window not in WINDOWS:
        raise ValueError(f"window must be one of {', '.join(map(repr, WINDOWS))}, got {window!r}")


def _lowest(size: int, half: int, window: str, device: torch.device) -> Tensor:
    """The mask (size,) of the exchanged frequencies of an axis, in the order of torch's transform."""
    frequency = torch.arange(size, device=device)
    frequency = torch.where(frequency < (size + 1) // 2, frequency, frequency - size)
    return (frequency >= -half) & (frequency < half + (window == "numpy"))
