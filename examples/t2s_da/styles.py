"""Engines that change colours, sharpness and edges alone; images (1, 3, H, W) in [0, 1], draws from a generator."""

from __future__ import annotations

import torch
from kornia.augmentation import ColorJitter, RandomGaussianBlur
from kornia.filters import bilateral_blur, sobel
from torch import Tensor, nn

_GREY = (0.299, 0.587, 0.114)  # the weights of a colour's brightness


def adain(image: Tensor, style: Tensor) -> Tensor:
    """Each colour with the mean and standard deviation that it has in another image.

    Huang and Belongie (ICCV 2017) do so with the features of a trained network, which then paints the image; here the
    features are the pixels.
    """
    mean, deviation = image.mean((2, 3), keepdim=True), image.std((2, 3), keepdim=True)
    wanted_mean, wanted = style.mean((2, 3), keepdim=True), style.std((2, 3), keepdim=True)
    return ((image - mean) / deviation.clamp(min=1e-5) * wanted + wanted_mean).clamp(0, 1)


def color_jitter(image: Tensor, draws: torch.Generator) -> Tensor:
    """SimCLR's at its strength of 1: brightness, contrast, saturation by up to 0.8, the hue by 0.2, 8 times of 10."""
    return _by_kornia(ColorJitter(0.8, 0.8, 0.8, 0.2, p=0.8), image, draws)


def gaussian_blur(image: Tensor, draws: torch.Generator) -> Tensor:
    """SimCLR's: a kernel of a tenth of the height, σ from 0.1 to 2, half of the time."""
    side = max(image.shape[-2] // 10, 3) | 1
    return _by_kornia(RandomGaussianBlur((side, side), (0.1, 2.0), p=0.5), image, draws)


def cartoon(image: Tensor, draws: torch.Generator) -> Tensor:
    """Flat areas of a few shades, more colour, dark edges; how much of each is drawn.

    After the picture that imgaug (Jung et al., 2020) makes: it finds the areas by mean shift, here a bilateral filter
    and rounding do.
    """
    shades, saturation, threshold = (
        low + (high - low) * float(torch.rand(1, generator=draws))
        for low, high in ((5.0, 12.0), (1.2, 2.0), (0.08, 0.2))
    )
    flat = image
    for _ in range(2):
        flat = bilateral_blur(flat, (5, 5), 0.1, (2.0, 2.0))
    flat = (flat * round(shades)).round() / round(shades)
    grey = _grey(flat)
    edges = (sobel(_grey(image)) > threshold).float()
    return ((grey + saturation * (flat - grey)) * (1 - 0.8 * edges)).clamp(0, 1)


def _grey(image: Tensor) -> Tensor:
    weights = image.new_tensor(_GREY).view(1, 3, 1, 1)
    return (image * weights).sum(1, keepdim=True)


def _by_kornia(change: nn.Module, image: Tensor, draws: torch.Generator) -> Tensor:
    """Draws of kornia's come from torch's own generator on the CPU, which gets a seed from ours and its state back."""
    seed = int(torch.randint(2**31, (1,), generator=draws))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would restart the GPU's dropout too
        changed: Tensor = change(image)
    return changed
