"""s_k, how likely each class is to be in an image: from its label, or from frozen encoders without any label.

Section 3, HTQG. Where an image encoder shares a space with the text, the score is zero-shot. Where it does not
(ImageNet's weights beside a sentence encoder) there is no such thing, and a linear probe stands in: fitted once to the
labelled images, then frozen.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.common.scenes.domain import Domain
from examples.common.vision import VisionEncoder

_DECAY = 1.0  # of the probe's weights; features have unit length on average: few images decide no class
_STEPS = 100  # of L-BFGS, which converges in fewer
_FLAT = 1e-3  # below it a feature is the same in all images


def from_labels(labels: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Labels (N, H, W) -> (N, K): 1 where the class occurs in the image, else 0."""
    flat = labels.flatten(1)
    flat = torch.where(flat == ignore_index, num_classes, flat)
    return torch.zeros(len(flat), num_classes + 1, device=labels.device).scatter_(1, flat, 1.0)[:, :-1]


class ZeroShot(nn.Module):
    """Similarity of an image's embedding with the fixed embeddings of the classes, as a probability.

    "softmax" is CLIP's zero-shot classification: the scores of an image sum to 1. "sigmoid" lets several classes be
    present: the similarity above the mean over the classes, each by itself. The paper does not say which.

    Args:
        prototypes: of the classes, at length 1, (K, D).
        rule: "softmax" or "sigmoid".
    """

    prototypes: Tensor

    def __init__(self, prototypes: Tensor, rule: str) -> None:
        super().__init__()
        self.register_buffer("prototypes", prototypes.clone())
        self.rule = rule

    @torch.no_grad()
    def forward(self, vision: VisionEncoder, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, K), by a frozen encoder."""
        if vision.joint_scale is None:
            raise TypeError(f"{type(vision).__name__} shares no space with a text encoder")
        cosine = F.normalize(vision.embedding(images), dim=1) @ self.prototypes.T
        if self.rule == "softmax":
            return (vision.joint_scale * cosine).softmax(1)
        return (vision.joint_scale * (cosine - cosine.mean(1, keepdim=True))).sigmoid()


class Probe(nn.Module):
    """Logistic regression of each class's presence on the mean of a frozen encoder's last map.

    Args:
        channels: of that map.
        num_classes: K.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(num_classes, channels))
        self.register_buffer("bias", torch.zeros(num_classes))

    @torch.no_grad()
    def forward(self, vision: VisionEncoder, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, K), by the frozen encoder that the probe was fitted to."""
        return F.linear(_pooled(vision, images), self.weight, self.bias).sigmoid()

    def fit(self, vision: VisionEncoder, labelled: Domain, ignore_index: int) -> None:
        """Fit to whole labelled images. No random number is drawn: the same images give the same probe."""
        device = self.bias.device
        features, wanted = [], []
        with torch.no_grad():
            for i in range(len(labelled.names)):
                features.append(_pooled(vision, labelled.image(i)[None].to(device)).double())
                label = labelled.label(i)[None].to(device)
                wanted.append(from_labels(label, len(self.bias), ignore_index).double())
        weight, bias = _regression(torch.cat(features), torch.cat(wanted))
        self.weight.copy_(weight)
        self.bias.copy_(bias)


def _pooled(vision: VisionEncoder, images: Tensor) -> Tensor:
    pooled: Tensor = vision(images)[-1].mean((2, 3))
    return pooled


def _regression(features: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Logistic regression with a squared penalty on the weights: (N, F) and (N, K) -> (K, F), (K,)."""
    spread, mean = torch.std_mean(features, dim=0, correction=0)
    scale = 1 / (spread.clamp(min=_FLAT) * features.shape[1] ** 0.5)
    standard = (features - mean) * scale
    weight = features.new_zeros(wanted.shape[1], features.shape[1], requires_grad=True)
    bias = features.new_zeros(wanted.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=_STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        fit = F.binary_cross_entropy_with_logits(standard @ weight.T + bias, wanted, reduction="sum")
        # A class that all images have, or none, would draw its bias to infinity: a little of the penalty holds it.
        loss = fit + _DECAY / 2 * (weight.square().sum() + bias.square().sum() / len(features))
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    own = weight.detach() * scale
    return own, bias.detach() - own @ mean
