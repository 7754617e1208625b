"""Cross-entropy of label vectors in compiled loops, against the reference in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_checks import WARNINGS
from torch import Tensor

from classbalance_losses.kernels.call import Logits, Resize

pytest.importorskip("numba")

from classbalance_losses.kernels import cpu, reference
from classbalance_losses.kernels.cpu import soft, strided, threads

if threads.failure(torch.device("cpu")) is not None:
    pytest.skip("loops cannot run here", allow_module_level=True)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
over_types = pytest.mark.parametrize("dtype", DTYPES, ids=str)
over_channels = pytest.mark.parametrize("channels", [1, 2, 5])


@pytest.fixture(autouse=True)
def _few_pixels_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strided, "_PIXELS", 21)


def problem(
    channels: int = 5,
    shape: tuple[int, ...] = (2, 6, 9),
    dtype: torch.dtype = torch.float32,
    scale: float = 3.0,
) -> tuple[Logits, Tensor, Tensor]:
    """Logits, label vectors of which some have no class, and weights with a 0."""
    classes = max(channels, 2)
    input = (scale * torch.randn(shape[0], channels, *shape[1:])).to(dtype)
    target = torch.rand(shape[0], classes, *shape[1:])
    target = torch.where(target < 0.3, 0, target) * (torch.rand(shape) < 0.7).unsqueeze(1)
    return Logits(input, single=channels == 1), target, torch.arange(classes).float()


def ran(
    module: Any, logits: Logits, target: Tensor, weight: Tensor | None, grad: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    leaf = logits.input.detach().requires_grad_()
    value = module.soft_cross_entropy(logits._replace(input=leaf), target, weight)
    slope = torch.ones_like(value) if grad is None else grad.to(value.dtype)
    return value.detach(), torch.autograd.grad(value, leaf, slope)[0]


def check(logits: Logits, target: Tensor, weight: Tensor | None) -> None:
    bias = None if logits.bias is None else logits.bias.double()
    twin = logits._replace(input=logits.input.double(), bias=bias)
    grad = torch.rand(target[:, 0].shape)
    wanted = ran(reference, twin, target.double(), None if weight is None else weight.double(), grad)
    plain, got = (ran(module, logits, target, weight, grad) for module in (reference, cpu))
    assert got[1].dtype == logits.input.dtype
    for truth, theirs, ours in zip(wanted, plain, got, strict=True):
        assert ours.shape == truth.shape
        if truth.numel():
            off, eager = (((found - truth).abs() / (1 + truth.abs())).max() for found in (ours, theirs))
            assert off <= 2 * eager + 3e-6


@over_types
@over_channels
def test_value_and_slope(channels: int, dtype: torch.dtype) -> None:
    for scale in (0.1, 5, 60, 1e3):
        logits, target, weight = problem(channels, dtype=dtype, scale=scale)
        for of in (logits, logits._replace(bias=torch.randn(len(weight)))):
            check(of, target, weight)
            check(of, target, None)


@over_types
def test_labels_of_half_precision(dtype: torch.dtype) -> None:
    logits, target, weight = problem()
    got = ran(cpu, logits, target.to(dtype), weight)
    for pair in zip(got, ran(cpu, logits, target.to(dtype).float(), weight), strict=True):
        assert torch.equal(*pair)


@over_types
@over_channels
def test_layouts(channels: int, dtype: torch.dtype) -> None:
    def layouts(plain: Tensor) -> dict[str, Tensor]:
        return {
            "plain": plain,
            "channels last": plain.contiguous(memory_format=torch.channels_last),
            "transposed": plain.transpose(2, 3).contiguous().transpose(2, 3),
            "cropped": torch.cat([plain, plain], 3)[..., 2:11],
            "a pixel each": plain[..., 0, 0],
            "a line": plain.flatten(2),
            "an image of none": plain[..., :0],
            "none": plain[:0],
        }

    logits, target, weight = problem(channels, dtype=dtype)
    inputs, targets = layouts(logits.input), layouts(target)
    for name, input in inputs.items():
        check(logits._replace(input=input), targets[name], weight)
    check(logits, targets["channels last"], weight)
    check(logits._replace(input=inputs["channels last"]), target[:1].expand(2, -1, -1, -1), weight)


@pytest.mark.parametrize("size", [(3, 4), (12, 5)])
@over_channels
def test_resized_first(channels: int, size: tuple[int, int]) -> None:
    logits, target, weight = problem(channels)
    small = logits.input[..., :1, :1].expand(-1, -1, *size) + torch.randn(2, channels, *size)
    check(logits._replace(input=small, resize=Resize((6, 9), False)), target, weight)


@over_types
@over_channels
def test_pixels_without_a_label_are_inert(channels: int, dtype: torch.dtype) -> None:
    logits, target, weight = problem(channels, dtype=dtype)
    out = ~(target != 0).any(1)
    grad = torch.rand(out.shape).masked_fill(out, torch.nan)
    wanted = ran(cpu, logits, target, weight, grad)
    assert not wanted[0][out].any()
    assert wanted[1].isfinite().all()
    for value in (torch.nan, torch.inf, -torch.inf):
        spoilt = logits._replace(input=logits.input.masked_fill(out.unsqueeze(1), value))
        assert all(
            torch.equal(*pair) for pair in zip(ran(cpu, spoilt, target, weight, grad), wanted, strict=True)
        )


def test_what_is_not_finite_is_as_the_reference_has_it() -> None:
    logits, target, weight = problem()
    target[0, :, 1, 1] = torch.tensor([0.5, 0.5, 0, 0, 0])
    for value in (torch.nan, torch.inf, -torch.inf):
        for k, w in ((1, weight), (3, None), (0, weight)):
            input = logits.input.clone()
            input[0, k, 1, 1] = value
            got, plain = (ran(of, Logits(input), target, w) for of in (cpu, reference))
            for pair in zip(got, plain, strict=True):
                torch.testing.assert_close(*pair, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_a_label_of_nan_is_not_hidden() -> None:
    logits, target, weight = problem()
    target[0, :, 1, 1] = torch.nan
    value, gradient = ran(cpu, logits, target, weight)
    assert value[0, 1, 1].isnan()
    assert gradient[0, :, 1, 1].isnan().all()


def test_it_errs_no_more_than_torch_on_sure_pixels() -> None:
    input = torch.tensor([[20.0, 0.0, 0.0]])
    value = cpu.soft_cross_entropy(Logits(input), torch.tensor([[1.0, 0.0, 0.0]]), None)
    wanted = torch.log1p(2 * torch.exp(torch.tensor(-20.0, dtype=torch.float64)))
    torch.testing.assert_close(value[0].double(), wanted, rtol=1e-6, atol=0)


def test_one_thread_or_three_find_the_same_bits() -> None:
    logits, target, weight = problem(shape=(2, 40, 41))
    former, found = torch.get_num_threads(), []
    for number in (1, 3):
        torch.set_num_threads(number)
        found.append(ran(cpu, logits, target, weight))
    torch.set_num_threads(former)
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


@over_channels
def test_double_backward_and_batches(channels: int) -> None:
    logits, target, weight = problem(channels)
    found = []
    for module, dtype in ((reference, torch.float64), (cpu, torch.float32)):
        leaf = logits.input.to(dtype).requires_grad_()
        value = module.soft_cross_entropy(logits._replace(input=leaf), target.to(dtype), weight.to(dtype))
        (first,) = torch.autograd.grad(value.sum(), leaf, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), leaf, retain_graph=True)
        grads = torch.stack([torch.ones_like(value), 2 * torch.ones_like(value)])
        (batch,) = torch.autograd.grad(value, leaf, grads, is_grads_batched=True)
        found.append((first.detach(), second, *batch))
    for exactly, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours.double(), exactly, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings(*(mark.args[0] for mark in WARNINGS))
@over_channels
def test_whole_in_a_compiled_graph(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    logits, target, weight = problem(channels)
    leaf, ran_tasks = logits.input.requires_grad_(), []
    run = soft.run
    monkeypatch.setattr(soft, "run", lambda task, job: ran_tasks.append(task) or run(task, job))

    def total(input: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        return cpu.soft_cross_entropy(logits._replace(input=input), target, weight).square().sum()

    found = []
    for call in (total, torch.compile(total, fullgraph=True, backend="aot_eager")):
        value = call(leaf, target, weight)
        found.append((value.detach(), *torch.autograd.grad(value, leaf)))
        assert len(ran_tasks) == 2
        ran_tasks.clear()
    for pair in zip(*found, strict=True):
        torch.testing.assert_close(*pair)


@over_types
@over_channels
def test_operators_are_what_they_say(channels: int, dtype: torch.dtype) -> None:
    logits, target, weight = problem(channels, dtype=dtype)
    check, others = ("test_schema", "test_faketensor"), (weight, torch.zeros(len(weight)), logits.single)
    args = (logits.input, target, *others)
    torch.library.opcheck(soft._FORWARD, args, test_utils=check)
    value, log_sum = soft._FORWARD(*args)
    args = (torch.rand_like(value), logits.input, target, log_sum, *others)
    torch.library.opcheck(soft._BACKWARD, args, test_utils=check)


def test_other_memory_is_refused() -> None:
    logits, target, weight = problem()
    with pytest.raises(TypeError, match="Expected soft for a compiled loop"):
        cpu.soft_cross_entropy(logits, target[:, :4], weight)
    with pytest.raises(TypeError, match="Expected class_weight for a compiled loop"):
        cpu.soft_cross_entropy(logits, target, weight[:3])
