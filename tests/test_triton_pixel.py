"""The cross-entropy kernels against float64, on CUDA or, without it, under Triton's interpreter."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

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
    on_cuda,
    outcome,
    plain,
    poisoned,
    with_vector,
)
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")

from classbalance_losses.kernels import cuda
from classbalance_losses.kernels.call import Labels, Logits
from classbalance_losses.kernels.cuda.common import merge, pixel_layout, reasons
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
HALVES = [torch.float16, torch.bfloat16]
FORMS: list[Form] = [
    Focal(1.0),
    Focal(2.0),
    Focal(0.5),
    Smoothed(0.1, torch.tensor([1.0, 0.0, 2.0, 0.5, 1.0])),
    Adjusted(torch.tensor([1.0, -2.0, 0.0, 30.0, -0.5])),
    DualCrossEntropy(1.0, 0.5),
    DualCrossEntropy(0.01, 2.0),
    DualFocal(0.5, 0.5, 2.0, 1.0),
    DualFocal(1.0, 1.0, 0.5, 1.0),
    DualFocal(1.0, 0.0, 0.0, 1.0),
    DualFocal(1.0, 1.0, 1.0, 1.5),
]


def cross_entropy_and_error(input: Tensor, of: Labels) -> tuple[Tensor, Tensor]:
    return cuda.cross_entropy_and_error(Logits(input), of)


def cross_entropy(input: Tensor, of: Labels) -> Tensor:
    return cuda.pixel_values(Logits(input), of, CrossEntropy())


def logits(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 3.0) -> Tensor:
    return (torch.randn(shape) * scale).to(dtype).to(DEVICE)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("num_classes", [1, 2, 3, 19, 64, 150])
def test_is_no_worse_than_eager(num_classes: int, dtype: torch.dtype) -> None:
    input, of = logits(2, num_classes, 3, 7, dtype=dtype), labels((2, 3, 7), num_classes)
    no_worse(cross_entropy_and_error, plain, input, of)


def test_many_classes() -> None:
    no_worse(cross_entropy_and_error, plain, logits(5, 515), labels((5,), 515))


@pytest.mark.parametrize(
    "shape", [(1,), (70,), (2, 131), (3, 5), (2, 5, 9), (2, 2, 3, 5), (1, 2, 3, 2, 3)], ids=str
)
def test_any_rank_and_odd_sizes(shape: tuple[int, ...]) -> None:
    no_worse(cross_entropy_and_error, plain, logits(shape[0], 5, *shape[1:]), labels(shape, 5))


def two_blocks() -> Tensor:
    return logits(2, 3, 1, 1100)


LAYOUTS: dict[str, Callable[[], Tensor]] = {
    "contiguous": lambda: logits(2, 5, 6, 7),
    "two blocks": two_blocks,
    "channels last": lambda: logits(2, 5, 6, 7).contiguous(memory_format=torch.channels_last),
    "channels last, flat": lambda: logits(300, 5),
    "cropped": lambda: logits(2, 5, 8, 11)[:, :, 1:-1, 2:-2],
    "cropped, wide": lambda: logits(2, 5, 8, 44)[:, :, 1:-1, 2:-2],
    "every second": lambda: logits(2, 5, 12, 14)[:, :, ::2, ::2],
    "classes cropped": lambda: logits(2, 9, 6, 7)[:, 2:7],
    "transposed": lambda: logits(2, 5, 7, 6).mT,
    "expanded images": lambda: logits(1, 5, 6, 7).expand(2, -1, -1, -1),
    "expanded pixels": lambda: logits(2, 5, 1, 1).expand(-1, -1, 6, 7),
    "expanded classes": lambda: logits(2, 1, 6, 7).expand(-1, 5, -1, -1),
    "3 strides": lambda: logits(2, 5, 4, 4, 6)[:, :, 1:, 1:, 1:],
    "4 strides": lambda: logits(2, 5, 3, 3, 3, 3)[:, :, 1:, 1:, 1:, 1:],
    "storage offset": lambda: logits(3, 5, 6, 7)[1:],
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_any_strides(name: str) -> None:
    input = LAYOUTS[name]()
    of = labels((input.shape[0], *input.shape[2:]), input.shape[1])
    no_worse(cross_entropy_and_error, plain, input, of)
    gradient = outcome(cross_entropy_and_error, input, of, kept(of).float())["gradient"]
    assert gradient.stride() == torch.empty_like(input).stride()


def test_targets_and_gradients_of_any_strides() -> None:
    input = logits(2, 3, 6, 4)
    of = labels((2, 4, 6), 3)
    of = of._replace(target=of.target.mT)
    no_worse(cross_entropy_and_error, plain, input, of)
    leaf = input.requires_grad_()
    (expanded,) = torch.autograd.grad(cross_entropy(leaf, of).sum(), leaf)
    (dense,) = torch.autograd.grad(cross_entropy(leaf, of), leaf, torch.ones(2, 6, 4, device=DEVICE))
    assert torch.equal(expanded, dense)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64], ids=str)
def test_any_integer_target(dtype: torch.dtype) -> None:
    input = logits(2, 200, 3, 5)
    of = labels((2, 3, 5), 120 if dtype == torch.int8 else 200, dtype)
    no_worse(cross_entropy_and_error, plain, input, of._replace(num_classes=200))


@pytest.mark.parametrize("num_classes", [4, 70])
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
def test_dropped_pixels_may_hold_anything(poison: float, num_classes: int, last: bool) -> None:
    of = labels((2, 3, 5), num_classes)
    keep = kept(of)
    input = torch.where(keep.unsqueeze(1), logits(2, num_classes, 3, 5), poison)
    if last:
        input = input.contiguous(memory_format=torch.channels_last)
    got = outcome(cross_entropy_and_error, input, of, torch.where(keep, 1.0, poison))
    for value in got.values():
        assert value.isfinite().all()
    assert (got["loss"][~keep] == 0).all()
    assert (got["error"][~keep] == 0).all()
    assert (got["gradient"].movedim(1, -1)[~keep] == 0).all()
    no_worse(cross_entropy_and_error, plain, input, of)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
def test_nothing_is_hidden_or_spread(form: Form, last: bool) -> None:
    """A NaN stays in its pixel, where it is in each entry of the gradient, too."""
    input = logits(1, 5, 2, 3)
    input[0, 2, 0, 1] = math.nan
    if last:
        input = input.contiguous(memory_format=torch.channels_last)
    of = all_of(torch.arange(6, device=DEVICE).view(1, 2, 3) % 5, 5)
    here = outcome(values_of(form), input, of, torch.ones(1, 2, 3, device=DEVICE))
    for value in (here["loss"].view(1, -1), here["gradient"].reshape(5, -1)):
        assert value[:, 1].isnan().all()
        assert value[:, [0, 2, 3, 4, 5]].isfinite().all()


@pytest.mark.parametrize("num_classes", [2, 19, 70])
def test_extreme_logits(num_classes: int) -> None:
    of = labels((2, 3, 5), num_classes)
    near = logits(2, num_classes, 3, 5) + 1e4 * (torch.rand(2, 1, 3, 5, device=DEVICE) - 0.5).sign()
    far = logits(2, num_classes, 3, 5).sign() * 1e4
    for input in (near, far):
        no_worse(cross_entropy_and_error, plain, input, of)
        loss, error = cross_entropy_and_error(input, of)
        assert (loss >= 0).all()
        assert (error >= 0).all()
        assert not loss.signbit().any()


@pytest.mark.parametrize("num_classes", [5, 70])
def test_a_class_that_is_ruled_out(num_classes: int) -> None:
    """A logit of -inf has probability 0, whichever round it is in."""
    of = labels((1, 2, 3), num_classes - 2)
    input = logits(1, num_classes, 2, 3)
    input[:, -2:] = -math.inf
    no_worse(cross_entropy_and_error, plain, input, of)
    target = torch.where(kept(of), (of.target + 40) % num_classes, of.ignore_index)
    no_worse(cross_entropy_and_error, plain, input.roll(40, 1), of._replace(target=target))


@pytest.mark.parametrize("num_classes", [2, 35])
def test_small_losses_and_errors_are_not_cancelled(num_classes: int) -> None:
    """At a margin of 17, where 1 + Σ e^−margin rounds to 1, nothing is lost yet; at 87 the number ends."""
    margin = torch.tensor([1e-3, 1.0, 8.0, 17.0, 20.0, 40.0, 86.0, 120.0], device=DEVICE)
    input = torch.zeros(8, num_classes, device=DEVICE)
    target = torch.arange(8, device=DEVICE) % num_classes
    input[torch.arange(8, device=DEVICE), target] = margin
    loss, error = cross_entropy_and_error(input, all_of(target, num_classes))
    others = (num_classes - 1) * torch.exp(-margin.double())
    exact = torch.log1p(others)
    assert ((loss.double() - exact).abs() <= exponential_error(margin) * exact)[:-1].all()
    exact = (others / (1 + others)) ** 2 * num_classes / (num_classes - 1)
    torch.testing.assert_close(error.double()[:-3], exact[:-3], rtol=1e-5, atol=0)
    assert loss[-1] == 0


@pytest.mark.parametrize("num_classes", [2, 5, 35])
def test_logits_of_minus_infinity(num_classes: int) -> None:
    """The own one: an infinite loss. All others: none. All: no number."""
    input = torch.zeros(3, num_classes, device=DEVICE)
    input[0, 1] = input[1] = input[2] = -math.inf
    input[1, 1] = 5
    of = all_of(torch.ones(3, dtype=torch.int64, device=DEVICE), num_classes)
    leaf = input.requires_grad_()
    loss, error = cross_entropy_and_error(leaf, of)
    assert loss[0] == math.inf
    assert error[0].item() == pytest.approx(1 + 1 / (num_classes - 1))
    assert loss[1] == error[1] == 0
    assert loss[2].isnan()
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    assert gradient[:2].isfinite().all()
    assert gradient[2].isnan().all()


@pytest.mark.parametrize("shape", [(0, 4, 4), (2, 0, 3), (0,)], ids=str)
def test_no_pixels(shape: tuple[int, ...]) -> None:
    no_worse(cross_entropy_and_error, plain, logits(shape[0], 3, *shape[1:]), labels(shape, 3))


def moved(form: Form) -> Form:
    return with_vector(form, lambda vector: vector.to(DEVICE))


def values_of(form: Form) -> Loss:
    return lambda x, of: (cuda.pixel_values(Logits(x), of, moved(form)), None)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("name", ["contiguous", "channels last"])
def test_forms_are_no_worse_than_the_reference(form: Form, name: str) -> None:
    """At probabilities that are alike, and that are 0 and 1."""
    input = LAYOUTS[name]()
    scale = torch.tensor([0.1, 1.0, 10.0, 40.0, 1.0, 10.0, 40.0], device=DEVICE)
    no_worse(values_of(form), by_reference(form), input * scale, labels((2, 6, 7), 5))


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_forms_of_half_logits_and_few_or_many_classes(form: Form) -> None:
    for num_classes, dtype in ((2, torch.float16), (37, torch.bfloat16), (1, torch.float32)):
        form = with_vector(form, lambda vector, number=num_classes: torch.linspace(0, 2, number))  # type: ignore[misc]
        input, of = logits(2, num_classes, 3, 5, dtype=dtype), labels((2, 3, 5), num_classes)
        no_worse(values_of(form), by_reference(form), input, of)


@pytest.mark.parametrize(
    "form",
    [
        Focal(0.5),
        Focal(1.0),
        Focal(2.0),
        Focal(3.5),
        Adjusted(torch.tensor([0.0, -3.0])),
        Adjusted(torch.zeros(2)),
    ],
    ids=str,
)
def test_digits_of_what_is_small_are_kept(form: Form) -> None:
    """Value and the other class's slope, of losses from 10⁻³⁰ to 10⁴, relative to themselves."""
    margin = torch.tensor([69.0, 30, 17, 8, 3, 1, 0, -1, -5, -20, -99, -1e4], device=DEVICE)
    input = torch.stack([margin, torch.zeros_like(margin)], 1)
    of = all_of(torch.zeros(12, dtype=torch.int64, device=DEVICE), 2)
    ones = torch.ones(12, device=DEVICE)
    got = outcome(values_of(form), input, of, ones)
    truth = outcome(by_reference(form), input.double(), of, ones.double())
    torch.testing.assert_close(got["loss"].double(), truth["loss"], rtol=1e-5, atol=1e-37)
    other, exact = got["gradient"][:, 1].double(), truth["gradient"][:, 1]
    torch.testing.assert_close(other, exact, rtol=1e-5, atol=1e-37)


