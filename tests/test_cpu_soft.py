"""Values and sums of classes of label vectors in compiled loops, against the reference in float64."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from kernel_checks import WARNINGS
from torch import Tensor

from classbalance_losses import _dispatch
from classbalance_losses.functional import weighted_cross_entropy_loss
from classbalance_losses.kernels.call import Labels, Logits, Resize, Share
from classbalance_losses.kernels.forms.reference import CrossEntropy, Focal, Form

pytest.importorskip("numba")

from classbalance_losses.kernels import cpu, reference
from classbalance_losses.kernels.cpu import shares, soft, strided, threads

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


def summed(
    module: Any,
    logits: Logits,
    target: Tensor,
    form: Form,
    weight: Tensor | None = None,
    *,
    hard: Share | None = None,
    rows: int = 1,
) -> dict[str, Tensor]:
    """All that the sums yield, over H if its share is given, and the gradient of other numbers for each class."""
    leaf, keep = logits.input.detach().requires_grad_(), (target != 0).any(1)
    labels = Labels(torch.where(keep, 0, -1), target.shape[1], -1)
    asked: dict[str, Any] = {"with_error": hard is None}
    if hard is not None:
        asked["choose"] = lambda loss: module.kth_largest(loss, labels, rows, hard, None)
    here = logits._replace(input=leaf)
    sums, chosen = module.soft_sums(here, labels, target, form, weight, **asked)
    assert (chosen is None) == (hard is None)
    slope = torch.linspace(0.5, 2, sums.value.numel(), dtype=sums.value.dtype).view(sums.value.shape)
    (gradient,) = torch.autograd.grad(sums.value, leaf, slope)
    found = {"number": sums.number, "value": sums.value.detach(), "gradient": gradient}
    return {**found, "squared": sums.squared} if hard is None else found


def check_sums(
    logits: Logits, target: Tensor, form: Form, weight: Tensor | None = None, **asked: Any
) -> None:
    bias = None if logits.bias is None else logits.bias.double()
    twin = logits._replace(input=logits.input.double(), bias=bias)
    q = None if weight is None else weight.double()
    wanted = summed(reference, twin, target.double(), form, q, **asked)
    plain, got = (summed(module, logits, target, form, weight, **asked) for module in (reference, cpu))
    for name, truth in wanted.items():
        assert got[name].shape == truth.shape
        off, eager = (((of[name] - truth).abs() / (1 + truth.abs())).max() for of in (got, plain))
        assert off <= 2 * eager + 3e-6, name


FORMS = {"cross-entropy": CrossEntropy(), "focal": Focal(2.0), "focal, 0.5": Focal(0.5)}
over_forms = pytest.mark.parametrize("name", FORMS)


@over_forms
@over_types
@over_channels
def test_sums_of_classes(channels: int, dtype: torch.dtype, name: str) -> None:
    for scale in (0.1, 5, 60, 1e3):
        logits, target, weight = problem(channels, dtype=dtype, scale=scale)
        q = torch.rand(target[:, 0].shape).round(decimals=1)
        for of in (logits, logits._replace(bias=torch.randn(len(weight)))):
            check_sums(of, target, FORMS[name], q)
            check_sums(of, target, FORMS[name])


@over_types
@over_channels
@pytest.mark.parametrize("rows", [1, 2])
def test_sums_over_the_hardest(channels: int, dtype: torch.dtype, rows: int) -> None:
    logits, target, _ = problem(channels, dtype=dtype)
    target = target.mul(4).round().div(4)
    logits.input[:, :, :3], target[:, :, :3] = logits.input[:, :, :1], target[:, :, :1]  # ties
    q = torch.rand(target[:, 0].shape).round(decimals=1)
    for share in (Share(0.3, 1), Share(1.0, 1), Share(0.0, 0)):
        for weight in (None, q):
            check_sums(logits, target, CrossEntropy(), weight, hard=share, rows=rows)


def test_sums_of_other_layouts() -> None:
    logits, target, _ = problem()
    last = target.contiguous(memory_format=torch.channels_last)
    wide = logits.input.contiguous(memory_format=torch.channels_last)
    for input, of in ((logits.input, last), (wide, target), (wide, last)):
        check_sums(Logits(input), of, Focal(2.0), torch.rand(of[:, 0].shape))


@pytest.mark.parametrize("size", [(0, 6, 9), (2, 0, 9)])
def test_sums_of_no_pixels(size: tuple[int, ...]) -> None:
    logits, target, _ = problem(shape=size)
    found = summed(cpu, logits, target, Focal(2.0))
    assert found["value"].shape == (size[0], 5)
    assert not any(of.any() for of in found.values())


def test_single_pixels_are_one_row() -> None:
    logits, target, _ = problem()
    one = Logits(logits.input[:, :, 0, 0]), target[:, :, 0, 0]
    got, wanted = (summed(module, *one, CrossEntropy()) for module in (cpu, reference))
    assert got["number"].shape == (1, 5)
    for name in ("number", "value", "squared"):
        torch.testing.assert_close(got[name][0], wanted[name].sum(0))


def test_labels_are_looked_at_in_one_pass() -> None:
    for shape in ((2, 5, 6, 9), (1, 3, 1100), (4, 2, 0), (3, 7)):
        target = torch.rand(shape).sub(0.1)
        low, high, total = shares.looked_at(target)
        if target.numel():
            assert (low, high) == (min(target.min().item(), 0), target.max().item())
        torch.testing.assert_close(total, target.sum(1))
    target[1, 2] = torch.nan
    assert shares.looked_at(target)[:2] == (low, high)
    assert shares.looked_at(target)[2].isnan().tolist() == [False, True, False]


def test_wrong_shares_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dispatch, "_CPU_FROM", 0)
    logits, target, _ = problem()
    for wrong in (1.5, -0.5, torch.inf):
        broken = target.clone()
        broken[0, 2, 3, 4] = wrong
        with pytest.raises(ValueError, match="probabilities in"):
            weighted_cross_entropy_loss(logits.input, broken)
    with pytest.raises(ValueError, match="several 1 a pixel"):
        weighted_cross_entropy_loss(logits.input, torch.ones_like(target))


def test_pixels_without_a_label_add_nothing_and_others_hide_nothing() -> None:
    logits, target, _ = problem()
    out = ~(target != 0).any(1, keepdim=True)
    wanted = summed(cpu, logits, target, Focal(2.0))
    for value in (torch.nan, torch.inf, -torch.inf):
        spoilt = logits._replace(input=logits.input.masked_fill(out, value))
        q = torch.ones(target[:, 0].shape).masked_fill(out.squeeze(1), value)
        got = summed(cpu, spoilt, target, Focal(2.0), q)
        assert all(torch.equal(got[name], wanted[name]) for name in wanted)
        assert not got["gradient"][out.expand_as(target)].any()
    target[0, :, 1, 1] = torch.tensor([0.5, 0.5, 0, 0, 0])
    for value, k in product((torch.nan, torch.inf, -torch.inf), (0, 3)):
        input = logits.input.clone()
        input[0, k, 1, 1] = value
        for hard in (None, Share(0.2, 1)):
            got, plain = (
                summed(of, Logits(input), target, CrossEntropy(), hard=hard) for of in (cpu, reference)
            )
            for name, theirs in plain.items():
                torch.testing.assert_close(got[name], theirs, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_sums_can_be_differentiated_twice() -> None:
    logits, target, _ = problem(shape=(2, 3, 3))
    labels, q, second = Labels(torch.where((target != 0).any(1), 0, -1), 5, -1), torch.rand(2, 3, 3), []
    for module in (reference, cpu):
        leaf = logits.input.clone().requires_grad_()
        sums, _ = module.soft_sums(Logits(leaf), labels, target, Focal(2.0), q)
        (first,) = torch.autograd.grad(sums.value.square().sum(), leaf, create_graph=True)
        second.append(torch.autograd.grad(first.square().sum(), leaf)[0])
    torch.testing.assert_close(*second, rtol=1e-4, atol=1e-5)


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
        sums = [summed(cpu, logits, target, Focal(2.0), hard=hard) for hard in (None, Share(0.2, 1))]
        found.append([*ran(cpu, logits, target, weight), *sums[0].values(), *sums[1].values()])
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
    check, bias, form = ("test_schema", "test_faketensor"), torch.zeros(len(weight)), (1, [2.0])
    args = (logits.input, target, weight, bias, logits.single, *form)
    torch.library.opcheck(soft._FORWARD, args, test_utils=check)
    value, log_sum = soft._FORWARD(*args)
    for share, kept in ((None, None), (torch.rand_like(value), log_sum if log_sum.numel() else None)):
        args = (logits.input, target, value, share, kept, share is None, bias, logits.single, *form)
        torch.library.opcheck(soft._SUMS, args, test_utils=check)
        slope = torch.rand(2, len(weight))
        args = (logits.input, target, log_sum, None, None, share, value, slope, bias, logits.single, *form)
        torch.library.opcheck(soft._BACKWARD, args, test_utils=check)
    args = (logits.input, target, log_sum, value, weight, None, None, None, bias, logits.single, *form)
    torch.library.opcheck(soft._BACKWARD, args, test_utils=check)


def test_other_memory_is_refused() -> None:
    logits, target, weight = problem()
    with pytest.raises(TypeError, match="Expected soft for a compiled loop"):
        cpu.soft_cross_entropy(logits, target[:, :4], weight)
    with pytest.raises(TypeError, match="Expected class_weight for a compiled loop"):
        cpu.soft_cross_entropy(logits, target, weight[:3])
