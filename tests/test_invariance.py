"""What may not matter does not: shifts, orders, names of classes, shapes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cases import CASES, Case, close, grad, over, sample
from torch import Tensor


@over(CASES)
def test_shift_of_a_pixels_logits(case: Case) -> None:
    here = sample(2, weighted=True).leaf()
    shift = 5 * torch.randn(here.target.shape, dtype=torch.float64).unsqueeze(1)
    there = replace(here, input=here.input + shift).leaf()
    close(case(there), case(here).item(), rtol=1e-8)
    close(grad(case(there), there), grad(case(here), here).numpy(), rtol=1e-7)


@over(CASES)
def test_gradient_sums_to_zero_over_classes(case: Case) -> None:
    here = sample(2, weighted=True).leaf()
    close(grad(case(here), here).sum(1), torch.zeros(here.target.shape).numpy(), atol=1e-13)


@over(CASES)
def test_order_of_pixels_and_images(case: Case) -> None:
    here = sample(1, shape=(3, 8), weighted=True)
    images, pixels = torch.randperm(3), torch.randperm(8)

    def shuffle(x: Tensor) -> Tensor:
        return x[images][..., pixels]

    assert here.pixel_weight is not None
    assert here.features is not None
    there = replace(
        here,
        input=shuffle(here.input),
        target=shuffle(here.target),
        pixel_weight=shuffle(here.pixel_weight),
        features=shuffle(here.features),
    )
    close(case(there, reduction="none"), shuffle(case(here, reduction="none")).numpy())
    close(case(there), case(here).item())


@over(CASES)
def test_names_of_classes(case: Case) -> None:
    here = sample(2, 5, weighted=True)
    order = torch.randperm(5)
    name = torch.argsort(order)
    target = torch.where(here.valid, name[here.target.clamp(min=0)], here.target)
    there = replace(here, input=here.input[:, order], target=target).leaf()
    renamed = {k: v[order] for k, v in case.settings(5).items() if isinstance(v, Tensor)}
    here = here.leaf()
    close(case(there, **renamed), case(here).item())
    close(grad(case(there, **renamed), there), grad(case(here), here)[:, order].numpy())


@over(CASES)
def test_spatial_shape(case: Case) -> None:
    """A volume is the same as its voxels in a row; and as a batch of pixels, unless images are mined one by one."""
    here = sample(3, weighted=True)
    assert here.pixel_weight is not None
    assert here.features is not None
    row = replace(
        here,
        input=here.input.flatten(2),
        target=here.target.flatten(1),
        pixel_weight=here.pixel_weight.flatten(1),
        features=here.features.flatten(2),
    )
    close(case(row), case(here).item())
    if case.settings(4).get("scope") == "image":
        return
    loose = replace(
        here,
        input=row.input.transpose(1, 2).flatten(0, 1),
        target=row.target.flatten(),
        pixel_weight=row.pixel_weight.flatten(),  # type: ignore[union-attr]
        features=row.features.transpose(1, 2).flatten(0, 1),  # type: ignore[union-attr]
    )
    close(case(loose), case(here).item())


@over(CASES)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_pixel_weights_of_one_are_no_weights(case: Case, reduction: str) -> None:
    here = sample(2)
    ones = replace(here, pixel_weight=torch.ones(here.target.shape, dtype=torch.float64))
    close(case(ones, reduction=reduction), case(here, reduction=reduction).numpy())


@over(CASES)
def test_class_that_is_absent_from_the_target(case: Case) -> None:
    """Its logit takes part in the softmax and nowhere else, and nothing about it is undefined."""
    here = sample(2, 5, ignored=0.3)
    here = replace(here, target=torch.where(here.target == 1, 0, here.target)).leaf()
    loss = case(here)
    expected = case.expected(here)
    close(loss, expected.mean)
    close(grad(loss, here), expected.mean_grad)
