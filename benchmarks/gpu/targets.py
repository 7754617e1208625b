"""What the profiler and the memory checker run: a few steps of the main losses, large or small."""

from __future__ import annotations

import torch

from benchmarks.gpu.cases import MAIN, Setting, contenders

SMALL = (
    Setting((1, 5, 64, 64)),
    Setting((1, 19, 33, 35), "bfloat16"),
    Setting((1, 5, 64, 64), channels_last=True),
    Setting((1, 5, 16, 16), size=(64, 64)),
    Setting((1, 3, 6, 8, 8), size=(12, 16, 16)),
)
LARGE = (MAIN, Setting((8, 19, 128, 256), size=(512, 1024)))


def steps(settings: tuple[Setting, ...], device: str) -> None:
    """Run each loss with kernels once; GBW has all their outputs, DyCE the selection."""
    for setting in settings:
        problem = setting.problem(device)
        for name in ("weighted CE", "GBW", "DyCE"):
            value = contenders(setting)[name]()(problem.input, problem.target)
            torch.autograd.grad(value, problem.input)
    if device == "cuda":
        torch.cuda.synchronize()