@pytest.mark.parametrize("form", [DualFocal(0.5, 0.5, 2.0, 1.0), DualFocal(1.0, 1.0, 0.5, 1.0)], ids=str)
def test_dual_focal_is_finite_where_a_probability_is_1(form: DualFocal) -> None:
    """Of a sure label, and of a sure mistake: 1 − p is the sum of the others, down to e^-200."""
    for of_label in (0, 1):
        for margin in (1.0, 5.0, 20.0, 60.0, 200.0):
            input = torch.tensor([[margin, 0.0, -1.0]], device=DEVICE)
            of = all_of(torch.tensor([of_label], device=DEVICE), 3)
            ones = torch.ones(1, device=DEVICE)
            got = outcome(values_of(form), input, of, ones)
            truth = outcome(by_reference(form), input.double(), of, ones.double())
            for name, value in truth.items():
                torch.testing.assert_close(got[name].double(), value, rtol=1e-5, atol=2e-7)


def test_the_error_has_no_gradient() -> None:
    loss, error = cross_entropy_and_error(logits(2, 3, 3).requires_grad_(), labels((2, 3), 3))
    assert loss.requires_grad
    assert not error.requires_grad


@pytest.mark.parametrize(("form", "numbers"), [(CrossEntropy(), 2), (Focal(2.0), 3), (FORMS[-1], 2)], ids=str)
def test_saves_the_inputs_and_few_numbers_a_pixel(form: Form, numbers: int) -> None:
    of = labels((2, 3), 5)
    input = logits(2, 5, 3).requires_grad_()
    given = {t.data_ptr() for t in (input, of.target)}
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        cuda.pixel_values(Logits(input), of, form)
    assert sum(t.numel() for t in saved if t.data_ptr() not in given) == numbers * of.target.numel()


