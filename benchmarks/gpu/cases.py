"""What is checked and measured: losses, and the logits and labels that they get."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import classbalance_losses as cb
from benchmarks.speed.inputs import IGNORE_INDEX, Pixels, pixels
from benchmarks.speed.settings import Shape, label

BASELINE = "F.cross_entropy"
SHOWN = ("weighted CE", "focal", "GBW", "DyCE")
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Setting:
    """Logits (N, C, *) of a dtype and layout, and labels of their size or of a larger one."""

    shape: Shape
    dtype: str = "float32"
    channels_last: bool = False
    size: Shape | None = None

    def __str__(self) -> str:
        full = f" → {label(self.size)}" if self.size else ""
        return f"{label(self.shape)}{full} {self.dtype}{', channels last' if self.channels_last else ''}"

    def problem(self, device: str) -> Pixels:
        """Return the same logits and labels at every call."""
        return pixels(self.shape, self.dtype, device, self.size, self.channels_last)


STREET: Shape = (2, 19, 512, 1024)
MAIN = Setting(STREET)
SETTINGS = (
    MAIN,
    Setting(STREET, "bfloat16"),
    Setting(STREET, "float16"),
    Setting(STREET, channels_last=True),
    Setting(STREET, "bfloat16", channels_last=True),
    Setting((4, 19, 513, 513)),
    Setting((2, 150, 512, 512)),
    Setting((2, 150, 512, 512), "bfloat16"),
    Setting((1, 14, 96, 160, 160)),
    Setting((8, 11, 180, 240)),
    Setting((8, 19, 128, 256), size=(512, 1024)),
    Setting((8, 19, 128, 256), "bfloat16", size=(512, 1024)),
    Setting((4, 150, 128, 128), size=(512, 512)),
    Setting((1, 14, 48, 80, 80), size=(96, 160, 160)),
)
QUICK = (Setting((1, 3, 12, 16)), Setting((1, 3, 4, 5), size=(16, 20)))


def _cross_entropy(input: Tensor, target: Tensor) -> Tensor:
    """Torch's own, after its own interpolation where the sizes differ."""
    if input.shape[2:] != target.shape[1:]:
        mode = {3: "linear", 4: "bilinear", 5: "trilinear"}[input.ndim]
        input = F.interpolate(input, target.shape[1:], mode=mode)
    return F.cross_entropy(input, target, ignore_index=IGNORE_INDEX)


def contenders(setting: Setting) -> dict[str, Callable[[], Loss]]:
    """Makers of the losses by name, torch's first; at the main setting every loss, elsewhere the main ones."""
    ours = losses(setting)
    torchs: dict[str, Callable[[], Loss]] = {BASELINE: lambda: _cross_entropy}
    if setting != MAIN:
        return torchs | {name: ours[name] for name in SHOWN}
    return torchs | {f"{BASELINE}, compiled": lambda: torch.compile(_cross_entropy)} | ours


def losses(setting: Setting) -> dict[str, Callable[[], Loss]]:
    """Makers of the library's losses by name."""
    upsample = "linear" if setting.size else None

    def ours(cls: type[nn.Module], **options: object) -> Callable[[], Loss]:
        return partial(cls, ignore_index=IGNORE_INDEX, upsample=upsample, **options)

    return {
        "weighted CE": ours(cb.WeightedCrossEntropyLoss),
        "focal": ours(cb.FocalLoss),
        "GBW": ours(cb.GBWLoss),
        "DyCE": ours(cb.DyCELoss),
        "weighted CE, smoothing": ours(cb.WeightedCrossEntropyLoss, label_smoothing=0.1),
        "dual focal": ours(cb.DualFocalLoss),
        "dual CE": ours(cb.DualCrossEntropyLoss),
        "GBW official": ours(cb.GBWLoss, gradient="official"),
    }
