"""A procedural phantom of the upper abdomen: thirteen organs with Synapse's imbalance, on every machine.

A volume is a function of its number alone. Each organ is a smoothly deformed ellipsoid about an anatomical place; its
surface is the level of that field that gives it the wanted number of voxels, so its share is chosen, not hoped for.

What is Synapse's: the background's share of the voxels, 95.6 %, and of the rest the liver's 54 % and each adrenal
gland's 0.14 %. What is our choice: the other organs' shares (plausible for adults, measured on no data set), all
shapes, places and intensities. Scores on it say whether a method works and how it treats rare classes; they are not
comparable with any published number.

The axes are depth (feet to head), height (front to back) and width (the patient's right to left).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SIZE = (48, 96, 96)  # depth, height, width
FOREGROUND = 0.044  # of the voxels
_SPREAD = 0.15  # of an organ's volume between patients: the standard deviation of its logarithm


@dataclass(frozen=True)
class Organ:
    """`share` of the foreground; centre and half axes (depth, height, width) in a volume that is [-1, 1]^3.

    `intensity` is that after windowing to [-75, 275] HU: water is 0.21, contrast-filled vessels and kidneys are bright.
    """

    name: str
    share: float
    centre: tuple[float, float, float]
    axes: tuple[float, float, float]
    intensity: float


ORGANS = (  # in BTCV's order
    Organ("spleen", 0.085, (0.42, 0.25, 0.58), (0.23, 0.20, 0.15), 0.54),
    Organ("right_kidney", 0.055, (-0.18, 0.30, -0.38), (0.25, 0.13, 0.14), 0.66),
    Organ("left_kidney", 0.056, (-0.08, 0.32, 0.38), (0.25, 0.13, 0.14), 0.66),
    Organ("gallbladder", 0.010, (0.00, -0.22, -0.34), (0.11, 0.09, 0.09), 0.26),
    Organ("esophagus", 0.0072, (0.80, 0.16, 0.06), (0.30, 0.05, 0.05), 0.38),
    Organ("liver", 0.54, (0.42, -0.04, -0.42), (0.40, 0.38, 0.34), 0.52),
    Organ("stomach", 0.137, (0.45, -0.18, 0.32), (0.24, 0.21, 0.24), 0.35),
    Organ("aorta", 0.036, (0.05, 0.30, 0.07), (0.85, 0.06, 0.06), 0.68),
    Organ("inferior_vena_cava", 0.032, (0.00, 0.22, -0.12), (0.75, 0.065, 0.065), 0.57),
    Organ("portal_and_splenic_veins", 0.011, (0.14, 0.09, 0.04), (0.05, 0.05, 0.36), 0.60),
    Organ("pancreas", 0.028, (0.04, 0.00, 0.12), (0.09, 0.09, 0.33), 0.47),
    Organ("right_adrenal_gland", 0.0014, (0.20, 0.30, -0.21), (0.06, 0.035, 0.05), 0.43),
    Organ("left_adrenal_gland", 0.0014, (0.22, 0.29, 0.23), (0.06, 0.035, 0.05), 0.43),
)
CLASSES = ("background", *(organ.name for organ in ORGANS))
_BY_SIZE = sorted(range(len(ORGANS)), key=lambda number: ORGANS[number].share)


def render_organs(number: int, size: tuple[int, int, int] = SIZE) -> tuple[Tensor, Tensor]:
    """Phantom `number`: its image, float32 (1, D, H, W) in [0, 1], and its label, uint8 (D, H, W).

    Every organ has at least one voxel, so at very small sizes the small organs' shares are larger than stated.
    """
    draws = torch.Generator().manual_seed(number)
    places = _coordinates(size, draws)
    inside = _body(places)
    label = _label(places, inside, draws)
    return _image(label, inside, places, draws)[None], label


def _coordinates(size: tuple[int, int, int], draws: torch.Generator) -> Tensor:
    """(3, D, H, W) in about [-1, 1]: a grid that is shifted, scaled and bent a little, another way for each patient."""
    axes = [torch.linspace(-1, 1, 2 * length + 1)[1::2] for length in size]  # the voxels' centres
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    scale = 1 + 0.04 * torch.randn((3, 1, 1, 1), generator=draws)
    shift = 0.03 * torch.randn((3, 1, 1, 1), generator=draws)
    return grid * scale + shift + 0.03 * _smooth((3, *size), 4, draws)


def _body(places: Tensor) -> Tensor:
    _, y, x = places
    return (y.abs() / 0.72) ** 2.5 + (x.abs() / 0.9) ** 2.5 < 1


def _label(places: Tensor, inside: Tensor, draws: torch.Generator) -> Tensor:
    """Small organs first, so that none is swallowed by a large neighbour."""
    label = torch.zeros(inside.shape, dtype=torch.uint8)
    spread = torch.randn(len(ORGANS) + 1, generator=draws) * _SPREAD
    factors = (spread - _SPREAD**2 / 2).exp()  # their mean is 1
    for number in _BY_SIZE:
        organ = ORGANS[number]
        field = _distance(organ, places, draws).masked_fill_(~inside | (label > 0), torch.inf)
        voxels = max(round(organ.share * FOREGROUND * label.numel() * float(factors[number])), 1)
        label[field <= field.flatten().kthvalue(voxels).values] = number + 1
    return label


def _distance(organ: Organ, places: Tensor, draws: torch.Generator) -> Tensor:
    """1 on the surface of the ellipsoid, deformed: what the organ's voxels have least of."""
    jitter = 0.02 * torch.randn((3, 1, 1, 1), generator=draws)
    axes = torch.tensor(organ.axes).view(3, 1, 1, 1) * (1 + 0.08 * torch.randn((3, 1, 1, 1), generator=draws))
    centre = torch.tensor(organ.centre).view(3, 1, 1, 1) + jitter
    radius = ((places - centre) / axes).square_().sum(0).sqrt_()
    return radius * (1 + 0.12 * _smooth(tuple(radius.shape), 6, draws))


