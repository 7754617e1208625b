"""What T2S-DA knows about each class: a prototype to pull towards, and how confident the teacher is of it.

No gradient flows through any of these.
"""

from __future__ import annotations

import torch
from torch import Tensor

from classbalance_losses._distributed import ProcessGroup, all_reduce_sum
from classbalance_losses._validate import check_device
from classbalance_losses._validate_features import (
    check_confidence,
    check_feature_map,
    check_label_range,
    check_labels,
    check_num_classes,
)
from classbalance_losses._validate_options import as_label, check_choice, check_range
from classbalance_losses.kernels.simplex import class_means
from classbalance_losses.ops.counts import class_counts, class_sums, class_vector_sums


def in_classes(labels: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Return the mask of the labels (int64) that name a class, and not the ignored one."""
    return (labels != ignore_index) & (labels >= 0) & (labels < num_classes)


def unit_vectors(vectors: Tensor, dim: int = -1) -> Tensor:
    """Return the vectors, which lie along ``dim``, scaled to length 1; a zero vector stays zero, its gradient 0."""
    square = vectors.square().sum(dim, keepdim=True)
    has_length = ~(square <= torch.finfo(square.dtype).tiny)  # true of NaN, which must not vanish
    # The inner selection keeps 1/0 out of the backward pass, and division by infinity makes the zero vector's 0s. A
    # division by the root, not a product with rsqrt: rsqrt's derivative overflows below a length of 1e-13.
    return vectors / torch.where(has_length, torch.where(has_length, square, 1).sqrt(), torch.inf)


def class_prototypes(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    ignore_index: int = -100,
    process_group: ProcessGroup = None,
) -> Tensor:
    r"""Return the mean feature of each class: the positive keys of T2S-DA's pull loss (equation 10).

    .. math:: k_c^+ = \frac{\sum_i \mathbb{1}[y_i = c] \, f_i}{\sum_i \mathbb{1}[y_i = c]}

    The paper goes on to normalise the mean (equation 11, whose :math:`\mathrm{norm}(\cdot)` is the L2
    normalisation, not "the l2-norm" that the text calls it). That is left to
    :func:`~classbalance_losses.functional.pull_loss`, which normalises whatever it is given; the plain
    means of two batches can be averaged, normalised ones cannot.

    Args:
        features: shape (N, D, *), floating point; (P, D) for a list of vectors.
        labels: class indices, shape (N, *); (P,) for a list.
        num_classes: C, at least 2.
        ignore_index: label of the pixels that are left out; their features may be NaN.
        process_group: ``None`` for this process, ``"world"`` or a group for the mean over all its ranks.

    Returns:
        Shape (C, D), in float32 or, for float64 features, float64; constant, no gradient. An absent class
        has a row of zeros, which ``pull_loss`` takes as "no prototype".

    Raises:
        ValueError: if the shapes do not fit, or there are fewer than two classes.
        TypeError: if a dtype does not fit.
        IndexError: if a label is neither a class nor ``ignore_index`` (read on the CPU).
    """
    check_num_classes(num_classes)
    check_feature_map("features", features, "labels", labels)
    check_label_range("labels", labels, num_classes, ignore_index)
    target = labels.long().flatten()
    keep = in_classes(target, num_classes, ignore_index)
    dtype = torch.promote_types(features.dtype, torch.float32)
    rows = features.detach().movedim(1, -1).reshape(-1, features.shape[1]).to(dtype)
    sums = all_reduce_sum(class_vector_sums(rows, target, keep, num_classes), process_group)
    count = all_reduce_sum(class_counts(target, keep, num_classes), process_group)
    return class_means(sums, count.unsqueeze(1))


def class_confidence(
    confidence: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    ignore_index: int = -100,
    process_group: ProcessGroup = None,
) -> tuple[Tensor, Tensor]:
    """Return each class's mean confidence (C,), 0 where absent, and the mask (C,) of the present.

    Labels outside [0, C) are skipped, as is ``ignore_index``.
    """
    target = labels.long()
    keep = in_classes(target, num_classes, ignore_index)
    sums = all_reduce_sum(class_sums(confidence, target, keep, num_classes), process_group)
    count = all_reduce_sum(class_counts(target, keep, num_classes), process_group)
    return class_means(sums, count), count > 0


def weights_from_confidence(confidence: Tensor, included: Tensor, power: float) -> Tensor:
    """Return ``(1 - confidence) ** power`` (C,), summing to 1 over the included classes, 0 elsewhere."""
    # Means of float32 probabilities can exceed 1 by a rounding error, and a negative base has no root.
    doubt = torch.where(included, (1 - confidence).clamp(min=0), 0)
    # The paper's normaliser cancels in exact arithmetic; in floats it keeps a high power from underflowing.
    largest = doubt.max()
    share = (doubt / torch.where(largest > 0, largest, 1)) ** power
    share = torch.where(included, torch.where(largest > 0, share, 1), 0)
    return share / share.sum().clamp(min=1)


def class_confidence_weights(
    confidence: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    power: float = 0.5,
    absent: str = "max",
    ignore_index: int = -100,
    process_group: ProcessGroup = None,
) -> Tensor:
    r"""Return T2S-DA's dynamic re-weighting (equations 17 and 18): more weight where the teacher is unsure.

    .. math::
        \mathrm{conf}(c) = \frac{\sum_i \mathbb{1}[\hat y_i = c] \max_k p_{ik}}
                                {\sum_i \mathbb{1}[\hat y_i = c]},
        \qquad
        w_c = \Bigl[\frac{1 - \mathrm{conf}(c)}{\max_k (1 - \mathrm{conf}(k))}\Bigr]^{\beta},
        \qquad
        w^*_c = \frac{w_c}{\sum_k w_k}

    The maximum inside :math:`w_c` cancels in :math:`w^*_c`: the weights are
    :math:`(1 - \mathrm{conf}(c))^\beta` over their sum. β = 0 gives equal weights, and so do equal
    confidences, even where all are 1 and the printed formula is 0/0.

    The paper does not say what becomes of a class that no pixel of the batch is labelled with, nor could
    released code be found; both readings are here. :class:`~classbalance_losses.PullLoss` offers a third, a
    running mean.

    Args:
        confidence: the teacher's largest probability, any shape, floating point, in [0, 1].
        labels: the pseudo-labels, of the same shape. Labels outside [0, C) are skipped.
        num_classes: C, at least 2.
        power: β >= 0, the paper's "scale factor" (0.5). Not the β of the Fourier stylisation (equation 7),
            which the paper calls by the same letter.
        absent: "max" counts an absent class as conf = 0, the largest doubt; "exclude" gives it weight 0 and
            normalises over the present ones.
        ignore_index: a further label to skip.
        process_group: ``None`` for this process, ``"world"`` or a group for the means over all its ranks.

    Returns:
        w*, shape (C,), summing to 1 (to 0 where nothing is present and absent classes are excluded), in
        float32 or, for float64 confidence, float64; constant, no gradient.

    Raises:
        ValueError: if the shapes differ, an option is out of its range, or (read on the CPU) a confidence is.
        TypeError: if a dtype does not fit.
    """
    check_num_classes(num_classes)
    check_range("power", power, 0)
    check_choice("absent", absent, ("max", "exclude"))
    check_labels("labels", labels)
    check_confidence("confidence", confidence)
    if confidence.shape != labels.shape:
        raise ValueError(
            f"Expected confidence and labels of one shape, got {tuple(confidence.shape)} and "
            f"{tuple(labels.shape)}. Both come from one call: confidence, labels = probabilities.max(dim=1)."
        )
    check_device("labels", labels, "confidence", confidence)
    mean, present = class_confidence(
        confidence, labels, num_classes, ignore_index=as_label(ignore_index), process_group=process_group
    )
    included = present if absent == "exclude" else torch.ones_like(present)
    weights = weights_from_confidence(mean, included, power)
    return weights.to(torch.promote_types(confidence.dtype, torch.float32))
