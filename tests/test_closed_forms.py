"""The closed forms of the losses of all probabilities, from unsure pixels to saturated ones, right and wrong."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from classbalance_losses import DualCrossEntropyLoss, DualFocalLoss, use_backend
from classbalance_losses.losses._base import PixelLoss

LOSSES = [
    DualFocalLoss(),
    DualFocalLoss(gamma=0.0),
    DualFocalLoss(gamma=0.5),
    DualFocalLoss(alpha=0.5, beta=2.0, gamma=2.0),
    DualFocalLoss(gamma=3.0, rho=1.01),
    DualCrossEntropyLoss(),
    DualCrossEntropyLoss(alpha=0.1, beta=1.0),
]


@pytest.mark.parametrize("scale", [1, 5, 20, 60, 200])
@pytest.mark.parametrize("num_classes", [2, 5, 19])
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_they_err_no_more_than_the_reference(loss: PixelLoss, num_classes: int, scale: int) -> None:
    generator = torch.Generator().manual_seed(num_classes)
    input = scale * torch.randn(2, num_classes, 24, 24, generator=generator)
    target = torch.randint(0, num_classes, (2, 24, 24), generator=generator)
    target[1] = input[1].argmax(0)  # half of the pixels are right
    truth = _value_and_gradient(loss, input.double(), target, "reference")
    reference = _value_and_gradient(loss, input, target, "reference")
    closed = _value_and_gradient(loss, input, target, "blocked")
    for wanted, plain, got in zip(truth, reference, closed, strict=True):
        assert got.isfinite().all()
        assert _error(got, wanted) <= 2 * _error(plain, wanted) + 1e-6


def _value_and_gradient(
    loss: PixelLoss, input: Tensor, target: Tensor, backend: str
) -> tuple[Tensor, Tensor]:
    leaf = input.clone().requires_grad_()
    with use_backend(backend):
        value = loss(leaf, target)
        (gradient,) = torch.autograd.grad(value * target.numel(), leaf)
    return value.detach(), gradient


def _error(got: Tensor, wanted: Tensor) -> float:
    return float(((got - wanted).abs() / (1 + wanted.abs())).max())
