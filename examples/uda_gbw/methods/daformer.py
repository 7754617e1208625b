r"""DAFormer: DACS, and features of things that do not forget ImageNet.

Hoyer, Dai and Van Gool, "DAFormer: Improving Network Architectures and Training Strategies for Domain-Adaptive Semantic
Segmentation", CVPR 2022. The strategy of the training step is here: where source pixels are things, the coarsest
features stay near to those of the first encoder,

.. math:: L_{FD} = \lambda \frac{\sum_{j \in things} \lVert F^{first}_j - F_j \rVert_2}{|things|}.

The others are parts of the configuration: the MiT encoder, the context-aware decoder (`model`), rare-class sampling and
warm-up (`data`, `training`). A cell j is one of things when at least `feature_distance.share` of its pixels belong to
one class, a thing. GBW does not weigh this term: it has no logits.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from examples.common.decoders import resized
from examples.common.scenes.batches import Images
from examples.common.things import feature_distance, thing_cells, thing_classes
from examples.uda_gbw.config import Config
from examples.uda_gbw.data import Classes
from examples.uda_gbw.methods.base import labels_of
from examples.uda_gbw.methods.dacs import Dacs


class DAFormer(Dacs):
    """Self-training on mixed images with the feature distance."""

    def __init__(self, config: Config, classes: Classes) -> None:
        super().__init__(config, classes)
        self.first = copy.deepcopy(self.student.encoder).eval().requires_grad_(False)
        self.things = thing_classes(classes.names, config.feature_distance.classes)
        self.num_classes = len(classes.names)

    def train(self, mode: bool = True) -> DAFormer:
        """The first encoder stays in evaluation mode."""
        super().train(mode)
        self.first.eval()
        return self

    def learn_source(self, source: Images, number: int) -> dict[str, Tensor]:
        """Collect the gradients of the source's loss and of the feature distance."""
        seen = self.see(source.image, number)
        supervised = self.loss_of("source", seen, labels_of(source))
        distance = self.distance(source, seen.features[-1])
        (supervised + distance).backward()
        return {"source": supervised.detach(), "feature_distance": distance.detach()}

    def distance(self, source: Images, now: Tensor) -> Tensor:
        """The weighted feature distance of labelled images, whose coarsest features are `now` (N, D, h, w)."""
        rule = self.config.feature_distance
        with torch.no_grad():
            before = self._first_features(source.image)
        cells = thing_cells(labels_of(source), self.things, self.num_classes, now.shape[-2:], rule.share)
        return rule.weight * feature_distance(now, before, cells)

    def _first_features(self, images: Tensor) -> Tensor:
        """The first encoder's coarsest features, at the resolution that the network has seen."""
        if self.config.hrda.enabled:
            images = resized(images, (images.shape[-2] // 2, images.shape[-1] // 2))
        x = (images - self.student.mean) / self.student.std
        features: Tensor = self.first(x)[-1]
        return features
