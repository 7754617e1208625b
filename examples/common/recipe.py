"""The parts of `[training]` that recipes share, and the groups and rates of their optimisers."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from examples.common.config import at_least


@dataclass(frozen=True)
class TrainingConfig:
    """How long, from which seed, and what is written when; `workers` load images."""

    iterations: int = 40_000
    weight_decay: float = 0.01
    seed: int = 0
    workers: int = 0
    log_every: int = 50
    eval_every: int = 0  # 0: at the end alone
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        at_least(self, 1, "iterations", "log_every", "checkpoint_every")
        at_least(self, 0, "eval_every", "workers")


def apart(encoder: nn.Module, *networks: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The parameters that are trained: the encoder's, and the others of the networks that have it, for two rates."""
    own = [p for p in encoder.parameters() if p.requires_grad]
    known = {id(p) for p in own}
    others = [p for network in networks for p in network.parameters() if p.requires_grad]
    return own, [p for p in others if id(p) not in known]


def polynomial(optimizer: Optimizer, steps: int, power: float, warmup: int) -> LambdaLR:
    """The rates rise linearly for `warmup` steps under a polynomial, (1 − step / steps)^power, that falls over all."""
    return LambdaLR(
        optimizer, lambda step: min((step + 1) / (warmup + 1), 1.0) * max(1 - step / steps, 0.0) ** power
    )
