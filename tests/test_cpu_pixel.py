"""The pixel pass in compiled loops: every form, type, layout and kind of label, against the reference in float64."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch
from forms import FORMS, Outcome, check_form, class_weight, outcome, truth
from torch import Tensor, nn

from classbalance_losses.kernels.call import Labels, Logits
from classbalance_losses.kernels.forms.reference import CrossEntropy, Focal, Form, Smoothed

pytest.importorskip("numba")

from classbalance_losses.kernels import cpu, reference
from classbalance_losses.kernels.cpu import pixel, strided
from classbalance_losses.kernels.cpu.math import Task

HALF = [torch.bfloat16, torch.float16]
DTYPES = [torch.float32, *HALF]
LABELS = [torch.uint8, torch.int16, torch.int32, torch.int64]
over_forms = pytest.mark.parametrize("name", FORMS)
over_types = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture(autouse=True)
def _few_pixels_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strided, "_PIXELS", 21)


@pytest.fixture(params=[1, 3])
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    former = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(former)


def problem(
    num_classes: int = 7,
    shape: tuple[int, ...] = (2, 6, 5),
    dtype: torch.dtype = torch.float32,
    label: torch.dtype = torch.int64,
    ignored: float = 0.3,
) -> tuple[Tensor, Labels]:
    """Random logits and labels; those that are ignored are the largest of the type, or -100."""
    input = 3 * torch.randn(shape[0], num_classes, *shape[1:])
    ignore_index = 255 if label == torch.uint8 else -100
    target = torch.randint(0, num_classes, shape).masked_fill(torch.rand(shape) < ignored, ignore_index)
    return input.to(dtype), Labels(target.to(label), num_classes, ignore_index)


def keep(labels: Labels) -> Tensor:
    return labels.target.long() != labels.ignore_index


def close(got: Outcome, wanted: Outcome, dtype: torch.dtype) -> None:
    torch.testing.assert_close(got.value.double(), wanted.value, rtol=2e-5, atol=2e-6)
    eps = 0 if dtype == torch.float32 else torch.finfo(dtype).eps
    torch.testing.assert_close(got.gradient.double(), wanted.gradient, rtol=eps + 2e-5, atol=2e-6)


@over_forms
@over_types
@pytest.mark.parametrize("num_classes", [2, 19])
def test_value_and_slope(name: str, num_classes: int, dtype: torch.dtype) -> None:
    """From unsure pixels to saturated ones, right and wrong."""
    for scale in (0.1, 5, 20, 60, 200, 1e4):
        input = (scale * torch.randn(2, num_classes, 24, 24)).to(dtype)
        target = torch.randint(0, num_classes, (2, 24, 24))
        target[1] = input[1].argmax(0)
        target[:, :2] = 255
        check_form(cpu.pixel_values, FORMS[name](num_classes), input, Labels(target, num_classes, 255))


@over_forms
def test_the_law_holds_of_the_reference(name: str) -> None:
    check_form(reference.pixel_values, FORMS[name](7), *problem())


@over_forms
@over_types
def test_labels_as_they_come(name: str, dtype: torch.dtype) -> None:
    for label in LABELS:
        input, labels = problem(dtype=dtype, label=label)
        grad, form = torch.rand(labels.target.shape), FORMS[name](7)
        close(outcome(cpu.pixel_values, form, input, labels, grad), truth(form, input, labels, grad), dtype)


def test_labels_are_compared_as_wide_integers() -> None:
    input, labels = problem(num_classes=200, ignored=0, label=torch.uint8)
    labels = labels._replace(target=torch.full_like(labels.target, 156), ignore_index=-100)
    value = cpu.pixel_values(Logits(input), labels, CrossEntropy())
    torch.testing.assert_close(value, reference.pixel_values(Logits(input), labels, CrossEntropy()))


@over_forms
@pytest.mark.parametrize("num_classes", [2, 3, 150, 1024])
@pytest.mark.usefixtures("_threads")
def test_class_counts_from_two_up(name: str, num_classes: int) -> None:
    check_form(cpu.pixel_values, FORMS[name](num_classes), *problem(num_classes, (2, 40)))


def layouts(dtype: torch.dtype) -> dict[str, Tensor]:
    """The same logits in memory of different layouts: those that the loops take, and others."""
    torch.manual_seed(0)
    plain = problem(dtype=dtype)[0]
    padded = torch.zeros(2, 7, 8, 9, dtype=dtype)
    padded[:, :, 1:7, 2:7] = plain
    column = torch.zeros(2, 7, 30, 3, dtype=dtype)
    column[..., 0] = plain.flatten(2)
    return {
        "plain": plain,
        "channels last": plain.contiguous(memory_format=torch.channels_last),
        "transposed": plain.transpose(2, 3).contiguous().transpose(2, 3),
        "cropped": padded[:, :, 1:7, 2:7],
        "class first": plain.transpose(0, 1).contiguous().transpose(0, 1),
        "a column": column[..., :1],
        "pixels side by side": plain.flatten(2).movedim(1, 0).flatten(1).movedim(0, 1),  # (N, C)
        "classes side by side": plain.flatten(2).movedim(1, 2).flatten(0, 1).contiguous(),
        "volume": plain.unsqueeze(3).contiguous(memory_format=torch.channels_last_3d),
        "images of a pixel": plain.movedim(1, 3).flatten(0, 2)[..., None, None],
        "an image of none": plain[..., :0],
        "none": plain[:0],
    }


@over_types
@pytest.mark.parametrize("layout", layouts(torch.float32))
@pytest.mark.parametrize("name", ["cross-entropy", "smoothed", "dual focal, squares"])
def test_layouts(name: str, layout: str, dtype: torch.dtype) -> None:
    input = layouts(dtype)[layout]
    target = torch.randint(0, 7, (input.shape[0], *input.shape[2:]))
    labels, form = Labels(target.masked_fill(torch.rand(target.shape) < 0.3, 255), 7, 255), FORMS[name](7)
    got = outcome(cpu.pixel_values, form, input, labels)
    close(got, truth(form, input, labels), dtype)
    if layout.startswith(("plain", "channels", "class", "pixels", "volume")):
        assert got.gradient.stride() == input.stride()


def test_an_expanded_image_and_a_gradient_that_is_not_contiguous() -> None:
    base, labels = problem(shape=(1, 3, 4))
    labels = labels._replace(target=labels.target.expand(2, -1, -1))
    grad = torch.rand(4, 3, 2).permute(2, 1, 0)
    got = outcome(cpu.pixel_values, Focal(2.0), base.expand(2, -1, -1, -1), labels, grad)
    close(got, truth(Focal(2.0), base.expand(2, -1, -1, -1), labels, grad), torch.float32)


@over_forms
@over_types
def test_ignored_pixels_are_inert(name: str, dtype: torch.dtype) -> None:
    clean, labels = problem(dtype=dtype)
    out = ~keep(labels)
    grad = torch.rand(out.shape).masked_fill(out, torch.nan)
    wanted = outcome(cpu.pixel_values, FORMS[name](7), clean, labels, grad)
    for value, spoilt in product((torch.nan, torch.inf, -torch.inf), ([2], range(7))):
        input = clean.clone()
        for k in spoilt:
            input[:, k].masked_fill_(out, value)
        got = outcome(cpu.pixel_values, FORMS[name](7), input, labels, grad)
        assert torch.equal(got.value, wanted.value)
        assert torch.equal(got.gradient, wanted.gradient)
        assert not got.gradient[out.unsqueeze(1).expand_as(clean)].any()
    assert wanted.gradient.isfinite().all()


@over_forms
@over_types
def test_what_is_not_finite_in_a_valid_pixel_is_not_hidden(name: str, dtype: torch.dtype) -> None:
    clean, labels = problem(num_classes=3, dtype=dtype, ignored=0)
    others = torch.ones_like(labels.target, dtype=torch.bool)
    others[0, 1, 1] = False
    for value, place in product((torch.nan, torch.inf), range(3)):
        input = clean.clone()
        input[0, place, 1, 1] = value
        got = outcome(cpu.pixel_values, FORMS[name](3), input, labels)
        assert got.value[0, 1, 1].isnan() or got.value[0, 1, 1].isinf()
        assert got.gradient[0, :, 1, 1].isnan().any()
        assert got.value[others].isfinite().all()


@over_forms
@pytest.mark.parametrize("ruled_out", ["a class", "the others", "all but one other", "the label"])
def test_classes_that_are_ruled_out(name: str, ruled_out: str) -> None:
    """A logit of -inf is a probability of 0: all that the reference can tell of it."""
    input, labels = problem()
    classes = torch.arange(7).view(1, -1, 1, 1)
    target = labels.target.unsqueeze(1)
    mask = {
        "a class": (classes == 1) & (target != 1),
        "the others": classes != target,
        "all but one other": (classes != target) & (classes != (target + 1) % 7),
        "the label": classes == target,
    }[ruled_out]
    input = torch.where(mask & keep(labels).unsqueeze(1), -torch.inf, input)
    got, form = outcome(cpu.pixel_values, FORMS[name](7), input, labels), FORMS[name](7)
    plain = outcome(reference.pixel_values, form, input, labels)
    assert torch.equal(got.value.isinf(), plain.value.isinf())
    assert not got.value.isnan().any()
    torch.testing.assert_close(got.value, plain.value, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got.gradient, plain.gradient, rtol=1e-5, atol=1e-6)


def test_a_class_without_weight_adds_nothing_to_smoothing() -> None:
    weight = class_weight(7)
    without = int((weight == 0).nonzero()[0])
    input, labels = problem()
    input[:, without] = -torch.inf
    got = outcome(cpu.pixel_values, Smoothed(0.2, weight), input, labels)
    assert got.value.isfinite().all()
    assert got.gradient.isfinite().all()
    assert not got.gradient[:, without][labels.target != without].any()


def test_error() -> None:
    for input in layouts(torch.float32).values():
        target = torch.randint(0, 7, (input.shape[0], *input.shape[2:]))
        labels = Labels(target.masked_fill(torch.rand(target.shape) < 0.3, 255), 7, 255)
        got = cpu.cross_entropy_and_error(Logits(input), labels)
        wanted = reference.cross_entropy_and_error(Logits(input.double()), labels)
        assert not got[1].requires_grad
        for ours, theirs in zip(got, wanted, strict=True):
            torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-6)


def test_the_error_of_a_sure_pixel_is_not_lost_in_rounding() -> None:
    input = torch.tensor([[12.0, 0.0, 0.0], [0.0, 12.0, 0.0]])
    labels = Labels(torch.zeros(2, dtype=torch.int64), 3, -100)
    got = cpu.cross_entropy_and_error(Logits(input), labels)[1]
    wanted = reference.cross_entropy_and_error(Logits(input.double()), labels)[1]
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=0)


@over_types
@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.usefixtures("_threads")
def test_sums_of_errors(dtype: torch.dtype, squared: bool) -> None:
    for input in layouts(dtype).values():
        target = torch.randint(0, 7, (input.shape[0], *input.shape[2:]))
        labels = Labels(target.masked_fill(torch.rand(target.shape) < 0.3, 255), 7, 255)
        weight = torch.rand(target.shape).masked_fill(~keep(labels), torch.nan)
        for q in (None, weight):
            got = cpu.error_sums(Logits(input), labels, q, squared=squared)
            exactly = None if q is None else q.double()
            wanted = reference.error_sums(Logits(input.double()), labels, exactly, squared=squared)
            torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-6)


@over_forms
def test_one_thread_or_three_find_the_same_bits(name: str) -> None:
    input, labels = problem(shape=(3, 40, 41))
    former, found = torch.get_num_threads(), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        sums = cpu.error_sums(Logits(input), labels, None, squared=True)
        found.append((*outcome(cpu.pixel_values, FORMS[name](7), input, labels), sums))
    torch.set_num_threads(former)
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


@over_types
def test_what_is_kept(dtype: torch.dtype) -> None:
    input, labels = problem(19, (2, 40, 50), dtype)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        cpu.pixel_values(Logits(input.requires_grad_()), labels, Focal(2.0))
    own = {input.data_ptr(), labels.target.data_ptr()}
    size = sum(size for place, size in kept.items() if place not in own)
    assert size == (4 * labels.target.numel() if dtype == torch.float32 else 0)


@over_forms
def test_double_backward(name: str) -> None:
    input, labels = problem(3, (1, 4))
    found = []
    for pixel_values, dtype in ((reference.pixel_values, torch.float64), (cpu.pixel_values, torch.float32)):
        form, leaf = FORMS[name](3), input.to(dtype).requires_grad_()
        form = form._replace(weight=form.weight.to(dtype)) if isinstance(form, Smoothed) else form
        (first,) = torch.autograd.grad(
            pixel_values(Logits(leaf), labels, form).sum(), leaf, create_graph=True
        )
        found.append(torch.autograd.grad(first.square().sum(), leaf)[0])
    torch.testing.assert_close(found[1].double(), found[0], rtol=1e-4, atol=1e-5)


def test_batched_gradients() -> None:
    input, labels = problem()
    leaf = input.requires_grad_()
    value = cpu.pixel_values(Logits(leaf), labels, Focal(2.0))
    grads = torch.rand(3, *value.shape)
    (batched,) = torch.autograd.grad(value, leaf, grads, retain_graph=True, is_grads_batched=True)
    for grad, gradient in zip(grads, batched, strict=True):
        torch.testing.assert_close(gradient, torch.autograd.grad(value, leaf, grad, retain_graph=True)[0])


def test_nothing_asks_for_the_gradient_of_the_value() -> None:
    input, labels = problem()
    value, error = cpu.cross_entropy_and_error(Logits(input.requires_grad_()), labels)
    assert value.requires_grad
    assert not error.requires_grad
    with torch.no_grad():
        assert not cpu.pixel_values(Logits(input), labels, CrossEntropy()).requires_grad


class _Mean(nn.Module):
    """A step of training, whose logits do not come in the order of their classes."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form
        self.head = nn.Conv2d(3, 7, 1)

    def forward(self, image: Tensor, target: Tensor) -> Tensor:
        labels, logits = Labels(target, 7, -100), Logits(self.head(image))
        value, error = cpu.cross_entropy_and_error(logits, labels)
        table = cpu.error_sums(logits, labels, None, squared=True)
        return cpu.pixel_values(logits, labels, self.form).mean() + (value * error).mean() + table.sum()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cross-entropy", "smoothed", "dual focal"])
