"""Class weights as functions of counts and losses: loop references, identities, errors."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from statistics import median

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from classbalance_losses import functional as C

COUNTS = st.lists(st.one_of(st.just(0), st.integers(1, 50), st.integers(1, 10**9)), min_size=1, max_size=8)
SOME = st.lists(st.integers(1, 10**6), min_size=1, max_size=8)
POWERS = st.sampled_from([0.0, 0.5, 1.0, 2.0])
BETAS = st.sampled_from([0.0, 0.5, 0.9999, 1 - 1e-9, 1 - 2.0**-50, 1.0])

OF_COUNTS = {
    "pixel": C.pixel_frequency_weights,
    "pixel-sqrt": lambda counts: C.pixel_frequency_weights(counts, power=0.5),
    "median": C.median_frequency_weights,
    "image": lambda counts: C.image_frequency_weights(counts, 7),
    "effective": C.effective_number_weights,
    "effective-0": lambda counts: C.effective_number_weights(counts, beta=0.0),
    "effective-1": lambda counts: C.effective_number_weights(counts, beta=1.0),
    "enet": C.enet_weights,
}


def _double(values: list[int] | list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _close(actual: Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(actual, _double(expected), rtol=1e-12, atol=0)


@given(COUNTS, POWERS)
def test_pixel_frequency(counts: list[int], power: float) -> None:
    total, classes = sum(counts), len(counts)
    expected = [(total / (classes * n)) ** power if n else 0.0 for n in counts]
    _close(C.pixel_frequency_weights(_double(counts), power=power), expected)


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 1000)), min_size=1, max_size=8), POWERS)
def test_median_frequency(pairs: list[tuple[int, int]], power: float) -> None:
    counts, others = [n for n, _ in pairs], [more for _, more in pairs]
    frequencies = [n / (n + more) if n else 0.0 for n, more in zip(counts, others, strict=True)]
    for given_frequencies, weights in (
        (
            frequencies,
            C.median_frequency_weights(_double(counts), _double(counts) + _double(others), power=power),
        ),
        ([float(n) for n in counts], C.median_frequency_weights(_double(counts), power=power)),
    ):
        present = [f for f in given_frequencies if f]
        _close(weights, [(median(present) / f) ** power if f else 0.0 for f in given_frequencies])


@given(COUNTS, st.integers(0, 100))
def test_image_frequency(counts: list[int], more: int) -> None:
    images = max(counts) + more
    expected = [images / n if n else 0.0 for n in counts]
    _close(C.image_frequency_weights(_double(counts), images), expected)
    _close(C.image_frequency_weights(_double(counts), torch.tensor(images)), expected)


@given(
    st.lists(st.lists(st.integers(0, 99), min_size=3, max_size=3), min_size=1, max_size=4), st.floats(0, 1)
)
def test_imagewise_frequency(counts: list[list[int]], alpha: float) -> None:
    weights = C.imagewise_frequency_weights(torch.tensor(counts).double(), alpha=alpha)
    for row, weight in zip(counts, weights, strict=True):
        total = sum(row)
        # The released code has max(1, ·) here, and so gives 1 to the classes that the image lacks.
        _close(weight, [1 / max(1.0, n**alpha * total ** (1 - alpha)) if n else 0.0 for n in row])


def _effective_numbers(counts: list[int], beta: float) -> list[float]:
    """By the printed formula, in a hundred digits."""
    with localcontext() as context:
        context.prec = 100
        base = Decimal(beta)
        raw = [(1 - base) / (1 - base**n) if n else Decimal(0) for n in counts]
        scale = sum(n > 0 for n in counts) / sum(raw)
        return [float(scale * weight) for weight in raw]


@given(SOME.flatmap(lambda some: st.just([0, *some])), BETAS.filter(lambda beta: beta < 1))
def test_effective_number(counts: list[int], beta: float) -> None:
    _close(C.effective_number_weights(_double(counts), beta=beta), _effective_numbers(counts, beta))


@given(SOME)
def test_effective_number_lies_between_uniform_and_inverse_frequency(counts: list[int]) -> None:
    inverse = _double(counts).reciprocal()
    inverse = inverse * len(counts) / inverse.sum()
    torch.testing.assert_close(C.effective_number_weights(_double(counts), beta=1.0), inverse)
    torch.testing.assert_close(C.effective_number_weights(_double(counts), beta=1 - 1e-15), inverse)
    _close(C.effective_number_weights(_double(counts), beta=0.0), [1.0] * len(counts))


@given(COUNTS)
def test_enet(counts: list[int]) -> None:
    total = sum(counts)
    _close(C.enet_weights(_double(counts)), [1 / math.log(1.02 + n / total) if n else 0.0 for n in counts])


@pytest.mark.parametrize("scheme", OF_COUNTS)
@given(counts=COUNTS, data=st.data())
def test_laws_of_counts(scheme: str, counts: list[int], data: st.DataObject) -> None:
    """Absent is 0, rarer is never lighter, and the order of the classes does not matter."""
    count, weight = torch.tensor(counts), OF_COUNTS[scheme](_double(counts))
    assert bool(torch.isfinite(weight).all())
    assert torch.equal(weight > 0, count > 0)
    by_count = weight[count > 0][count[count > 0].argsort(descending=True)]
    assert bool((by_count.diff() >= -1e-12 * by_count[1:]).all())
    order = torch.tensor(data.draw(st.permutations(range(len(counts)))))
    torch.testing.assert_close(OF_COUNTS[scheme](_double(counts)[order]), weight[order])


@pytest.mark.parametrize("scheme", OF_COUNTS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64, torch.float16, torch.float32])
def test_dtypes(scheme: str, dtype: torch.dtype) -> None:
    counts = torch.tensor([3, 0, 40, 5])
    weight = OF_COUNTS[scheme](counts.to(dtype))
    assert weight.dtype == torch.float32
    torch.testing.assert_close(weight, OF_COUNTS[scheme](counts.double()).float())


@pytest.mark.parametrize("scheme", ["pixel", "pixel-sqrt", "median", "enet"])
def test_shares_serve_as_counts(scheme: str) -> None:
    counts = _double([3, 0, 40, 5])
    torch.testing.assert_close(OF_COUNTS[scheme](counts / counts.sum()), OF_COUNTS[scheme](counts))


@pytest.mark.parametrize("scheme", OF_COUNTS)
def test_nothing_counted_is_all_zero(scheme: str) -> None:
    assert torch.equal(OF_COUNTS[scheme](torch.zeros(3, dtype=torch.int64)), torch.zeros(3))


def test_pixel_frequency_gives_each_class_the_same_total() -> None:
    counts = _double([1, 0, 1000, 37])
    torch.testing.assert_close(
        counts * C.pixel_frequency_weights(counts), torch.where(counts > 0, counts.sum() / 4, 0.0)
    )


def test_loss_based_is_the_projection_of_class_losses() -> None:
    loss = _double([0.1, 2.0, 0.0, 0.7])
    weight = C.loss_based_weights(loss, regularization=2.0)
    torch.testing.assert_close(weight, C.solve_class_weights(loss, regularization=2.0))
    torch.testing.assert_close(weight, 1 + (loss - loss.mean()) / 4)  # no weight reaches 0
    assert C.loss_based_weights(loss.half()).dtype == torch.float32
    assert torch.equal(C.loss_based_weights(loss.float(), regularization=math.inf), torch.ones(4))


@given(
    st.lists(st.sampled_from([0.0, 0.1, 0.5, 3.0, math.inf, math.nan]), min_size=1, max_size=6),
    st.integers(0, 7),
)
def test_curriculum(losses: list[float], active: int) -> None:
    seen = [c for c, loss in enumerate(losses) if not math.isnan(loss)]
    for order, sign in (("easy_first", 1), ("hard_first", -1)):
        chosen = sorted(seen, key=lambda c: sign * losses[c])[:active]
        expected = [float(c in chosen) for c in range(len(losses))]
        for count in (active, torch.tensor(active)):
            _close(C.curriculum_weights(_double(losses), count, order=order), expected)


@pytest.mark.parametrize(
    "call",
    [
        *OF_COUNTS.values(),
        lambda counts: C.median_frequency_weights(counts, counts * 3),
        C.loss_based_weights,
        lambda loss: C.curriculum_weights(loss, torch.tensor(2)),
        lambda counts: C.imagewise_frequency_weights(counts.view(1, -1)),
    ],
)
def test_compiles_in_one_graph_without_a_gradient(call) -> None:
    counts = torch.tensor([3.0, 0.0, 40.0, 5.0], requires_grad=True)
    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, backend="eager")(counts)
    assert not compiled.requires_grad
    torch.testing.assert_close(compiled, call(counts))


def _image(seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(size=(2, 4, 5, 6)))
    return logits, torch.from_numpy(rng.choice(4, size=(2, 5, 6), p=[0.7, 0.15, 0.1, 0.05]))


def test_inverse_frequency_makes_weighted_cross_entropy_the_mean_of_class_means() -> None:
    logits, target = _image()
    counts = torch.stack([(target == c).sum() for c in range(4)]).double()
    weight = C.pixel_frequency_weights(counts)
    pixel = F.cross_entropy(logits, target, reduction="none")
    class_mean = torch.stack([pixel[target == c].mean() for c in range(4)]).mean()
    for normalize in ("weights", "pixels"):
        torch.testing.assert_close(
            C.weighted_cross_entropy_loss(logits, target, weight, normalize=normalize), class_mean
        )
    # DyCE on every pixel with ω = 0 is the sum of class means (formulas of the paper's equation 9).
    torch.testing.assert_close(C.dyce_loss(logits, target, omega=0.0, hard_fraction=1.0), 4 * class_mean)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: C.pixel_frequency_weights(torch.ones(2, 2)), ValueError, r"pixel_counts of shape \(C,\)"),
        (lambda: C.pixel_frequency_weights(torch.ones(0)), ValueError, r"got \(0,\)"),
        (lambda: C.pixel_frequency_weights(torch.ones(2), power=-1), ValueError, "power"),
        (lambda: C.median_frequency_weights(torch.ones(2), torch.ones(3)), ValueError, "image_pixel_counts"),
        (lambda: C.median_frequency_weights(torch.ones(2), power=-1), ValueError, "power"),
        (lambda: C.image_frequency_weights(torch.tensor(1), 3), ValueError, "image_counts"),
        (lambda: C.imagewise_frequency_weights(torch.ones(2)), ValueError, r"\(N, C\)"),
        (lambda: C.imagewise_frequency_weights(torch.ones(2, 2), alpha=1.5), ValueError, "alpha"),
        (lambda: C.effective_number_weights(torch.ones(2), beta=1.5), ValueError, "beta"),
        (lambda: C.loss_based_weights(torch.ones(2), regularization=0), ValueError, "regularization"),
        (lambda: C.curriculum_weights(torch.ones(2), 1, order="random"), ValueError, "'hard_first'"),
    ],
)
def test_errors(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
