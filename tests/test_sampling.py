"""T2S-DA's queries, negatives and unreliable pixels: exact counts, and honest chance."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from classbalance_losses.functional import (
    sample_class_balanced,
    sample_domain_equal_negatives,
    unreliable_pixels,
)
from classbalance_losses.ops.sampling import pick_vectors

C = 4


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def chi_square(observed: Tensor) -> float:
    """Standard score of Pearson's statistic for equal probabilities (about normal for many cells)."""
    expected = observed.double().mean()
    statistic = ((observed - expected) ** 2 / expected).sum().item()
    freedom = observed.numel() - 1
    return (statistic - freedom) / math.sqrt(2 * freedom)


labels_strategy = st.lists(st.sampled_from([0, 1, 2, 3, 255]), max_size=60).map(
    lambda values: torch.tensor(values, dtype=torch.int64)
)


@given(labels_strategy, st.integers(1, 9), st.integers(0, 99))
def test_class_balanced_counts_are_exact(labels: Tensor, n: int, seed: int) -> None:
    index, valid = sample_class_balanced(
        labels, C, samples_per_class=n, ignore_index=255, generator=generator(seed)
    )
    assert index.shape == valid.shape == (min(C * n + C, labels.numel()),)
    drawn = index[valid]
    assert drawn.unique().numel() == drawn.numel()
    names = labels[drawn]
    assert (names.diff() >= 0).all()
    total = int((labels != 255).sum())
    for c in range(C):
        own = int((labels == c).sum())
        wanted = min(own, -(-C * n * own // total)) if total else 0
        assert int((names == c).sum()) == wanted
    # Entries that do not count point somewhere that exists, after those that do.
    assert not index.numel() or (index.min() >= 0 and index.max() < labels.numel())
    assert (valid.long().diff() <= 0).all()


def test_class_balanced_shape_does_not_depend_on_the_labels() -> None:
    shapes = {
        tuple(sample_class_balanced(labels, C, samples_per_class=3)[0].shape)
        for labels in (torch.full((6, 6), -100), torch.zeros(6, 6).long(), torch.randint(0, C, (6, 6)))
    }
    assert shapes == {(C * 3 + C,)}


def test_class_balanced_is_uniform_in_each_class() -> None:
    labels = torch.tensor([0] * 12 + [1] * 6 + [2] * 2).repeat_interleave(3).to(torch.uint8)
    seen = torch.zeros(labels.numel())
    chance = generator(3)
    for _ in range(2000):
        index, valid = sample_class_balanced(labels, C, samples_per_class=4, generator=chance)
        seen[index[valid]] += 1
    for c in range(3):
        assert abs(chi_square(seen[labels == c])) < 4


@given(labels_strategy, labels_strategy, st.integers(1, 12), st.integers(0, 99))
def test_negatives_are_of_other_classes(source: Tensor, target: Tensor, half: int, seed: int) -> None:
    unreliable = torch.arange(target.numel()) % 3 != 0
    out = sample_domain_equal_negatives(
        source, target, unreliable, C, samples=2 * half, ignore_index=255, generator=generator(seed)
    )
    domains = ((source, source != 255), (target, (target != 255) & unreliable))
    for (labels, pool), index, valid in zip(domains, out[::2], out[1::2], strict=True):
        assert index.shape == valid.shape == (C, min(half, labels.numel()))
        for c in range(C):
            drawn = index[c][valid[c]]
            assert drawn.unique().numel() == drawn.numel()
            assert drawn.numel() == min(half, int((pool & (labels != c)).sum()))
            assert pool[drawn].all()
            assert (labels[drawn] != c).all()
            assert (valid[c].long().diff() <= 0).all()
        assert not index.numel() or (index.min() >= 0 and index.max() < labels.numel())


def test_negatives_are_uniform_over_the_other_classes() -> None:
    labels = torch.tensor([0] * 20 + [1] * 9 + [2] * 3)
    seen, pairs = torch.zeros(C, labels.numel()), torch.zeros(labels.numel(), labels.numel())
    chance = generator(5)
    for _ in range(1500):
        index, _, _, _ = sample_domain_equal_negatives(
            labels, labels, labels >= 0, C, samples=10, generator=chance
        )
        for c in range(C):
            seen[c, index[c]] += 1
        pairs[index[1, 0], index[1, 1]] += 1
    for c in range(C):
        others = seen[c][labels != c]
        assert others.sum() == 1500 * 5
        assert abs(chi_square(others)) < 4
    first_two = pairs[labels != 1][:, labels != 1]
    assert abs(chi_square(first_two[~torch.eye(len(first_two), dtype=torch.bool)])) < 4


def test_the_generator_decides() -> None:
    labels = torch.randint(0, C, (5, 40))

    def draw(seed: int) -> list[Tensor]:
        chance = generator(seed)
        mask = labels > 0
        return [
            *sample_class_balanced(labels, C, samples_per_class=4, generator=chance),
            *sample_domain_equal_negatives(labels, labels, mask, C, samples=8, generator=chance),
        ]

    assert all(torch.equal(a, b) for a, b in zip(draw(1), draw(1), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(draw(1), draw(2), strict=True))
    state = torch.random.get_rng_state()
    draw(1)
    assert torch.equal(state, torch.random.get_rng_state())  # torch's own generator is not touched


@given(
    st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.999, 1.0]), max_size=40),
    st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0]),
    st.sampled_from([torch.float16, torch.float32, torch.float64]),
)
def test_unreliable_are_those_below_the_percentile(
    values: list[float], alpha: float, dtype: torch.dtype
) -> None:
    confidence = torch.tensor(values, dtype=dtype)
    keep = torch.arange(len(values)) % 4 != 1
    out = unreliable_pixels(torch.where(keep, confidence, torch.nan), keep, fraction=alpha)
    kept = sorted(confidence[keep].tolist())
    k = math.floor(alpha * len(kept))
    limit = kept[k] if k < len(kept) else math.inf
    assert out.tolist() == [bool(m) and v < limit for v, m in zip(confidence.tolist(), keep, strict=True)]


