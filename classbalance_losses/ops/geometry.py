"""Angles and distances between vectors, with gradients that are finite where vectors coincide or vanish."""

from __future__ import annotations

import torch
from torch import Tensor

from classbalance_losses._dispatch import is_eager_on_cpu
from classbalance_losses.ops import distances as by_torch
from classbalance_losses.ops.prototypes import unit_vectors

_PAIRS_FROM = 1 << 13  # differences from which torch's own kernels were measured to be quicker


def cosines(vectors: Tensor) -> Tensor:
    """Return the cosines (..., V, V) between vectors (..., V, D); those of a zero vector are 0."""
    unit = unit_vectors(vectors)
    return unit @ unit.transpose(-1, -2)


def off_diagonal(square: Tensor) -> Tensor:
    """Return the matrices (..., V, V) with their diagonals replaced by 0."""
    own = torch.eye(square.shape[-1], dtype=torch.bool, device=square.device)
    return torch.where(own, 0, square)


def lengths(vectors: Tensor) -> Tensor:
    """Return the lengths (...) of vectors (..., D); at length 0 the gradient is 0, one of its subgradients."""
    square = vectors.square().sum(-1)
    has_length = ~(square <= torch.finfo(square.dtype).tiny)  # true of NaN
    return torch.where(has_length, torch.where(has_length, square, 1).sqrt(), 0)


def distances(vectors: Tensor) -> Tensor:
    """Return the Euclidean distance of each pair of vectors (V, D), once: (V·(V−1)/2,).

    From differences, not from products: those lose the small distances to rounding.
    """
    if vectors.shape[0] * vectors.numel() >= _PAIRS_FROM and is_eager_on_cpu(vectors):
        return by_torch.distances(vectors, _distances)
    return _distances(vectors)


def _distances(vectors: Tensor) -> Tensor:
    size = vectors.shape[0]
    one, other = torch.triu_indices(size, size, 1, dtype=torch.int64, device=vectors.device)
    return lengths(vectors[one] - vectors[other])


def cosine_distance(vectors: Tensor, others: Tensor, keep: Tensor) -> Tensor:
    """Return 1 - cos (N, *) between maps of vectors (N, D, *), from 0 to 2; 1 where one of the two is zero.

    It is half the squared distance between unit vectors: exactly 0 at equality and never negative, which 1 - cos
    in floats is not. ``others`` are constant. Where not kept (N, *) it is 0, and what stands there may be NaN.
    """
    others = others.detach()
    dtype = torch.promote_types(vectors.dtype, torch.float32)
    own, other = (
        unit_vectors(torch.where(keep.unsqueeze(1), x, 0).to(dtype), dim=1) for x in (vectors, others)
    )
    known = (own != 0).any(1) & (other != 0).any(1)
    return torch.where(keep, torch.where(known, (own - other).square().sum(1) / 2, 1), 0)
