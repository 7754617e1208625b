"""Scores on whole images: sliding window, one confusion matrix over the data set, subsets of classes."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from examples.common.scenes.domain import Domain
from examples.common.scenes.labels import IGNORE_INDEX
from examples.common.scenes.task import Task
from examples.common.scoring import confusion_of, scores_entry, sliding_window
from examples.semidavil.engine import Engine


def evaluate(engine: Engine, task: Task, *, progress: bool = False) -> dict[str, dict[str, Any]]:
    """Score the engine's network on each test set of the task: see `scores_entry`.

    The ranks share the images, and each gets the scores of all; where there are several, all must call this.
    """
    return {
        name: scores_entry(_confusion(engine, domain, len(task.classes), progress=progress), task.means)
        for name, domain in task.tests.items()
    }


@torch.no_grad()
def predict(engine: Engine, name: str, image: Tensor) -> Tensor:
    """Logits (C, H, W) of one image (3, H, W); its caption is that of the whole image."""
    recipe, networks = engine.config.training, engine.networks
    image = image[None].to(engine.device)
    with engine.autocast():
        size = (image.shape[-2], image.shape[-1])
        text = engine.describe([name], networks.inputs(image), size) if networks.text else None

        def network(window: Tensor) -> Tensor:
            shape = (window.shape[-2], window.shape[-1])
            logits: Tensor = engine.evaluated(networks.inputs(window), text, shape)
            return logits.float()

        return sliding_window(network, image, recipe.window, recipe.stride)[0]


def _confusion(engine: Engine, domain: Domain, num_classes: int, *, progress: bool) -> Tensor:
    """The confusion matrix (C, C) of a test set: rows are the labels."""
    modes = {network: network.training for network in (engine.networks.student, engine.networks.teacher)}
    for network in modes:
        network.eval()
    confusion = confusion_of(
        partial(predict, engine), domain, num_classes, IGNORE_INDEX, engine.device, progress=progress
    )
    for network, mode in modes.items():
        network.train(mode)
    return confusion
