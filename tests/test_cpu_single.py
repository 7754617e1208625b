"""One logit a pixel, and a bias of each class, in compiled loops: what two logits, and biased ones, have."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from forms import FORMS, exact
from kernel_checks import WARNINGS
from torch import Tensor

from classbalance_losses.kernels.call import Labels, Logits, Resize
from classbalance_losses.kernels.forms.reference import CrossEntropy, Focal, Form

pytest.importorskip("numba")

from classbalance_losses.kernels import cpu, reference
from classbalance_losses.kernels.cpu import pixel, strided, threads

if threads.failure(torch.device("cpu")) is not None:
    pytest.skip("loops cannot run here", allow_module_level=True)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SIZES = {"as it is": ((6, 80), None), "enlarged": ((3, 40), False), "short rows": ((3, 4), True)}
over_forms = pytest.mark.parametrize("name", FORMS)
over_types = pytest.mark.parametrize("dtype", DTYPES, ids=str)
over_sizes = pytest.mark.parametrize("size", SIZES)


@pytest.fixture(autouse=True)
def _few_pixels_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strided, "_PIXELS", 21)


def problem(
    size: str = "as it is", dtype: torch.dtype = torch.float32, channels: int = 1, scale: float = 3.0
) -> tuple[Logits, Labels]:
    """Single logits, or those of a channel for each class, and labels of which some are ignored."""
    low, align_corners = SIZES[size]
    full = (6, 80) if low[1] > 4 else (7, 9)
    classes = max(channels, 2)
    input = (scale * torch.randn(2, channels, *low)).to(dtype)
    target = torch.randint(classes, (2, *full)).masked_fill(torch.rand(2, *full) < 0.3, 255)
    resize = None if align_corners is None else Resize(full, align_corners)
    return Logits(input, resize, None, channels == 1), Labels(target, classes, 255)


def double(logits: Logits) -> Logits:
    bias = None if logits.bias is None else logits.bias.double()
    return logits._replace(input=logits.input.detach().double(), bias=bias)


def ran(module: object, logits: Logits, labels: Labels, form: Form, grad: Tensor) -> tuple[Tensor, Tensor]:
    leaf = logits.input.detach().requires_grad_()
    value = module.pixel_values(logits._replace(input=leaf), labels, form)  # type: ignore[attr-defined]
    return value.detach(), torch.autograd.grad(value, leaf, grad.to(value.dtype))[0]


def check(logits: Logits, labels: Labels, form: Form) -> None:
    grad = torch.rand(labels.target.shape)
    wanted = ran(reference, double(logits), labels, exact(form), grad)
    plain = ran(reference, logits, labels, form, grad)
    got = ran(cpu, logits, labels, form, grad)
    assert got[1].dtype == logits.input.dtype
    for truth, theirs, ours in zip(wanted, plain, got, strict=True):
        off, eager = (((found - truth).abs() / (1 + truth.abs())).max() for found in (ours, theirs))
        assert off <= 2 * eager + 3e-6


@over_forms
@over_types
def test_single_logits_from_unsure_to_saturated(name: str, dtype: torch.dtype) -> None:
    for scale in (0.1, 5, 20, 60, 200, 1e4):
        check(*problem(dtype=dtype, scale=scale), FORMS[name](2))


@over_forms
@over_sizes
def test_single_logits_are_two(name: str, size: str) -> None:
    """0 and z, whose gradient is that of z."""
    (logits, labels), form = problem(size), FORMS[name](2)
    grad = torch.rand(labels.target.shape)
    one = ran(cpu, logits, labels, form, grad)
    both = torch.cat([torch.zeros_like(logits.input), logits.input], 1)
    two = ran(cpu, Logits(both, logits.resize), labels, form, grad)
    torch.testing.assert_close(one[0], two[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(one[1], two[1][:, 1:], rtol=1e-6, atol=1e-6)


@over_forms
@over_sizes
@pytest.mark.parametrize("channels", [1, 5])
def test_a_bias_is_added(name: str, size: str, channels: int) -> None:
    logits, labels = problem(size, channels=channels)
    check(logits._replace(bias=torch.randn(labels.num_classes)), labels, FORMS[name](labels.num_classes))


@over_types
@over_sizes
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_error_and_its_sums(size: str, channels: int, dtype: torch.dtype) -> None:
    logits, labels = problem(size, dtype, channels)
    for bias in (None, torch.randn(labels.num_classes)):
        here, weight = logits._replace(bias=bias), torch.rand(labels.target.shape)
        got, wanted = (
            [
                *module.cross_entropy_and_error(of, labels),
                module.error_sums(of, labels, weight.to(exactly), squared=False),
                module.error_sums(of, labels, None, squared=True),
            ]
            for module, of, exactly in (
                (cpu, here, torch.float32),
                (reference, double(here), torch.float64),
            )
        )
        for ours, exactly in zip(got, wanted, strict=True):
            torch.testing.assert_close(ours.double(), exactly, rtol=2e-5, atol=1e-5)


@over_types
@pytest.mark.parametrize("channels", [1, 5])
def test_layouts_and_a_bias(channels: int, dtype: torch.dtype) -> None:
    logits, labels = problem(dtype=dtype, channels=channels)
    plain, bias = logits.input, torch.randn(labels.num_classes)
    for same in (
        plain.contiguous(memory_format=torch.channels_last),
        plain.transpose(2, 3).contiguous().transpose(2, 3),
        torch.cat([plain, plain], 3)[..., :80],
        torch.stack([plain, plain], -1)[..., 0],
    ):
        for name in ("focal", "smoothed"):
            check(logits._replace(input=same, bias=bias), labels, FORMS[name](labels.num_classes))
    flat = plain.flatten(2).movedim(1, 2).flatten(0, 1)
    of_flat = labels._replace(target=labels.target.flatten())
    check(Logits(flat, None, bias, channels == 1), of_flat, CrossEntropy())


@over_forms
@pytest.mark.parametrize("channels", [1, 3])
def test_a_bias_that_rules_a_class_out(name: str, channels: int) -> None:
    logits, labels = problem(channels=channels)
    for out in range(labels.num_classes):
        bias = torch.zeros(labels.num_classes).index_fill(0, torch.tensor(out), -torch.inf)
        target = torch.where(labels.target == out, 255, labels.target)
        for of in (labels._replace(target=target), labels):
            grad, here, form = (
                torch.rand(target.shape),
                logits._replace(bias=bias),
                FORMS[name](labels.num_classes),
            )
            got, plain = (ran(module, here, of, form, grad) for module in (cpu, reference))
            for ours, theirs in zip(got, plain, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@over_forms
@over_types
def test_ignored_pixels_are_inert_and_others_hide_nothing(name: str, dtype: torch.dtype) -> None:
    logits, labels = problem(dtype=dtype)
    out, form = (labels.target == 255).unsqueeze(1), FORMS[name](2)
    grad = torch.rand(labels.target.shape).masked_fill(out.squeeze(1), torch.nan)
    wanted = ran(cpu, logits, labels, form, grad)
    assert wanted[1].isfinite().all()
    for value in (torch.nan, torch.inf, -torch.inf):
        spoilt = logits._replace(input=logits.input.masked_fill(out, value))
        assert all(
            torch.equal(*pair) for pair in zip(ran(cpu, spoilt, labels, form, grad), wanted, strict=True)
        )
    every = Labels(torch.zeros_like(labels.target), 2, -100)
    for value in (torch.nan, torch.inf):
        spoilt = logits.input.clone()
        spoilt[0, 0, 1, 1] = value
        got = ran(cpu, logits._replace(input=spoilt), every, form, torch.ones(grad.shape))
        assert not got[0][0, 1, 1].isfinite()
        assert got[1][0, 0, 1, 1].isnan()
        assert got[0].isfinite().sum() == got[0].numel() - 1


@over_types
def test_nothing_is_kept(dtype: torch.dtype) -> None:
    logits, labels = problem(dtype=dtype)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    leaf = logits.input.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        cpu.pixel_values(logits, labels, FORMS["smoothed, all"](2))
    for given in (leaf, labels.target):
        kept.pop(given.data_ptr())
    assert sum(kept.values()) == 2 * 4  # the form's weights


@over_sizes
@pytest.mark.parametrize("name", ["focal", "smoothed", "dual focal"])
def test_double_backward_and_batches(name: str, size: str) -> None:
    (logits, labels), form, found = problem(size), FORMS[name](2), []
    here = logits._replace(bias=torch.tensor([0.5, -0.25]))
    for module, of, way in ((reference, double(here), exact(form)), (cpu, here, form)):
        leaf = of.input.detach().requires_grad_()
        value = module.pixel_values(of._replace(input=leaf), labels, way)
        (first,) = torch.autograd.grad(value.sum(), leaf, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), leaf, retain_graph=True)
        grads = torch.stack([torch.ones_like(value), 2 * torch.ones_like(value)])
        (batch,) = torch.autograd.grad(value, leaf, grads, is_grads_batched=True)
        found.append((first, second, *batch))
    for exactly, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours.double(), exactly, rtol=1e-4, atol=2e-5)


def test_one_thread_or_three_find_the_same_bits() -> None:
    logits, labels = problem()
    former, found = torch.get_num_threads(), []
    for number in (1, 3):
        torch.set_num_threads(number)
        found.append(ran(cpu, logits, labels, Focal(2.0), torch.ones(labels.target.shape)))
    torch.set_num_threads(former)
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


@pytest.mark.filterwarnings(*(mark.args[0] for mark in WARNINGS))
@over_sizes
def test_whole_in_a_compiled_graph(size: str) -> None:
    torch._dynamo.reset()
    logits, labels = problem(size)
    bias, leaf = torch.tensor([0.5, -0.25]), logits.input.requires_grad_()

    def total(input: Tensor, bias: Tensor, target: Tensor) -> Tensor:
        here, of = Logits(input, logits.resize, bias, True), Labels(target, 2, 255)
        value, error = cpu.cross_entropy_and_error(here, of)
        table = cpu.error_sums(here, of, None, squared=True)
        return (value * error).sum() + cpu.pixel_values(here, of, Focal(2.0)).sum() + table.sum()

    found = []
    for call in (total, torch.compile(total, fullgraph=True, backend="aot_eager")):
        value = call(leaf, bias, labels.target)
        found.append((value, *torch.autograd.grad(value, leaf)))
    for pair in zip(*found, strict=True):
        torch.testing.assert_close(*pair)


@over_types
def test_operators_are_what_they_say(dtype: torch.dtype) -> None:
    logits, labels = problem(dtype=dtype)
    check, bias, grad = ("test_schema", "test_faketensor"), torch.zeros(2), torch.rand(labels.target.shape)
    for with_error, with_overlap in product((False, True), repeat=2):
        form = (255, None, 1, [2.0], None)
        args = (logits.input, labels.target, *form, with_error, bias, True, grad, with_overlap)
        torch.library.opcheck(pixel.FORWARD, args, test_utils=check)
        overlap_grad = torch.rand(2, 2, 2) if with_overlap else None
        args = (grad, logits.input, labels.target, torch.empty(0), *form, bias, True, grad, overlap_grad)
        torch.library.opcheck(pixel.BACKWARD, args, test_utils=check)
    args = (logits.input, labels.target, grad, 255, None, False, bias, True)
    torch.library.opcheck(pixel._ERROR_SUMS, args, test_utils=check)


def test_the_loops_take_them() -> None:
    logits, labels = problem()
    assert not cpu.reasons(logits._replace(bias=torch.zeros(2)), labels)
    with pytest.raises(TypeError, match="Expected bias for a compiled loop"):
        cpu.pixel_values(logits._replace(bias=torch.zeros(3)), labels, CrossEntropy())