@pytest.mark.parametrize("form", [CrossEntropy(), Focal(1.5), DualFocal(0.5, 0.5, 2.0, 1.0)], ids=str)
def test_can_be_differentiated_twice(form: Form) -> None:
    of = labels((2, 4), 3)
    values, direction = logits(2, 3, 4), logits(2, 3, 4)

    def second(loss: Loss, dtype: torch.dtype) -> Tensor:
        leaf = values.to(dtype).requires_grad_()
        squared = loss(leaf, of)[0].square()
        (first,) = torch.autograd.grad(squared.sum(), leaf, create_graph=True)
        return torch.autograd.grad((first * direction.to(dtype)).sum(), leaf)[0]

    got = second(values_of(form), torch.float32)
    torch.testing.assert_close(got.double(), second(by_reference(form), torch.float64), rtol=1e-5, atol=1e-5)


def test_batched_gradients() -> None:
    """What ``is_grads_batched`` asks in one go, the reference computes."""
    of, leaf = labels((2, 4), 3), logits(2, 3, 4).requires_grad_()
    loss = cross_entropy(leaf, of)
    several = torch.rand(3, *loss.shape, device=DEVICE)
    (batched,) = torch.autograd.grad(loss, leaf, several, is_grads_batched=True, retain_graph=True)
    for grad, gradient in zip(several, batched, strict=True):
        torch.testing.assert_close(torch.autograd.grad(loss, leaf, grad, retain_graph=True)[0], gradient)


