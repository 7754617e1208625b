"""Masks of floats that are 0 and 1, as torch's binary cross-entropy takes them: on a CPU they are read as bytes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from classbalance_losses import (
    DiceLoss,
    DyCELoss,
    FocalLoss,
    GBWLoss,
    WeightedCrossEntropyLoss,
    _dispatch,
    use_backend,
)

pytest.importorskip("numba", reason="numba is not installed")
SHAPE = (2, 1, 200, 201)


def masks() -> tuple[Tensor, Tensor]:
    """Return a mask of bytes, 7 where ignored, and the same of floats, NaN where ignored."""
    draw = torch.Generator().manual_seed(0)
    mask = (torch.rand(SHAPE, generator=draw) < 0.1).to(torch.uint8)
    mask[:, :, :9] = 7
    return mask, torch.where(mask == 7, torch.nan, mask.float())


def outcome(loss: Any, target: Tensor) -> list[Tensor]:
    input = torch.linspace(-9, 9, target.numel()).view(SHAPE).requires_grad_()
    value = loss(input, target)
    return [value.detach(), *torch.autograd.grad(value.sum(), input)]


@pytest.mark.parametrize("kind", [WeightedCrossEntropyLoss, FocalLoss, DyCELoss, GBWLoss, DiceLoss])
@pytest.mark.parametrize("task", ["binary", "multilabel"])
def test_are_what_bytes_are(kind: Any, task: str) -> None:
    mask, of_floats = masks()
    wanted = outcome(kind(task=task, ignore_index=7), mask)
    found = outcome(kind(task=task), of_floats)
    for got, truth in zip(found, wanted, strict=True):
        assert torch.equal(got, truth)
    with use_backend("reference"):  # as probabilities
        for got, truth in zip(outcome(kind(task=task), of_floats), wanted, strict=True):
            torch.testing.assert_close(got, truth, rtol=2e-5, atol=1e-6 * float(truth.abs().max()))


def test_are_told_from_probabilities() -> None:
    mask, of_floats = masks()
    label = _dispatch.whole_labels(of_floats)
    assert label is not None
    assert torch.equal(label, torch.where(mask == 7, 255, mask))
    for other in (0.5, -1.0, torch.inf, 2.0):
        changed = of_floats.clone()
        changed.view(-1)[-1] = other
        assert _dispatch.whole_labels(changed) is None


def test_that_are_learned_have_a_gradient() -> None:
    target = masks()[1].nan_to_num(0).requires_grad_()
    WeightedCrossEntropyLoss(task="binary")(torch.ones(SHAPE), target).backward()
    assert target.grad is not None
    assert target.grad.any()


def test_do_not_hide_an_ignore_index_that_is_none() -> None:
    with pytest.raises(TypeError, match="ignore_index"):
        WeightedCrossEntropyLoss(task="binary", ignore_index=1.5)(torch.ones(SHAPE), masks()[1])


@pytest.mark.parametrize(
    "output", [{"logits": torch.ones(SHAPE)}, torch.ones(SHAPE).numpy(), [1.0]], ids=type
)
def test_do_not_hide_logits_that_are_no_tensor(output: Any) -> None:
    with pytest.raises(TypeError, match="input"):
        WeightedCrossEntropyLoss(task="binary")(output, masks()[1])
