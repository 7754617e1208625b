"""The cross-entropy of enlarged logits against float64, on CUDA or, without it, under Triton's interpreter."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from kernel_checks import (
    DEVICE,
    Loss,
    all_of,
    by_reference,
    kept,
    labels,
    marks,
    no_worse,
    on_cuda,
    outcome,
    plain,
    poisoned,
)
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")

from classbalance_losses.kernels import cuda
from classbalance_losses.kernels.call import Labels, Logits, Resize
from classbalance_losses.kernels.forms.reference import CrossEntropy, DualFocal, Focal, Form

__all__ = ["poisoned"]
pytestmark = marks
ALIGN = pytest.mark.parametrize("align_corners", [True, False], ids=["aligned", "not aligned"])


def enlarged(input: Tensor, of: Labels, align_corners: bool) -> Logits:
    return Logits(input, Resize(tuple(of.target.shape[1:]), align_corners))


def cross_entropy_and_error(input: Tensor, of: Labels, align_corners: bool) -> tuple[Tensor, Tensor]:
    return cuda.cross_entropy_and_error(enlarged(input, of, align_corners), of)


def cross_entropy(input: Tensor, of: Labels, align_corners: bool) -> Tensor:
    return cuda.pixel_values(enlarged(input, of, align_corners), of, CrossEntropy())


def logits(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(shape) * 3).to(dtype).to(DEVICE)


def interpolated(input: Tensor, of: Labels, *, align_corners: bool) -> tuple[Tensor, Tensor]:
    """The same by PyTorch."""
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[input.ndim - 2]
    wide = input if input.dtype == torch.float64 else input.float()
    full = F.interpolate(wide, of.target.shape[1:], mode=mode, align_corners=align_corners)
    return plain(full, of)


def check(input: Tensor, of: Labels, align_corners: bool) -> None:
    kernel: Loss = partial(cross_entropy_and_error, align_corners=align_corners)
    no_worse(kernel, partial(interpolated, align_corners=align_corners), input, of)


SIZES = [
    ((2, 3), (5, 7)),
    ((2, 2), (6, 4)),
    ((4, 3), (2, 5)),
    ((5, 4), (1, 2)),
    ((1, 3), (3, 1)),
    ((1, 1), (2, 3)),
    ((2, 3), (2, 3)),
    ((2, 2, 2), (3, 2, 3)),
    ((1, 2, 2), (2, 3, 2)),
]


@ALIGN
@pytest.mark.parametrize(("low", "full"), SIZES, ids=str)
def test_is_no_worse_than_eager(low: tuple[int, ...], full: tuple[int, ...], align_corners: bool) -> None:
    check(logits(1, 3, *low), labels((1, *full), 3), align_corners)


@ALIGN
def test_any_ratio(align_corners: bool) -> None:
    """Both ways, so that every rounding of the inverse mapping comes up; some rows take two blocks."""
    for low, full in [
        (3, 17),
        (7, 19),
        (8, 8),
        (13, 5),
        (40, 3),
        (2, 33),
        (11, 10),
        (150, 301),
        (6, 12),
        (12, 6),
    ]:
        check(logits(1, 2, low), labels((1, full), 2), align_corners)


@pytest.mark.parametrize(
    ("num_classes", "dtype"),
    [(1, torch.float32), (2, torch.float16), (19, torch.bfloat16), (19, torch.float32), (150, torch.float32)],
    ids=str,
)
def test_any_number_of_classes(num_classes: int, dtype: torch.dtype) -> None:
    check(logits(1, num_classes, 3, dtype=dtype), labels((1, 7), num_classes, torch.int16), False)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32], ids=str)
def test_any_integer_target(dtype: torch.dtype) -> None:
    check(logits(2, 5, 3), labels((2, 5), 5, dtype), False)


def test_any_strides() -> None:
    of = labels((2, 3, 4), 3)
    last = logits(2, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    for input in (last, logits(2, 3, 4, 4)[:, :, 1:3, 1:3], logits(1, 3, 2, 2).mT.expand(2, -1, -1, -1)):
        check(input, of, False)
    loss: Loss = partial(cross_entropy_and_error, align_corners=False)
    gradient = outcome(loss, last, of, kept(of).float())["gradient"]
    assert gradient.is_contiguous(memory_format=torch.channels_last)
    check(last, of._replace(target=of.target.mT.contiguous().mT), False)


@ALIGN
@pytest.mark.parametrize("form", [Focal(2.0), Focal(0.5), DualFocal(0.5, 0.5, 2.0, 1.0)], ids=str)
def test_other_forms(form: Form, align_corners: bool) -> None:
    """Focal in the same kernels, the dual ones after the interpolation."""
    of = labels((1, 5, 7), 3)
    resize = Resize((5, 7), align_corners)
    no_worse(
        lambda x, of: (cuda.pixel_values(Logits(x, resize), of, form), None),
        by_reference(form, resize),
        logits(1, 3, 2, 3),
        of,
    )


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf], ids=str)
def test_dropped_pixels_may_hold_anything(poison: float) -> None:
    """Logits that no kept pixel uses have no influence, and gradient 0; a kept pixel's NaN stays visible."""
    target = torch.randint(3, (1, 4, 12), device=DEVICE)
    of = Labels(torch.where(torch.arange(12, device=DEVICE) < 7, 9, target), 3, 9)
    clean = logits(1, 3, 2, 4)
    input = clean.clone()
    input[..., 0] = poison  # used by columns 0 to 4 of the enlarged logits
    grad = torch.where(kept(of), 1.0, poison)
    loss: Loss = partial(cross_entropy_and_error, align_corners=False)
    got, want = (outcome(loss, x, of, grad) for x in (input, clean))
    for name, value in got.items():
        assert torch.equal(value, want[name])
    assert (got["loss"][~kept(of)] == 0).all()
    assert (got["gradient"][..., 0] == 0).all()
    if math.isnan(poison):
        everywhere = outcome(loss, input, all_of(target, 3), torch.ones(1, 4, 12, device=DEVICE))
        assert everywhere["loss"][..., :4].isnan().all()
        assert everywhere["loss"][..., 5:].isfinite().all()
        assert everywhere["gradient"][..., :2].isnan().all()
        assert everywhere["gradient"][..., 2:].isfinite().all()


