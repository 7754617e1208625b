"""Angles and distances between vectors, with gradients that are finite where vectors coincide or vanish."""

from __future__ import annotations

import torch
from torch import Tensor

from classbalance_losses.ops.prototypes import unit_vectors


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
    """Return the Euclidean distances (V, V) between vectors (V, D).

    From differences, V²·D numbers, not from products: those lose the small distances to rounding.
    """
    return lengths(vectors.unsqueeze(0) - vectors.unsqueeze(1))


def cosine_distance(vectors: Tensor, others: Tensor) -> Tensor:
    """Return 1 - cos (N, *) between maps of vectors (N, D, *), from 0 to 2; 1 where one of the two is zero.

    It is half the squared distance between unit vectors: exactly 0 at equality and never negative, which 1 - cos
    in floats is not.
    """
    own, other = unit_vectors(vectors, dim=1), unit_vectors(others, dim=1)
    known = (own != 0).any(1) & (other != 0).any(1)
    return torch.where(known, (own - other).square().sum(1) / 2, 1)