@pytest.mark.skipif(DEVICE == "cuda", reason="an assertion would end the process's use of the device")
@pytest.mark.parametrize("wrong", [3, -1, -101, 1 << 32, (1 << 32) - 100, -(1 << 40)])
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
def test_refuses_what_is_no_class(wrong: int, last: bool) -> None:
    input, of = logits(1, 3, 20, 30), labels((1, 20, 30), 3)
    if last:
        input = input.contiguous(memory_format=torch.channels_last)
    cross_entropy(input, of)
    of.target[0, 13, 17] = wrong
    with pytest.raises(RuntimeError, match="out of bounds for 3 classes"):
        cross_entropy(input, of)


def test_compares_numbers_and_not_their_bytes() -> None:
    """156 has the byte of -100, and as a class it counts."""
    target = torch.full((2, 3), 156, dtype=torch.uint8, device=DEVICE)
    assert (cross_entropy(logits(2, 200, 3), Labels(target, 200, -100)) > 0).all()


@pytest.mark.parametrize("form", [CrossEntropy(), Focal(2.0), FORMS[3]], ids=str)
def test_operators_are_well_formed(form: Form) -> None:
    torch.use_deterministic_algorithms(False)  # opcheck compares runs, and NaN is not NaN
    of, input = labels((2, 3, 2), 5), logits(2, 5, 2, 3).mT
    kind, numbers, weight = parameters(moved(form))
    args = (input, of.target, weight, -100, kind, numbers)
    torch.library.opcheck(torch.ops.classbalance_losses.cuda_pixel_forward.default, (*args, kind == "focal"))
    norm = torch.zeros(3, 2, 3, 2, device=DEVICE)
    args = (torch.rand(2, 3, 2, device=DEVICE), input, of.target, weight, norm, -100, kind, numbers)
    torch.library.opcheck(torch.ops.classbalance_losses.cuda_pixel_backward.default, args)


