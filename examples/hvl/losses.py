"""L_seg: Mask2Former's set loss, with fixed matching for the text's queries; and the losses on dense predictions.

The losses on text, queries and features are the library's; `engine.py` calls them. Each loss here is that of the joined
batch of all ranks.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from classbalance_losses.functional import entropy_loss
from examples.common.distributed import all_sum, joined_sum, world_size
from examples.hvl.config import LossConfig, WeightConfig
from examples.hvl.model.prediction import Prediction


class _Sums(NamedTuple):
    """Of one prediction: the loss of the matched masks and their number, that of the classes and its weights."""

    masks: Tensor
    matched: Tensor
    classes: Tensor
    weight: Tensor


def set_loss(
    prediction: Prediction,
    labels: Tensor,
    points: Tensor,
    weights: WeightConfig,
    options: LossConfig,
    ignore_index: int,
) -> Tensor:
    r"""L_seg = λ_ce CE + λ_dice Dice + λ_class Class (equation 1), the sum over the decoder's predictions.

    Masks are compared at random points of the image, the same for all queries; unlabelled points count nowhere. A
    text's query always belongs to its class (fixed matching): it is compared with the class's mask where the class is
    in the image, and is "no object" where it is not. How instance queries are matched is not said: as in Mask2Former,
    by the Hungarian method with the same three terms as costs; the rest of them are "no object".

    The coefficients 5, 5 and 2 and the weight 0.1 of "no object" are Mask2Former's; the paper gives none. Its choice of
    uncertain points is left out.

    Args:
        prediction: of N images.
        labels: class indices (N, H, W).
        points: (N, P, 2), in [0, 1].
        weights: λ.
        options: the weight of "no object".
        ignore_index: label of what counts nowhere.

    Returns:
        A scalar. An image without a label adds nothing.
    """
    target = at_points(labels[:, None].float(), points, "nearest")[:, 0].long()
    layers = []
    for classes, masks in zip(prediction.classes, prediction.masks, strict=True):
        sampled = at_points(masks, points, "bilinear")
        layers.append(
            _layer_sums(classes, sampled, target, prediction.text_queries, weights, options, ignore_index)
        )
    masks, matched, named, weight = map(torch.stack, zip(*layers, strict=True))
    matched, weight = all_sum(torch.stack([matched, weight]))
    mask_loss = masks / torch.where(matched > 0, matched, 1)
    class_loss = named / torch.where(weight > 0, weight, 1)
    return joined_sum((mask_loss + weights.classes * class_loss).sum())


def at_points(maps: Tensor, points: Tensor, mode: str) -> Tensor:
    """Maps (N, C, h, w) at points (N, P, 2), (x, y) in [0, 1] -> (N, C, P)."""
    grid = (2 * points - 1).unsqueeze(2)
    return F.grid_sample(maps, grid, mode=mode, padding_mode="border", align_corners=False)[..., 0]


def pair_losses(logits: Tensor, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy and Dice loss of every query with every mask, over the valid points.

    Args:
        logits: (Q, P).
        target: 0 or 1, (K, P).
        valid: (P,), 0 or 1.

    Returns:
        Two tensors (Q, K).
    """
    count = valid.sum().clamp(min=1)
    # -log σ(z) where the target is 1, -log σ(-z) = z - log σ(z) where it is 0; both are linear in the target.
    negative = F.softplus(logits) * valid
    bce = (negative.sum(1, keepdim=True) - (logits * valid) @ target.T) / count
    share = logits.sigmoid() * valid
    overlap = 2 * share @ target.T
    size = share.sum(1, keepdim=True) + (target * valid).sum(1)
    return bce, 1 - (overlap + 1) / (size + 1)


def _layer_sums(
    classes: Tensor,
    masks: Tensor,
    target: Tensor,
    text_queries: int,
    weights: WeightConfig,
    options: LossConfig,
    ignore_index: int,
) -> _Sums:
    """One prediction: sums over matched queries (masks) and over all queries of labelled images (classes)."""
    number = classes.shape[-1] - 1
    levels = text_queries // number
    wanted = torch.full(classes.shape[:2], number, dtype=torch.long, device=classes.device)
    labelled = torch.zeros(len(classes), dtype=torch.bool, device=classes.device)
    matched = [masks.flatten()[:0]]
    for image, labels in enumerate(target):
        valid = labels != ignore_index
        present = torch.unique(labels[valid])
        if not len(present):
            continue
        labelled[image] = True
        bce, dice = pair_losses(
            masks[image], (labels == present[:, None]).to(masks.dtype), valid.to(masks.dtype)
        )
        cost = weights.mask_bce * bce + weights.mask_dice * dice
        fixed = (present[:, None] * levels + torch.arange(levels, device=present.device)).flatten()
        own = torch.arange(len(present), device=present.device).repeat_interleave(levels)
        chances = classes[image, text_queries:].softmax(-1)[:, present]
        free, theirs = _assign(cost[text_queries:] - weights.classes * chances)
        rows, columns = torch.cat([fixed, free + text_queries]), torch.cat([own, theirs])
        wanted[image, rows] = present[columns]
        matched.append(cost[rows, columns])
    weight = torch.ones(number + 1, device=classes.device)
    weight[-1] = options.no_object
    chosen = wanted[labelled].flatten()
    named = F.cross_entropy(classes[labelled].flatten(0, 1), chosen, weight, reduction="sum")
    costs = torch.cat(matched)
    return _Sums(costs.sum(), costs.new_tensor(len(costs)), named, weight[chosen].sum())


@torch.no_grad()
def _assign(cost: Tensor) -> tuple[Tensor, Tensor]:
    """The cheapest matching of rows to columns, each at most once."""
    rows, columns = linear_sum_assignment(cost.float().cpu().numpy())
    return (torch.as_tensor(x, dtype=torch.long, device=cost.device) for x in (rows, columns))  # type: ignore[return-value]


def dense_cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """Cross-entropy of logits (N, K, H, W), the mean over the labelled pixels (N, H, W); 0 where there is none."""
    total = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="sum")
    return joined_sum(total / all_sum((labels != ignore_index).sum()).clamp(min=1))


def consistency_loss(student: Tensor, label: Tensor, sure: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy with the weak view's classes, over the pixels where it is sure; UniMatch divides by all pixels.

    Args:
        student: logits (N, K, H, W) of the strong view.
        label: classes of the weak view, in the same geometry (N, H, W).
        sure: where they count.

    Returns:
        The loss, and the share of pixels that count.
    """
    loss = F.cross_entropy(student, label, reduction="none")
    return _joined_mean(torch.where(sure, loss, 0)), _joined_mean(sure.float())


def entropy_share(logits: Tensor, padding: Tensor | None = None) -> Tensor:
    """The entropy of each pixel's classes, as a share of the largest there is, log K; the mean, but for the padding.

    The paper takes entropy minimisation from another work (MaskAdapt) and does not print it; this is its common form.
    """
    mask = None if padding is None else ~padding
    return entropy_loss(logits, mask=mask, process_group="world") / math.log(logits.shape[1])


def _joined_mean(values: Tensor) -> Tensor:
    """The mean over the joined batch, of which each rank has as much."""
    return joined_sum(values.mean() / world_size())
