"""Which pixels become queries, and which become negatives, in T2S-DA's pull loss.

Everything here gives index tensors of fixed shape with a mask of the entries that count: the number of
pixels a class happens to have never reaches the host. An index whose mask is False points at some existing
pixel.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from classbalance_losses._distributed import ProcessGroup, all_reduce_sum, resolve
from classbalance_losses._validate_features import (
    check_confidence,
    check_count,
    check_even,
    check_floats,
    check_label_range,
    check_labels,
    check_mask,
    check_num_classes,
)
from classbalance_losses._validate_options import check_range
from classbalance_losses.kernels.call import Share
from classbalance_losses.kernels.selection import hard_count, kth_largest, ordered_bits
from classbalance_losses.ops.counts import class_counts
from classbalance_losses.ops.prototypes import in_classes


def sample_class_balanced(
    labels: Tensor,
    num_classes: int,
    *,
    samples_per_class: int = 128,
    ignore_index: int = -100,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Draw T2S-DA's queries: from each class a number of pixels in proportion to its share, rounded up.

    .. math:: n_q(c) = \min(n_c, \lceil C \, p_c \, n \rceil), \qquad p_c = n_c / \sum_k n_k

    without replacement, every pixel of a class being equally likely. Rounding up gives every class that is
    present at least one query. The ceiling is taken in integers, so it is exact.

    Args:
        labels: class indices, any shape.
        num_classes: C, at least 2.
        samples_per_class: n >= 1, the mean number of queries of a class (the paper's 128).
        ignore_index: label of the pixels that are never drawn.
        generator: source of randomness on the labels' device; ``None`` for torch's own. (Under
            ``torch.compile(fullgraph=True)`` pass ``None``: the tracer takes no generator.)

    Returns:
        ``index`` (S,) into ``labels.flatten()``, sorted by class, and ``valid`` (S,), the mask of its
        entries that count; S = min(C n + C, number of pixels), whatever the labels are.

    Raises:
        ValueError: if a number is out of its range.
        TypeError: if the labels are no integers.
        IndexError: if a label is neither a class nor ``ignore_index`` (read on the CPU).
    """
    check_num_classes(num_classes)
    check_count("samples_per_class", samples_per_class)
    check_labels("labels", labels)
    check_label_range("labels", labels, num_classes, ignore_index)
    target = labels.long().flatten()
    keep = in_classes(target, num_classes, ignore_index)
    pixels = target.shape[0]
    slots = min(num_classes * (samples_per_class + 1), pixels)
    slot = torch.arange(slots, dtype=torch.int64, device=target.device)

    count = class_counts(target, keep, num_classes)
    total = count.sum().clamp(min=1)
    wanted = torch.minimum(count, (num_classes * samples_per_class * count + total - 1) // total)

    shuffled = torch.randperm(pixels, generator=generator, dtype=torch.int64, device=target.device)
    by_class = shuffled[torch.where(keep, target, num_classes)[shuffled].argsort(stable=True)]
    last = wanted.cumsum(0)
    slot_class = torch.searchsorted(last, slot, right=True).clamp(max=num_classes - 1)
    rank = slot - (last - wanted)[slot_class]
    place = (count.cumsum(0) - count)[slot_class] + rank
    return by_class[place.clamp(max=max(pixels - 1, 0))], slot < last[-1]


def sample_other_classes(
    labels: Tensor,
    keep: Tensor,
    num_classes: int,
    *,
    samples: int,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw, for each class, kept pixels of the other classes, uniformly and without replacement.

    All classes walk through one random order of the kept pixels, each skipping its own: so each class's
    draw is uniform, while the draws of two classes share most pixels. ``labels`` (P,) int64, in range where
    ``keep`` (P,).

    Returns:
        ``index`` (C, min(samples, P)) and ``valid`` of the same shape.
    """
    pixels, device = labels.shape[0], labels.device
    order = torch.randperm(pixels, generator=generator, dtype=torch.int64, device=device)
    kept, label = keep[order], torch.where(keep, labels, num_classes)[order]
    seen = kept.cumsum(0)
    count = class_counts(labels, keep, num_classes)
    start = count.cumsum(0) - count

    # Let b_i be the place, among the kept, of the i-th pixel of class c. Before it stand b_i - i pixels of
    # other classes; this never falls as i grows. So the j-th pixel of another class has as many of class c
    # before it as there are i with b_i - i <= j, and one search over all classes at once finds that number.
    classes = torch.arange(num_classes, dtype=torch.int64, device=device)
    grouped = label.argsort(stable=True)
    group = label[grouped]
    place = torch.arange(pixels, dtype=torch.int64, device=device)
    own_rank = place - torch.cat([start, count.sum(0, keepdim=True)])[group]
    others_before = torch.where(group < num_classes, seen[grouped] - 1 - own_rank, 0)
    stride = pixels + 1
    wanted = place[:samples].expand(num_classes, -1)
    asked = classes.unsqueeze(1) * stride + wanted
    own_before = torch.searchsorted(group * stride + others_before, asked, right=True) - start.unsqueeze(1)
    place = torch.searchsorted(seen, wanted + own_before + 1)
    valid = wanted < (count.sum() - count).unsqueeze(1)
    return order[place.clamp(max=max(pixels - 1, 0))], valid


def sample_domain_equal_negatives(
    source_labels: Tensor,
    target_labels: Tensor,
    target_unreliable: Tensor,
    num_classes: int,
    *,
    samples: int = 1024,
    ignore_index: int = -100,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw T2S-DA's negatives for the queries of each class: half from the source, half from the target.

    From the source, pixels labelled with another class. From the target, pixels that are unreliable (see
    :func:`unreliable_pixels`) and pseudo-labelled with another class. Both uniformly and without
    replacement. A domain with too few leaves entries invalid; the other is not drawn on in its place, so
    neither dominates.

    The paper draws per query; here the queries of a class share its draw, as they share what may be drawn,
    which keeps memory at C·m instead of Q·m. Erratum: equation 15 prints a union over c of the negatives of
    all classes, which would hold every pixel; it is read with the query's own class c.

    Args:
        source_labels: class indices of the source, any shape.
        target_labels: pseudo-labels of the target, any shape.
        target_unreliable: boolean mask, of the shape of ``target_labels``.
        num_classes: C, at least 2.
        samples: m, even and at least 2 (the paper's 1024).
        ignore_index: label of the pixels that are never drawn, in both domains.
        generator: source of randomness on the labels' device; ``None`` for torch's own.

    Returns:
        ``source_index``, ``source_valid``, ``target_index``, ``target_valid``, each of shape (C, m/2), or
        (C, P) where a domain has only P < m/2 pixels. Indices are into the flattened labels; in each row
        the valid entries come first.

    Raises:
        ValueError: if a number is out of its range, or the mask's shape is not the labels'.
        TypeError: if a dtype does not fit.
        IndexError: if a label is neither a class nor ``ignore_index`` (read on the CPU).
    """
    check_num_classes(num_classes)
    check_even("samples", samples)
    for name, labels in (("source_labels", source_labels), ("target_labels", target_labels)):
        check_labels(name, labels)
    check_mask("target_unreliable", target_unreliable, tuple(target_labels.shape))
    for name, labels in (("source_labels", source_labels), ("target_labels", target_labels)):
        check_label_range(name, labels, num_classes, ignore_index)
    source, target = source_labels.long().flatten(), target_labels.long().flatten()
    source_keep = in_classes(source, num_classes, ignore_index)
    target_keep = in_classes(target, num_classes, ignore_index) & target_unreliable.flatten()
    half = samples // 2
    source_draw = sample_other_classes(source, source_keep, num_classes, samples=half, generator=generator)
    target_draw = sample_other_classes(target, target_keep, num_classes, samples=half, generator=generator)
    return *source_draw, *target_draw


def unreliable_pixels(
    confidence: Tensor,
    keep: Tensor | None = None,
    *,
    fraction: float = 0.5,
    process_group: ProcessGroup = None,
) -> Tensor:
    """Return the mask of the pixels whose confidence lies below the α-percentile of the kept ones.

    The percentile is the (k+1)-th smallest kept confidence, k = floor(α · kept), found exactly; strictly
    below it lie k pixels, or fewer where there are ties. So a pixel that is as confident as all others is
    never unreliable, even where the confidence saturates at 1. α = 1 takes every kept pixel.

    Args:
        confidence: the teacher's largest probability, any shape, floating point, in [0, 1].
        keep: boolean mask of the pixels to look at, of the same shape; ``None`` for all. Elsewhere the
            confidence may be NaN.
        fraction: α in [0, 1] (the paper's 50 %).
        process_group: ``None`` for this process, ``"world"`` or a group for one percentile over all its
            ranks.

    Returns:
        A boolean mask of the shape of ``confidence``.

    Raises:
        ValueError: if a shape or a number does not fit.
        TypeError: if a dtype does not fit.
    """
    check_range("fraction", fraction, 0, 1)
    check_floats("confidence", confidence)
    check_mask("keep", keep, tuple(confidence.shape))
    kept = torch.ones_like(confidence, dtype=torch.bool) if keep is None else keep
    clean = torch.where(kept, confidence.detach(), 0)
    check_confidence("confidence", clean)
    bits = ordered_bits(clean.to(torch.promote_types(clean.dtype, torch.float32))).reshape(1, -1)
    total = all_reduce_sum(kept.sum().reshape(1), process_group)
    below = hard_count(total, Share(fraction, 0))
    digits = 4 if confidence.dtype == torch.float64 else 2
    joined = None if resolve(process_group) is None else partial(all_reduce_sum, process_group=process_group)
    percentile = kth_largest(bits, kept.reshape(1, -1), total - below, digits, joined)
    # With α = 1 there is no (k+1)-th: every kept pixel is meant.
    unreliable = (bits < percentile.bits.unsqueeze(1)) | (below == total).unsqueeze(1)
    return unreliable.reshape(confidence.shape) & kept


def pick_vectors(features: Tensor, index: Tensor) -> Tensor:
    """Return the vectors (..., D) of a map (N, D, *) at the flattened pixels ``index`` (...)."""
    size = math.prod(features.shape[2:])
    flat = features.reshape(features.shape[0], features.shape[1], size)
    return flat[index // max(size, 1), :, index % max(size, 1)]


def domain_equal_negatives(
    features: tuple[Tensor, Tensor],
    labels: tuple[Tensor, Tensor],
    target_unreliable: Tensor,
    num_classes: int,
    *,
    samples: int,
    ignore_index: int,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """Return the drawn vectors (C, m, D) and their mask (C, m): the source's half, then the target's."""
    source, source_valid, target, target_valid = sample_domain_equal_negatives(
        *labels,
        target_unreliable,
        num_classes,
        samples=samples,
        ignore_index=ignore_index,
        generator=generator,
    )
    vectors = [
        pick_vectors(map_.detach(), index) for map_, index in zip(features, (source, target), strict=True)
    ]
    return torch.cat(vectors, 1), torch.cat([source_valid, target_valid], 1)