@pytest.mark.parametrize("form", [None, Focal(2.0), FORMS[-1]], ids=str)
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_whole(dynamic: bool, form: Form | None) -> None:
    torch.compiler.reset()

    def loss(input: Tensor, target: Tensor) -> Tensor:
        of = Labels(target, 5, -100)
        if form is not None:
            return cuda.pixel_values(Logits(input * 2), of, moved(form)).sum()
        value, error = cross_entropy_and_error(input * 2, of)
        return (value * error).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for width in (3, 7) if dynamic else (3,):
        target = labels((2, width), 5).target
        leaf = logits(2, 5, width).requires_grad_()
        expected = torch.autograd.grad(loss(leaf, target), leaf)
        assert torch.equal(torch.autograd.grad(compiled(leaf, target), leaf)[0], expected[0])


def test_repeats_to_the_last_bit() -> None:
    args = (logits(2, 19, 40), labels((2, 40), 19), torch.rand(2, 40, device=DEVICE))
    first, second = (outcome(cross_entropy_and_error, *args) for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name])


def test_says_what_it_cannot_take() -> None:
    def of(input: Tensor, target: Tensor) -> str:
        return "; ".join(reasons(Logits(input), Labels(target, 4, -100)))

    target = torch.zeros(2, 3, dtype=torch.int64, device=DEVICE)
    assert reasons(Logits(logits(2, 4, 3)), Labels(target, 4, -100)) == []
    assert reasons(None, Labels(target, 4, -100)) == []
    assert "float64" in of(logits(2, 4, 3).double(), target)
    assert "float32" in of(logits(2, 4, 3), target.float())
    assert "(N, C, *)" in of(logits(4), target)
    assert "the labels on" in of(torch.zeros(2, 4, 3, device="meta"), target)


