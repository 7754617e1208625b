"""Optimiser and learning rate of §4.2, and those of the released code."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import lr_scheduler

from examples.semidavil.config import TrainingConfig


def build_optimizer(network: nn.Module, recipe: TrainingConfig) -> torch.optim.Optimizer:
    """SGD with momentum, or AdamW, on all parameters of a network."""
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(network.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(
        network.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )


def build_scheduler(
    optimizer: torch.optim.Optimizer, recipe: TrainingConfig, epoch: int
) -> lr_scheduler.LRScheduler:
    """The schedule of a configuration, which is advanced once a step; `epoch` is its number of steps."""
    if recipe.schedule == "exponential":
        return lr_scheduler.StepLR(optimizer, recipe.decay_every or epoch, recipe.decay)
    if recipe.schedule == "poly":
        return lr_scheduler.PolynomialLR(optimizer, recipe.iterations, recipe.power)
    if recipe.schedule == "one_cycle":
        momentum = recipe.optimizer == "adamw"  # the published momentum of SGD does not move
        return lr_scheduler.OneCycleLR(
            optimizer, recipe.lr, total_steps=recipe.iterations + 1, cycle_momentum=momentum
        )
    return lr_scheduler.ConstantLR(optimizer, factor=1.0)
