"""The CPU's loops over maps: class sums, weighted sums, selection and labels, against their definitions in float64."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from kernel_checks import WARNINGS
from torch import Tensor

from classbalance_losses.kernels import reference
from classbalance_losses.kernels.call import Hard, Labels, Share

pytest.importorskip("numba")

from classbalance_losses.kernels.cpu import map_loops, maps, memory, select, threads
from classbalance_losses.kernels.cpu.maps import class_sums, labels_outside, narrowed, weighted_sums
from classbalance_losses.kernels.cpu.select import kth_largest

if threads.failure(torch.device("cpu")) is not None:
    pytest.skip("loops cannot run here", allow_module_level=True)

INFINITY = 0x7F800000  # its bits
LARGE = 2 * map_loops.PART + 77  # pixels of more than two parts
DTYPES = [torch.uint8, torch.int16, torch.int32, torch.int64]
over_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture(autouse=True)
def _threads_share_little_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps, "_WORTH_A_THREAD", 0)


@pytest.fixture(params=[1, 3])
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    former = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(former)


def some_labels(shape: tuple[int, ...], num_classes: int = 5, dtype: torch.dtype = torch.int64) -> Labels:
    ignored = 255 if dtype == torch.uint8 else -100
    target = torch.where(torch.rand(shape) < 0.7, torch.randint(0, num_classes, shape), ignored)
    return Labels(target.to(dtype), num_classes, ignored)


def counting(labels: Labels) -> Tensor:
    return labels.target.long() != labels.ignore_index


def spoilt(labels: Labels, values: Tensor, value: float) -> Tensor:
    """A map that is ``value`` where no pixel counts."""
    return torch.where(counting(labels), values, value)


def some_hard(labels: Labels, rows: int) -> Hard:
    """H with ties at the threshold, and a NaN; k of the last of many rows is 0."""
    ranked = torch.rand(labels.target.shape).mul(8).floor().div(4)
    ranked[..., -1] = -math.nan
    threshold, share = torch.full((rows,), 1.25), torch.linspace(0.3, 0.7, rows)
    if rows > 1:
        threshold[-1], share[-1] = math.inf, 0
    return Hard(ranked, threshold.view(torch.int32).long(), share)


def belonging(labels: Labels, hard: Hard | None) -> Tensor:
    """h_i, float64."""
    if hard is None:
        return counting(labels).double()
    rows = hard.bits.shape[0]
    bits = hard.ranked.abs().view(torch.int32).long().reshape(rows, -1)
    threshold, share = hard.bits.unsqueeze(1), hard.share.double().unsqueeze(1)
    h = torch.where(bits == threshold, share, (bits > threshold).double())
    return h.view(labels.target.shape) * counting(labels)


def by_definition(
    labels: Labels,
    values: Tensor | None,
    rows: int = 1,
    hard: Hard | None = None,
    factors: tuple[Tensor, ...] = (),
) -> Tensor:
    """Sums of h_i times the factors times the values over the pixels of each row and class, float64."""
    h = belonging(labels, hard)
    terms = h if values is None else h * torch.where(h > 0, values, 0).double()
    for factor in factors:
        terms = torch.where(h > 0, factor, 0).double() * terms
    index = torch.where(counting(labels), labels.target.long(), 0).reshape(rows, -1)
    zeros = torch.zeros(rows, labels.num_classes, dtype=torch.float64)
    return zeros.scatter_add(1, index, terms.reshape(rows, -1))


def near(got: Tensor, expected: Tensor, rtol: float = 1e-6) -> None:
    torch.testing.assert_close(got.double(), expected.double(), rtol=rtol, atol=1e-6, equal_nan=True)


def sums_of(labels: Labels, rows: int, hard: Hard | None, weighted: bool) -> dict[str, Tensor]:
    """All that class sums yield, and the gradient."""
    shape = labels.target.shape
    value, squared, weight = (spoilt(labels, torch.rand(shape) * 3, math.nan) for _ in range(3))
    leaf, slope = value.requires_grad_(), torch.rand(rows, labels.num_classes)
    found = class_sums(labels, leaf, squared, weight if weighted else None, rows=rows, hard=hard)
    assert found.value is not None
    assert found.squared is not None
    assert not found.squared.requires_grad
    (gradient,) = torch.autograd.grad(found.value, leaf, slope)
    once, twice = ((weight,), (weight, weight)) if weighted else ((), ())
    index = torch.where(counting(labels), labels.target.long(), 0).reshape(rows, -1)
    of_class = slope.double().gather(1, index).view(shape) * belonging(labels, hard)
    of_class = of_class * torch.where(belonging(labels, hard) > 0, weight, 0) if weighted else of_class
    near(found.number, by_definition(labels, None, rows, hard), rtol=0 if hard is None else 1e-6)
    near(found.value, by_definition(labels, value.detach(), rows, hard, once))
    near(found.squared, by_definition(labels, squared, rows, hard, twice))
    near(gradient, of_class)
    assert not gradient[belonging(labels, hard) == 0].any()
    return {"number": found.number, "value": found.value, "squared": found.squared, "gradient": gradient}


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("is_hard", [False, True])
@pytest.mark.usefixtures("_threads")
def test_class_sums(rows: int, is_hard: bool) -> None:
    for pixels, num_classes, weighted in product((1, 70, 3 * LARGE), (2, 5, 300), (False, True)):
        labels = some_labels((3, pixels), num_classes)
        hard = some_hard(labels, rows) if is_hard else None
        found = sums_of(labels, rows, hard, weighted)
        assert found["number"].dtype == (torch.float32 if is_hard else torch.int64)


def test_class_sums_are_what_a_loop_over_pixels_adds_up() -> None:
    labels = Labels(torch.tensor([[0, 2, -100, 2, 1, 2]]), 3, -100)
    value, weight = torch.tensor([[1.0, 2, 3, 4, 5, 6]]), torch.tensor([[1.0, 1, 1, 0.5, 3, 2]])
    hard = Hard(value, torch.tensor([4.0]).view(torch.int32).long(), torch.tensor([0.25]))
    number, sums, squared = class_sums(labels, value, value, weight)
    assert number.tolist() == [[1, 1, 3]]
    assert sums is not None
    assert squared is not None
    assert sums.tolist() == [[1, 15, 2 + 2 + 12]]
    assert squared.tolist() == [[1, 45, 2 + 1 + 24]]
    number, sums, squared = class_sums(labels, value, None, weight, hard=hard)
    assert number.tolist() == [[0, 1, 1.25]]
    assert sums is not None
    assert sums.tolist() == [[0, 15, 0.25 * 2 + 12]]
    assert squared is None
    assert class_sums(labels).value is None


@over_dtypes
@pytest.mark.usefixtures("_threads")
def test_labels_of_any_integer_type(dtype: torch.dtype) -> None:
    narrow = some_labels((2, LARGE), dtype=dtype)
    wide = narrow._replace(target=narrow.target.long())
    value = torch.rand(2, LARGE)
    hard = kth_largest(value, wide, 2, Share(0.2, 1), None)
    assert all(
        torch.equal(*pair)
        for pair in zip(hard, kth_largest(value, narrow, 2, Share(0.2, 1), None), strict=True)
    )
    found = []
    for labels in (wide, narrow):
        torch.manual_seed(1)
        found.append(sums_of(labels, 2, hard, weighted=True))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_a_uint8_is_no_negative_number() -> None:
    labels = Labels(torch.tensor([156, 199, 255], dtype=torch.uint8), 200, -100)
    assert class_sums(labels._replace(num_classes=256)).number.sum() == 3
    assert labels_outside(*labels) == 1


@over_dtypes
def test_an_ignored_label_that_no_label_can_be(dtype: torch.dtype) -> None:
    labels = Labels(torch.ones(1, 40, dtype=dtype), 2, (1 << 32) + 1)
    assert class_sums(labels).number.tolist() == [[0, 40]]


@pytest.mark.parametrize("is_hard", [False, True])
def test_one_thread_or_three_find_the_same_bits(is_hard: bool) -> None:
    former, found = torch.get_num_threads(), []
    for count in (1, 3, 1, 3):
        torch.set_num_threads(count)
        torch.manual_seed(0)
        labels = some_labels((2, 9 * map_loops.PART + 5), 19)
        hard = (
            kth_largest(torch.rand(labels.target.shape), labels, 2, Share(0.1, 1), None) if is_hard else None
        )
        sums = sums_of(labels, 2, hard, weighted=True)
        scalars = weighted_sums(torch.rand(labels.target.shape), labels, torch.rand(19), None, None)
        found.append([*sums.values(), *scalars, *(hard or ())])
    torch.set_num_threads(former)
    assert all(torch.equal(*pair) for other in found[1:] for pair in zip(found[0], other, strict=True))


def test_a_float32_sum_would_lose_digits() -> None:
    labels = Labels(torch.zeros(1 << 21, dtype=torch.uint8), 2, -100)
    value = torch.full((1 << 21,), 0.1)
    value[0] = 2.0**24
    sums = class_sums(labels, value).value
    assert sums is not None
    near(sums[0, 0], value.double().sum(), rtol=6e-8)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_pixels_that_do_not_count_are_inert(value: float) -> None:
    labels = some_labels((2, 500))
    clean, weight, ranked = (torch.rand(2, 500) for _ in range(3))
    w = torch.rand(5)
    found = []
    for other in (0.0, value):
        map, q, rank = (spoilt(labels, values, other) for values in (clean, weight, ranked))
        leaf = map.requires_grad_()
        hard = kth_largest(rank, labels, 1, Share(0.3, 1), None)
        sums = class_sums(labels, leaf, leaf.detach(), q, hard=hard)
        scalars = weighted_sums(leaf, labels, w, w, q)
        assert sums.value is not None
        assert sums.squared is not None
        (gradient,) = torch.autograd.grad(sums.value.sum() + scalars.mean, leaf)
        assert not gradient[~counting(labels)].any()
        found.append([sums.number, sums.value, sums.squared, *scalars, gradient, hard.bits, hard.share])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_in_a_pixel_that_counts_is_not_hidden(value: float) -> None:
    labels = Labels(torch.tensor([0, 1, 1, 2]), 3, -100)
    for place in ("map", "weight"):
        map, q = torch.rand(4), torch.rand(4)
        (map if place == "map" else q)[1] = value
        sums = class_sums(labels, map, map, q)
        for found in (sums.value, sums.squared):
            assert found is not None
            near(found[0, 1], torch.tensor(value))
            assert found[0, [0, 2]].isfinite().all()
        assert not weighted_sums(map, labels, torch.ones(3), None, q).total.isfinite()


def test_a_weight_of_0_times_an_infinite_value_is_0_and_times_nan_is_nan() -> None:
    labels = Labels(torch.tensor([0, 1, 1]), 2, -100)
    map = torch.tensor([1.0, math.inf, 2.0], requires_grad=True)
    q, w = torch.tensor([1.0, 0, 1]), torch.tensor([1.0, 0])
    sums = class_sums(labels, map, map.detach(), q)
    assert sums.value is not None
    assert sums.squared is not None
    assert sums.value.tolist() == sums.squared.tolist() == [[1, 2]]
    assert torch.autograd.grad(sums.value.sum(), map)[0].tolist() == [1, 0, 1]
    for weights in ((w, w, None), (None, None, q), (w, w, q)):
        mean, total, _ = weighted_sums(map, labels, *weights)
        assert total.isfinite()
        assert torch.autograd.grad(mean, map)[0].isfinite().all()
    broken = torch.tensor([1.0, math.nan, 2.0])
    assert weighted_sums(broken, labels, w, w, None).total.isnan()
    assert weighted_sums(broken, labels, None, None, q).total.isnan()


def test_an_absent_class_weighs_nothing_whatever_its_weight() -> None:
    labels = Labels(torch.tensor([0, 1, -100]), 4, -100)
    w = torch.tensor([1.0, 2, math.nan, math.inf])
    assert [x.item() for x in weighted_sums(torch.tensor([3.0, 6, 9]), labels, w, w, None)] == [5, 15, 3]


@pytest.mark.usefixtures("_threads")
def test_weighted_sums() -> None:
    for shape, by_class, by_pixel in product(((7,), (2, LARGE)), (False, True), (False, True)):
        labels = some_labels(shape)
        value, q = (spoilt(labels, torch.rand(shape), math.nan) for _ in range(2))
        w, other = torch.rand(5), torch.rand(5)
        weight = w if by_class else None
        own = w.double() if by_class else torch.ones(5, dtype=torch.float64)
        for norm_weight in (None, w, other):
            leaf = value.clone().requires_grad_()
            sums = weighted_sums(leaf, labels, weight, norm_weight, q if by_pixel else None)
            total = (own * by_definition(labels, value, factors=(q,) * by_pixel)).sum()
            number = by_definition(labels, None)
            norm = number.sum() if norm_weight is None else (norm_weight.double() * number).sum()
            near(sums.total, total)
            near(sums.norm, norm)
            near(sums.mean, total / norm)
            assert {x.dtype for x in sums} == {torch.float32}
            assert not sums.norm.requires_grad
            of_pixel = own[labels.target.clamp(0, 4)] * (
                torch.where(counting(labels), q, 0) if by_pixel else 1
            )
            expected = torch.where(counting(labels), of_pixel * (2 / norm + 3), 0)
            near(torch.autograd.grad(2 * sums.mean + 3 * sums.total, leaf)[0], expected)


@pytest.mark.parametrize("shape", [(2, 3), (0, 3), (2, 0)])
def test_nothing_counts(shape: tuple[int, ...]) -> None:
    labels = Labels(torch.full(shape, -100), 4, -100)
    value = torch.full(shape, math.nan, requires_grad=True)
    hard = kth_largest(value, labels, 1, Share(0.5, 3), None)
    assert hard.share.tolist() == [0]
    rows = shape[0]
    sums = class_sums(labels, value, value.detach(), rows=rows)
    assert sums.number.tolist() == [[0] * 4] * rows
    assert sums.value is not None
    assert not sums.value.any()
    assert not class_sums(labels, value, hard=hard).number.any()
    mean, total, norm = weighted_sums(value, labels, torch.rand(4), torch.rand(4), None)
    assert mean == total == norm == 0
    assert not torch.autograd.grad(mean + sums.value.sum(), value)[0].any()


def test_the_class_of_a_wrong_label_is_another_one() -> None:
    """Labels are refused before; if not, no loop writes outside its tables."""
    labels = Labels(torch.tensor([-5, 3, 2**40, 0, -100, -(2**62)]), 3, -100)
    value = torch.ones(6, requires_grad=True)
    sums = class_sums(labels, value)
    assert sums.number.tolist() == [[3, 0, 2]]
    assert sums.value is not None
    gradient = torch.autograd.grad(sums.value, value, torch.tensor([[1.0, 10, 100]]))[0]
    assert gradient.tolist() == [1, 100, 100, 1, 0, 1]


def test_maps_of_any_strides() -> None:
    labels = some_labels((4, 30))
    value, q = torch.rand(4, 30), torch.rand(4, 30)
    hard = kth_largest(value, labels, 4, Share(0.4, 1), None)
    slope = torch.rand(4, 5)
    found = []
    for lay in (lambda x: x, lambda x: x.T.contiguous().T):
        there = labels._replace(target=lay(labels.target))
        leaf = lay(value).requires_grad_()
        sums = class_sums(there, leaf, leaf.detach(), lay(q), rows=4, hard=hard._replace(ranked=lay(value)))
        assert sums.value is not None
        (gradient,) = torch.autograd.grad(sums.value, leaf, lay(slope))
        chosen = kth_largest(lay(value), there, 4, Share(0.4, 1), None)
        found.append([*sums, *chosen, gradient, torch.tensor(labels_outside(there.target, 2, -100))])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def by_sorting(ranked: Tensor, labels: Labels, rows: int, share: Share) -> list[tuple[int, float]]:
    """The threshold's bits and h of each row; where k is 0, infinity's and 0."""
    found = []
    bits = ranked.abs().view(torch.int32).reshape(rows, -1)
    for values, keep in zip(bits, counting(labels).reshape(rows, -1), strict=True):
        ordered = sorted(values[keep].tolist(), reverse=True)
        k = min(max(share.at_least, math.floor(share.part * len(ordered))), len(ordered))
        if not k:
            found.append((INFINITY, 0.0))
            continue
        last = ordered[k - 1]
        wanted, tied = k - sum(b > last for b in ordered), ordered.count(last)
        found.append((last, float(np.float32(wanted) / np.float32(tied))))
    return found


def values_of(kind: str, shape: tuple[int, ...]) -> Tensor:
    value = torch.rand(shape) * 3
    if kind == "ties":
        return torch.where(torch.rand(shape) < 0.5, value.round(), value)
    if kind == "constant":
        return torch.full(shape, 0.7)
    if kind == "not finite":
        bad = torch.tensor([math.nan, math.inf, -math.nan, 0.0, -0.0])[torch.randint(0, 5, shape)]
        return torch.where(torch.rand(shape) < 0.3, bad, value)
    return value.pow(40)  # down to subnormal numbers


WAYS: dict[str, dict[str, Any]] = {
    "all pixels are the sample": {},
    "few pixels are": {"_SAMPLE": 1 << 9},
    "it misleads": {"_SAMPLE": 1 << 9, "_DEVIATIONS": 0, "RARE": 1 << 12},
    "digits": {"_near_sample": lambda *_: None},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["ties", "constant", "not finite", "wide"])
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.usefixtures("_threads")
def test_selection(kind: str, rows: int, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"_SHORT": 0, **WAYS[way]}.items():
        monkeypatch.setattr(select, name, value)
    for shape in ((2, 40), (2, LARGE)):
        labels, ranked = some_labels(shape), values_of(kind, shape)
        labels.target[-1, : shape[1] // 2] = -100
        ranked = spoilt(labels, ranked, math.nan)
        for share in (
            Share(0.02, 0),
            Share(1e-9, 0),
            Share(0, 7),
            Share(0.7, 1),
            Share(1, 0),
            Share(0.1, 10**9),
        ):
            found = kth_largest(ranked, labels, rows, share, None)
            assert found.bits.dtype == torch.int64
            assert found.share.dtype == torch.float32
            pairs = list(zip(found.bits.tolist(), found.share.tolist(), strict=True))
            assert pairs == by_sorting(ranked, labels, rows, share)
            plain = reference.kth_largest(ranked, labels, rows, share, None)
            assert torch.equal(found.bits, plain.bits)
            assert torch.equal(found.share, plain.share)
            valid = counting(labels).reshape(rows, -1).sum(1)
            k = [min(max(share.at_least, math.floor(share.part * n)), n) for n in valid.tolist()]
            broken = (ranked.isnan() & counting(labels)).reshape(rows, -1).sum(1)
            size = torch.where(torch.tensor(k) > 0, torch.tensor(k), broken)  # no NaN is hidden
            near(class_sums(labels, rows=rows, hard=found).number.sum(1), size)


def test_a_share_is_rounded_as_float64_rounds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "_SHORT", 0)
    for part, pixels, k in ((0.29, 100, 28), (0.7, 10, 7), (0.1, 30, 3)):
        labels = Labels(torch.zeros(pixels, dtype=torch.int64), 2, -100)
        hard = kth_largest(torch.arange(float(pixels)), labels, 1, Share(part, 0), None)
        assert class_sums(labels, hard=hard).number.tolist() == [[k, 0]]


def test_short_rows_are_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "_of_row", None)
    labels, ranked = some_labels((300, 7)), torch.rand(300, 7)
    found = kth_largest(ranked, labels, 300, Share(0.5, 1), None)
    pairs = list(zip(found.bits.tolist(), found.share.tolist(), strict=True))
    assert pairs == by_sorting(ranked, labels, 300, Share(0.5, 1))


def test_a_sample_spares_the_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "_by_digits", None)
    monkeypatch.setattr(select, "_SAMPLE", 1 << 12)
    labels, ranked = some_labels((LARGE,)), torch.rand(LARGE).log().neg()
    for share in (Share(0.2, 1), Share(0.9, 1), Share(0, 1), Share(1, 1)):
        found = kth_largest(ranked, labels, 1, share, None)
        assert [(int(found.bits), float(found.share))] == by_sorting(ranked, labels, 1, share)


@pytest.mark.parametrize("parts", [2, 8])
def test_values_near_the_threshold_may_lie_side_by_side(parts: int) -> None:
    """A sample tells half a million of a million pixels to within 2^13: 2^14 in 2 parts are too many for their room."""
    pixels, near = 64 * map_loops.PART, parts * map_loops.PART
    value = 2.0 * (torch.rand(1, pixels) < 0.5)
    value[0, :near] = 1 + torch.rand(near) / 1024
    labels = Labels(torch.zeros(1, pixels, dtype=torch.uint8), 2, -100)
    share = Share((int((value == 2).sum()) + near // 2) / pixels, 1)
    got, wanted = (of(value, labels, 1, share, None) for of in (kth_largest, reference.kth_largest))
    assert torch.equal(got.bits, wanted.bits)
    assert torch.equal(got.share, wanted.share)
    of_row = labels._replace(target=labels.target[0])
    assert (select._near_sample(value[0], of_row, share) is not None) == (parts == 8)


class Ranks:
    """Two ranks as threads: a table is added up once both have handed theirs in."""

    def __init__(self) -> None:
        self.tables: list[Tensor] = []
        self._barrier = threading.Barrier(2, timeout=60)

    def joined(self, table: Tensor) -> Tensor:
        self._barrier.wait()
        self.tables.append(table.clone())
        self._barrier.wait()
        first, second = self.tables[-2:]
        self._barrier.wait()
        return first + second

    def run(self, tasks: list[Callable[[], Any]]) -> list[Any]:
        found: list[Any] = [None, None]

        def one(rank: int) -> None:
            found[rank] = tasks[rank]()

        running = [threading.Thread(target=one, args=(rank,)) for rank in range(2)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        return found


@pytest.mark.parametrize("other", [kth_largest, reference.kth_largest], ids=["the loops", "the reference"])
def test_ranks_find_the_threshold_of_the_joined_batch(other: Callable[..., Hard]) -> None:
    """Also where one of them, whose batch is small, runs on the reference."""
    labels, ranked = some_labels((2, 300)), values_of("ties", (2, 300))
    for share in (Share(0.1, 1), Share(0, 0)):
        expected = kth_largest(ranked, labels, 1, share, None)
        ranks = Ranks()
        parts = [(ranked[rank], labels._replace(target=labels.target[rank])) for rank in range(2)]
        tasks = [
            partial(search, *part, 1, share, ranks.joined)
            for search, part in zip((kth_largest, other), parts, strict=True)
        ]
        for found in ranks.run(tasks):
            assert torch.equal(found.bits, expected.bits)
            assert torch.equal(found.share, expected.share)


def test_classes_that_are_more_than_bytes_stay_as_they_are() -> None:
    labels = some_labels((7,), 256)
    assert narrowed(labels)[1].target is labels.target


@over_dtypes
@pytest.mark.usefixtures("_threads")
def test_labels_outside(dtype: torch.dtype) -> None:
    target = torch.randint(0, 5, (LARGE,))
    strange = torch.tensor([5, 7, 255] if dtype == torch.uint8 else [-1, -100, 255])
    target = torch.where(torch.rand(LARGE) < 0.1, strange[torch.randint(0, 3, (LARGE,))], target)
    for ignored in (-100, 255, 4):
        expected = ((target < 0) | (target > 4)) & (target != ignored)
        assert labels_outside(target.to(dtype), 5, ignored) == expected.sum() > 0
        number, labels = narrowed(Labels(target.to(dtype), 5, ignored))
        assert number == expected.sum()
        right = torch.where(target == ignored, labels.ignore_index, target)[~expected]
        assert labels.target.dtype == torch.uint8
        assert torch.equal(labels.target[~expected].long(), right)
    assert labels_outside(target[:0].to(dtype), 5, -100) == 0


def some_call(value: Tensor, target: Tensor, q: Tensor, w: Tensor) -> Tensor:
    labels = Labels(target, 5, -100)
    hard = kth_largest(value, labels, 2, Share(0.25, 1), None)
    sums = class_sums(labels, value, value.detach(), q, rows=2, hard=hard)
    assert sums.value is not None
    assert sums.squared is not None
    number = class_sums(labels).number
    mean, total, _ = weighted_sums(value * value, labels, w, w, q)
    return (sums.value / sums.number.clamp(min=1)).sum() + (sums.squared * number).sum() + mean + total


def arguments() -> tuple[Tensor, ...]:
    return (
        torch.rand(2, 40, requires_grad=True),
        some_labels((2, 40)).target,
        torch.rand(2, 40),
        torch.rand(5),
    )


def test_a_thread_alone_goes_over_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    ran: list[Any] = []
    monkeypatch.setattr(maps, "run", lambda task, job: ran.append(task))
    for pixels, wakes in ((1 << 17, False), (1 << 20, True)):
        ran.clear()
        number = class_sums(Labels(torch.zeros(pixels, dtype=torch.uint8), 2, -100)).number
        assert (number[0, 0] == pixels) != wakes
        assert bool(ran) == wakes


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.filterwarnings(*(mark.args[0] for mark in WARNINGS))
def test_the_loops_stay_in_a_compiled_graph(dynamic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "_SHORT", 0)
    ran: list[Any] = []
    run = maps.run
    monkeypatch.setattr(maps, "run", lambda task, job: ran.append(task) or run(task, job))
    value, *others = arguments()
    found = []
    for compiled in (False, True):
        ran.clear()
        call = (
            torch.compile(some_call, fullgraph=True, backend="aot_eager", dynamic=dynamic)
            if compiled
            else some_call
        )
        loss = call(value, *others)
        found.append([loss.detach(), *torch.autograd.grad(loss, value)])
        assert ran.count(map_loops.between) == 2  # of two rows
        assert ran.count(map_loops.class_sums) == 3
        assert ran.count(map_loops.class_slopes) == 2
    for ours, theirs in zip(*found, strict=True):
        near(ours, theirs)


def test_operators_are_what_they_say() -> None:
    labels, value, q = some_labels((2, 40)), torch.rand(2, 40), torch.rand(2, 40)
    hard = some_hard(labels, 2)
    for chosen in ((None, None, None), hard):
        torch.library.opcheck(maps._class_sums, (value, value.clone(), *labels, 2, q, *chosen))
        torch.library.opcheck(maps._class_slopes, (torch.rand(2, 5), labels.target, -100, q, *chosen))
    torch.library.opcheck(select._kth_largest, (value, *labels, 2, 0.3, 1))


@pytest.mark.parametrize("is_hard", [False, True])
def test_gradients_of_gradients_and_batches_of_gradients(is_hard: bool) -> None:
    labels, q, w = some_labels((2, 9)), torch.rand(2, 9), torch.rand(5)
    hard = some_hard(labels, 2) if is_hard else None
    value = torch.rand(2, 9)
    found = []
    for module in (maps, reference):
        leaf = value.clone().requires_grad_()
        map = leaf.square() * leaf
        sums = module.class_sums(labels, map, None, q, rows=2, hard=hard).value
        mean, total, _ = module.weighted_sums(map, labels, w, w, q)
        outputs = torch.cat([sums.flatten(), mean.view(1), total.view(1)])
        (batch,) = torch.autograd.grad(
            outputs, leaf, torch.eye(outputs.numel()), retain_graph=True, is_grads_batched=True
        )
        (first,) = torch.autograd.grad(outputs.square().sum(), leaf, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), leaf)
        found.append([batch, first.detach(), second])
    for ours, theirs in zip(*found, strict=True):
        near(ours, theirs, rtol=1e-5)


@pytest.mark.parametrize("name", map_loops.FIELDS)
def test_the_loops_refuse_memory_that_they_were_not_written_for(name: str) -> None:
    """They are handed an address, and would write past the end of anything smaller."""
    job = np.zeros(1, map_loops.JOB)
    for number, size in (
        ("rows", 2),
        ("pixels", 3),
        ("parts", 1),
        ("classes", 3),
        ("cells", 4),
        ("lanes", 2),
    ):
        job[number] = size
    dtype, factors = map_loops.FIELDS[name]
    shape = [int(job[factor][0]) if isinstance(factor, str) else factor for factor in factors]
    right = torch.zeros(shape, dtype=dtype)
    memory.hand_over(job, map_loops.FIELDS, {name: right})
    assert job[name] == right.data_ptr()
    for wrong in (right.half(), right.to("meta"), torch.cat([right, right]), right[:0]):
        with pytest.raises(TypeError, match=rf"^Expected {name} for a compiled loop as {dtype} on the CPU"):
            memory.hand_over(job, map_loops.FIELDS, {name: wrong})


@pytest.mark.parametrize("wrong", [torch.rand(2, 5), torch.rand(2, 6).double(), torch.rand(3, 4)])
def test_maps_of_another_size_or_type_are_refused(wrong: Tensor) -> None:
    labels, right = some_labels((2, 6)), torch.rand(2, 6)
    hard = Hard(right, torch.zeros(1, dtype=torch.int64), torch.zeros(1))
    for call in (
        lambda: class_sums(labels, wrong),
        lambda: class_sums(labels, right, wrong),
        lambda: class_sums(labels, right, None, wrong),
        lambda: class_sums(labels, right, rows=2, hard=hard),
        lambda: weighted_sums(right, labels, None, None, wrong),
    ):
        if wrong.numel() == right.numel() and wrong.dtype == right.dtype:
            continue
        with pytest.raises(TypeError, match="for a compiled loop"):
            call()
