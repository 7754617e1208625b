"""Pixel weights and class weights that require a gradient get it, at every size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from cases import CASES, CONSTANT, CORE, DEFAULTS, Case, Sample, class_vector, close, grad, over, sample
from test_modes import LARGE
from torch import Tensor, nn
from torch.autograd import forward_ad, gradcheck

from classbalance_losses import (
    DiceLoss,
    EntropyLoss,
    FocalLoss,
    PixelFrequency,
    WeightedCrossEntropyLoss,
    _dispatch,
    use_backend,
)
from classbalance_losses.functional import focal_loss, weighted_cross_entropy_loss

BACKENDS = ("reference", "auto")


@pytest.fixture(params=BACKENDS)
def _backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(_dispatch, "_CPU_FROM", 0)
    with use_backend(request.param):
        yield


def positive(s: Sample) -> Tensor:
    """Pixel weights that require a gradient."""
    draw = torch.Generator().manual_seed(7)
    return (torch.rand(s.target.shape, generator=draw) + 0.5).to(s.input.dtype).requires_grad_()


@over(CASES)
@pytest.mark.usefixtures("_backend")
def test_pixel_weight_is_a_factor_of_each_term(case: Case) -> None:
    """So the derivative of the sum is the term over q, also where selections and class weights follow q."""
    s = sample(2, shape=(2, 6, 5))
    q = positive(s)
    here = replace(s, pixel_weight=q)
    terms, total = case(here, reduction="none"), case(here, reduction="sum")
    expected = (terms / q).detach()
    close(torch.autograd.grad(terms.sum(), q)[0], expected.numpy())
    close(torch.autograd.grad(total, q)[0], expected.numpy())
    mean = case(here)
    close(torch.autograd.grad(mean, q)[0], (expected * (mean / total).nan_to_num()).detach().numpy())
    assert not torch.autograd.grad(case(here), q)[0][~s.valid].any()


@over([case for case in CORE if case in CONSTANT])
@pytest.mark.parametrize("upsample", [None, "linear"])
@pytest.mark.usefixtures("_backend")
def test_gradcheck_of_pixel_weights(case: Case, upsample: str | None) -> None:
    s = sample(2, 3, shape=(1, 2, 3), scale=1.0, ignored=0.2)
    assert gradcheck(lambda q: case(replace(s, pixel_weight=q), upsample=upsample), positive(s))


@over(DEFAULTS)
def test_pixel_weights_of_large_inputs(case: Case) -> None:
    def gradients() -> tuple[Tensor, ...]:
        leaf, q = LARGE.leaf(), positive(LARGE)
        return torch.autograd.grad(case(replace(leaf, pixel_weight=q)), (q, leaf.input))

    with use_backend("reference"):
        expected = gradients()
    for ours, theirs in zip(gradients(), expected, strict=True):
        close(ours, theirs.numpy(), rtol=1e-3, atol=1e-6 * float(theirs.abs().max()))


CALLS: dict[str, Callable[..., Tensor]] = {
    **{
        f"cross-entropy, {normalize}, {smoothing}": lambda s, w, normalize=normalize, smoothing=smoothing, **more: (
            weighted_cross_entropy_loss(
                s.input,
                s.target,
                w,
                pixel_weight=s.pixel_weight,
                normalize=normalize,
                label_smoothing=smoothing,
                **more,
            )
        )
        for normalize, smoothing in product(("weights", "pixels"), (0.0, 0.25))
    },
    "focal": lambda s, w, **more: focal_loss(s.input, s.target, alpha=w, pixel_weight=s.pixel_weight, **more),
    "focal, one number": lambda s, w, **more: focal_loss(s.input, s.target, alpha=w[1], **more),
}
IN_EACH = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@IN_EACH
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.usefixtures("_backend")
def test_gradcheck_of_class_weights(call: Callable[..., Tensor], reduction: str) -> None:
    """With one of 0, whose derivative is what its class would add."""
    s = sample(2, 4, shape=(2, 2, 3), weighted=True, scale=1.0).leaf()
    weight = class_vector(4).double()
    assert gradcheck(lambda w: call(s, w, reduction=reduction), weight.requires_grad_())
    low = replace(s, input=s.input.detach()[:, :, :1, :2])
    assert gradcheck(lambda w: call(low, w, reduction=reduction, upsample="linear"), weight)
    none = torch.tensor([0.0, 1, 2, 3]).double().requires_grad_()
    first = torch.autograd.grad(call(s, none, reduction=reduction).sum(), none)[0]
    step = torch.tensor([1e-6, 0, 0, 0])
    change = call(s, none + step, reduction=reduction).sum() - call(s, none, reduction=reduction).sum()
    close(first[0], change.item() / 1e-6, rtol=1e-4)


@IN_EACH
@pytest.mark.parametrize("backend", ["auto", "cpu"])
def test_class_weights_of_large_inputs(call: Callable[..., Tensor], backend: str) -> None:
    def gradients() -> tuple[Tensor, ...]:
        leaf, weight = LARGE.leaf(), class_vector(4).requires_grad_()
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(class_vector(4), torch.arange(4.0))
            tangent = forward_ad.unpack_dual(call(LARGE, dual)).tangent
        assert tangent is not None
        return *torch.autograd.grad(call(leaf, weight), (weight, leaf.input)), tangent

    with use_backend("reference"):
        expected = gradients()
    with use_backend(backend):
        ours = gradients()
    for own, theirs in zip(ours, expected, strict=True):
        close(own, theirs.numpy(), rtol=1e-3, atol=1e-6 * float(theirs.abs().max()))


def test_they_are_torchs_where_torch_has_them() -> None:
    """A weight as a parameter of the module, and its training, beside the formula written out."""
    s = sample(2, 4, shape=(2, 6, 5)).leaf()
    loss = WeightedCrossEntropyLoss(nn.Parameter(class_vector(4).double()))
    (weight,) = loss.parameters()
    loss(s.input, s.target).backward()
    assert weight.grad is not None
    own = torch.autograd.grad(loss(s.input, s.target), s.input)[0]

    w = class_vector(4).double().requires_grad_()
    of_each = w[s.target[s.valid]]
    entropy = -s.input.log_softmax(1).movedim(1, -1)[s.valid].gather(1, s.target[s.valid].unsqueeze(1))[:, 0]
    by_hand = torch.autograd.grad((of_each * entropy).sum() / of_each.sum(), (w, s.input))
    close(weight.grad, by_hand[0].numpy())
    close(own, by_hand[1].numpy())


def test_modules_keep_what_is_learned() -> None:
    s = sample(2, 4, shape=(2, 6, 5), dtype=torch.float32)
    for alpha in (nn.Parameter(class_vector(4)), nn.Parameter(torch.tensor(0.25))):
        focal = FocalLoss(alpha=alpha)
        assert list(focal.parameters()) == [alpha]
        focal(s.input, s.target).backward()
        assert alpha.grad is not None
        assert alpha.grad.any()


@pytest.mark.parametrize(
    "wrong", [torch.tensor([1.0, -1.0]), torch.ones(2, 2), torch.tensor([1.0, torch.nan])]
)
def test_what_is_learned_is_checked_as_what_is_given(wrong: Tensor) -> None:
    for make, name in (
        (WeightedCrossEntropyLoss, "weight"),
        (FocalLoss, "alpha"),
        (DiceLoss, "class_weight"),
        (EntropyLoss, "weight"),
    ):
        with pytest.raises(ValueError, match=f"Expected .*{name}"):
            make(**{name: nn.Parameter(wrong)})


def test_an_entropy_keeps_what_is_learned() -> None:
    """Given, or assigned in the place of GBW's weights."""
    s = sample(2, 4, shape=(2, 6, 5), dtype=torch.float32)
    for loss in (EntropyLoss(nn.Parameter(class_vector(4))), EntropyLoss("gbw")):
        loss.weight = loss.weight if isinstance(loss.weight, Tensor) else nn.Parameter(class_vector(4))
        (weight,) = loss.parameters()
        assert "weight" in loss.state_dict()
        loss(s.input).backward()
        p = s.input.softmax(1)
        assert weight.grad is not None
        close(weight.grad, -(p * p.log()).mean((0, 2, 3)).numpy(), rtol=1e-5)
        loss.weight = "gbw"
        assert not loss.state_dict()
        assert loss(s.input).isfinite()


