"""The network: an encoder, a feature pyramid, a classifier, and the projector that the pull loss sees."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from examples.common.ema import ema_teacher
from examples.common.vision import VisionEncoder
from examples.t2s_da.config import Config
from examples.t2s_da.vision import build_vision


class Segmenter(nn.Module):
    """Images (N, 3, H, W) in [0, 1] -> features, logits and embeddings, all at the encoder's finest size (h, w).

    `project` is two blocks of convolution, batch norm and ReLU (3x3 and the decoder's output as their input are this
    example's choice), None where nothing is pulled.
    """

    def __init__(self, vision: VisionEncoder, num_classes: int, width: int, dropout: float) -> None:
        super().__init__()
        self.vision = vision
        self.laterals = nn.ModuleList(nn.Conv2d(c, width, 1) for c in vision.channels)
        self.smooth = _block(width, width)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(width, num_classes, 1)
        self.project: nn.Module | None = None

    def features(self, images: Tensor) -> Tensor:
        """The decoder's features (N, width, h, w), not negative."""
        *finer, y = (lateral(x) for lateral, x in zip(self.laterals, self.vision(images), strict=True))
        for lateral in reversed(finer):
            y = lateral + resize(y, lateral.shape[-2:])
        return self.smooth(y.contiguous())  # type: ignore[no-any-return]

    def classify(self, features: Tensor) -> Tensor:
        """Logits (N, C, h, w)."""
        return self.classifier(self.dropout(features))  # type: ignore[no-any-return]

    def embed(self, features: Tensor) -> Tensor:
        """What is pulled: (N, D, h, w).

        Raises:
            TypeError: the network has no projector.
        """
        if self.project is None:
            raise TypeError("this network has no projector: build it with components.pull = true")
        return self.project(features)  # type: ignore[no-any-return]

    def forward(
        self, classified: Sequence[Tensor], embedded: Sequence[Tensor] = ()
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Logits of some batches and embeddings of others, each batch in a pass of its own.

        So batch norm takes each domain by itself, and one call is what DistributedDataParallel sees of a step.
        """
        logits = [self.classify(self.features(images)) for images in classified]
        return logits, [self.embed(self.features(images)) for images in embedded]

    def predict(self, images: Tensor) -> Tensor:
        """Logits (N, C, H, W) at the images' size."""
        return resize(self.classify(self.features(images)), images.shape[-2:])


def build_student(config: Config, num_classes: int) -> Segmenter:
    """The student, its weights drawn from `training.seed`.

    The projector comes last, so that all other weights are the same with and without it.
    """
    model = config.model
    with torch.random.fork_rng():
        torch.manual_seed(config.training.seed)
        student = Segmenter(build_vision(model.vision), num_classes, model.width, model.dropout)
        if config.components.pull:
            student.project = nn.Sequential(
                _block(model.width, model.projection), _block(model.projection, model.projection)
            )
    return student


def build_teacher(config: Config, student: Segmenter) -> AveragedModel:
    """The student's running average, that starts as its copy."""
    model = config.model
    return ema_teacher(student, student, model.ema_decay, warmup=model.ema_warmup)


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Maps (N, C, h, w) -> (N, C, *size), bilinearly."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def shrink(labels: Tensor, size: Sequence[int]) -> Tensor:
    """Labels (N, H, W) -> (N, *size) by nearest neighbour, which never mixes two classes."""
    return F.interpolate(labels[:, None].float(), size=tuple(size), mode="nearest")[:, 0].long()


def _block(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )
