"""Equation 1, and a step of training on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from examples.common.resumable import Resumable
from examples.common.scenes.batches import Images
from examples.common.text import build_text
from examples.common.vision import AlignedEfficientNet, freeze
from examples.semidavil.config import Config
from examples.semidavil.model.captions import PredictedCaptions
from examples.semidavil.recipe import build_optimizer, build_scheduler

_TEMPERATURE = 0.07  # where CLIP's starts; the paper names none


def contrastive_loss(image: Tensor, text: Tensor, temperature: float = _TEMPERATURE) -> Tensor:
    """Equation 1 of embeddings (N, D): cross-entropy of each image over all texts, summed over the images."""
    cosine = F.normalize(image, dim=1) @ F.normalize(text, dim=1).T
    return F.cross_entropy(
        cosine / temperature, torch.arange(len(image), device=image.device), reduction="sum"
    )


class Engine(Resumable):
    """An image encoder that is trained to match images of a labelled domain with captions of their labels.

    It starts from ImageNet's weights, with a random projection to the space of the text encoder, which is frozen. An
    image's embedding is the mean of the last map over its positions, so that the map lives in that space too.
    """

    def __init__(self, config: Config, classes: Sequence[str], images: int, device: torch.device) -> None:
        """`images` is how many the domain has."""
        self.config, self.device, self.step = config, device, 0
        model, recipe = config.model, config.training
        self.text = build_text(model.text, model.max_tokens, pooled=True).to(device)
        freeze(self.text)
        self.captioner = PredictedCaptions(classes, model.scene)
        self.vision = AlignedEfficientNet(self.text.channels).to(device).train()
        self.optimizer = build_optimizer(self.vision, recipe)
        self.scheduler = build_scheduler(self.optimizer, recipe, -(-images // config.data.batch_size))

    def advance(self, batch: Mapping[str, Images]) -> dict[str, Tensor]:
        """One step on the source; the loss of an image, which is log N by guessing, and the share of right matches."""
        images = batch["source"].to(self.device)
        label = images.label
        assert label is not None  # the source has labels
        captions = self.captioner(images.names, lambda: label)
        embedded, described = self.vision(images.image)[-1].mean((2, 3)), self.text(captions).tokens[:, 0]
        loss = contrastive_loss(embedded, described)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        self.step += 1
        return {"loss": loss.detach() / len(label), "matched": matched(embedded.detach(), described)}

    def parts(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {"vision": self.vision, "optimizer": self.optimizer, "scheduler": self.scheduler}


def matched(image: Tensor, text: Tensor) -> Tensor:
    """The share of images (N, D) to which no other text is nearer than their own."""
    cosine = F.normalize(image, dim=1) @ F.normalize(text, dim=1).T
    return (cosine.diagonal() >= cosine.amax(1)).float().mean()
