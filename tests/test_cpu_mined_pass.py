"""H in one pass over the logits, against float64, and against a map of values that is ranked."""

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
from classbalance_losses.kernels.cpu import mined_pass, pixel, threads

if threads.failure(torch.device("cpu")) is not None:
    pytest.skip("loops cannot run here", allow_module_level=True)

pytestmark = WARNINGS
KINDS = {"one logit": (1, 2), "two": (2, 2), "five": (5, 5)}  # logits and classes
over_kinds = pytest.mark.parametrize("kind", KINDS)
over_pairs = pytest.mark.parametrize("kind", ["one logit", "two"])
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

    def near(*given: Any, run: Any = mined_pass._near) -> Any:
        found = run(*given)
        seen.append(Look(*given[-2:], found is not None))
        return found

    monkeypatch.setattr(mined_pass, "SAMPLE", 1 << 13)
    monkeypatch.setattr(mined_pass, "FEW", 1 << 12)
    monkeypatch.setattr(mined_pass, "PARTS", 5)
    monkeypatch.setattr(mined_pass, "_near", near)
    return seen


def problem(kind: str = "one logit", dtype: torch.dtype = torch.float32) -> tuple[Logits, Labels, Tensor]:
    """Logits, labels of which some are ignored, and weights of which some are 0."""
    channels, classes = KINDS[kind]
    input = (3 * torch.randn(SHAPE[0], channels, *SHAPE[1:])).to(dtype)
    return (
        Logits(input, single=channels == 1),
        Labels(torch.randint(-1, classes, SHAPE), classes, -1),
        torch.rand(SHAPE).round(decimals=1),
    )


def slopes(labels: Labels) -> Tensor:
    """The gradient of the sums: another one for each class."""
    return torch.linspace(0.5, 2, labels.num_classes)


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
        gradient = torch.autograd.grad((sums.value * slopes(labels)).sum(), leaf)[0]
        found.append((sums.number.double(), sums.value.double(), gradient.double()))
    near = 1e-5 if logits.input.dtype == torch.float32 else 1e-2
    for ours, theirs, rtol in zip(*found, (1e-6, 1e-5, near), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=1e-6, equal_nan=True)


@over_kinds
@pytest.mark.parametrize("weighted", [False, True], ids=["all count once", "weighted"])
def test_every_share(kind: str, weighted: bool, looks: list[Look]) -> None:
    logits, labels, weight = problem(kind)
    for share in (SOME, Share(0.0, 1), Share(0.001, 2000), Share(0.9, 1)):
        check(logits, labels, weight if weighted else None, share)
    assert all(look.low < look.high and look.found for look in looks)  # with a few pixels between
    check(logits, labels, weight if weighted else None, Share(1.0, 1))


@over_pairs
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_logits_that_tie(kind: str, dtype: torch.dtype) -> None:
    logits, labels, weight = problem(kind, dtype)
    for share in (SOME, Share(0.0, 1), Share(0.5, 1)):
        check(logits, labels, weight, share)


@over_kinds
def test_layouts_and_a_bias(kind: str) -> None:
    logits, labels, weight = problem(kind)
    plain = logits.input
    for same in (
        plain.contiguous(memory_format=torch.channels_last),
        plain.transpose(2, 3).contiguous().transpose(2, 3),
        torch.stack([plain, plain], -1)[..., 0],
    ):
        bias = torch.linspace(0.5, -1, labels.num_classes)
        check(Logits(same, None, bias, logits.single), labels, weight)
    flat = plain.movedim(1, 3).flatten(0, 2)
    check(
        Logits(flat, None, None, logits.single),
        labels._replace(target=labels.target.flatten()),
        weight.flatten(),
    )


@over_kinds
@pytest.mark.parametrize("pixels", [0, 1, 2, 15, 16, 17, 513])
def test_few_pixels(kind: str, pixels: int) -> None:
    channels, classes = KINDS[kind]
    input, target = (
        torch.randn(1, channels, pixels).mul(8).round().div(8),  # whose differences are exact
        torch.randint(classes, (1, pixels)),
    )
    for share in (SOME, Share(0.001, 0), Share(1.0, 1)):
        check(Logits(input, single=channels == 1), Labels(target, classes, -1), share=share)


@over_kinds
def test_equal_losses_are_ranked(kind: str, looks: list[Look]) -> None:
    logits, labels, _ = problem(kind)
    check(logits._replace(input=torch.zeros_like(logits.input)), labels)
    assert [look.found for look in looks] == [False]


def test_too_many_between_the_bounds_are_ranked(looks: list[Look]) -> None:
    """Two losses, and as many pixels of the larger as H has, within what a sample tells."""
    logits, labels, _ = problem()
    wrong = torch.rand(SHAPE) < 0.2
    input = torch.where(wrong == (labels.target == 1), -1.0, 1.0).unsqueeze(1)
    check(logits._replace(input=input), labels)
    ((low, high, found),) = looks
    assert low < high
    assert not found


