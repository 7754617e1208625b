"""H of two classes in one pass over the logits, against float64, and against a map of values that is ranked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from forms import FORMS
from kernel_checks import WARNINGS
from torch import Tensor

import classbalance_losses.functional as losses
from classbalance_losses import _dispatch
from classbalance_losses.kernels.call import Hard, Labels, Logits, Resize, Share
from classbalance_losses.kernels.forms.reference import CrossEntropy

pytest.importorskip("numba")

from classbalance_losses.kernels import cpu, reference
from classbalance_losses.kernels.cpu import mined_pairs, pixel, threads

if threads.failure(torch.device("cpu")) is not None:
    pytest.skip("loops cannot run here", allow_module_level=True)

pytestmark = WARNINGS
over_kinds = pytest.mark.parametrize("single", [True, False], ids=["one logit", "two"])
SHAPE = (3, 67, 91)
SOME = Share(0.2, 1)


class Look(NamedTuple):
    """The bounds that a pass was given, and whether it found the threshold there."""

    low: int
    high: int
    found: bool


@pytest.fixture(autouse=True)
def looks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Look]]:
    """A sample of few pixels, and what each pass was given and found."""
    seen: list[Look] = []

    def near(*given: Any, run: Any = mined_pairs._near) -> Any:
        found = run(*given)
        seen.append(Look(*given[-2:], found is not None))
        return found

    monkeypatch.setattr(mined_pairs, "SAMPLE", 1 << 12)
    monkeypatch.setattr(mined_pairs, "PARTS", 5)
    monkeypatch.setattr(mined_pairs, "_near", near)
    return seen


def problem(single: bool, dtype: torch.dtype = torch.float32) -> tuple[Logits, Labels, Tensor]:
    """Logits, labels of which some are ignored, and weights of which some are 0."""
    input = (3 * torch.randn(SHAPE[0], 1 if single else 2, *SHAPE[1:])).to(dtype)
    return (
        Logits(input, single=single),
        Labels(torch.randint(-1, 2, SHAPE), 2, -1),
        torch.rand(SHAPE).round(decimals=1),
    )


def ranked(logits: Logits, labels: Labels, form: CrossEntropy, weight: Tensor | None, share: Share) -> Any:
    """Return the sums by the reference's way in float64."""
    bias = None if logits.bias is None else logits.bias.double()
    exact = logits._replace(input=logits.input.double(), bias=bias)
    loss = reference.pixel_values(exact, labels, CrossEntropy(ranked=True))
    hard = reference.kth_largest(loss.detach(), labels, 1, share, None)
    values = reference.pixel_values(exact, labels, form)
    q = None if weight is None else weight.double()
    return reference.class_sums(labels, values, None, q, hard=hard)


def check(
    logits: Logits,
    labels: Labels,
    weight: Tensor | None = None,
    share: Share = SOME,
) -> None:
    """The numbers, the sums, and the gradient of other numbers for each class."""
    found = []
    for way in (cpu.hardest_sums, ranked):
        leaf = logits.input.clone().requires_grad_()
        sums = way(logits._replace(input=leaf), labels, CrossEntropy(), weight, share)
        gradient = torch.autograd.grad((sums.value * torch.tensor([0.5, 2.0])).sum(), leaf)[0]
        found.append((sums.number.double(), sums.value.double(), gradient.double()))
    near = 1e-5 if logits.input.dtype == torch.float32 else 1e-2
    for ours, theirs, rtol in zip(*found, (1e-6, 1e-5, near), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=1e-6, equal_nan=True)


@over_kinds
@pytest.mark.parametrize("weighted", [False, True], ids=["all count once", "weighted"])
def test_every_share(single: bool, weighted: bool, looks: list[Look]) -> None:
    logits, labels, weight = problem(single)
    for share in (SOME, Share(0.0, 1), Share(0.001, 2000), Share(0.9, 1)):
        check(logits, labels, weight if weighted else None, share)
    assert all(look.low < look.high and look.found for look in looks)  # with a few pixels between
    check(logits, labels, weight if weighted else None, Share(1.0, 1))


