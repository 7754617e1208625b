"""Segmentation by an encoder that has seen no label: each position takes the class whose text is nearest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from examples.common.scenes.labels import IGNORE_INDEX
from examples.common.scenes.task import Task
from examples.common.scoring import confusion_of, scores_entry
from examples.common.text import TextEncoder
from examples.common.vision import VisionEncoder
from examples.semidavil.model.captions import compose


def class_captions(classes: Sequence[str], scene: str) -> list[str]:
    """A text for each class in the form of the captions that the encoder was trained on."""
    return [compose(scene, [name]) for name in classes]


def zero_shot(
    vision: VisionEncoder, text: TextEncoder, task: Task, texts: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Scores on each test set of a task; `texts` has one for each class."""
    names = F.normalize(text(texts).tokens[:, 0], dim=1)
    device, number, training = names.device, len(task.classes), vision.training
    vision.eval()

    def predict(_: str, image: Tensor) -> Tensor:
        feature = F.normalize(vision(image[None].to(device))[-1], dim=1)
        return torch.einsum("nchw,kc->nkhw", feature, names)[0]

    scores = {
        name: scores_entry(confusion_of(predict, test, number, IGNORE_INDEX, device), task.means)
        for name, test in task.tests.items()
    }
    vision.train(training)
    return scores
