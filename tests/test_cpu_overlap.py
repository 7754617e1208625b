"""Sums of probabilities by the pixel pass in compiled loops, alone and beside each form, against the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from forms import FORMS, exact
from kernel_checks import WARNINGS
from torch import Tensor

from classbalance_losses.kernels.call import Labels, Logits, Overlap, Pass, Resize
from classbalance_losses.kernels.forms.reference import CrossEntropy, Focal, Form

pytest.importorskip("numba")

from classbalance_losses.kernels import cpu, reference
from classbalance_losses.kernels.cpu import pixel, strided, threads

if threads.failure(torch.device("cpu")) is not None:
    pytest.skip("loops cannot run here", allow_module_level=True)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
over_types = pytest.mark.parametrize("dtype", DTYPES, ids=str)
over_forms = pytest.mark.parametrize("name", [None, *FORMS])
# What the loss asks of a pass's outputs, and so which of them have a gradient.
LOSSES: dict[str, Callable[[Pass], Tensor]] = {
    "dice": lambda of: (2 * of.overlap.own / (of.overlap.probability + 1)).sum(),
    "P alone": lambda of: of.overlap.probability.square().sum(),
    "I alone": lambda of: of.overlap.own.square().sum(),
    "an image's": lambda of: of.overlap.own[0].square().sum(),
}


def of_value(of: Pass) -> Tensor:
    """Slopes from 0 to 1: a gradient is as exact as they are large."""
    assert of.value is not None
    slopes = torch.linspace(0, 1, of.value.numel(), dtype=of.value.dtype)
    return (of.value * slopes.view(of.value.shape)).sum()


OF_VALUE: dict[str, Callable[[Pass], Tensor]] = {
    "value alone": of_value,
    "both": lambda of: LOSSES["dice"](of) + of_value(of),
}


@pytest.fixture(autouse=True)
def _few_pixels_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strided, "_PIXELS", 21)


def problem(
    num_classes: int = 5,
    shape: tuple[int, ...] = (3, 6, 9),
    dtype: torch.dtype = torch.float32,
    scale: float = 3.0,
) -> tuple[Logits, Labels, Tensor]:
    """Random logits, labels of which some are ignored, and weights, which are NaN there."""
    input = (scale * torch.randn(shape[0], num_classes, *shape[1:])).to(dtype)
    target = torch.randint(num_classes, shape).masked_fill(torch.rand(shape) < 0.3, 255)
    weight = torch.rand(shape).masked_fill(torch.rand(shape) < 0.2, 0).masked_fill(target == 255, torch.nan)
    return Logits(input), Labels(target, num_classes, 255), weight


def form_of(name: str | None, labels: Labels) -> Form | None:
    return None if name is None else FORMS[name](labels.num_classes)


def ran(
    module: Any,
    logits: Logits,
    labels: Labels,
    form: Form | None,
    weight: Tensor | None,
    loss: str = "both",
    *,
    with_error: bool = False,
) -> list[Tensor]:
    """P, I, what maps there are, and the gradient of a loss."""
    leaf = logits.input.detach().requires_grad_()
    of = module.values_and_overlap(logits._replace(input=leaf), labels, form, weight, with_error=with_error)
    here = "dice" if of.value is None and loss in OF_VALUE else loss
    (gradient,) = torch.autograd.grad({**LOSSES, **OF_VALUE}[here](of), leaf)
    maps = [values for values in (of.value, of.error) if values is not None]
    return [values.detach() for values in (*of.overlap, *maps, gradient)]


def check(
    logits: Logits,
    labels: Labels,
    form: Form | None,
    weight: Tensor | None,
    loss: str = "both",
    *,
    with_error: bool = False,
) -> list[Tensor]:
    """Each is about as near to float64 as the reference in the logits' own type is."""
    bias = None if logits.bias is None else logits.bias.double()
    twin = logits._replace(input=logits.input.double(), bias=bias)
    same, q = None if form is None else exact(form), None if weight is None else weight.double()
    wanted = ran(reference, twin, labels, same, q, loss, with_error=with_error)
    plain = ran(reference, logits, labels, form, weight, loss, with_error=with_error)
    got = ran(cpu, logits, labels, form, weight, loss, with_error=with_error)
    assert got[-1].dtype == logits.input.dtype
    for truth, theirs, ours in zip(wanted, plain, got, strict=True):
        assert ours.isfinite().all()
        assert ours.shape == truth.shape
        if truth.numel():
            off, eager = (((found - truth).abs() / (1 + truth.abs())).max() for found in (ours, theirs))
            assert off <= 2 * eager + 3e-6
    return got


@over_forms
@over_types
@pytest.mark.parametrize("num_classes", [2, 5])
def test_with_each_form(name: str | None, num_classes: int, dtype: torch.dtype) -> None:
    for scale in (0.1, 5, 60, 1e3):
        logits, labels, weight = problem(num_classes, dtype=dtype, scale=scale)
        for q in (None, weight):
            check(logits, labels, form_of(name, labels), q)