def test_extreme_logits() -> None:
    of = labels((1, 3, 5), 5)
    input = logits(1, 5, 2, 3).sign() * 1e4
    check(input, of, False)
    loss = cross_entropy(input, of, False)
    assert (loss >= 0).all()
    assert not loss.signbit().any()


def test_small_losses_are_not_cancelled() -> None:
    """At a margin of 17, where 1 + e^−margin rounds to 1, nothing is lost yet."""
    margin = torch.tensor([1.0, 17.0, 25.0, 60.0], device=DEVICE)
    input = torch.stack([margin, torch.zeros_like(margin)]).unsqueeze(0)
    of = all_of(torch.zeros(1, 8, dtype=torch.int64, device=DEVICE), 2)
    loss = cross_entropy(input, of, False)
    full = F.interpolate(input.double(), 8, mode="linear", align_corners=False)
    torch.testing.assert_close(loss.double(), torch.log1p(torch.exp(-full[:, 0])), rtol=1e-5, atol=0)


@ALIGN
def test_a_class_that_is_ruled_out(align_corners: bool) -> None:
    """A class of -inf everywhere does as if it were not there, also where its weight is 0."""
    of = labels((1, 3, 6), 2)
    input = logits(1, 2, 2, 3)
    more = torch.cat([input, torch.full_like(input[:, :1], -math.inf)], 1)
    grad = torch.rand(of.target.shape).to(DEVICE)
    loss: Loss = partial(cross_entropy_and_error, align_corners=align_corners)
    got, want = (outcome(loss, x, of, grad) for x in (more, input))
    assert torch.equal(got["loss"], want["loss"])
    assert torch.equal(got["gradient"][:, :2], want["gradient"])
    assert not got["gradient"][:, 2].any()


