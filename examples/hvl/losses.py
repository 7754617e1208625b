"""L_seg: Mask2Former's set loss, with fixed matching for the text's queries; and consistency on unlabelled images.

The losses on text, queries and features are the library's; `engine.py` calls them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from examples.hvl.config import LossConfig, WeightConfig
from examples.hvl.model.network import Prediction


def set_loss(
    prediction: Prediction, labels: Tensor, weights: WeightConfig, options: LossConfig, ignore_index: int
) -> Tensor:
    r"""L_seg = λ_bce BCE + λ_dice Dice + λ_class Class, the sum over the decoder's predictions.

    Masks are compared at random points of the image, the same for all queries; unlabelled points count nowhere. A
    text's query always belongs to its class (fixed matching): it is compared with the class's mask where the class is
    in the image, and is "no object" where it is not. The object queries are matched to the classes of the image by
    the Hungarian method, with the same three terms as costs; the rest of them are "no object".

    The coefficients 5, 5 and 2 and the weight 0.1 of "no object" are Mask2Former's; the paper gives none. Its choice of
    uncertain points is left out.

    Args:
        prediction: of N images.
        labels: class indices (N, H, W).
        weights: λ.
        options: the number of points, and the weight of "no object".
        ignore_index: label of what counts nowhere.

    Returns:
        A scalar. An image without a label adds nothing.
    """
    points = torch.rand(len(labels), options.points, 2, device=labels.device)
    target = at_points(labels[:, None].float(), points, "nearest")[:, 0].long()
    total = prediction.classes[-1].new_zeros(())
    for classes, masks in zip(prediction.classes, prediction.masks, strict=True):
        sampled = at_points(masks, points, "bilinear")
        total = total + _layer_loss(
            classes, sampled, target, prediction.text_queries, weights, options, ignore_index
        )
    return total


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


def _layer_loss(
    classes: Tensor,
    masks: Tensor,
    target: Tensor,
    text_queries: int,
    weights: WeightConfig,
    options: LossConfig,
    ignore_index: int,
) -> Tensor:
    """One prediction: the means over matched queries (masks) and over all queries (classes)."""
    number = classes.shape[-1] - 1
    levels = text_queries // number
    wanted = torch.full(classes.shape[:2], number, dtype=torch.long, device=classes.device)
    labelled = torch.zeros(len(classes), dtype=torch.bool, device=classes.device)
    matched = []
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
    if not matched:
        return (classes.sum() + masks.sum()) * 0
    weight = torch.ones(number + 1, device=classes.device)
    weight[-1] = options.no_object
    named = F.cross_entropy(classes[labelled].flatten(0, 1), wanted[labelled].flatten(), weight)
    return torch.cat(matched).mean() + weights.classes * named


@torch.no_grad()
def _assign(cost: Tensor) -> tuple[Tensor, Tensor]:
    """The cheapest matching of rows to columns, each at most once."""
    rows, columns = linear_sum_assignment(cost.float().cpu().numpy())
    return (torch.as_tensor(x, dtype=torch.long, device=cost.device) for x in (rows, columns))  # type: ignore[return-value]


def consistency_loss(student: Tensor, wanted: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Cross-entropy with the weak view's classes, over the pixels where it is sure; UniMatch divides by all pixels.

    Args:
        student: logits (N, K, H, W) of the strong view.
        wanted: logits of the weak view, in the same geometry; no gradient.
        threshold: least probability of the largest class.

    Returns:
        The loss, and the share of confident pixels.
    """
    confidence, label = wanted.detach().softmax(1).max(1)
    sure = confidence >= threshold
    loss = F.cross_entropy(student, label, reduction="none")
    return torch.where(sure, loss, 0).mean(), sure.float().mean()
