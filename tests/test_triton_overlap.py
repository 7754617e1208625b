"""Overlap sums of the kernels, alone and with a form, against the reference in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from kernel_checks import DEVICE, all_of, kept, labels, marks, poisoned, with_vector
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")

from classbalance_losses.kernels import cuda, reference
from classbalance_losses.kernels.call import Labels, Logits, Pass, Resize
from classbalance_losses.kernels.cuda.common import image_layout
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
EPS = torch.finfo(torch.float32).eps


def logits(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(shape) * 3).to(dtype).to(DEVICE)


def results(found: Pass) -> list[Tensor]:
    """What has a gradient."""
    return [*found.overlap, *(values for values in (found.value, found.other) if values is not None)]


def outcome(
    values_and_overlap: Callable[..., Pass],
    where: Logits,
    of: Labels,
    *how: Any,
    grads: Any = None,
    **more: Any,
) -> dict[str, Tensor]:
    """P, I, the maps and the gradient in the logits, given those of what has one, of which some may be None."""
    leaf = where.input.detach().requires_grad_()
    found = values_and_overlap(where._replace(input=leaf), of, *how, **more)
    named = {
        "P": found.overlap.probability,
        "I": found.overlap.own,
        "value": found.value,
        "error": found.error,
        "other": found.other,
    }
    got = {name: value for name, value in named.items() if value is not None}
    pairs = [
        (value, grad.to(value))
        for value, grad in zip(results(found), grads, strict=False)
        if grad is not None
    ]
    (gradient,) = torch.autograd.grad([p[0] for p in pairs], leaf, [p[1] for p in pairs])
    return {name: value.detach() for name, value in got.items()} | {"gradient": gradient}


def check(
    where: Logits,
    of: Labels,
    form: Form | None = None,
    weight: Tensor | None = None,
    *,
    without: Sequence[int] = (),
    with_error: bool = False,
    other: Form | None = None,
) -> dict[str, Tensor]:
    """The kernels are as near to the reference in float64 as the reference in the logits' own dtype is."""
    table = where.input.shape[0], of.num_classes
    shapes = table, table, of.target.shape, of.target.shape
    grads = [
        None if i in without else torch.rand(shape, device=DEVICE) - 0.3 for i, shape in enumerate(shapes)
    ]
    wide = where._replace(
        input=where.input.double(), bias=None if where.bias is None else where.bias.double()
    )
    how = {"grads": grads, "with_error": with_error, "other": other}
    truth = outcome(reference.values_and_overlap, wide, of, form, weight, **how)
    eager = outcome(reference.values_and_overlap, where, of, form, weight, **how)
    ours = outcome(cuda.values_and_overlap, where, of, form, weight, **how)
    assert ours.keys() == truth.keys()
    assert ours["gradient"].dtype == where.input.dtype
    assert ours["gradient"].stride() == torch.empty_like(where.input).stride()
    for name, exact in truth.items():
        assert ours[name].shape == exact.shape
        if not exact.numel():
            continue
        scale = max(1.0, exact.abs().max().item())
        slack = (16 if name in "PI" else 4) * EPS * scale
        if DEVICE == "cpu" and name == "gradient" and where.input.dtype == torch.bfloat16:
            slack += torch.finfo(torch.bfloat16).eps / 2 * scale  # the interpreter cuts what a device rounds
        off, theirs = ((value[name].double() - exact).abs().max().item() for value in (ours, eager))
        assert off <= 1.25 * theirs + slack, f"{name}: off by {off:.3g}, eager by {theirs:.3g}"
    return ours


def poison(of: Labels, clean: Tensor, dirt: float) -> Tensor:
    return torch.where(kept(of).unsqueeze(1), clean, dirt)


@pytest.mark.parametrize(
    "form", [None, CrossEntropy(), Focal(2.0), Focal(1.5), DualCrossEntropy(1.0, 0.5)], ids=str
)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_sums_and_values(form: Form | None, weighted: bool) -> None:
    of = labels((2, 6, 7), 5)
    weight = torch.rand(2, 6, 7, device=DEVICE) if weighted else None
    check(Logits(logits(2, 5, 6, 7)), of, form, weight)


