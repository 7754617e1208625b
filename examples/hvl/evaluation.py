"""Scores on whole images, by the sliding window and the tables of the other pipelines."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from examples.common.scoring import score_tests, sliding_window
from examples.hvl.data.task import Task
from examples.hvl.engine import Engine


def evaluate(engine: Engine, task: Task, *, progress: bool = False) -> dict[str, dict[str, Any]]:
    """Score the network on each test set: mean IoU, the IoU of each class, pixel accuracy, pixels of each class."""
    engine.network.eval()
    text = engine.text()
    return score_tests(
        lambda _, image: predict(engine, image, text),
        task.tests,
        task.means,
        len(task.classes),
        engine.device,
        progress=progress,
    )


@torch.no_grad()
def predict(engine: Engine, image: Tensor, text: Tensor) -> Tensor:
    """Scores of the classes (K, H, W) of one image (3, H, W), with the text embeddings of `Engine.text`."""
    recipe, rule = engine.config.training, engine.config.model.inference

    def network(window: Tensor) -> Tensor:
        return engine.predict(window, text).scores((window.shape[-2], window.shape[-1]), rule)

    return sliding_window(network, image[None].to(engine.device), recipe.window, recipe.stride)[0]