@over_kinds
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_logits_that_tie(single: bool, dtype: torch.dtype) -> None:
    logits, labels, weight = problem(single, dtype)
    for share in (SOME, Share(0.0, 1), Share(0.5, 1)):
        check(logits, labels, weight, share)


@over_kinds
def test_layouts_and_a_bias(single: bool) -> None:
    logits, labels, weight = problem(single)
    plain = logits.input
    for same in (
        plain.contiguous(memory_format=torch.channels_last),
        plain.transpose(2, 3).contiguous().transpose(2, 3),
        torch.stack([plain, plain], -1)[..., 0],
    ):
        check(Logits(same, None, torch.tensor([0.5, -1.0]), single), labels, weight)
    flat = plain.movedim(1, 3).flatten(0, 2)
    check(
        Logits(flat, None, None, single),
        labels._replace(target=labels.target.flatten()),
        weight.flatten(),
    )


@over_kinds
@pytest.mark.parametrize("pixels", [0, 1, 2, 15, 16, 17, 513])
def test_few_pixels(single: bool, pixels: int) -> None:
    input, target = (
        torch.randn(1, 1 if single else 2, pixels).mul(8).round().div(8),  # whose differences are exact
        torch.randint(2, (1, pixels)),
    )
    for share in (SOME, Share(0.001, 0), Share(1.0, 1)):
        check(Logits(input, single=single), Labels(target, 2, -1), share=share)


def test_equal_losses_are_ranked(looks: list[Look]) -> None:
    logits, labels, _ = problem(True)
    check(logits._replace(input=torch.zeros_like(logits.input)), labels)
    assert [look.found for look in looks] == [False]


def test_too_many_between_the_bounds_are_ranked(looks: list[Look]) -> None:
    """Two losses, and as many pixels of the larger as H has, within what a sample tells."""
    logits, labels, _ = problem(True)
    wrong = torch.rand(SHAPE) < 0.2
    input = torch.where(wrong == (labels.target == 1), -1.0, 1.0).unsqueeze(1)
    check(logits._replace(input=input), labels)
    ((low, high, found),) = looks
    assert low < high
    assert not found


