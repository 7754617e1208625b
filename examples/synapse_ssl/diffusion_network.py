"""A&D's network: a V-Net whose encoder sees an image, alone or with a noisy label, and three decoders.

No library has it, so its blocks are here: convolution, ReLU, batch norm, dropout 0.1, in the released code's order,
with its numbers of convolutions and its additive skips. Strides follow the patch as those of `dyn_unet` do: the
published ones, 2 along each axis, for 64 x 128 x 128; flat patches keep their few slices longer.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from examples.synapse_ssl.data.config import Size
from examples.synapse_ssl.networks import stages_of

_SINES, _TIME = 128, 512  # what a time is embedded into, before and after two layers
_CONVOLUTIONS = (2, 3, 3, 3)  # of the encoder's stages below the first; the decoder's go 3, 3, 2, 1
_BLOCK_DROPOUT = 0.1


class DiffusionVNet(nn.Module):
    """An encoder for images and for noisy labels; decoders xi (noisy labels), psi and theta (images).

    Args:
        num_classes: C.
        features: filters of the five stages; published: 32, 64, 128, 256, 512.
        patch: what the strides fit.
        dropout: of the deepest and the finest features.

    Raises:
        ValueError: there are not five features, or the patch cannot be halved four times.
    """

    def __init__(self, num_classes: int, features: tuple[int, ...], patch: Size, dropout: float) -> None:
        super().__init__()
        if len(features) != len(_CONVOLUTIONS) + 1:
            raise ValueError(f"model.features must be five numbers for diff_vnet, got {features}")
        _, strides = stages_of(patch, len(features), "diff_vnet")
        self.time = nn.Sequential(nn.Linear(_SINES, _TIME), nn.SiLU(), nn.Linear(_TIME, _TIME))
        self.image_stem = Block(1, features[0], timed=False)
        self.noisy_stem = Block(1 + num_classes, features[0], timed=False)
        self.encoder = Encoder(features, strides[1:], dropout)
        self.xi, self.psi, self.theta = (
            Decoder(num_classes, features, strides[1:], dropout, timed=timed)
            for timed in (True, False, False)
        )

    def forward(self, image: Tensor) -> Tensor:
        """What is scored: theta's logits (N, C, *) of images (N, 1, *)."""
        return self.theta(self.encoder(self.image_stem(image), None), None)

    def guided(self, image: Tensor) -> Tensor:
        """Psi's logits (N, C, *) of images (N, 1, *)."""
        return self.psi(self.encoder(self.image_stem(image), None), None)

    def denoised(self, noisy: Tensor, time: Tensor, image: Tensor) -> Tensor:
        """Xi's logits (N, C, *) of noisy labels (N, C, *) at times (N,), beside their images (N, 1, *)."""
        at = self.time(sines(time))
        return self.xi(self.encoder(self.noisy_stem(torch.cat([image, noisy], 1)), at), at)


class Block(nn.Module):
    """Convolution, ReLU, batch norm, dropout; then the time is added, where it is given."""

    def __init__(
        self, inputs: int, outputs: int, *, timed: bool, stride: Size | None = None, up: bool = False
    ) -> None:
        super().__init__()
        if stride is None:
            convolution: nn.Module = nn.Conv3d(inputs, outputs, 3, padding=1)
        else:
            convolution = (nn.ConvTranspose3d if up else nn.Conv3d)(inputs, outputs, stride, stride)
        drop = nn.Dropout3d(_BLOCK_DROPOUT) if stride is None else nn.Identity()
        self.body = nn.Sequential(convolution, nn.ReLU(), nn.BatchNorm3d(outputs), drop)
        self.shift = nn.Linear(_TIME, outputs) if timed else None

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """(N, inputs, *) -> (N, outputs, *); `time` is (N, 512)."""
        x = self.body(x)
        if time is None or self.shift is None:
            return x
        return x + self.shift(silu(time))[:, :, None, None, None]


class Encoder(nn.Module):
    """Features of every stage, the finest first; a stage's last convolution is not told the time, as released."""

    def __init__(self, features: tuple[int, ...], strides: list[Size], dropout: float) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            Block(a, b, timed=True, stride=stride)
            for a, b, stride in zip(features, features[1:], strides, strict=False)
        )
        self.stages = nn.ModuleList(
            _stage(width, number, timed=True)
            for width, number in zip(features[1:], _CONVOLUTIONS, strict=True)
        )
        self.dropout = nn.Dropout3d(dropout)

    def forward(self, x: Tensor, time: Tensor | None) -> list[Tensor]:
        """The features from those of a stem."""
        found = [x]
        for down, stage in zip(self.down, self.stages, strict=True):
            x = down(x, time)
            for block in stage:
                x = block(x, time)
            found.append(x)
        found[-1] = self.dropout(x)
        return found


class Decoder(nn.Module):
    """Logits from an encoder's features. Decoders with and without time name their shared parameters alike."""

    def __init__(
        self,
        num_classes: int,
        features: tuple[int, ...],
        strides: list[Size],
        dropout: float,
        *,
        timed: bool,
    ) -> None:
        super().__init__()
        widths = features[::-1]
        self.up = nn.ModuleList(
            Block(a, b, timed=timed, stride=stride, up=True)
            for a, b, stride in zip(widths, widths[1:], reversed(strides), strict=False)
        )
        numbers = (*reversed(_CONVOLUTIONS[:-1]), 1)
        self.stages = nn.ModuleList(
            _stage(width, number, timed=timed) for width, number in zip(widths[1:], numbers, strict=True)
        )
        self.dropout = nn.Dropout3d(dropout)
        self.last = nn.Conv3d(features[0], num_classes, 1)

    def forward(self, features: list[Tensor], time: Tensor | None) -> Tensor:
        """(N, C, *) from the encoder's list."""
        *skips, x = features
        for up, stage, skip in zip(self.up, self.stages, reversed(skips), strict=True):
            x = up(x, time) + skip
            for block in stage:
                x = block(x, time)
        logits: Tensor = self.last(self.dropout(x))
        return logits


def sines(time: Tensor) -> Tensor:
    """Times (N,) as sines and cosines of 64 frequencies from 1 down to 1 / 10,000: (N, 128) float32."""
    half = _SINES // 2
    frequency = torch.exp(-math.log(10_000) / (half - 1) * torch.arange(half, device=time.device))
    angle = time[:, None].float() * frequency
    return torch.cat([angle.sin(), angle.cos()], 1)


def _stage(width: int, number: int, *, timed: bool) -> nn.ModuleList:
    return nn.ModuleList(Block(width, width, timed=timed and place + 1 < number) for place in range(number))
