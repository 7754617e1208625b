"""What the profiler and the memory checker run: a few steps of the main losses, large or small."""

from __future__ import annotations

import torch

from benchmarks.gpu.cases import MAIN, Setting, losses

SMALL = (
    Setting((1, 5, 64, 64)),
    Setting((1, 19, 33, 35), "bfloat16"),
    Setting((1, 5, 64, 64), channels_last=True),
    Setting((1, 5, 16, 16), size=(64, 64)),
    Setting((1, 3, 6, 8, 8), size=(12, 16, 16)),
)
LARGE = (MAIN, Setting((8, 19, 128, 256), size=(512, 1024)))
_IN_LARGE = ("weighted CE", "GBW", "DyCE")  # GBW has all outputs of the pixel pass, DyCE the selection


def steps(settings: tuple[Setting, ...], device: str) -> None:
    """Run each loss once; at the large settings, which are profiled, the main ones."""
    for setting in settings:
        problem = setting.problem(device)
        makers = losses(setting)
        for name in _IN_LARGE if setting in LARGE else makers:
            value = makers[name]()(problem.input, problem.target)
            torch.autograd.grad(value, problem.input)
    if device == "cuda":
        torch.cuda.synchronize()