@pytest.mark.parametrize("loss", [*LOSSES, *OF_VALUE])
@pytest.mark.parametrize("name", ["cross-entropy", "smoothed", "dual focal, squares"])
def test_whichever_outputs_have_a_gradient(loss: str, name: str) -> None:
    logits, labels, weight = problem()
    check(logits, labels, form_of(name, labels), weight, loss)
    if loss in LOSSES:
        check(logits, labels, None, weight, loss)


@pytest.mark.parametrize("single", [False, True])
def test_with_the_error(single: bool) -> None:
    logits, labels, weight = problem(2 if single else 5)
    logits = logits._replace(input=logits.input[:, :1], single=True) if single else logits
    *_, error, _ = check(logits, labels, CrossEntropy(), weight, with_error=True)
    assert torch.equal(error, check(logits, labels, None, None, with_error=True)[3])


@over_forms
@pytest.mark.parametrize("size", [(3, 40), (3, 4), None])
@pytest.mark.parametrize("single", [False, True])
def test_single_biased_and_enlarged(name: str | None, size: tuple[int, int] | None, single: bool) -> None:
    full = (6, 80) if size == (3, 40) else (7, 9)
    _, labels, weight = problem(2 if single else 5, (3, *full))
    low, resize = (full, None) if size is None else (size, Resize(full, False))
    input = torch.randn(3, 1 if single else 5, *low)
    logits = Logits(input, resize, torch.randn(labels.num_classes), single)
    check(logits, labels, form_of(name, labels), weight)


def layouts(dtype: torch.dtype) -> dict[str, Tensor]:
    plain = problem(dtype=dtype)[0].input
    return {
        "channels last": plain.contiguous(memory_format=torch.channels_last),
        "transposed": plain.transpose(2, 3).contiguous().transpose(2, 3),
        "cropped": torch.cat([plain, plain], 3)[..., 2:11],
        "volume": plain.unsqueeze(2),
        "a pixel each": plain[..., 0, 0],
        "a line": plain.flatten(2),
        "an image of none": plain[..., :0],
        "none": plain[:0],
    }


@over_types
@pytest.mark.parametrize("layout", layouts(torch.float32))
@pytest.mark.parametrize("name", [None, "smoothed", "dual focal, squares"])
def test_layouts(name: str | None, layout: str, dtype: torch.dtype) -> None:
    input = layouts(dtype)[layout]
    target = torch.randint(0, 5, (input.shape[0], *input.shape[2:]))
    labels = Labels(target.masked_fill(torch.rand(target.shape) < 0.3, 255).to(torch.uint8), 5, 255)
    check(Logits(input), labels, form_of(name, labels), torch.rand(target.shape))


@over_forms
@over_types
@pytest.mark.usefixtures("_poisoned")
def test_ignored_pixels_are_inert(name: str | None, dtype: torch.dtype) -> None:
    logits, labels, weight = problem(dtype=dtype)
    out, form = (labels.target == 255).unsqueeze(1), form_of(name, labels)
    wanted = ran(cpu, logits, labels, form, weight)
    assert all(values.isfinite().all() for values in wanted)
    assert not wanted[-1][out.expand_as(wanted[-1])].any()
    for value in (torch.nan, torch.inf, -torch.inf):
        got = ran(cpu, Logits(logits.input.masked_fill(out, value)), labels, form, weight)
        assert all(torch.equal(*pair) for pair in zip(got, wanted, strict=True))


