"""OpenMMLab: the losses in mmengine's registry, under mmsegmentation's conventions.

Import this module to register ``ClassBalanceDyCELoss`` and the others of :data:`LOSSES`, and the estimators of class
weights, in ``mmengine.registry.MODELS``. The prefix keeps mmsegmentation's own ``FocalLoss`` apart from ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import classbalance_losses as cb
from classbalance_losses._validate import check_target_range, check_tensor
from classbalance_losses.adapters._losses import fitted
from classbalance_losses.losses._base import PixelLoss

try:
    from mmengine.registry import MODELS
except ImportError as error:
    raise ImportError("classbalance_losses.adapters.mmengine needs mmengine: pip install mmengine") from error

# The class, and the default loss_name: a head adds the entries whose name starts with "loss_" to the total.
LOSSES: dict[type[PixelLoss], str] = {
    cb.DiceLoss: "loss_dice",
    cb.DualCrossEntropyLoss: "loss_dual_ce",
    cb.DualFocalLoss: "loss_dual_focal",
    cb.DyCELoss: "loss_dyce",
    cb.FocalLoss: "loss_focal",
    cb.GBWLoss: "loss_gbw",
    cb.JaccardLoss: "loss_jaccard",
    cb.LogitAdjustedLoss: "loss_logit_adjusted",
    cb.TverskyLoss: "loss_tversky",
    cb.WeightedCrossEntropyLoss: "loss_weighted_ce",
}
IGNORED = -100  # no class, and no number of labels of 0 and 1
ESTIMATORS: tuple[type[cb.ClassWeightEstimator], ...] = (
    cb.Curriculum,
    cb.EffectiveNumber,
    cb.ImageFrequency,
    cb.LossBased,
    cb.MedianFrequency,
    cb.PixelFrequency,
)


class MMSegLoss(nn.Module):
    """One of the losses, called as mmsegmentation's decode heads call theirs.

    Args:
        loss: the loss; its ``reduction`` and ``ignore_index`` hold where a call does not say otherwise.
        loss_weight: factor on the result.
        loss_name: key of the result in a head's dict of losses.

    Raises:
        TypeError: it is no loss of this package on logits, or a sum.
    """

    def __init__(self, loss: PixelLoss, *, loss_weight: float = 1.0, loss_name: str = "loss_cb") -> None:
        super().__init__()
        if not isinstance(loss, PixelLoss):
            raise TypeError(
                f"Expected one loss of classbalance_losses on logits, got {type(loss).__name__}. Write the terms of a "
                "sum into loss_decode, a list, each with its loss_weight: a head adds them up."
            )
        self.loss = loss
        self.loss_weight = loss_weight
        self.loss_name = loss_name  # a plain attribute does what mmsegmentation's property does

    def forward(
        self,
        pred: Tensor,
        label: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
        ignore_index: int | None = None,
    ) -> Tensor:
        """Return ``loss_weight`` times the loss.

        Args:
            pred: logits (N, C, *).
            label: class indices (N, *); with ``task="multilabel"``, which ``use_sigmoid=True`` of a config gives, they
                are taken as present in their own channel and absent in the others, or 0 and 1 of one channel.
            weight: of each pixel, (N, *), of any dtype; see ``pixel_weight`` of the losses.
            avg_factor: "mean" divides the loss's "sum" by it instead of by the loss's own normaliser.
            reduction_override: "none", "sum" or "mean", in place of the loss's own reduction.
            ignore_index: in place of the loss's own; mmsegmentation's heads pass theirs.

        Raises:
            ValueError: ``avg_factor`` comes with the reduction "sum", or as from the loss.
        """
        reduction = reduction_override or self.loss.reduction
        if reduction == "none":  # there is no mean to take
            avg_factor = None
        if avg_factor is not None and reduction == "sum":
            raise ValueError('Expected reduction "mean" or "none" with avg_factor, got "sum". Leave one out.')
        check_tensor("label", label)
        if weight is not None:
            check_tensor("weight", weight)
        ignore = self.loss.ignore_index if ignore_index is None else ignore_index
        if self.loss.task == "multilabel" and label.ndim == pred.ndim - 1:
            label, ignore = _labels_of_channels(label, pred.shape[1], ignore)
        pixel_weight = None if weight is None else fitted("weight", weight.float(), label)
        own = reduction if avg_factor is None else "sum"
        with _replaced(self.loss, reduction=own, ignore_index=ignore):
            loss: Tensor = self.loss(pred, label, pixel_weight=pixel_weight)
        if avg_factor is not None:
            loss = loss / (
                avg_factor + torch.finfo(torch.float32).eps
            )  # OpenMMLab's guard for a batch of none
        return self.loss_weight * loss

    def extra_repr(self) -> str:
        """Show the options."""
        return f"loss_weight={self.loss_weight}, loss_name={self.loss_name!r}"


@contextmanager
def _replaced(loss: PixelLoss, **options: Any) -> Iterator[None]:
    """Give the loss other options for one call: it may have state, so a second instance will not do."""
    before = {name: getattr(loss, name) for name in options}
    vars(loss).update(options)
    try:
        yield
    finally:
        vars(loss).update(before)


def _labels_of_channels(
    label: Tensor, channels: int, ignore_index: int | tuple[int, ...]
) -> tuple[Tensor, int | tuple[int, ...]]:
    """Return labels (N, L, *), absent or present, of class indices (N, *), and what they have where ignored."""
    if channels == 1:
        return label.unsqueeze(1), ignore_index
    ignored = (ignore_index,) if isinstance(ignore_index, int) else ignore_index
    index = label.long()
    for number in ignored:
        index = torch.where(index == number, IGNORED, index)
    check_target_range(index, channels, IGNORED)
    channel = torch.arange(channels, dtype=torch.int64, device=label.device).view(-1, *[1] * (label.ndim - 1))
    index = index.unsqueeze(1)
    return torch.where(index == IGNORED, IGNORED, (index == channel).long()), IGNORED


def _build(
    loss_type: type[PixelLoss],
    *,
    loss_weight: float = 1.0,
    loss_name: str | None = None,
    use_sigmoid: bool = False,
    avg_non_ignore: bool = True,
    **options: Any,
) -> MMSegLoss:
    if not avg_non_ignore:
        raise ValueError(
            "Expected avg_non_ignore=True, got False: the losses' means are over the pixels that are not ignored. "
            "Leave it out."
        )
    if use_sigmoid:
        options["task"] = "multilabel"
    if isinstance(options.get("weight"), Mapping):  # an estimator, as a config writes it
        options["weight"] = MODELS.build(options["weight"])
    name = LOSSES[loss_type] if loss_name is None else loss_name
    return MMSegLoss(loss_type(**options), loss_weight=loss_weight, loss_name=name)


for _loss_type in LOSSES:
    MODELS.register_module(name=f"ClassBalance{_loss_type.__name__}", module=partial(_build, _loss_type))
for _estimator in ESTIMATORS:
    MODELS.register_module(name=f"ClassBalance{_estimator.__name__}", module=_estimator)