def test_estimates_are_constants() -> None:
    s = sample(2, 4, shape=(2, 6, 5)).leaf()
    scale = torch.ones(4, dtype=torch.float64, requires_grad=True)

    def estimate(*batch: Any) -> Tensor:
        return PixelFrequency()(*batch).to(scale.dtype) * scale

    loss = weighted_cross_entropy_loss(s.input, s.target, estimate)
    assert torch.autograd.grad(loss, scale, allow_unused=True) == (None,)
    assert grad(weighted_cross_entropy_loss(s.input, s.target, estimate), s).any()


def test_weights_on_another_device_are_not_copied_at_each_call() -> None:
    """Nor at once: the message names the move that is made once, and it works."""
    s = sample(2, 4, shape=(2, 6, 5), dtype=torch.float32)
    input, target = s.input.to("meta"), s.target.to("meta")
    for loss in (WeightedCrossEntropyLoss(class_vector(4)), FocalLoss(alpha=class_vector(4))):
        with pytest.raises(ValueError, match=r"on meta, where input is, got it on cpu.*\.to\('meta'\)"):
            loss(input, target)
        assert loss.to("meta")(input, target).shape == ()
    with pytest.raises(ValueError, match="Expected weight on meta"):
        weighted_cross_entropy_loss(input, target, lambda *batch: class_vector(4))
    assert weighted_cross_entropy_loss(input, target, [1.0, 2, 3, 4]).shape == ()
