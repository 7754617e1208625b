"""The supervised losses of Table 6 by name, and the consistency loss of equation 4."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from classbalance_losses import (
    DualCrossEntropyLoss,
    DualFocalLoss,
    DyCELoss,
    FocalLoss,
    PixelFrequency,
    WeightedCrossEntropyLoss,
)
from examples.common.distributed import all_sum, joined_sum, world_size


def _weighted(**options: Any) -> nn.Module:
    """Cross-entropy with fixed class weights; `"running"`: inverse frequencies in the labels that training has seen."""
    weight = options.pop("weight", None)
    if weight is None:
        raise ValueError('WCE needs class weights: loss_options = {weight = [...]}, or "running"')
    if weight == "running":
        return WeightedCrossEntropyLoss(PixelFrequency(accumulate="running"), **options)
    return WeightedCrossEntropyLoss(torch.tensor(weight), **options)


_LOSSES: Mapping[str, Callable[..., nn.Module]] = {
    "CE": WeightedCrossEntropyLoss,  # without weights
    "WCE": _weighted,
    "DCE": DualCrossEntropyLoss,
    "FL": FocalLoss,
    "DFL": DualFocalLoss,
    "DyCE": DyCELoss,
}
NAMES = tuple(_LOSSES)


def build_loss(name: str, options: Mapping[str, Any], ignore_index: int) -> nn.Module:
    """A loss of Table 6: `"CE"`, `"WCE"`, `"DCE"`, `"FL"`, `"DFL"` or `"DyCE"`, with keywords of its class.

    WCE's `weight` is a number for each class, which training does not move (supplement D), or `"running"`. Thresholds,
    class counts and normalisers are those of all ranks together.

    Raises:
        ValueError: an unknown name, or an option out of its range.
        TypeError: a keyword that the loss does not have.
    """
    if name not in _LOSSES:
        raise ValueError(f"loss must be one of {', '.join(NAMES)}, got {name!r}")
    return _LOSSES[name](**options, ignore_index=ignore_index, process_group="world")


class ConsistencyLoss(nn.Module):
    r"""Equation 4: the student should say what the teacher says, where it is sure.

    .. math:: L = \frac{1}{Z} \sum_{i:\, \max_c q_{ic} \ge \theta} - \sum_c p^T_{ic} \log p^S_{ic}

    Cross-entropy with the teacher's probabilities; its gradient is that of KL(teacher ‖ student), which the released
    code uses. That code differs from the printed equation in two places, and each is a switch:

    Args:
        threshold: θ, in [0, 1].
        confidence: whose probabilities q decide: `"student"` (the equation), or `"teacher"` (the code).
        normalize: Z is the number of `"images"` (the equation), of `"confident"` pixels (the code), or of all
            `"pixels"`. Over images it is a sum over pixels: beside a supervised loss that is a mean over pixels, it
            weighs as much as the image has confident ones, up to 262 144 in a window of 512 × 512, so that learning
            rate and `consistency.weight` have to suit the size of the image.

    Raises:
        ValueError: an option is out of its range.
    """

    def __init__(
        self, threshold: float = 0.95, confidence: str = "student", normalize: str = "images"
    ) -> None:
        super().__init__()
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold must be in [0, 1], got {threshold}")
        if confidence not in ("teacher", "student"):
            raise ValueError(f"confidence must be 'teacher' or 'student', got {confidence!r}")
        if normalize not in ("confident", "images", "pixels"):
            raise ValueError(f"normalize must be 'confident', 'images' or 'pixels', got {normalize!r}")
        self.threshold, self.confidence, self.normalize = threshold, confidence, normalize

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, C, *) of both -> the loss, and the share of pixels that are confident, of all ranks together.

        The teacher gets no gradient, nor does the choice of pixels. No confident pixel: 0, in the graph. Z counts over
        all ranks; as with the library's losses, the mean of the ranks' gradients is the gradient of the joined batch.
        """
        log_student = student.float().log_softmax(1)
        target = teacher.detach().float().softmax(1)
        judge = target if self.confidence == "teacher" else log_student.detach().exp()
        sure = judge.amax(1) >= self.threshold
        pixel_loss = -(target * log_student).sum(1)
        total = torch.where(sure, pixel_loss, 0).sum()
        ranks = world_size()  # each with as many images
        count: dict[str, Tensor | int] = {
            "confident": all_sum(sure.sum()).clamp(min=1),
            "images": len(student) * ranks,
            "pixels": sure.numel() * ranks,
        }
        return joined_sum(total / count[self.normalize]), all_sum(sure.float().mean()) / ranks