def test_a_sample_that_saw_nothing(looks: list[Look]) -> None:
    """The pixels that it takes are easy, or do not count."""
    logits, labels, _ = problem()
    step = -(-labels.target.numel() // mined_pass.FEW) | 1
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
    logits, labels, weight = problem()
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


@over_pairs
@pytest.mark.parametrize("name", MARGINS)
def test_equal_bits_tie_whatever_the_margins(kind: str, name: str) -> None:
    """H reaches to them, and the classes have other margins: it is not theirs that count."""
    logits, labels, weight = problem(kind)
    u = MARGINS[name] * torch.where(labels.target == 1, 1.5, 1.0)
    u = torch.where(torch.rand(SHAPE) < 0.1, 1 + torch.rand(SHAPE), u)
    one = torch.where(labels.target == 1, -u, u)
    input = one.unsqueeze(1) if logits.single else torch.stack([torch.zeros_like(one), one], 1)
    found = []
    for way in (cpu.hardest_sums, by_value):
        leaf = input.clone().requires_grad_()
        sums = way(logits._replace(input=leaf), labels, CrossEntropy(), weight, Share(0.4, 1))
        gradient = torch.autograd.grad((sums.value * slopes(labels)).sum(), leaf)[0]
        found.append((sums.number, sums.value, gradient))
    for pair in zip(*found, strict=True):
        torch.testing.assert_close(*pair, rtol=1e-6, atol=0)


@over_kinds
def test_values_have_the_same_bits_in_both_passes(kind: str) -> None:
    """A pixel has a slope where its value, of a map, is at the threshold or above, to the last bit."""
    logits, labels, _ = problem(kind)
    value, counts = mined_pass._values(logits, labels)[0], labels.target >= 0
    for share in (Share(part / 50, 1) for part in range(1, 50)):
        leaf = logits.input.clone().requires_grad_()
        sums = cpu.hardest_sums(logits._replace(input=leaf), labels, CrossEntropy(), None, share)
        gradient = torch.autograd.grad(sums.value.sum(), leaf)[0]
        hard = cpu.kth_largest(value, labels, 1, share, None)
        assert torch.equal((gradient != 0).any(1), counts & (value.view(torch.int32) >= hard.bits))


def by_value(logits: Logits, labels: Labels, form: CrossEntropy, weight: Tensor | None, share: Share) -> Any:
    """Return the sums by a map of values, which are ranked."""

    def choose(value: Tensor) -> Hard:
        return cpu.kth_largest(value, labels, 1, share, None)

    found = cpu.mined_sums(logits, labels, form, weight, choose, by_image=False)
    assert found is not None
    return found[0]


def test_zeros_of_both_signs_tie() -> None:
    logits, labels, _ = problem()
    check(logits._replace(input=torch.where(logits.input > 0, 0.0, -0.0)), labels)


def test_ignored_pixels_may_be_anything() -> None:
    logits, labels, weight = problem()
    out, found = (labels.target == -1).unsqueeze(1), []
    for value in (0.0, torch.nan, torch.inf):
        leaf = logits.input.masked_fill(out, value).requires_grad_()
        sums = cpu.hardest_sums(logits._replace(input=leaf), labels, CrossEntropy(), weight, SOME)
        found.append((sums.number, sums.value, torch.autograd.grad(sums.value.sum(), leaf)[0]))
    for other in found[1:]:
        assert all(torch.equal(*pair) for pair in zip(found[0], other, strict=True))


@over_kinds
def test_where_a_pixel_lies_and_who_takes_it_changes_nothing(kind: str) -> None:
    logits, labels, _ = problem(kind)
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
def test_double_backward_and_batches(kind: str) -> None:
    logits, labels, weight = problem(kind)
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
    logits, labels, _ = problem()
    for name in ("smoothed", "focal"):
        assert cpu.hardest_sums(logits, labels, FORMS[name](2), None, SOME) is None
    several, of_several, _ = problem("five", torch.bfloat16)
    assert cpu.hardest_sums(several, of_several, CrossEntropy(), None, SOME) is None
    enlarged = logits._replace(input=torch.randn(3, 1, 7, 9), resize=Resize(SHAPE[1:], False))
    assert cpu.hardest_sums(enlarged, labels, CrossEntropy(), None, SOME) is None


WAYS: dict[str, tuple[bool, int, dict[str, Any]]] = {
    "as it is": (True, 1, {"task": "binary"}),
    "two classes": (True, 2, {}),
    "several": (True, 5, {}),
    "images": (False, 5, {"scope": "image"}),
    "smoothed": (False, 5, {"label_smoothing": 0.1}),
    "terms": (False, 5, {"reduction": "none"}),
    "labels": (False, 2, {"task": "multilabel"}),
}


@pytest.mark.parametrize("way", WAYS)
def test_when_it_is_taken(way: str, looks: list[Look], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dispatch, "_CPU_FROM", 0)
    is_taken, channels, asked = WAYS[way]
    input = torch.randn(SHAPE[0], channels, *SHAPE[1:])
    labels = input.shape if asked.get("task") == "multilabel" else SHAPE
    target = torch.randint(2, labels)
    loss = losses.dyce_loss(input, target, **asked)
    assert bool(looks) == is_taken
    torch.testing.assert_close(loss, losses.dyce_loss(input.double(), target, **asked).float())


@over_kinds
def test_whole_in_a_compiled_graph(kind: str) -> None:
    torch._dynamo.reset()
    logits, labels, weight = problem(kind)
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
def test_operators_are_what_they_say(kind: str) -> None:
    logits, labels, weight = problem(kind)
    tests, bias = ("test_schema", "test_faketensor"), torch.zeros(labels.num_classes)
    args = (logits.input, labels.target, -1, weight, bias, logits.single, 0.2, 1)
    torch.library.opcheck(mined_pass._SUMS, args, test_utils=tests)
    log_sum = mined_pass._SUMS(*args)[2]
    form, hard = (-1, None, 0, [], None), (None, torch.tensor([7]), torch.tensor([0.5]))
    given = (
        None,
        logits.input,
        labels.target,
        log_sum,
        *form,
        bias,
        logits.single,
        weight,
        None,
        slopes(labels),
    )
    torch.library.opcheck(pixel.BACKWARD, (*given, *hard), test_utils=tests)