OTHERS = [
    Smoothed(0.1, torch.tensor([1.0, 0.5, 2.0, 0.0, 1.0], device=DEVICE)),
    Adjusted(torch.tensor([1.0, 0.5, -2.0, 0.0, 1.0], device=DEVICE)),
    DualCrossEntropy(0.5, 2.0),
    DualFocal(0.5, 0.5, 2.0, 1.0),
]


@pytest.mark.parametrize("other", OTHERS, ids=lambda form: type(form).__name__)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
def test_a_form_of_all_probabilities_as_well(other: Form, last: bool) -> None:
    """Beside ℓ and the error, beside neither, and with gradients for some of them alone."""
    of, weight = labels((2, 6, 7), 5), torch.rand(2, 6, 7, device=DEVICE)
    input = logits(2, 5, 6, 7)
    where = Logits(input.contiguous(memory_format=torch.channels_last) if last else input)
    check(where, of, None, weight, with_error=True, other=other)
    check(where, of, None, other=other)
    for without in ((0, 1), (0, 1, 2), (0, 1, 3), (2,), (3,)):
        check(where, of, CrossEntropy(), weight, other=other, without=without)
    bias = torch.tensor([0.5, -1.0], device=DEVICE)
    single = Logits(logits(2, 1, 6, 7), None, bias, single=True)
    of_two = with_vector(other, lambda vector: vector[:2].contiguous())
    check(single, labels((2, 6, 7), 2), CrossEntropy(), weight, other=of_two)


def test_the_error_as_well() -> None:
    check(Logits(logits(2, 5, 6, 7)), labels((2, 6, 7), 5), None, with_error=True)
    check(Logits(logits(2, 5, 6, 7)), labels((2, 6, 7), 5), CrossEntropy(), with_error=True)


@pytest.mark.parametrize(("num_classes", "dtype"), [
    (1, torch.float32), (2, torch.float16), (4, torch.bfloat16), (7, torch.float16), (37, torch.float32),
])  # fmt: skip
def test_few_and_many_classes(num_classes: int, dtype: torch.dtype) -> None:
    weight = torch.rand(2, 3, 5, device=DEVICE).to(dtype)
    check(
        Logits(logits(2, num_classes, 3, 5, dtype=dtype)),
        labels((2, 3, 5), num_classes),
        CrossEntropy(),
        weight,
    )


LAYOUTS: dict[str, Callable[[], Tensor]] = {
    "several parts": lambda: logits(2, 3, 1, 600),
    "flat": lambda: logits(40, 5),
    "channels last": lambda: logits(2, 5, 20, 21).contiguous(memory_format=torch.channels_last),
    "cropped": lambda: logits(2, 5, 8, 11)[:, :, 1:-1, 2:-2],
    "transposed": lambda: logits(2, 5, 7, 6).mT,
    "expanded images": lambda: logits(1, 5, 6, 7).expand(2, -1, -1, -1),
    "3 strides": lambda: logits(2, 5, 4, 4, 6)[:, :, 1:, 1:, 1:],
    "no images": lambda: logits(0, 3, 4),
    "no pixels": lambda: logits(2, 3, 0, 4),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_any_strides(name: str) -> None:
    input = LAYOUTS[name]()
    of = labels((input.shape[0], *input.shape[2:]), input.shape[1])
    check(Logits(input), of, Focal(2.0), torch.rand(of.target.shape, device=DEVICE))


@pytest.mark.parametrize("form", [None, Focal(1.0)], ids=str)
def test_one_logit_and_biases(form: Form | None) -> None:
    bias = torch.tensor([0.5, -1.0], device=DEVICE)
    of, weight = labels((2, 6, 7), 2), torch.rand(2, 6, 7, device=DEVICE)
    check(Logits(logits(2, 1, 6, 7), None, bias, single=True), of, form, weight)
    check(Logits(logits(2, 1, 6, 7), single=True), of, form)
    ruled_out = torch.tensor([1.0, 0.0, -math.inf], device=DEVICE)
    check(Logits(logits(2, 3, 6, 7), None, ruled_out), of._replace(num_classes=3), form)


def test_enlarged() -> None:
    of, resize = labels((2, 6, 7), 3), Resize((6, 7), align_corners=False)
    torch.use_deterministic_algorithms(False)  # torch's own gradient of the enlargement is not, on a device
    check(Logits(logits(2, 3, 4, 5), resize), of, CrossEntropy())


@pytest.mark.parametrize("without", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)], ids=str)
def test_gradients_may_be_absent(without: Sequence[int]) -> None:
    check(Logits(logits(2, 5, 6, 7)), labels((2, 6, 7), 5), Focal(2.0), without=without)