@pytest.fixture
def _poisoned() -> Any:
    """Fresh buffers hold NaN, so that an element which a loop does not write shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@over_forms
def test_what_is_not_finite_in_a_valid_pixel_stays_in_its_image(name: str | None) -> None:
    logits, labels, weight = problem()
    labels.target[0, 1, 1] = 2
    weight = torch.where(labels.target == 255, 0, weight.nan_to_num())
    for value in (torch.nan, torch.inf):
        input = logits.input.clone()
        input[0, 3, 1, 1] = value
        probability, own, *_, gradient = ran(
            cpu, Logits(input), labels, form_of(name, labels), weight, "dice"
        )
        assert probability[0].isnan().all()
        assert own[0].isnan().tolist() == [False, False, True, False, False]
        ignored = (labels.target == 255).unsqueeze(1).expand_as(gradient)
        for finite in (probability[1:], own[1:], gradient[1:], gradient[ignored]):
            assert finite.isfinite().all()
        assert not gradient[ignored].any()
        assert gradient[0, :, 1, 1].isnan().all()


def test_an_infinite_loss_of_weight_0() -> None:
    logits, labels, _ = problem()
    weight = (torch.rand(labels.target.shape) < 0.5).float()
    with_inf = logits.input.masked_fill(
        (torch.arange(5).view(1, -1, 1, 1) == labels.target.unsqueeze(1)) & (weight == 0).unsqueeze(1),
        -torch.inf,
    )
    got, wanted = (ran(of, Logits(with_inf), labels, None, weight) for of in (cpu, reference))
    for pair in zip(got, wanted, strict=True):
        torch.testing.assert_close(*pair, rtol=1e-5, atol=1e-6)


@over_forms
@pytest.mark.parametrize("enlarged", [False, True])
def test_one_thread_or_three_find_the_same_bits(name: str | None, enlarged: bool) -> None:
    logits, labels, weight = problem(shape=(2, 40, 81))
    if enlarged:
        logits = Logits(logits.input[..., ::2, ::3].contiguous(), Resize((40, 81), False))
    former, found = torch.get_num_threads(), []
    for number in (1, 3):
        torch.set_num_threads(number)
        found.append(ran(cpu, logits, labels, form_of(name, labels), weight))
    torch.set_num_threads(former)
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_sums_of_many_pixels_lose_no_digits() -> None:
    logits, labels, _ = problem(3, (1, 700, 1000))
    got = cpu.values_and_overlap(logits, labels, None, None).overlap
    wanted = reference.values_and_overlap(Logits(logits.input.double()), labels, None, None).overlap
    for ours, exactly in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours.double(), exactly, rtol=3e-7, atol=0)


@over_types
def test_what_is_kept(dtype: torch.dtype) -> None:
    logits, labels, weight = problem(19, (2, 40, 50), dtype)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    leaf = logits.input.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        cpu.values_and_overlap(logits, labels, Focal(2.0), weight)
    own = {leaf.data_ptr(), labels.target.data_ptr(), weight.data_ptr()}
    size = sum(size for place, size in kept.items() if place not in own)
    assert size == (4 * labels.target.numel() if dtype == torch.float32 else 0)


@over_forms
def test_double_backward_and_batches(name: str | None) -> None:
    logits, labels, weight = problem(3, (2, 5))
    form, found = form_of(name, labels), []
    for module, dtype in ((reference, torch.float64), (cpu, torch.float32)):
        leaf, way = logits.input.to(dtype).requires_grad_(), form
        way = exact(form) if form is not None and dtype == torch.float64 else form
        of = module.values_and_overlap(Logits(leaf), labels, way, weight.to(dtype))
        loss = (LOSSES["dice"] if form is None else OF_VALUE["both"])(of)
        (first,) = torch.autograd.grad(loss, leaf, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), leaf, retain_graph=True)
        grads = torch.stack([torch.ones_like(of.overlap.own), 2 * torch.ones_like(of.overlap.own)])
        (batch,) = torch.autograd.grad(of.overlap.own, leaf, grads, is_grads_batched=True)
        found.append((first.detach(), second, *batch))
    for exactly, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours.double(), exactly, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings(*(mark.args[0] for mark in WARNINGS))
@pytest.mark.parametrize("name", [None, "cross-entropy", "dual focal"])
@pytest.mark.parametrize("loss", ["dice", "both"])
def test_loops_stay_in_a_compiled_graph(name: str | None, loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    logits, labels, weight = problem()
    leaf, form, count = logits.input.requires_grad_(), form_of(name, labels), []
    run = pixel.run
    monkeypatch.setattr(pixel, "run", lambda task, job: count.append(task) or run(task, job))
    here = "dice" if form is None else loss

    def total(input: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        of = cpu.values_and_overlap(Logits(input), Labels(target, 5, 255), form, weight)
        return {**LOSSES, **OF_VALUE}[here](of)

    found = []
    for call in (total, torch.compile(total, fullgraph=True)):
        value = call(leaf, labels.target, weight)
        found.append((value.detach(), *torch.autograd.grad(value, leaf)))
        assert len(count) == 2
        count.clear()
    for pair in zip(*found, strict=True):
        torch.testing.assert_close(*pair)


@over_types
def test_operators_are_what_they_say(dtype: torch.dtype) -> None:
    check = ("test_schema", "test_faketensor")
    for layout, input in layouts(dtype).items():
        if layout == "a pixel each":
            continue
        target = torch.randint(0, 5, (input.shape[0], *input.shape[2:]))
        for code in (-1, 0):
            form, q = (255, None, code, [], None), torch.rand(target.shape)
            args = (input, target, *form, False, None, False, q, True)
            torch.library.opcheck(pixel.FORWARD, args, test_utils=check)
            value, _, log_sum, overlap = pixel.FORWARD(*args)
            grad = None if code == -1 else torch.rand_like(value)
            args = (grad, input, target, log_sum, *form, None, False, q, torch.rand_like(overlap))
            torch.library.opcheck(pixel.BACKWARD, args, test_utils=check)


def test_weights_of_another_type_are_refused() -> None:
    logits, labels, weight = problem()
    with pytest.raises(TypeError, match="Expected pixel_weight for a compiled loop"):
        cpu.values_and_overlap(logits, labels, None, weight.double())


def test_nothing_asks_for_a_gradient() -> None:
    logits, labels, weight = problem()
    with torch.no_grad():
        of = cpu.values_and_overlap(Logits(logits.input.requires_grad_()), labels, CrossEntropy(), weight)
    assert not of.overlap.own.requires_grad
    assert isinstance(of.overlap, Overlap)
    assert of.error is None