@pytest.mark.filterwarnings(
    "ignore:.*autograd.function.Function.*should not be instantiated:DeprecationWarning"
)
def test_loops_stay_in_a_compiled_graph(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    ran: list[Task] = []
    run = pixel.run
    monkeypatch.setattr(pixel, "run", lambda task, job: ran.append(task) or run(task, job))
    module = _Mean(FORMS[name](7))
    compiled = torch.compile(module, fullgraph=True)
    image = torch.randn(2, 3, 6, 5).contiguous(memory_format=torch.channels_last)
    target, found = problem()[1].target, []
    for call in (compiled, module):
        module.zero_grad()
        loss = call(image, target)
        loss.backward()
        found.append((loss.detach(), module.head.weight.grad.clone()))
        assert len(ran) == 5
        ran.clear()
    for pair in zip(*found, strict=True):
        torch.testing.assert_close(*pair)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_operators_are_what_torch_expects(dtype: torch.dtype) -> None:
    """Their fakes, above all: shapes, types and strides of what they return."""
    for layout in ("plain", "channels last", "transposed", "cropped", "pixels side by side"):
        input = layouts(dtype)[layout]
        target = torch.randint(0, 7, (input.shape[0], *input.shape[2:]))
        weight = class_weight(7)
        tests = ("test_schema", "test_faketensor")
        form = (-100, None, 2, [0.1], weight)
        torch.library.opcheck(pixel.FORWARD, (input, target, *form, False), test_utils=tests)
        log_sum = pixel.FORWARD(input, target, *form, False)[2]
        grad = torch.rand(target.shape)
        torch.library.opcheck(pixel.BACKWARD, (grad, input, target, log_sum, *form), test_utils=tests)
        torch.library.opcheck(pixel._ERROR_SUMS, (input, target, grad, -100, None, False), test_utils=tests)


def test_what_the_loops_take() -> None:
    input, labels = problem()
    assert cpu.failure(torch.device("cpu")) is None
    assert cpu.failure(torch.device("cuda")) is not None
    for dtype in DTYPES:
        assert not cpu.reasons(Logits(input.to(dtype)), labels)
    assert "float64" in cpu.reasons(Logits(input.double()), labels)[0]
    assert "meta" in cpu.reasons(None, labels._replace(target=labels.target.to("meta")))[0]


def test_the_loops_refuse_memory_that_they_were_not_written_for() -> None:
    """They are handed an address, and would write past the end of anything smaller."""
    rows, target, grad = torch.zeros(1, 3, 6), torch.zeros(1, 6, dtype=torch.int64), torch.zeros(1, 6)

    def hand_over(rows: Tensor = rows, target: Tensor = target, **maps: Tensor) -> Any:
        return strided.job_for(rows, target, -100, **maps)

    job = hand_over(slope=grad)
    strided.hand_over_rows(job, "gradient", torch.zeros(1, 3, 6), torch.float32)
    for wrong in others(grad):
        with pytest.raises(
            TypeError, match=r"Expected slope for a compiled loop as torch\.float32 on the CPU"
        ):
            hand_over(slope=wrong)
    for wrong in (target.float(), target.to("meta"), target[:, :-1], target.repeat_interleave(2, 1)[:, ::2]):
        with pytest.raises(TypeError, match="Expected label for a compiled loop as"):
            hand_over(target=wrong)
    with pytest.raises(TypeError, match="Expected x for a compiled loop"):
        hand_over(rows=rows.to("meta"))
    for wrong in (rows.bfloat16(), rows[:, :2], rows.to("meta"), torch._neg_view(rows)):
        with pytest.raises(TypeError, match="Expected gradient for a compiled loop"):
            strided.hand_over_rows(job, "gradient", wrong, torch.float32)
    with pytest.raises(TypeError, match="Expected weight for a compiled loop"):
        cpu.pixel_values(Logits(rows), Labels(target, 3, -100), Smoothed(0.1, torch.ones(2)))


def others(right: Tensor) -> list[Tensor]:
    """Tensors of another dtype, device, size, layout, sign and storage."""
    freed = right.clone()
    freed.untyped_storage().resize_(0)
    apart = right.new_zeros(2 * right.numel())[::2].view_as(right)
    return [right.half(), right.to("meta"), torch.cat([right, right]), freed, apart, torch._neg_view(right)]


def test_double_is_refused() -> None:
    input, labels = problem()
    with pytest.raises(KeyError):
        cpu.pixel_values(Logits(input.double()), labels, CrossEntropy())
