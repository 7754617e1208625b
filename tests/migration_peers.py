"""The published formulas of losses whose packages need not be installed, written anew: *Migrating* calls them."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[..., Tensor]


def _focal(z: Tensor, t: Tensor, gamma: float, alpha: float | None) -> Tensor:
    """Of each logit, by a sigmoid."""
    loss = F.binary_cross_entropy_with_logits(z, t.to(z.dtype), reduction="none")
    own = torch.where(t == 1, z, -z).sigmoid()
    balance = 1.0 if alpha is None else torch.where(t == 1, alpha, 1 - alpha)
    return balance * (1 - own) ** gamma * loss


def sigmoid_focal_loss(
    z: Tensor, t: Tensor, alpha: float = 0.25, gamma: float = 2, reduction: str = "none"
) -> Tensor:
    """torchvision's."""
    loss = _focal(z, t, gamma, None if alpha < 0 else alpha)
    return {"none": loss, "mean": loss.mean(), "sum": loss.sum()}[reduction]


def _overlap(mode: str, ignore_index: int, score: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Loss:
    """smp's frame of an overlap loss: sums over the batch, and 0 for a class without a pixel, in the mean."""

    def loss(z: Tensor, y: Tensor) -> Tensor:
        keep = y != ignore_index
        if mode == "binary":
            p, hot = z.sigmoid() * keep, y * keep
        else:
            p = z.softmax(1) * keep.unsqueeze(1)
            hot = F.one_hot(torch.where(keep, y, 0), z.shape[1]).movedim(-1, 1) * keep.unsqueeze(1)
        axes = (0, *range(2, z.ndim))
        sums = [(p * hot).sum(axes), p.sum(axes), hot.sum(axes)]
        missed = 1 - score(*sums)
        return torch.where(sums[2] > 0, missed, 0).mean()

    return loss


def smp_tversky(
    mode: str, alpha: float = 0.5, beta: float = 0.5, smooth: float = 0.0, ignore_index: int = -1
) -> Loss:
    def score(both: Tensor, p: Tensor, n: Tensor) -> Tensor:
        return (both + smooth) / (both + alpha * (p - both) + beta * (n - both) + smooth).clamp_min(1e-7)

    return _overlap(mode, ignore_index, score)


def smp_jaccard(mode: str) -> Loss:
    return _overlap(mode, -1, lambda both, p, n: both / (p + n - both).clamp_min(1e-7))


def smp_focal(mode: str, gamma: float = 2.0, ignore_index: int = -1) -> Loss:
    assert mode == "multiclass"

    def loss(z: Tensor, y: Tensor) -> Tensor:
        keep = y != ignore_index
        each = [_focal(z[:, c][keep], (y == c).long()[keep], gamma, None).mean() for c in range(z.shape[1])]
        return torch.stack(each).mean()

    return loss


def smp_soft_cross_entropy(smooth_factor: float, ignore_index: int) -> Loss:
    def loss(z: Tensor, y: Tensor) -> Tensor:
        keep, log_p = y != ignore_index, z.log_softmax(1)
        own = log_p.gather(1, torch.where(keep, y, 0).unsqueeze(1)).squeeze(1)
        terms = (1 - smooth_factor) * own + smooth_factor * log_p.mean(1)
        return -torch.where(keep, terms, 0).mean()

    return loss


def mmseg_cross_entropy(class_weight: Tensor | None = None, avg_non_ignore: bool = False) -> Loss:
    def loss(z: Tensor, y: Tensor, weight: Tensor | None = None, ignore_index: int = -100) -> Tensor:
        each = F.cross_entropy(z, y, class_weight, ignore_index=ignore_index, reduction="none")
        counted = torch.ones_like(each) if class_weight is None else class_weight[y]
        if avg_non_ignore:
            counted = torch.where(y == ignore_index, 0, counted)
        return (each if weight is None else each * weight).sum() / counted.sum()

    return loss


def mmseg_focal(gamma: float = 2.0, alpha: float = 0.5) -> Loss:
    return lambda z, t: _focal(z, t, gamma, alpha).mean()


def mmseg_naive_dice(use_sigmoid: bool, naive_dice: bool, ignore_index: None) -> Loss:
    assert not use_sigmoid
    assert naive_dice

    def loss(z: Tensor, y: Tensor) -> Tensor:
        p, hot = z.softmax(1).flatten(1), F.one_hot(y, z.shape[1]).movedim(-1, 1).flatten(1)
        return (1 - (2 * (p * hot).sum(1) + 1e-3) / (p.sum(1) + hot.sum(1) + 1e-3)).mean()

    return loss


def mmseg_ohem(z: Tensor, y: Tensor, min_kept: int, ignore_index: int) -> Tensor:
    """`OHEMPixelSampler` without a threshold, before `CrossEntropyLoss`."""
    each = F.cross_entropy(z, y, ignore_index=ignore_index, reduction="none").detach().flatten()
    kept = torch.zeros_like(each).scatter(0, each.topk(min_kept * len(y)).indices, 1)
    return mmseg_cross_entropy()(z, y, kept.view(y.shape), ignore_index)


PEERS = {
    "torchvision": SimpleNamespace(ops=SimpleNamespace(sigmoid_focal_loss=sigmoid_focal_loss)),
    "smp": SimpleNamespace(
        losses=SimpleNamespace(
            DiceLoss=smp_tversky,
            TverskyLoss=smp_tversky,
            JaccardLoss=smp_jaccard,
            FocalLoss=smp_focal,
            SoftCrossEntropyLoss=smp_soft_cross_entropy,
            SoftBCEWithLogitsLoss=lambda: F.binary_cross_entropy_with_logits,
        )
    ),
    "mmseg": SimpleNamespace(
        CrossEntropyLoss=mmseg_cross_entropy,
        FocalLoss=mmseg_focal,
        DiceLoss=mmseg_naive_dice,
        ohem=mmseg_ohem,
    ),
}