def test_a_sample_that_saw_nothing(looks: list[Look]) -> None:
    """The pixels that it takes are easy, or do not count."""
    logits, labels, _ = problem(True)
    step = -(-labels.target.numel() // mined_pairs.SAMPLE) | 1
    seen = (torch.arange(SHAPE[1] * SHAPE[2]) % step == 0).view(SHAPE[1:]).expand(SHAPE)
    easy = torch.where(labels.target == 1, 20.0, -20.0)
    check(logits._replace(input=torch.where(seen, easy, logits.input.squeeze(1)).unsqueeze(1)), labels)
    check(logits, labels._replace(target=torch.where(seen, -1, labels.target)))
    first, second = looks
    assert first.low == first.high
    assert not first.found
    assert second == (0, 0x7FFFFFFF, False)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number(value: float) -> None:
    """NaN is larger than infinity, and k = 0 hides none."""
    logits, labels, weight = problem(True)
    for part in (1e-3, 0.1, 0.5):
        input = logits.input.masked_fill(torch.rand(SHAPE).unsqueeze(1) < part, value)
        for share in (SOME, Share(0.0, 0), Share(1.0, 1)):
            check(logits._replace(input=input), labels, weight, share)


MARGINS = {
    "all are 0": -90 - 80 * torch.rand(SHAPE),
    "few are 0": -70 - 40 * torch.rand(SHAPE),
    "of one rounding": 1e-9 * torch.randn(SHAPE),
    "tiny, the same": torch.full(SHAPE, 1e-9),
    "subnormal": 1e-40 * torch.randn(SHAPE),
    "any": 3 * torch.randn(SHAPE),
}


@over_kinds
@pytest.mark.parametrize("name", MARGINS)
def test_equal_bits_tie_whatever_the_margins(single: bool, name: str) -> None:
    """H reaches to them, and the classes have other margins: it is not theirs that count."""
    logits, labels, weight = problem(single)
    u = MARGINS[name] * torch.where(labels.target == 1, 1.5, 1.0)
    u = torch.where(torch.rand(SHAPE) < 0.1, 1 + torch.rand(SHAPE), u)
    one = torch.where(labels.target == 1, -u, u)
    input = one.unsqueeze(1) if single else torch.stack([torch.zeros_like(one), one], 1)
    found = []
    for way in (cpu.hardest_sums, by_value):
        leaf = input.clone().requires_grad_()
        sums = way(logits._replace(input=leaf), labels, CrossEntropy(), weight, Share(0.4, 1))
        gradient = torch.autograd.grad((sums.value * torch.tensor([0.5, 2.0])).sum(), leaf)[0]
        found.append((sums.number, sums.value, gradient))
    for pair in zip(*found, strict=True):
        torch.testing.assert_close(*pair, rtol=1e-6, atol=0)


@over_kinds
def test_values_have_the_same_bits_in_both_passes(single: bool) -> None:
    """A pixel has a slope where its value, of a map, is at the threshold or above, to the last bit."""
    logits, labels, _ = problem(single)
    value, counts = mined_pairs._values(logits, labels), labels.target >= 0
    for share in (Share(part / 50, 1) for part in range(1, 50)):
        leaf = logits.input.clone().requires_grad_()
        sums = cpu.hardest_sums(logits._replace(input=leaf), labels, CrossEntropy(), None, share)
        gradient = torch.autograd.grad(sums.value.sum(), leaf)[0]
        hard = cpu.kth_largest(value, labels, 1, share, None)
        assert torch.equal(gradient[:, -1] != 0, counts & (value.view(torch.int32) >= hard.bits))


def by_value(logits: Logits, labels: Labels, form: CrossEntropy, weight: Tensor | None, share: Share) -> Any:
    """Return the sums by a map of values, which are ranked."""

    def choose(value: Tensor) -> Hard:
        return cpu.kth_largest(value, labels, 1, share, None)

    found = cpu.mined_sums(logits, labels, form, weight, choose, by_image=False)
    assert found is not None
    return found[0]


def test_zeros_of_both_signs_tie() -> None:
    logits, labels, _ = problem(True)
    check(logits._replace(input=torch.where(logits.input > 0, 0.0, -0.0)), labels)


def test_ignored_pixels_may_be_anything() -> None:
    logits, labels, weight = problem(True)
    out, found = (labels.target == -1).unsqueeze(1), []
    for value in (0.0, torch.nan, torch.inf):
        leaf = logits.input.masked_fill(out, value).requires_grad_()
        sums = cpu.hardest_sums(logits._replace(input=leaf), labels, CrossEntropy(), weight, SOME)
        found.append((sums.number, sums.value, torch.autograd.grad(sums.value.sum(), leaf)[0]))
    for other in found[1:]:
        assert all(torch.equal(*pair) for pair in zip(found[0], other, strict=True))


@over_kinds
def test_where_a_pixel_lies_and_who_takes_it_changes_nothing(single: bool) -> None:
    logits, labels, _ = problem(single)
    input, target = logits.input.flatten(2).round(decimals=2), labels.target.flatten(1)
    order, former, found = torch.randperm(target.shape[1]), torch.get_num_threads(), []
    for number, here in ((1, torch.arange(len(order))), (3, torch.arange(len(order))), (1, order)):
        torch.set_num_threads(number)
        leaf = input[:, :, here].requires_grad_()
        of = labels._replace(target=target[:, here])
        sums = cpu.hardest_sums(logits._replace(input=leaf), of, CrossEntropy(), None, SOME)
        (gradient,) = torch.autograd.grad(sums.value.sum(), leaf)
        found.append((sums.number, sums.value, torch.empty_like(gradient).index_copy(2, here, gradient)))
    torch.set_num_threads(former)
    assert all(torch.equal(*pair) for pair in zip(found[0], found[1], strict=True))
    assert torch.equal(found[0][0], found[2][0])
    assert torch.equal(found[0][2], found[2][2])
    torch.testing.assert_close(found[0][1], found[2][1], rtol=1e-6, atol=0)


@over_kinds
def test_double_backward_and_batches(single: bool) -> None:
    logits, labels, weight = problem(single)
    found = []
    for way in (ranked, cpu.hardest_sums):
        leaf = (8 * logits.input).round().div(8).requires_grad_()  # whose differences are exact
        value = way(logits._replace(input=leaf), labels, CrossEntropy(), weight, SOME).value
        (first,) = torch.autograd.grad(value.square().sum(), leaf, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), leaf, retain_graph=True)
        grads = torch.stack([torch.ones_like(value), 2 * torch.ones_like(value)])
        (batch,) = torch.autograd.grad(value, leaf, grads, is_grads_batched=True)
        found.append((first, second, *batch))
    for exactly, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, exactly, rtol=1e-3, atol=1e-5 * exactly.abs().max().item())