def _image(label: Tensor, inside: Tensor, places: Tensor, draws: torch.Generator) -> Tensor:
    """Intensities (D, H, W): tissue, bowel and spine around the organs, then blur, shading and noise."""
    texture = _smooth(tuple(label.shape), 8, draws)
    image = torch.where(inside, _surroundings(places, texture, draws), 0.0)
    contrast = 1 + 0.06 * torch.randn((), generator=draws)  # the phase of the contrast agent
    for number, organ in enumerate(ORGANS, 1):
        mean = organ.intensity * contrast + 0.02 * torch.randn((), generator=draws)
        image = torch.where(label == number, mean + 0.03 * texture, image)
    image = F.avg_pool3d(F.pad(image[None, None], (1,) * 6, mode="replicate"), 3, stride=1)[0, 0]
    shading = 1 + 0.05 * _smooth(tuple(label.shape), 3, draws)
    noise = 0.05 * torch.randn(label.shape, generator=draws)
    return ((image * shading + noise) * inside + 0.3 * noise.abs() * ~inside).clamp_(0, 1)


def _surroundings(places: Tensor, texture: Tensor, draws: torch.Generator) -> Tensor:
    """Muscle and fat, loops of bowel as bright as organs are, and the spine."""
    z, y, x = places
    image = 0.28 + 0.16 * texture  # from fat to muscle
    for _ in range(10):
        low = torch.tensor((-0.95, -0.45, -0.55))
        centre = low + torch.rand(3, generator=draws) * torch.tensor((0.9, 0.6, 1.1))
        axes = 0.06 + 0.12 * torch.rand(3, generator=draws)
        loop = ((places - centre.view(3, 1, 1, 1)) / axes.view(3, 1, 1, 1)).square().sum(0) < 1
        brightness = 0.25 + 0.35 * torch.rand((), generator=draws)
        image = torch.where(loop, brightness + 0.05 * texture, image)
    spine = ((y - 0.5) / 0.13) ** 2 + (x / 0.13) ** 2 < 1
    discs = 0.1 * torch.sin(z * 25)
    return torch.where(spine, 0.85 + discs, image)


def _smooth(shape: tuple[int, ...], cells: int, draws: torch.Generator) -> Tensor:
    """Noise of mean 0 and a deviation of about 1 that changes over 1 / `cells` of the volume; shape (*, D, H, W)."""
    *many, depth, height, width = shape
    coarse = torch.randn((1, *(many or [1]), cells, cells, cells), generator=draws)
    fine = F.interpolate(coarse, size=(depth, height, width), mode="trilinear", align_corners=True)
    return fine.view(shape)
