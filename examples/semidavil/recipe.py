"""Optimiser and learning rate of §4.2, and those of the released code; which supervised loss, with what options."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import lr_scheduler

from examples.common.scenes.domain import select
from examples.common.scenes.sampling import class_counts
from examples.common.scenes.task import Task, source_counts
from examples.semidavil.config import Config, TrainingConfig


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


def supervision(config: Config, task: Task, kept: Path) -> tuple[str, Mapping[str, Any]]:
    """The name of the supervised loss and its options.

    Supplement D calls WCE's weights static and does not print them. Where `loss_options` has none they are the inverse
    shares of the classes among the source's labelled pixels, N / (C n_c): nearly all labels are the source's. Without a
    source, among the labelled target's.
    """
    if not config.components.dyce:
        return "CE", config.loss_options if config.loss == "CE" else {}
    if config.loss != "WCE" or "weight" in config.loss_options:
        return config.loss, config.loss_options
    number = len(task.classes)
    if config.data.use_source:
        counts = source_counts(task, config.data, kept)
    else:
        counts = class_counts(select(task.target, task.labelled), number)
    pixels = counts.sum(0).double()
    weight = torch.where(pixels > 0, pixels.sum() / (number * pixels.clamp(min=1)), 0)
    return "WCE", {**config.loss_options, "weight": weight.tolist()}
