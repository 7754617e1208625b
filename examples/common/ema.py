"""A teacher that is the exponential moving average of its student."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def ema_teacher(
    student: nn.Module, initial: nn.Module, decay: float, *, warmup: bool = False
) -> AveragedModel:
    """The exponential moving average of a student, that starts from weights of its own.

    `AveragedModel` keeps the number of updates and the buffers (BatchNorm's are copied from the student, as in the
    released code) in its state. Its first update would copy the student; counting from 1 prevents that.

    Args:
        student: whom it follows.
        initial: a network of the same shape: where it starts.
        decay: α of the average.
        warmup: use min(α, 1 − 1/(t+1)) in step t, which forgets the start within a few steps.
    """
    average = _warmed_up(decay) if warmup else get_ema_multi_avg_fn(decay)
    teacher = AveragedModel(student, multi_avg_fn=average)
    teacher.module.load_state_dict(initial.state_dict())
    teacher.n_averaged.fill_(1)
    return teacher.eval().requires_grad_(False)


def _warmed_up(decay: float) -> Callable[[Sequence[Tensor], Sequence[Tensor], Tensor | int], None]:
    @torch.no_grad()
    def average(averages: Sequence[Tensor], currents: Sequence[Tensor], updates: Tensor | int) -> None:
        step = torch.as_tensor(updates, dtype=torch.float32, device=averages[0].device)
        weight = (1 / (step + 1)).clamp(min=1 - decay)
        for mean, current in zip(averages, currents, strict=True):
            mean.lerp_(current, weight.to(mean.dtype))

    return average