def test_unreliable_without_ties_is_the_fraction() -> None:
    confidence = torch.rand(3, 11, 10)
    assert int(unreliable_pixels(confidence).sum()) == 165
    assert not unreliable_pixels(torch.ones(9)).any()
    assert unreliable_pixels(torch.ones(9, dtype=torch.float64), fraction=1.0).all()


def test_pick_vectors() -> None:
    for space in ((), (6,), (2, 3)):
        features = torch.randn(4, 5, *space)
        rows = features.movedim(1, -1).reshape(-1, 5)
        index = torch.randint(0, len(rows), (3, 2))
        assert torch.equal(pick_vectors(features, index), rows[index])
    assert pick_vectors(torch.zeros(2, 5, 0, 3), torch.zeros(C, 0, dtype=torch.int64)).shape == (C, 0, 5)


def test_sampling_compiles() -> None:
    labels, confidence = torch.randint(0, C, (2, 30)), torch.rand(2, 30)

    def f(labels: Tensor, confidence: Tensor) -> tuple[Tensor, ...]:
        unreliable = unreliable_pixels(confidence)
        return (
            *sample_class_balanced(labels, C, samples_per_class=4),
            *sample_domain_equal_negatives(labels, labels, unreliable, C, samples=8),
        )

    out = torch.compile(f, backend="aot_eager", fullgraph=True)(labels, confidence)
    for compiled, eager in zip(out, f(labels, confidence), strict=True):
        assert compiled.shape == eager.shape
    assert torch.equal(out[1], f(labels, confidence)[1])


LABELS = torch.zeros(6).long()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: sample_class_balanced(LABELS, 1), ValueError, "num_classes"),
        (lambda: sample_class_balanced(LABELS, C, samples_per_class=0), ValueError, "samples_per_class"),
        (lambda: sample_class_balanced(LABELS, C, samples_per_class=2.0), TypeError, "samples_per_class"),  # type: ignore[arg-type]
        (lambda: sample_class_balanced(LABELS.float(), C), TypeError, "class indices"),
        (lambda: sample_class_balanced(LABELS + 255, C), IndexError, "ignore_index=255"),
        (lambda: negatives(samples=7), ValueError, "even samples"),
        (lambda: negatives(mask=LABELS), TypeError, "target_unreliable of dtype torch.bool"),
        (lambda: negatives(mask=LABELS[:3] == 0), ValueError, "target_unreliable of shape"),
        (lambda: negatives(target=LABELS + 9), IndexError, "out of bounds"),
        (lambda: unreliable_pixels(torch.rand(4), fraction=1.5), ValueError, "fraction"),
        (lambda: unreliable_pixels(torch.rand(4), torch.ones(4)), TypeError, "keep"),
        (lambda: unreliable_pixels(torch.randn(99) * 9), ValueError, "softmax"),
    ],
)
def test_errors(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def negatives(target: Tensor = LABELS, mask: Tensor | None = None, samples: int = 8) -> tuple[Tensor, ...]:
    unreliable = LABELS == 0 if mask is None else mask
    return sample_domain_equal_negatives(LABELS, target, unreliable, C, samples=samples)
