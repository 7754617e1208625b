"""Integer types of labels, and strides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from cases import CASES, CORE, Case, Sample, close, grad, over, sample
from torch import Tensor

INTEGERS = [torch.uint8, torch.int16, torch.int32, torch.int64]


@over(CASES)
@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_any_integer_type_of_target(case: Case, dtype: torch.dtype) -> None:
    here = sample(2, ignore_index=255, weighted=True).leaf()
    there = replace(here, target=here.target.to(dtype))
    assert torch.equal(case(there, reduction="none"), case(here, reduction="none"))
    assert torch.equal(grad(case(there), there), grad(case(here), here))


@over(CORE)
def test_ignore_index_does_not_wrap_round(case: Case) -> None:
    """As uint8, -100 is 156: class 156 of 200 must still count."""
    target = torch.tensor([[156, 156, 3, 199]], dtype=torch.uint8)
    logits = torch.randn(1, 200, 4, dtype=torch.float64)
    here = Sample(logits, target, features=torch.randn(1, 3, 4, dtype=torch.float64)).leaf()
    wide = replace(here, target=target.long())
    assert torch.equal(case(here, reduction="none"), case(wide, reduction="none"))
    assert case(here, reduction="sum", **_keep_everything(case)) != 0
    assert grad(case(here, reduction="sum", **_keep_everything(case)), here)[0, :, :2].any()


def _keep_everything(case: Case) -> dict[str, float]:
    if case.loss == "DyCELoss":
        return {"hard_fraction": 1.0}
    return {"regularization": float("inf")} if case.loss == "GBWLoss" else {}


def transposed(x: Tensor) -> Tensor:
    return x.transpose(-1, -2).contiguous().transpose(-1, -2)


def sliced(x: Tensor) -> Tensor:
    big = torch.full((*x.shape[:-1], 2 * x.shape[-1] + 1), 3, dtype=x.dtype)
    big[..., 1::2] = x
    return big[..., 1::2]


def class_last(x: Tensor) -> Tensor:
    """The class axis innermost, as channels_last has it; for what has no class axis, the images innermost."""
    return (
        x.movedim(1, -1).contiguous().movedim(-1, 1)
        if x.ndim == 4
        else x.movedim(0, -1).contiguous().movedim(-1, 0)
    )


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


@over(CASES)
@pytest.mark.parametrize("layout", [transposed, sliced, class_last, channels_last], ids=lambda f: f.__name__)
def test_strides(case: Case, layout: Callable[[Tensor], Tensor]) -> None:
    here = sample(2, weighted=True).leaf()
    assert here.pixel_weight is not None
    assert here.features is not None
    there = Sample(
        input=layout(here.input.detach()).requires_grad_(),
        target=layout(here.target),
        pixel_weight=layout(here.pixel_weight),
        features=layout(here.features),
    )
    assert not there.input.is_contiguous()
    close(case(there, reduction="none"), case(here, reduction="none").detach().numpy(), rtol=1e-12)
    close(grad(case(there), there), grad(case(here), here).numpy(), rtol=1e-12)


@over(CASES)
def test_expanded_logits_target_and_weight(case: Case) -> None:
    """One image seen twice without a copy: stride 0."""
    one = sample(2, shape=(1, 3, 4), weighted=True)
    assert one.pixel_weight is not None
    assert one.features is not None
    pair = Sample(
        input=one.input.expand(2, -1, -1, -1),
        target=one.target.expand(2, -1, -1),
        pixel_weight=one.pixel_weight.expand(2, -1, -1),
        features=one.features.expand(2, -1, -1, -1),
    )
    expected = case.expected(pair)
    close(case(pair), expected.mean)
    base = one.input.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(case(pair, input=base.expand(2, -1, -1, -1)), base)
    close(gradient, expected.mean_grad.sum(0, keepdims=True))
