"""Class sums by the pixel pass itself, in compiled loops, against sums of the maps that the pass gives otherwise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from forms import FORMS
from kernel_checks import WARNINGS
from torch import Tensor

from classbalance_losses.kernels.call import ClassSums, Hard, Labels, Logits, Resize, Share
from classbalance_losses.kernels.forms.reference import CrossEntropy, Form

pytest.importorskip("numba")

from classbalance_losses.kernels import cpu, reference
from classbalance_losses.kernels.cpu import pixel, sums, threads

if threads.failure(torch.device("cpu")) is not None:
    pytest.skip("loops cannot run here", allow_module_level=True)

pytestmark = WARNINGS
CLASSES = {"one logit": 2, "two": 2, "three": 3, "many": 70}
over_classes = pytest.mark.parametrize("kind", CLASSES)
over_weights = pytest.mark.parametrize("weighted", [False, True], ids=["all count once", "weighted"])


def problem(kind: str, dtype: torch.dtype = torch.float32) -> tuple[Logits, Labels, Tensor]:
    """Logits, labels of which some are ignored, and weights of which some are 0."""
    draw, single = torch.Generator().manual_seed(0), kind == "one logit"
    input = torch.randn(3, 1 if single else CLASSES[kind], 33, 41, generator=draw).to(dtype)
    target = torch.randint(-1, CLASSES[kind], (3, 33, 41), generator=draw)
    weight = torch.rand(target.shape, generator=draw).round(decimals=1)
    return Logits(input, single=single), Labels(target, CLASSES[kind], -1), weight


def of_maps(logits: Logits, labels: Labels, form: Form, weight: Tensor | None, **asked: Any) -> ClassSums:
    if asked:
        values, error = cpu.cross_entropy_and_error(logits, labels)
        return cpu.class_sums(labels, values, error, weight)
    return cpu.class_sums(labels, cpu.pixel_values(logits, labels, form), None, weight)


def same(logits: Logits, labels: Labels, form: Form, weight: Tensor | None, **asked: Any) -> None:
    """The sums, and the gradient of other numbers for each class."""
    found = []
    for how in (cpu.pixel_sums, of_maps):
        input = logits.input.clone().requires_grad_()
        of = how(logits._replace(input=input), labels, form, weight, **asked)
        assert of.value is not None
        factors = torch.linspace(0.5, 2, labels.num_classes)
        (of.value * factors).sum().backward()
        found.append((of, input.grad))
    (ours, gradient), (theirs, expected) = found
    assert torch.equal(ours.number, theirs.number)
    for got, wanted in ((ours.value, theirs.value), (ours.squared, theirs.squared), (gradient, expected)):
        torch.testing.assert_close(got, wanted)


@over_classes
@over_weights
@pytest.mark.parametrize("name", FORMS)
def test_every_form(kind: str, weighted: bool, name: str) -> None:
    logits, labels, weight = problem(kind)
    same(logits, labels, FORMS[name](labels.num_classes), weight if weighted else None)


@over_classes
@over_weights
def test_with_squared_errors(kind: str, weighted: bool) -> None:
    logits, labels, weight = problem(kind)
    same(logits, labels, CrossEntropy(), weight if weighted else None, with_error=True)


@over_classes
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_logits(kind: str, dtype: torch.dtype) -> None:
    logits, labels, weight = problem(kind, dtype)
    same(logits, labels, CrossEntropy(), weight, with_error=True)


@over_classes
def test_enlarged(kind: str) -> None:
    logits, _, _ = problem(kind)
    size = (66, 123)
    target = torch.randint(-1, CLASSES[kind], (3, *size), generator=torch.Generator().manual_seed(1))
    resized = logits._replace(resize=Resize(size, align_corners=False))
    same(resized, Labels(target, CLASSES[kind], -1), CrossEntropy(), None)


@over_classes
@over_weights
@pytest.mark.parametrize("name", ["cross-entropy", "focal", "smoothed"])
@pytest.mark.parametrize("rows", [1, 3])
def test_over_the_hardest(kind: str, weighted: bool, name: str, rows: int) -> None:
    logits, labels, weight = problem(kind)
    form, q, found = FORMS[name](labels.num_classes), weight if weighted else None, []
    of_ties = logits.input.round() if kind != "many" else logits.input
    for fused in (True, False):
        input = of_ties.clone().requires_grad_()

        def choose(values: Tensor) -> Hard:
            return cpu.kth_largest(values.detach(), labels, rows, Share(0.3, 1), None)

        if fused:
            sums, hard = cpu.mined_sums(logits._replace(input=input), labels, form, q, choose, by_image=False)
        else:
            values = cpu.pixel_values(logits._replace(input=input), labels, form)
            hard = choose(values)
            sums = ClassSums(*cpu.class_sums(labels, values, None, q, rows=rows, hard=hard))
            sums = ClassSums(*(None if of is None else of.sum(0, keepdim=True) for of in sums))
        (sums.value * torch.linspace(0.5, 2, labels.num_classes)).sum().backward()
        found.append([sums.number, sums.value, hard.bits, hard.share, input.grad])
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted)


@over_classes
def test_over_the_hardest_enlarged_in_half_and_twice(kind: str) -> None:
    logits, labels, _ = problem(kind, torch.bfloat16)
    size, draw, found = (66, 123), torch.Generator().manual_seed(1), []
    target = torch.randint(-1, CLASSES[kind], (3, *size), generator=draw)
    of = labels._replace(target=target)
    resize = Resize(size, align_corners=False)
    ranked = cpu.pixel_values(logits._replace(resize=resize), of, CrossEntropy()).detach()
    hard = cpu.kth_largest(ranked, of, 1, Share(0.3, 1), None)
    for module in (cpu, reference):
        input = logits.input.float().requires_grad_()
        resized = logits._replace(input=input, resize=resize)
        if module is cpu:
            value = cpu.mined_sums(resized, of, CrossEntropy(), None, lambda _: hard, by_image=False)[0].value
        else:
            values = reference.pixel_values(resized, of, CrossEntropy())
            value = reference.class_sums(of, values, None, None, hard=hard).value
        (first,) = torch.autograd.grad(value.square().sum(), input, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), input, retain_graph=True)
        (once,) = torch.autograd.grad(value.square().sum(), input)
        found.append((value.detach(), first.detach(), once, second))
    for got, wanted in zip(*found, strict=True):
        assert (got - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def test_of_no_pixels() -> None:
    logits, labels, _ = problem("three")
    for of in (
        labels._replace(target=torch.full_like(labels.target, -1)),
        labels._replace(target=labels.target[:0]),
    ):
        rows = of.target.shape[0]
        found = cpu.pixel_sums(logits._replace(input=logits.input[:rows]), of, CrossEntropy(), None)
        assert found.value is not None
        assert (found.number == 0).all()
        assert (found.value == 0).all()


def test_threads_have_no_say() -> None:
    logits, labels, weight = problem("many")
    found, threads_before = [], torch.get_num_threads()
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        found.append(cpu.pixel_sums(logits, labels, CrossEntropy(), weight).value)
    torch.set_num_threads(threads_before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@over_classes
def test_can_be_differentiated_twice(kind: str) -> None:
    logits, labels, weight = problem(kind)
    second = []
    for how in (cpu, reference):
        input = logits.input[..., :2, :3].clone().requires_grad_()
        of = labels._replace(target=labels.target[..., :2, :3])
        q = weight[..., :2, :3]
        if how is cpu:
            value = cpu.pixel_sums(logits._replace(input=input), of, CrossEntropy(), q).value
        else:
            values = reference.pixel_values(logits._replace(input=input), of, CrossEntropy())
            value = reference.class_sums(of, values, None, q).value
        assert value is not None
        (first,) = torch.autograd.grad(value.square().sum(), input, create_graph=True)
        second.append(torch.autograd.grad(first.square().sum(), input)[0])
    torch.testing.assert_close(*second)


@over_classes
def test_operators_are_what_they_say(kind: str) -> None:
    logits, labels, weight = problem(kind)
    tests, form = ("test_schema", "test_faketensor"), (-1, None, 0, [], None)
    args = (logits.input, labels.target, *form, True, None, logits.single, weight)
    torch.library.opcheck(sums._FORWARD, args, test_utils=tests)
    log_sum, slopes = sums._FORWARD(*args)[3], torch.rand(labels.num_classes)
    backward = (None, logits.input, labels.target, log_sum, *form, None, logits.single, weight, None, slopes)
    torch.library.opcheck(pixel.BACKWARD, backward, test_utils=tests)
