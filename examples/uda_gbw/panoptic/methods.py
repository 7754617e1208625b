r"""EDAPS and source only: the semantic half is a method of examples/uda_gbw, the instance half learns beside it.

Saha, Hoyer, Obukhov, Dai and Van Gool, "EDAPS: Enhanced Domain-Adaptive Panoptic Segmentation", ICCV 2023: one encoder,
a semantic and an instance decoder. The semantic half is adapted as DAFormer adapts (mean teacher, ClassMix, rare-class
sampling, feature distance); the instance half is trained on the source alone, and profits by the shared encoder:

.. math:: L = L_{source} + L_{mixed} + L_{FD} + w_{centre} L_{centre} + w_{offset} L_{offset}

The instance branch is that of EDAPS' bottom-up variant, centres and offsets; its main one is Mask R-CNN's. GBW weighs
the two semantic losses, each by its own gradients (GBW, section 4.3: EDAPS with nothing else changed).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from examples.common.scenes.batches import Images
from examples.uda_gbw.data import Classes
from examples.uda_gbw.methods.base import labels_of
from examples.uda_gbw.methods.daformer import DAFormer
from examples.uda_gbw.methods.source_only import SourceOnly
from examples.uda_gbw.mixing import Mixed
from examples.uda_gbw.panoptic.config import Config
from examples.uda_gbw.panoptic.labels import decoded
from examples.uda_gbw.panoptic.losses import instance_losses
from examples.uda_gbw.panoptic.networks import InstanceDecoder


class PanopticSourceOnly(SourceOnly):
    """No adaptation."""

    def __init__(self, config: Config, classes: Classes) -> None:
        super().__init__(config.semantic(), classes)
        self.panoptic = config
        self.instances = InstanceDecoder(config.model, self.student.encoder.channels)

    def step(self, source: Images, target: Images | None, number: int) -> dict[str, Tensor]:
        """See above; the source's labels are codes."""
        logged = _learn(self, source)
        return {"loss": torch.stack([*logged.values()]).sum(), **logged}


class Edaps(DAFormer):
    """Self-training of the semantic half, the instance half on the source."""

    def __init__(self, config: Config, classes: Classes) -> None:
        super().__init__(config.semantic(), classes)
        self.panoptic = config
        self.instances = InstanceDecoder(config.model, self.student.encoder.channels)

    def learn_source(self, source: Images, number: int) -> dict[str, Tensor]:
        """Collect the gradients of all losses of the source, whose labels are codes."""
        return _learn(self, source)

    def mix(self, source: Images, target: Images, pseudo: Tensor, confidence: Tensor) -> Mixed:
        """The source's classes on the target; what is mixed has no instances."""
        return super().mix(_semantic(source), target, pseudo, confidence)


PanopticMethod = PanopticSourceOnly | Edaps
METHODS: Mapping[str, type[PanopticMethod]] = {"source_only": PanopticSourceOnly, "edaps": Edaps}


def build_method(config: Config, classes: Classes) -> PanopticMethod:
    """The method of a configuration, with new networks from torch's random numbers."""
    return METHODS[config.method](config, classes)


def _learn(method: PanopticMethod, source: Images) -> dict[str, Tensor]:
    """One pass of the source through both halves, and backward; returns the weighted losses."""
    config, plain = method.panoptic, _semantic(source)
    seen = method.student.see(source.image)
    losses = {"source": method.losses["source"](seen.logits, labels_of(plain))}
    if isinstance(method, Edaps):
        losses["feature_distance"] = method.distance(plain, seen.features[-1])
    heat, offset = method.instances(seen.features, source.image.shape[-2:])
    losses |= instance_losses(heat, offset, labels_of(source), config.categories.things, config.instance)
    torch.stack([*losses.values()]).sum().backward()
    return {name: loss.detach() for name, loss in losses.items()}


def _semantic(images: Images) -> Images:
    """The same images with classes for labels."""
    return replace(images, label=decoded(labels_of(images))[0])