@ALIGN
def test_without_enlarging_it_is_the_cross_entropy(align_corners: bool) -> None:
    of, input = labels((2, 3, 4), 5), logits(2, 5, 3, 4)
    found = cross_entropy_and_error(input, of, align_corners)
    for got, expected in zip(found, plain(input, of), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_no_images() -> None:
    check(logits(0, 3, 2, 2), labels((0, 4, 4), 3), False)


def test_no_pixels() -> None:
    leaf = logits(1, 3, 2).requires_grad_()
    loss = cross_entropy(leaf, labels((1, 0), 3), False)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    assert loss.shape == (1, 0)
    assert not gradient.any()


@pytest.mark.skipif(DEVICE == "cuda", reason="an assertion would end the process's use of the device")
@pytest.mark.parametrize("wrong", [3, -1, 1 << 32])
def test_refuses_what_is_no_class(wrong: int) -> None:
    input, of = logits(1, 3, 3, 4), labels((1, 9, 12), 3)
    cross_entropy(input, of, False)
    of.target[0, 8, 11] = wrong
    with pytest.raises(RuntimeError, match="out of bounds for 3 classes"):
        cross_entropy(input, of, False)


@ALIGN
def test_can_be_differentiated_twice(align_corners: bool) -> None:
    of = labels((2, 5), 3)
    values, direction = logits(2, 3, 3), logits(2, 3, 3)

    def second(loss: Any, dtype: torch.dtype) -> Tensor:
        torch.use_deterministic_algorithms(False)  # PyTorch's interpolation has no such backward on CUDA
        leaf = values.to(dtype).requires_grad_()
        squared = loss(leaf, of, align_corners=align_corners)[0].square()
        (first,) = torch.autograd.grad(squared.sum(), leaf, create_graph=True)
        return torch.autograd.grad((first * direction.to(dtype)).sum(), leaf)[0]

    got = second(cross_entropy_and_error, torch.float32)
    torch.testing.assert_close(got.double(), second(interpolated, torch.float64), rtol=1e-5, atol=1e-4)


def test_operators_are_well_formed() -> None:
    torch.use_deterministic_algorithms(False)  # opcheck compares runs, and NaN is not NaN
    of, ops = labels((2, 5), 3), torch.ops.classbalance_losses
    args = (logits(2, 3, 3), of.target, -100, "focal", [2.0], False, False)
    torch.library.opcheck(ops.cuda_upsampled_forward.default, args)
    ones = torch.ones(2, 5, device=DEVICE)
    args = (ones, logits(2, 3, 3), of.target, -100, False, ones, ones.half() / 1000, ones)
    torch.library.opcheck(ops.cuda_upsampled_backward.default, args)


@pytest.mark.parametrize("form", [CrossEntropy(), Focal(2.0)], ids=str)
def test_compiles_whole(form: Form) -> None:
    torch.compiler.reset()

    def loss(input: Tensor, target: Tensor) -> Tensor:
        of = Labels(target, 3, -100)
        return cuda.pixel_values(enlarged(input * 2, of, False), of, form).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for width in (5, 7):
        leaf, target = logits(2, 3, 3).requires_grad_(), labels((2, width), 3).target
        (expected,) = torch.autograd.grad(loss(leaf, target), leaf)
        assert torch.equal(torch.autograd.grad(compiled(leaf, target), leaf)[0], expected)


def test_says_what_it_cannot_take() -> None:
    def reasons(input: Tensor, target: Tensor) -> str:
        of = Labels(target, 3, -100)
        return "; ".join(cuda.reasons(enlarged(input, of, False), of))

    target = torch.zeros(2, 8, 8, dtype=torch.uint8, device=DEVICE)
    assert not reasons(logits(2, 3, 4, 4), target)
    assert "float64" in reasons(logits(2, 3, 4, 4).double(), target)
    assert "size 0" in reasons(logits(2, 3, 4, 0), target)
    far = torch.zeros(1, 1, dtype=torch.uint8, device=DEVICE).expand(1, 1 << 20)
    assert "32 bits" in reasons(logits(1, 3, 1).expand(1, 3, 1 << 20), far)


@on_cuda
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_neither_synchronises_nor_minds_capture() -> None:
    of = labels((2, 64, 64), 19)
    leaf, other = logits(2, 19, 16, 16).requires_grad_(), logits(2, 19, 16, 16)

    def step() -> Tensor:
        return torch.autograd.grad(cross_entropy(leaf, of, False).sum(), leaf)[0]

    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        leaf.copy_(other)
    graph.replay()
    assert torch.equal(captured, step())