def test_says_that_it_needs_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("classbalance_losses.kernels.cuda.common.INTERPRETED", False)
    here = Labels(torch.zeros(2, 3, dtype=torch.int64), 4, -100)
    assert any("not on CUDA" in reason for reason in reasons(None, here))


@pytest.mark.parametrize(
    ("shape", "strides", "expected"),
    [
        ((2, 3, 4), [(12, 4, 1)], [(24, (1,))]),
        ((2, 3, 4), [(24, 4, 1)], [(2, (24,)), (12, (1,))]),
        ((2, 3, 4), [(24, 8, 2), (12, 4, 1)], [(24, (2, 1))]),
        ((2, 3, 4), [(24, 8, 2), (16, 4, 1)], [(2, (24, 16)), (12, (2, 1))]),
        ((1, 1), [(5, 7)], [(1, (0,))]),
        ((3, 1, 4), [(0, 9, 0)], [(12, (0,))]),
    ],
)
def test_merges_what_lies_together(
    shape: tuple[int, ...], strides: list[tuple[int, ...]], expected: list[tuple[int, tuple[int, ...]]]
) -> None:
    pairs = merge(shape, strides)
    assert pairs == expected
    for i, steps in enumerate(strides):
        assert _addresses(shape, steps) == _addresses([n for n, _ in pairs], [s[i] for _, s in pairs])


def _addresses(shape: tuple[int, ...] | list[int], strides: tuple[int, ...] | list[int]) -> list[int]:
    ranges = (range(size) for size in shape)
    return [sum(a * s for a, s in zip(at, strides, strict=True)) for at in itertools.product(*ranges)]


def test_a_contiguous_map_is_one_stretch_an_image() -> None:
    logits = torch.empty(2, 5, 6, 7)
    assert pixel_layout(logits.shape, logits.stride()) == (2, 42, 42, ((210, 0, 1),))
    logits = logits.contiguous(memory_format=torch.channels_last)
    assert pixel_layout(logits.shape, logits.stride()) == (1, 84, 84, ((0, 0, 5),))
    logits = torch.empty(2, 5, 60, 70)[:, :, 1:-1, 1:-1]
    assert pixel_layout(logits.shape, logits.stride()) == (2, 58 * 68, 68, ((21000, 70, 1),))


@on_cuda
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_neither_synchronises_nor_minds_capture() -> None:
    of = labels((2, 40), 19)
    leaf = logits(2, 19, 40).requires_grad_()
    other = logits(2, 19, 40)

    def step() -> tuple[Tensor, Tensor]:
        loss, error = cross_entropy_and_error(leaf, of)
        return torch.autograd.grad(loss.sum(), leaf)[0], error

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
    for got, expected in zip(captured, step(), strict=True):
        assert torch.equal(got, expected)


@on_cuda
@pytest.mark.slow
def test_offsets_are_64_bits_wide() -> None:
    if torch.cuda.mem_get_info()[0] < 40 << 30:
        pytest.skip("needs 40 GiB of device memory")
    torch.use_deterministic_algorithms(False)
    pixels = (1 << 30) + 5
    input = torch.zeros(1, 3, pixels, dtype=torch.bfloat16, device=DEVICE)
    input[0, 2, -5:] = 4
    target = torch.full((1, pixels), 2, dtype=torch.uint8, device=DEVICE)
    leaf = input.requires_grad_()
    loss = cross_entropy(leaf, all_of(target, 3))
    assert loss[0, -1].item() == pytest.approx(math.log1p(2 * math.exp(-4)), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss[0, -5:].sum(), leaf)
    assert gradient[0, 2, -1].item() == pytest.approx(-2 / (math.exp(4) + 2), rel=1e-2)
    assert (gradient[:, :, :-5] == 0).all()