@pytest.mark.parametrize("dirt", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
def test_dropped_pixels_may_hold_anything(dirt: float, last: bool) -> None:
    """Logits, weights, and the gradients of their images' sums."""
    of = labels((2, 3, 5), 6)
    input = poison(of, logits(2, 6, 3, 5), dirt)
    if last:
        input = input.contiguous(memory_format=torch.channels_last)
    weight = torch.where(kept(of), torch.rand(2, 3, 5, device=DEVICE), dirt)
    found = check(Logits(input), of, Focal(2.0), weight)
    assert all(value.isfinite().all() for value in found.values())
    grads = [torch.full((2, 6), dirt, device=DEVICE), None, None]
    spread = outcome(cuda.values_and_overlap, Logits(input), of, None, weight, grads=grads)["gradient"]
    assert (spread.movedim(1, -1)[~kept(of)] == 0).all()


def test_nothing_is_hidden_or_spread() -> None:
    """A NaN is in all P of its image, in its class's I, and in its pixel's gradient; a weight of 0 does not hide it."""
    input, weight = logits(2, 5, 6), torch.ones(2, 6, device=DEVICE)
    input[1, 2, 3], weight[1, 3] = math.nan, 0.0
    of = all_of((torch.arange(12, device=DEVICE) % 5).view(2, 6), 5)
    grads = [torch.ones(2, 5, device=DEVICE)] * 2
    found = outcome(cuda.values_and_overlap, Logits(input), of, None, weight, grads=grads)
    assert found["P"].isnan().tolist() == [[False] * 5, [True] * 5]
    own = of.target[1, 3].item()
    assert found["I"].isnan().tolist() == [[False] * 5, [k == own for k in range(5)]]
    assert found["gradient"][1, :, 3].isnan().all()
    assert found["gradient"].isnan().sum() == 5


def test_infinite_logits() -> None:
    """A class that is ruled out has no part; an infinite loss has a finite gradient, and none by a weight of 0."""
    input = torch.zeros(1, 3, 2, device=DEVICE)
    input[0, 1] = -math.inf
    of = all_of(torch.tensor([[1, 0]], device=DEVICE), 3)
    grads = [torch.rand(1, 3), torch.rand(1, 3), torch.ones(1, 2)]
    weight = torch.tensor([[0.0, 1.0]], device=DEVICE)
    found = outcome(cuda.values_and_overlap, Logits(input), of, CrossEntropy(), weight, grads=grads)
    truth = outcome(reference.values_and_overlap, Logits(input), of, CrossEntropy(), weight, grads=grads)
    for name, value in truth.items():
        torch.testing.assert_close(found[name], value)


def scalar(found: Pass) -> Tensor:
    return sum((value.square().sum() for value in results(found)), torch.zeros((), device=DEVICE))


def test_can_be_differentiated_twice() -> None:
    of, values, weight = labels((2, 4), 3), logits(2, 3, 4), torch.rand(2, 4, device=DEVICE)
    direction = torch.randn_like(values)

    def second(
        values_and_overlap: Callable[..., Pass], dtype: torch.dtype, form: Form | None, other: Form | None
    ) -> Tensor:
        leaf = values.to(dtype).requires_grad_()
        total = scalar(values_and_overlap(Logits(leaf), of, form, weight, other=other))
        (first,) = torch.autograd.grad(total, leaf, create_graph=True)
        return torch.autograd.grad((first * direction.to(dtype)).sum(), leaf)[0]

    dual = DualCrossEntropy(1.0, 0.5)
    for forms in ((None, None), (Focal(1.5), None), (dual, None), (CrossEntropy(), dual)):
        got = second(cuda.values_and_overlap, torch.float32, *forms)
        truth = second(reference.values_and_overlap, torch.float64, *forms)
        torch.testing.assert_close(got.double(), truth, rtol=1e-5, atol=1e-5)


def test_batched_gradients() -> None:
    of, leaf = labels((2, 4), 3), logits(2, 3, 4).requires_grad_()
    probability = cuda.values_and_overlap(Logits(leaf), of, None, None).overlap.probability
    several = torch.rand(3, 2, 3, device=DEVICE)
    (batched,) = torch.autograd.grad(probability, leaf, several, is_grads_batched=True, retain_graph=True)
    for grad, gradient in zip(several, batched, strict=True):
        (alone,) = torch.autograd.grad(probability, leaf, grad, retain_graph=True)
        torch.testing.assert_close(alone, gradient)


@pytest.mark.parametrize("form", [None, Focal(2.0)], ids=str)
def test_keeps_maps_alone(form: Form | None) -> None:
    of, input = labels((2, 30), 5), logits(2, 5, 30).requires_grad_()
    given = {t.data_ptr() for t in (input, of.target)}
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        found = cuda.values_and_overlap(Logits(input), of, form, None)
    assert (found.value is None) == (form is None)
    numbers = sum(t.numel() for t in saved if t.data_ptr() not in given)
    assert numbers == (2 if form is None else 3) * of.target.numel()


def test_operators_are_well_formed() -> None:
    torch.use_deterministic_algorithms(False)  # opcheck compares runs, and NaN is not NaN
    of, input = labels((2, 3, 2), 5), logits(2, 5, 2, 3).mT
    ops, weight = torch.ops.classbalance_losses, torch.rand(2, 3, 2, device=DEVICE)
    form, nothing = ("dual cross entropy", [1.0, 0.5], None), ("", [], None)
    args = (input, of.target, weight, -100, "focal", [2.0], False, None, False, *nothing, True)
    torch.library.opcheck(ops.cuda_overlap_forward.default, args)
    args = (input, of.target, weight, -100, "cross entropy", [], True, None, False, *form, False)
    torch.library.opcheck(ops.cuda_overlap_forward.default, args)
    norm, table = torch.zeros(2, 2, 3, 2, device=DEVICE), torch.rand(2, 5, device=DEVICE)
    args = (table, None, None, input, of.target, weight, norm, -100, "", None, False, norm[0], *form)
    torch.library.opcheck(ops.cuda_overlap_backward.default, args)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_whole(dynamic: bool) -> None:
    torch.compiler.reset()

    def loss(input: Tensor, target: Tensor) -> Tensor:
        found = cuda.values_and_overlap(Logits(input * 2), Labels(target, 5, -100), Focal(2.0), None)
        assert found.value is not None
        return (found.overlap.own / found.overlap.probability).sum() + found.value.sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for width in (3, 7) if dynamic else (3,):
        target = labels((2, width), 5).target
        leaf = logits(2, 5, width).requires_grad_()
        expected = torch.autograd.grad(loss(leaf, target), leaf)
        assert torch.equal(torch.autograd.grad(compiled(leaf, target), leaf)[0], expected[0])


def test_repeats_to_the_last_bit() -> None:
    where, of = Logits(logits(2, 5, 700)), labels((2, 700), 5)
    grads = [torch.rand(2, 5, device=DEVICE)] * 2
    first, second = (outcome(cuda.values_and_overlap, where, of, None, None, grads=grads) for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name])


@pytest.mark.skipif(DEVICE == "cuda", reason="an assertion would end the process's use of the device")
def test_refuses_what_is_no_class() -> None:
    with pytest.raises(RuntimeError, match="out of bounds for 3 classes"):
        cuda.values_and_overlap(Logits(logits(1, 3, 5)), Labels(torch.full((1, 5), 3), 3, -100), None, None)


def test_an_image_is_a_stretch() -> None:
    input = torch.empty(2, 5, 6, 7)
    assert image_layout(input.shape, input.stride()) == (2, 42, 42, ((210, 0, 1),))
    input = input.contiguous(memory_format=torch.channels_last)
    assert image_layout(input.shape, input.stride()) == (2, 42, 42, ((210, 0, 5),))
    input = torch.empty(2, 1, 6, 7)
    assert image_layout(input.shape, input.stride()) == (2, 42, 42, ((42, 0, 1),))
    input = torch.empty(2, 5, 60, 70)[:, :, 1:-1, 1:-1]
    assert image_layout(input.shape, input.stride()) == (2, 58 * 68, 68, ((21000, 70, 1),))
    input = torch.empty(2, 5, 4, 4, 6)[:, :, 1:, 1:, 1:]
    assert image_layout(input.shape, input.stride()) is None
