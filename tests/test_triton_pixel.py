"""The cross-entropy kernels against float64, on CUDA or, without it, under Triton's interpreter."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from kernel_checks import DEVICE, labels, marks, no_worse, on_cuda, outcome, plain, poisoned
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")

from classbalance_losses.kernels.triton_common import merge, pixel_layout
from classbalance_losses.kernels.triton_pixel import cross_entropy, cross_entropy_and_error, unsupported

__all__ = ["poisoned"]
pytestmark = marks
HALVES = [torch.float16, torch.bfloat16]


def logits(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 3.0) -> Tensor:
    return (torch.randn(shape) * scale).to(dtype).to(DEVICE)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("num_classes", [1, 2, 3, 19, 64, 150])
def test_is_no_worse_than_eager(num_classes: int, dtype: torch.dtype) -> None:
    target, keep = labels((2, 3, 7), num_classes)
    no_worse(cross_entropy_and_error, plain, logits(2, num_classes, 3, 7, dtype=dtype), target, keep)


def test_many_classes() -> None:
    no_worse(cross_entropy_and_error, plain, logits(5, 515), *labels((5,), 515))


@pytest.mark.parametrize(
    "shape", [(1,), (70,), (2, 131), (3, 5), (2, 5, 9), (2, 2, 3, 5), (1, 2, 3, 2, 3)], ids=str
)
def test_any_rank_and_odd_sizes(shape: tuple[int, ...]) -> None:
    target, keep = labels(shape, 5)
    no_worse(cross_entropy_and_error, plain, logits(shape[0], 5, *shape[1:]), target, keep)


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
    target, keep = labels((input.shape[0], *input.shape[2:]), 5 if input.shape[1] == 5 else 3)
    no_worse(cross_entropy_and_error, plain, input, target, keep)
    gradient = outcome(cross_entropy_and_error, input, target, keep, keep.float())["gradient"]
    assert gradient.stride() == torch.empty_like(input).stride()


def test_targets_and_gradients_of_any_strides() -> None:
    input = logits(2, 3, 6, 4)
    target, keep = (t.mT for t in labels((2, 4, 6), 3))
    no_worse(cross_entropy_and_error, plain, input, target, keep)
    leaf = input.requires_grad_()
    (expanded,) = torch.autograd.grad(cross_entropy(leaf, target, keep).sum(), leaf)
    (dense,) = torch.autograd.grad(
        cross_entropy(leaf, target, keep), leaf, torch.ones(2, 6, 4, device=DEVICE)
    )
    assert torch.equal(expanded, dense)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64], ids=str)
def test_any_integer_target(dtype: torch.dtype) -> None:
    input = logits(2, 200, 3, 5)
    target, keep = labels((2, 3, 5), 200, dtype)
    no_worse(cross_entropy_and_error, plain, input, target, keep)


@pytest.mark.parametrize("num_classes", [4, 70])
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf], ids=str)
def test_dropped_pixels_may_hold_anything(poison: float, num_classes: int) -> None:
    target, keep = labels((2, 3, 5), num_classes)
    input = torch.where(keep.unsqueeze(1), logits(2, num_classes, 3, 5), poison)
    grad = torch.where(keep, 1.0, poison)
    got = outcome(cross_entropy_and_error, input, target, keep, grad)
    for value in got.values():
        assert value.isfinite().all()
    assert (got["loss"][~keep] == 0).all()
    assert (got["error"][~keep] == 0).all()
    assert (got["gradient"].movedim(1, -1)[~keep] == 0).all()
    no_worse(cross_entropy_and_error, plain, input, target, keep)


@pytest.mark.parametrize("num_classes", [2, 19, 70])
def test_extreme_logits(num_classes: int) -> None:
    target, keep = labels((2, 3, 5), num_classes)
    near = logits(2, num_classes, 3, 5) + 1e4 * (torch.rand(2, 1, 3, 5, device=DEVICE) - 0.5).sign()
    far = logits(2, num_classes, 3, 5).sign() * 1e4
    for input in (near, far):
        no_worse(cross_entropy_and_error, plain, input, target, keep)
        loss, error = cross_entropy_and_error(input, target, keep)
        assert (loss >= 0).all()
        assert (error >= 0).all()
        assert not loss.signbit().any()


@pytest.mark.parametrize("num_classes", [5, 70])
def test_a_class_that_is_ruled_out(num_classes: int) -> None:
    """A logit of -inf has probability 0, whichever round it is in."""
    target, keep = labels((1, 2, 3), num_classes - 2)
    input = logits(1, num_classes, 2, 3)
    input[:, -2:] = -math.inf
    no_worse(cross_entropy_and_error, plain, input, target, keep)
    input = input.roll(40, 1)
    no_worse(cross_entropy_and_error, plain, input, (target + 40) % num_classes, keep)


@pytest.mark.parametrize("num_classes", [2, 35])
def test_small_losses_and_errors_are_not_cancelled(num_classes: int) -> None:
    """At a margin of 17, where 1 + Σ e^−margin rounds to 1, nothing is lost yet; at 87 the number ends."""
    margin = torch.tensor([1e-3, 1.0, 8.0, 17.0, 20.0, 40.0, 86.0, 120.0], device=DEVICE)
    input = torch.zeros(8, num_classes, device=DEVICE)
    target = torch.arange(8, device=DEVICE) % num_classes
    input[torch.arange(8, device=DEVICE), target] = margin
    loss, error = cross_entropy_and_error(input, target, _kept(8))
    others = (num_classes - 1) * torch.exp(-margin.double())
    exact = torch.log1p(others)
    torch.testing.assert_close(loss.double()[:-1], exact[:-1], rtol=1e-5, atol=0)
    exact = (others / (1 + others)) ** 2 * num_classes / (num_classes - 1)
    torch.testing.assert_close(error.double()[:-3], exact[:-3], rtol=1e-5, atol=0)
    assert loss[-1] == 0


@pytest.mark.parametrize("num_classes", [2, 5, 35])
def test_logits_of_minus_infinity(num_classes: int) -> None:
    """The own one: an infinite loss. All others: none. All: no number."""
    input = torch.zeros(3, num_classes, device=DEVICE)
    input[0, 1] = input[1] = input[2] = -math.inf
    input[1, 1] = 5
    target = torch.ones(3, dtype=torch.int64, device=DEVICE)
    loss, error = cross_entropy_and_error(input, target, _kept(3))
    assert loss[0] == math.inf
    assert error[0].item() == pytest.approx(1 + 1 / (num_classes - 1))
    assert loss[1] == error[1] == 0
    assert loss[2].isnan()


def _kept(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.bool, device=DEVICE)


@pytest.mark.parametrize("shape", [(0, 4, 4), (2, 0, 3), (0,)], ids=str)
def test_no_pixels(shape: tuple[int, ...]) -> None:
    target, keep = labels(shape, 3)
    no_worse(cross_entropy_and_error, plain, logits(shape[0], 3, *shape[1:]), target, keep)


def test_the_error_has_no_gradient() -> None:
    target, keep = labels((2, 3), 3)
    loss, error = cross_entropy_and_error(logits(2, 3, 3).requires_grad_(), target, keep)
    assert loss.requires_grad
    assert not error.requires_grad


@pytest.mark.parametrize("num_classes", [5, 70])
def test_saves_the_inputs_and_two_numbers_a_pixel(num_classes: int) -> None:
    target, keep = labels((2, 3), num_classes)
    input = logits(2, num_classes, 3).requires_grad_()
    given = {t.data_ptr() for t in (input, target, keep)}
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        cross_entropy(input, target, keep)
    assert sum(t.numel() for t in saved if t.data_ptr() not in given) == 2 * target.numel()


@pytest.mark.parametrize("num_classes", [3, 70])
def test_can_be_differentiated_twice(num_classes: int) -> None:
    target, keep = labels((2, 4), num_classes)
    values, direction = logits(2, num_classes, 4), logits(2, num_classes, 4)

    def second(loss: Callable[..., Tensor], dtype: torch.dtype) -> Tensor:
        leaf = values.to(dtype).requires_grad_()
        focal = loss(leaf, target, keep).square()
        (first,) = torch.autograd.grad(focal.sum(), leaf, create_graph=True)
        return torch.autograd.grad((first * direction.to(dtype)).sum(), leaf)[0]

    def exact(*args: Tensor) -> Tensor:
        return plain(*args)[0]

    torch.testing.assert_close(
        second(cross_entropy, torch.float32).double(), second(exact, torch.float64), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("num_classes", [3, 33])
def test_operators_are_well_formed(num_classes: int) -> None:
    torch.use_deterministic_algorithms(False)  # opcheck compares runs, and NaN is not NaN
    target, keep = labels((2, 3, 2), num_classes)
    norm = torch.zeros(2, *target.shape, device=DEVICE)
    input = logits(2, num_classes, 2, 3).mT
    args = (input, target, keep, num_classes == 3)
    torch.library.opcheck(torch.ops.classbalance_losses.pixel_forward.default, args)
    args = (torch.rand(2, 3, 2, device=DEVICE), input, target, keep, norm)
    torch.library.opcheck(torch.ops.classbalance_losses.pixel_backward.default, args)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_whole(dynamic: bool) -> None:
    torch.compiler.reset()

    def loss(input: Tensor, target: Tensor, keep: Tensor) -> Tensor:
        value, error = cross_entropy_and_error(input * 2, target, keep)
        return (value * error).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for width in (3, 5) if dynamic else (3,):
        target, keep = labels((2, width), 4)
        leaf = logits(2, 4, width).requires_grad_()
        expected = torch.autograd.grad(loss(leaf, target, keep), leaf)
        assert torch.equal(torch.autograd.grad(compiled(leaf, target, keep), leaf)[0], expected[0])


def test_repeats_to_the_last_bit() -> None:
    target, keep = labels((2, 40), 19)
    args = (logits(2, 19, 40), target, keep, torch.rand(2, 40, device=DEVICE))
    first, second = (outcome(cross_entropy_and_error, *args) for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name])


def test_says_what_it_cannot_take() -> None:
    target = torch.zeros(2, 3, dtype=torch.int64, device=DEVICE)
    assert unsupported(logits(2, 4, 3), target) == []
    assert "float64" in unsupported(logits(2, 4, 3).double(), target)[0]
    assert "float32" in unsupported(logits(2, 4, 3), target.float())[0]
    assert "(N, C, *)" in unsupported(logits(4), target)[0]
    assert unsupported(torch.zeros(2, 4, 3, device="meta"), target)
    inside: list[list[str]] = []
    torch.func.vmap(lambda x: inside.append(unsupported(x, target)) or x)(logits(2, 2, 4, 3))
    assert "torch.func" in inside[0][0]


def test_says_that_it_needs_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("classbalance_losses.kernels.triton_common.INTERPRETED", False)
    here = torch.zeros(2, 4, 3)
    assert any("not on CUDA" in reason for reason in unsupported(here, here[:, 0].long()))


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
    layout = pixel_layout(torch.empty(2, 5, 6, 7))
    assert layout is not None
    assert (layout.outer, layout.inner, layout.dims) == (2, 42, 1)
    last = pixel_layout(torch.empty(2, 5, 6, 7).contiguous(memory_format=torch.channels_last))
    assert last is not None
    assert (last.outer, last.inner, last.dims) == (1, 84, 1)


@on_cuda
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_neither_synchronises_nor_minds_capture() -> None:
    target, keep = labels((2, 40), 19)
    leaf = logits(2, 19, 40).requires_grad_()
    other = logits(2, 19, 40)

    def step() -> tuple[Tensor, Tensor]:
        loss, error = cross_entropy_and_error(leaf, target, keep)
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
    loss = cross_entropy(leaf, target, _kept(1, pixels))
    assert loss[0, -1].item() == pytest.approx(math.log1p(2 * math.exp(-4)), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss[0, -5:].sum(), leaf)
    assert gradient[0, 2, -1].item() == pytest.approx(-2 / (math.exp(4) + 2), rel=1e-2)
    assert (gradient[:, :, :-5] == 0).all()
