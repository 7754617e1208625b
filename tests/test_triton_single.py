"""One logit a pixel, which stands for the logits 0 and z of two classes, and biases of classes, in the kernels."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import pytest
import torch
from kernel_checks import (
    DEVICE,
    Loss,
    all_of,
    by_reference,
    exponential_error,
    kept,
    labels,
    marks,
    no_worse,
    outcome,
    plain,
    poisoned,
    with_vector,
)
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")

from classbalance_losses.kernels import cuda, reference
from classbalance_losses.kernels.call import Labels, Logits, Resize
from classbalance_losses.kernels.cuda.common import reasons
from classbalance_losses.kernels.forms.cuda import parameters
from classbalance_losses.kernels.forms.reference import (
    Adjusted,
    CrossEntropy,
    DualCrossEntropy,
    DualFocal,
    Focal,
    Form,
    Smoothed,
)

__all__ = ["poisoned"]
pytestmark = marks
FORMS: list[Form] = [
    CrossEntropy(),
    Focal(1.0),
    Focal(0.5),
    Smoothed(0.1, torch.tensor([0.5, 2.0])),
    Adjusted(torch.tensor([0.5, 2.0])),
    DualCrossEntropy(1.0, 0.5),
    DualFocal(0.5, 0.5, 2.0, 1.0),
]
SIZE = (6, 10)  # to which logits are enlarged
# The kernel that enlarges one logit compares a loop's number there.
OLD = pytest.mark.skipif(
    DEVICE == "cpu" and version("triton").startswith("3.2."),
    reason="Triton 3.2's interpreter knows no single bits",
)
ENLARGED = pytest.param(SIZE, marks=OLD)
OF_FORMS = pytest.mark.parametrize("form", FORMS, ids=str)
HALVES = [torch.float16, torch.bfloat16]


def logits(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(shape) * 3).to(dtype).to(DEVICE)


def of_classes(form: Form, num_classes: int) -> Form:
    return with_vector(form, lambda _: torch.linspace(0, 2, num_classes, device=DEVICE))


def kernel(form: Form | None, **read: Any) -> Loss:
    """A form by the kernels, or the cross-entropy and the error."""

    def values(input: Tensor, of: Labels) -> tuple[Tensor, Tensor | None]:
        where = Logits(input, **read)
        if form is None:
            return cuda.cross_entropy_and_error(where, of)
        return cuda.pixel_values(where, of, form), None

    return values


def exact(form: Form | None, bias: Tensor | None = None, *, single: bool = False, resize: Any = None) -> Loss:
    """The same of all logits, made by hand, in the reference."""
    values = plain if form is None else by_reference(form)

    def of_all(input: Tensor, of: Labels) -> tuple[Tensor, Tensor | None]:
        wide = input if input.dtype == torch.float64 else input.float()
        full = wide if resize is None else resize(wide)
        if single:
            full = torch.stack([torch.zeros_like(full[:, 0]), full[:, 0]], 1)
        if bias is not None:
            full = full + bias.to(full).view(-1, *[1] * (full.ndim - 2))
        return values(full, of)

    return of_all


LAYOUTS: dict[str, Callable[[], Tensor]] = {
    "contiguous": lambda: logits(2, 1, 6, 7),
    "two blocks": lambda: logits(2, 1, 1, 1100),
    "flat": lambda: logits(70, 1),
    "channels last": lambda: logits(2, 1, 6, 7).contiguous(memory_format=torch.channels_last),
    "one of three": lambda: logits(2, 6, 7, 3).movedim(-1, 1)[:, 1:2],
    "every second": lambda: logits(2, 1, 12, 14)[:, :, ::2, ::2],
    "expanded": lambda: logits(1, 1, 6, 1).expand(2, -1, -1, 7),
    "4 strides": lambda: logits(2, 1, 3, 3, 3, 3)[:, :, 1:, 1:, 1:, 1:],
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_one_logit_is_two(name: str) -> None:
    input = LAYOUTS[name]()
    of = labels((input.shape[0], *input.shape[2:]), 2)
    no_worse(kernel(None, single=True), exact(None, single=True), input, of)
    gradient = outcome(kernel(None, single=True), input, of, kept(of).float())["gradient"]
    assert gradient.shape == input.shape


@OF_FORMS
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_one_logit_of_each_form(form: Form, dtype: torch.dtype) -> None:
    """At logits that are small, and that settle the class."""
    form, scale = of_classes(form, 2), torch.tensor([0.1, 1.0, 10.0, 40.0, 1.0, 10.0, 40.0], device=DEVICE)
    input = (logits(2, 1, 6, 7) * scale).to(dtype)
    no_worse(kernel(form, single=True), exact(form, single=True), input, labels((2, 6, 7), 2))


@OF_FORMS
@pytest.mark.parametrize("single", [True, False], ids=["one logit", "five"])
def test_a_bias_is_added(form: Form, single: bool) -> None:
    num_classes = 2 if single else 5
    form, bias = of_classes(form, num_classes), torch.linspace(-3, 2, num_classes, device=DEVICE)
    input, of = logits(2, 1 if single else 5, 6, 7), labels((2, 6, 7), num_classes)
    no_worse(kernel(form, bias=bias, single=single), exact(form, bias, single=single), input, of)


@pytest.mark.parametrize("num_classes", [3, 19, 70])
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_a_bias_of_any_classes_and_layout(num_classes: int, last: bool, dtype: torch.dtype) -> None:
    """Also one that rules a class out, which no label is of."""
    bias = torch.randn(num_classes, device=DEVICE) * 5
    bias[num_classes - 1] = -math.inf
    input, of = logits(2, num_classes, 5, 7, dtype=dtype), labels((2, 5, 7), num_classes - 1)
    if last:
        input = input.contiguous(memory_format=torch.channels_last)
    of = of._replace(num_classes=num_classes)
    no_worse(kernel(None, bias=bias), exact(None, bias), input, of)


@OLD
@pytest.mark.parametrize("form", [None, Focal(2.0), FORMS[-1]], ids=str)
@pytest.mark.parametrize(
    ("single", "biased"),
    [(True, False), (True, True), (False, True)],
    ids=["one logit", "one biased", "five biased"],
)
@pytest.mark.parametrize("align_corners", [True, False], ids=["aligned", "not aligned"])
def test_enlarged(form: Form | None, single: bool, biased: bool, align_corners: bool) -> None:
    num_classes = 2 if single else 5
    resize = Resize(SIZE, align_corners)
    bias = torch.linspace(-3, 2, num_classes, device=DEVICE) if biased else None
    input, of = logits(2, 1 if single else 5, 3, 4), labels((2, *SIZE), num_classes)
    read = {"bias": bias, "single": single, "resize": resize}
    no_worse(kernel(form, **read), exact(form, bias, single=single, resize=resize), input, of)


@OLD
def test_enlarged_along_three_axes() -> None:
    size, bias = (3, 4, 5), torch.tensor([0.5, -1.0], device=DEVICE)
    resize = Resize(size, align_corners=False)
    input, of = logits(1, 1, 2, 3, 2), labels((1, *size), 2)
    read = {"bias": bias, "single": True, "resize": resize}
    no_worse(kernel(None, **read), exact(None, bias, single=True, resize=resize), input, of)


@OF_FORMS
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf], ids=str)
def test_dropped_pixels_may_hold_anything(form: Form, poison: float) -> None:
    of = labels((2, 3, 5), 2)
    keep = kept(of)
    input = torch.where(keep.unsqueeze(1), logits(2, 1, 3, 5), poison)
    here = outcome(kernel(of_classes(form, 2), single=True), input, of, torch.where(keep, 1.0, poison))
    assert all(value.isfinite().all() for value in here.values())
    assert (here["gradient"][:, 0][~keep] == 0).all()


def test_nothing_is_hidden_or_spread() -> None:
    input = logits(1, 1, 6)
    input[0, 0, 2] = math.nan
    of = all_of(torch.arange(6, device=DEVICE).view(1, 6) % 2, 2)
    for value in outcome(kernel(None, single=True), input, of, torch.ones(1, 6, device=DEVICE)).values():
        assert value.flatten()[2].isnan()
        assert value.flatten()[[0, 1, 3, 4, 5]].isfinite().all()


def test_small_losses_are_not_cancelled() -> None:
    margin = torch.tensor([1e-3, 1.0, 8.0, 17.0, 20.0, 40.0, 86.0], device=DEVICE)
    for label in (0, 1):
        input = margin.view(-1, 1) * (2 * label - 1)
        loss, _ = kernel(None, single=True)(input, all_of(torch.full_like(margin, label).long(), 2))
        exact = torch.log1p(torch.exp(-margin.double()))
        assert ((loss.double() - exact).abs() <= exponential_error(margin) * exact).all()


@pytest.mark.parametrize("size", [None, ENLARGED], ids=["full size", "enlarged"])
def test_can_be_differentiated_twice(size: Any) -> None:
    bias = torch.tensor([0.5, -1.0], device=DEVICE)
    of, values = labels((2, *SIZE), 2), logits(2, 1, *(SIZE if size is None else (3, 4)))
    resize = None if size is None else Resize(SIZE, align_corners=False)
    direction = torch.randn_like(values)

    def second(loss: Loss, dtype: torch.dtype) -> Tensor:
        leaf = values.to(dtype).requires_grad_()
        squared = loss(leaf, of)[0].square()
        (first,) = torch.autograd.grad(squared.sum(), leaf, create_graph=True)
        return torch.autograd.grad((first * direction.to(dtype)).sum(), leaf)[0]

    read = {"bias": bias, "single": True, "resize": resize}
    got = second(kernel(Focal(1.5), **read), torch.float32)
    truth = second(exact(Focal(1.5), bias, single=True, resize=resize), torch.float64)
    torch.testing.assert_close(got.double(), truth, rtol=1e-5, atol=1e-5)


def test_nothing_of_two_logits_is_kept() -> None:
    of, input = labels((2, 30), 2), logits(2, 1, 30).requires_grad_()
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        cuda.pixel_values(Logits(input, single=True), of, CrossEntropy())
    given = {t.data_ptr() for t in (input, of.target)}
    assert sum(t.numel() for t in saved if t.data_ptr() not in given) == 2 * of.target.numel()


def test_errors_of_pairs_are_the_references() -> None:
    of, where = labels((2, 30), 2), Logits(logits(2, 1, 30), bias=torch.ones(2, device=DEVICE), single=True)
    got = cuda.error_sums(where, of, None, squared=True)
    assert torch.equal(got, reference.error_sums(where, of, None, squared=True))


def test_operators_are_well_formed() -> None:
    torch.use_deterministic_algorithms(False)  # opcheck compares runs, and NaN is not NaN
    of, input, bias = labels((2, 3, 2), 2), logits(2, 1, 2, 3).mT, torch.ones(2, device=DEVICE)
    kind, numbers, weight = parameters(CrossEntropy())
    ops = torch.ops.classbalance_losses
    args = (input, of.target, weight, -100, kind, numbers, True, bias, True)
    torch.library.opcheck(ops.cuda_pixel_forward.default, args)
    grad, norm = torch.rand(2, 3, 2, device=DEVICE), torch.zeros(2, 2, 3, 2, device=DEVICE)
    args = (grad, input, of.target, weight, norm, -100, kind, numbers, bias, True)
    torch.library.opcheck(ops.cuda_pixel_backward.default, args)


@pytest.mark.parametrize("size", [None, ENLARGED], ids=["full size", "enlarged"])
def test_compiles_whole(size: Any) -> None:
    torch.compiler.reset()
    of, leaf = labels((2, *SIZE), 2), logits(2, 1, *(SIZE if size is None else (3, 4))).requires_grad_()
    resize = None if size is None else Resize(SIZE, align_corners=False)
    bias = torch.tensor([0.5, -1.0], device=DEVICE)

    def loss(input: Tensor, target: Tensor) -> Tensor:
        where = Logits(input * 2, resize, bias, single=True)
        return cuda.pixel_values(where, Labels(target, 2, -100), Focal(2.0)).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(loss(leaf, of.target), leaf)
    assert torch.equal(torch.autograd.grad(compiled(leaf, of.target), leaf)[0], expected[0])


@pytest.mark.skipif(DEVICE == "cuda", reason="an assertion would end the process's use of the device")
def test_refuses_what_is_no_class() -> None:
    target = torch.full((1, 30), 2)
    with pytest.raises(RuntimeError, match="out of bounds for 2 classes"):
        cuda.pixel_values(Logits(logits(1, 1, 30), single=True), Labels(target, 2, -100), CrossEntropy())


def test_says_what_it_takes() -> None:
    of, bias = labels((2, 3), 2), torch.ones(2, device=DEVICE)
    assert reasons(Logits(logits(2, 1, 3), None, bias, single=True), of) == []
    assert "float64" in "; ".join(reasons(Logits(logits(2, 2, 3), None, bias.double()), of))