def test_what_has_a_map() -> None:
    logits, labels, _ = problem(True)
    for name in ("smoothed", "focal"):
        assert cpu.hardest_sums(logits, labels, FORMS[name](2), None, SOME) is None
    three = Logits(torch.randn(2, 3, 4, 5)), Labels(torch.randint(3, (2, 4, 5)), 3, -1)
    assert cpu.hardest_sums(*three, CrossEntropy(), None, SOME) is None
    enlarged = logits._replace(input=torch.randn(3, 1, 7, 9), resize=Resize(SHAPE[1:], False))
    assert cpu.hardest_sums(enlarged, labels, CrossEntropy(), None, SOME) is None


WAYS: dict[str, tuple[bool, dict[str, Any]]] = {
    "as it is": (True, {}),
    "two classes": (True, {"task": "multiclass"}),
    "images": (False, {"scope": "image"}),
    "smoothed": (False, {"label_smoothing": 0.1}),
    "terms": (False, {"reduction": "none"}),
    "labels": (False, {"task": "multilabel"}),
}


@pytest.mark.parametrize("way", WAYS)
def test_when_it_is_taken(way: str, looks: list[Look], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dispatch, "_CPU_FROM", 0)
    is_taken, given = WAYS[way]
    asked = dict(given)
    task = asked.pop("task", "binary")
    input = torch.randn(SHAPE[0], 1 if task == "binary" else 2, *SHAPE[1:])
    target = torch.randint(2, input.shape if task == "multilabel" else SHAPE)
    loss = losses.dyce_loss(input, target, task=task, **asked)
    assert bool(looks) == is_taken
    torch.testing.assert_close(loss, losses.dyce_loss(input.double(), target, task=task, **asked).float())


def test_whole_in_a_compiled_graph() -> None:
    torch._dynamo.reset()
    logits, labels, weight = problem(True)
    leaf, found = logits.input.requires_grad_(), []

    def total(input: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        of = labels._replace(target=target)
        sums = cpu.hardest_sums(logits._replace(input=input), of, CrossEntropy(), weight, SOME)
        return (sums.value / sums.number).sum()

    for call in (total, torch.compile(total, fullgraph=True, backend="aot_eager")):
        value = call(leaf, labels.target, weight)
        found.append((value, *torch.autograd.grad(value, leaf)))
    for pair in zip(*found, strict=True):
        torch.testing.assert_close(*pair)


@over_kinds
def test_operators_are_what_they_say(single: bool) -> None:
    logits, labels, weight = problem(single)
    tests, bias = ("test_schema", "test_faketensor"), torch.zeros(2)
    args = (logits.input, labels.target, -1, weight, bias, single, 0.2, 1)
    torch.library.opcheck(mined_pairs._SUMS, args, test_utils=tests)
    form, hard = (-1, None, 0, [], None), (None, torch.tensor([7]), torch.tensor([0.5]))
    args = (
        None,
        logits.input,
        labels.target,
        torch.empty(0),
        *form,
        bias,
        single,
        weight,
        None,
        torch.ones(2),
        *hard,
    )
    torch.library.opcheck(pixel.BACKWARD, args, test_utils=tests)
