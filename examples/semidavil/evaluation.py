"""Scores on whole images: sliding window, one confusion matrix over the data set, subsets of classes."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from examples.common.scenes.task import Task
from examples.common.scoring import evaluating, score_tests, sliding_window
from examples.semidavil.engine import Engine


def evaluate(engine: Engine, task: Task, *, progress: bool = False) -> dict[str, dict[str, Any]]:
    """Score the engine's network on each test set of the task: see `scores_entry`.

    The ranks share the images, and each gets the scores of all; where there are several, all must call this.
    """
    networks, classes = engine.networks, len(task.classes)
    with evaluating(networks.student, networks.teacher):
        return score_tests(
            partial(predict, engine), task.tests, task.means, classes, engine.device, progress=progress
        )


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
