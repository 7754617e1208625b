"""What a batch is asked for, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from classbalance_losses.kernels.call import Hard


class Sums(NamedTuple):
    """Sums over the pixels of each class."""

    number: Tensor
    """n_c or, over H, Σ h_i, of all ranks (C,); no gradient."""
    value: Tensor
    """Σ h_i q_i φ_i of this rank (C,), with its gradient."""
    values: Tensor | None
    """φ (N, *), for the terms; ``None`` where they are not asked for."""
    hard: Hard | None


class ImageSums(NamedTuple):
    """Sums over the pixels of each image and class (N, C), as overlap losses need them, of this rank."""

    probability: Tensor
    """P = Σ q_i p_ic, with its gradient."""
    own: Tensor
    """I = Σ q_i t_ic p_ic, with its gradient; t is 1 for the label."""
    number: Tensor
    """n = Σ q_i t_ic, constant."""
    pixels: Tensor
    """How many pixels have the label."""


class Needs(NamedTuple):
    """What a loss asks of the logits, for one pass to give the terms of a sum all of it."""

    loss: bool = False
    """ℓ, or what is a function of it."""
    ranked: bool = False
    """ℓ so that equal losses tie."""
    error: bool = False
    overlap: bool = False
    form: bool = False
    """φ of a form that is no function of ℓ: the first to be asked for shares the pass."""


def over_rows(table: Tensor | None) -> Tensor:
    """Return the sum of a table's rows (R, C)."""
    assert table is not None
    return table.squeeze(0) if table.shape[0] == 1 else table.sum(0)  # a view, whose gradient is one


def block_diagonal(blocks: Sequence[Tensor]) -> Tensor:
    """Return a matrix of blocks, 0 elsewhere."""
    matrix: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    return matrix
