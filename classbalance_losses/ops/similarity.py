"""Similarities of queries to the keys of their class, without a key for every query and without waste.

A product of all Q queries with all C·M keys computes C times too much, and a copy of its class's keys for
every query needs Q·M·D numbers. Here the queries are laid out in blocks of one class each. A block holds B
= ceil(Q / C) queries, so there are fewer than 2C blocks: the keys are copied at most twice, and at most
half of the rows are padding, however the queries are spread over the classes. The layout's shape depends on
Q and C alone, which a GPU and a compiler want. On a CPU, which reads the labels for nothing, InfoNCE goes class by
class instead where each has many similarities.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from classbalance_losses._dispatch import is_eager_on_cpu
from classbalance_losses._distributed import ProcessGroup, all_reduce_sum
from classbalance_losses.kernels.forms.reference import CrossEntropy
from classbalance_losses.ops.counts import class_counts
from classbalance_losses.ops.prototypes import unit_vectors

_BY_CLASS_FROM = 1 << 12  # similarities for each class


def class_blocks(labels: Tensor, keep: Tensor, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Lay queries out in blocks of one class each.

    ``labels`` (Q,) int64 and ``keep`` (Q,). Let B = max(1, ceil(Q / C)) be the block's size.

    Returns:
        ``slot`` (Q,): the place of each kept query in the layout, 0 for the others.
        ``occupant`` (blocks, B): the query in each place; any query where there is none.
        ``block_class`` (blocks,): the class of each block, in range even where the block is not used.
    """
    queries, device = labels.shape[0], labels.device
    size = max(1, -(-queries // num_classes))
    blocks = (queries + num_classes * (size - 1)) // size  # no spread over the classes needs more
    index = torch.where(keep, labels, 0)

    classes = torch.arange(num_classes, dtype=torch.int64, device=device)
    seen = ((labels.unsqueeze(1) == classes) & keep.unsqueeze(1)).long().cumsum(0)
    rank = seen.gather(1, index.unsqueeze(1)).squeeze(1) - 1
    needed = (class_counts(labels, keep, num_classes) + size - 1) // size
    last = needed.cumsum(0)
    slot = torch.where(keep, (last - needed)[index] * size + rank, blocks * size)

    places = torch.zeros(blocks * size + 1, dtype=torch.int64, device=device)
    query = torch.arange(queries, dtype=torch.int64, device=device)
    occupant = places.scatter(0, slot, query)[:-1].view(blocks, size)
    block = torch.arange(blocks, dtype=torch.int64, device=device)
    block_class = torch.searchsorted(last, block, right=True).clamp(max=num_classes - 1)
    return torch.where(keep, slot, 0), occupant, block_class


def shared_similarities(queries: Tensor, labels: Tensor, keep: Tensor, keys: Tensor) -> Tensor:
    """Return the products (Q, M) of each kept query with the keys of its class; the other rows mean nothing.

    ``queries`` (Q, D), ``labels`` (Q,) int64, ``keep`` (Q,), ``keys`` (C, M, D).
    """
    slot, occupant, block_class = class_blocks(labels, keep, keys.shape[0])
    rows = queries.index_select(0, occupant.flatten()).view(*occupant.shape, queries.shape[1])
    product = torch.bmm(rows, keys.index_select(0, block_class).transpose(1, 2))
    return product.flatten(0, 1).index_select(0, slot)


def own_similarities(queries: Tensor, keys: Tensor) -> Tensor:
    """Return the products (Q, M) of each query (Q, D) with keys of its own (Q, M, D)."""
    return torch.bmm(keys, queries.unsqueeze(2)).squeeze(2)


def negative_similarities(
    queries: Tensor, labels: Tensor, keep: Tensor, negatives: Tensor, mask: Tensor | None, num_classes: int
) -> Tensor:
    """Return the cosines (Q, M) of unit queries (Q, D) with their negatives, -inf for those masked out.

    ``negatives`` (C, M, D), constant, are shared by the queries of a class; with another first axis, (Q, M,
    D), they are each query's own. ``mask`` has their first two axes. ``labels`` (Q,) int64, in range
    everywhere.
    """
    shared = negatives.shape[0] == num_classes
    used = class_counts(labels, keep, num_classes) > 0 if shared else keep
    allowed = used.unsqueeze(1).expand(negatives.shape[:2])
    if mask is not None:
        allowed = allowed & mask
    # Vectors that nobody may see are replaced: they may be NaN, and 0 · NaN would reach a query's gradient.
    clean = torch.where(allowed.unsqueeze(2), negatives.detach(), 0).to(queries.dtype)
    keys = unit_vectors(clean)
    if not shared:
        return torch.where(allowed, own_similarities(queries, keys), -torch.inf)
    return torch.where(allowed[labels], shared_similarities(queries, labels, keep, keys), -torch.inf)


def contrast(
    queries: Tensor,
    prototypes: Tensor,
    negatives: Tensor,
    negative_mask: Tensor | None,
    labels: Tensor,
    keep: Tensor,
    temperature: float,
) -> Tensor:
    """Return InfoNCE (Q,): stage 1's cross-entropy, its logits similarities over the temperature, its class 0 k⁺.

    ``queries`` (Q, D) and ``prototypes`` (C, D) of length 1; the rest as in :func:`negative_similarities`. What is not
    kept is 0.
    """
    num_classes = prototypes.shape[0]
    are_shared = negatives.shape[0] == num_classes
    size = queries.shape[0] * negatives.shape[1] // num_classes
    if are_shared and size >= _BY_CLASS_FROM and is_eager_on_cpu(queries, prototypes, negatives, labels):
        return _contrast_by_class(queries / temperature, prototypes, negatives, negative_mask, labels, keep)
    toward = (queries * prototypes.index_select(0, labels)).sum(1, keepdim=True)
    away = negative_similarities(queries, labels, keep, negatives, negative_mask, num_classes)
    logits = torch.cat([toward, away], 1) / temperature
    return CrossEntropy().value(logits, torch.zeros_like(labels), keep)


def _contrast_by_class(
    queries: Tensor, prototypes: Tensor, negatives: Tensor, mask: Tensor | None, labels: Tensor, keep: Tensor
) -> Tensor:
    """Take one class after the other, in shapes that depend on the labels: nothing is padded or copied twice."""
    num_classes = prototypes.shape[0]
    order = torch.where(keep, labels, num_classes).argsort(stable=True)
    counts = class_counts(labels, keep, num_classes).tolist()
    *rows, dropped = queries.index_select(0, order).split_with_sizes([*counts, len(order) - sum(counts)])
    losses = [
        _contrast_of_a_class(own, prototypes[c], negatives[c], None if mask is None else mask[c])
        for c, own in enumerate(rows)
        if len(own)
    ]
    losses.append(0 * dropped.sum(1))  # in the graph, also where there is nothing else
    return torch.cat(losses).index_select(0, order.argsort())


def _contrast_of_a_class(
    queries: Tensor, prototype: Tensor, negatives: Tensor, mask: Tensor | None
) -> Tensor:
    if mask is not None:
        negatives = torch.where(mask.unsqueeze(1), negatives, 0)
    keys = unit_vectors(negatives.detach().to(queries.dtype))
    logits = queries @ torch.cat([prototype.unsqueeze(0), keys]).T
    if mask is not None:
        logits = torch.where(F.pad(mask, (1, 0), value=True), logits, -torch.inf)
    return -logits.log_softmax(1)[:, 0]


def pair_weight(
    labels: Tensor, keep: Tensor, class_weight: Tensor, pair_reduction: str, process_group: ProcessGroup
) -> Tensor:
    """Return the factor (C,) on each pair of a class, w* / C, over the class's pairs for their mean.

    ``class_weight`` in the dtype of the loss.
    """
    num_classes = class_weight.shape[0]
    weight = class_weight.detach() / num_classes
    if pair_reduction == "sum":
        return weight
    count = all_reduce_sum(class_counts(labels, keep, num_classes), process_group)
    return weight / count.clamp(min=1)
