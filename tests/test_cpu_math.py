"""The arithmetic of compiled loops: how far it is off, and what it makes of numbers that are none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("numba")

import numba

from classbalance_losses.kernels.cpu import math

INPUTS = np.concatenate([-np.geomspace(1e-9, 87, 200_000), np.linspace(-87, 1.5, 200_000)]).astype(np.float32)


def evaluated(function: Callable[[Any], Any], x: np.ndarray, dtype: type = np.float32) -> np.ndarray:
    """The function of each number, in a loop that is done in vectors."""

    @numba.njit(fastmath={"contract"}, error_model="numpy")
    def loop(x: np.ndarray, out: np.ndarray) -> None:
        for i in range(x.size):
            out[i] = function(x[i])

    out = np.empty(x.size, dtype)
    loop(x, out)
    return out


def units(got: np.ndarray, truth: np.ndarray) -> float:
    """The largest error in units in the last place of the truth."""
    return float((np.abs(got - truth) / np.spacing(np.abs(truth).astype(np.float32))).max())


def exactly(function: Callable[[np.ndarray], np.ndarray], x: np.ndarray) -> np.ndarray:
    return function(x.astype(np.float64))


@pytest.mark.parametrize("function", [math.exp, math.exp_or_zero])
def test_exp(function: Callable[[Any], Any]) -> None:
    assert units(evaluated(function, INPUTS), exactly(np.exp, INPUTS)) < 1.1
    edges = np.array([0, -0.0, -88, -104, -1e30, -np.inf, np.nan], np.float32)
    of_nan = np.nan if function is math.exp else 0
    np.testing.assert_array_equal(evaluated(function, edges), [1, 1, 0, 0, 0, 0, of_nan])


def test_expm1() -> None:
    x = INPUTS[INPUTS != 0]
    assert units(evaluated(math.expm1, x), exactly(np.expm1, x)) < 2.5
    edges = np.array([0, -1e-38, -104, -np.inf, np.nan], np.float32)
    np.testing.assert_array_equal(
        evaluated(math.expm1, edges), np.array([0, -1e-38, -1, -1, np.nan], np.float32)
    )


def test_logarithm() -> None:
    x = np.concatenate([np.geomspace(1e-37, 1, 200_000)[:-1], np.geomspace(1, 5000, 200_000)[1:]]).astype(
        np.float32
    )
    x = x[x != 1]
    assert units(evaluated(math.logarithm, x), exactly(np.log, x)) < 1.5
    edges = np.array([1, np.nan], np.float32)
    np.testing.assert_array_equal(evaluated(math.logarithm, edges), [0, np.nan])


def test_log1p() -> None:
    x = np.concatenate([np.geomspace(1e-37, 5000, 400_000), np.linspace(0.3, 3, 200_000)]).astype(np.float32)
    # 1.5 at 1 + x > √2: the difference of ln 2 and its half
    assert units(evaluated(math.log1p, x), exactly(np.log1p, x)) < 1.5
    x = -np.geomspace(1e-37, 0.9, 400_000).astype(np.float32)
    assert units(evaluated(math.log1p, x), exactly(np.log1p, x)) < 1.5
    edges = np.array([0, np.nan], np.float32)
    np.testing.assert_array_equal(evaluated(math.log1p, edges), edges)


def test_log1p_of_a_part() -> None:
    x = np.concatenate([np.geomspace(1e-37, 1, 400_000), np.linspace(0, 1, 200_000)[1:]]).astype(np.float32)
    assert units(evaluated(math.log1p_of_part, x), exactly(np.log1p, x)) < 2
    edges = np.array([0, np.nan], np.float32)
    np.testing.assert_array_equal(evaluated(math.log1p_of_part, edges), edges)


@pytest.mark.parametrize("a", [1, 1.01, 3])
def test_log_of_a_difference(a: float) -> None:
    b = np.geomspace(1e-30, 0.75, 400_000).astype(np.float32)
    one = np.float32(a)

    @numba.njit
    def difference(x: Any) -> Any:
        return math.log_difference(one, x)

    truth = exactly(np.log1p, b * -1.0) if a == 1 else np.log(np.float64(one) - b.astype(np.float64))
    assert np.abs(evaluated(difference, b) - truth).max() < 2e-7
    if a == 1:
        assert units(evaluated(difference, b), truth) < 1.5


def bits() -> np.ndarray:
    return np.arange(1 << 16).astype(np.uint16)


HALVES = [
    (torch.bfloat16, math.of_bfloat16, math.as_bfloat16),
    (torch.float16, math.of_float16, math.as_float16),
]


@pytest.mark.parametrize(("dtype", "widened", "_"), HALVES)
def test_every_half_is_widened(dtype: torch.dtype, widened: Any, _: Any) -> None:
    wanted = torch.from_numpy(bits().view(np.int16)).view(dtype).float().numpy()
    np.testing.assert_array_equal(evaluated(widened, bits()), wanted)


@pytest.mark.parametrize(("dtype", "widened", "narrowed"), HALVES)
def test_any_float_is_narrowed(dtype: torch.dtype, widened: Any, narrowed: Any) -> None:
    """To the nearest, ties to even, to subnormal numbers, to infinity from the middle above the largest on."""
    anything = np.random.default_rng(0).integers(-(2**31), 2**31, 300_000).astype(np.int32).view(np.float32)
    each = evaluated(widened, bits())
    with np.errstate(all="ignore"):
        middle = ((each[1:].astype(np.float64) + each[:-1]) / 2).astype(np.float32)
        near = np.concatenate([np.nextafter(middle, np.float32(end)) for end in (-np.inf, np.inf)])
    small = np.random.default_rng(0).standard_normal(100_000).astype(np.float32) * np.float32(2**-20)
    x = np.concatenate([anything, each, middle, near, small, np.float32([65519, 65520, -65520, 1e30])])
    got = torch.from_numpy(evaluated(narrowed, x, np.uint16).view(np.int16)).view(dtype)
    wanted = torch.from_numpy(x).to(dtype)
    assert torch.equal(got.isnan(), wanted.isnan())
    assert torch.equal(got[~got.isnan()].view(torch.int16), wanted[~wanted.isnan()].view(torch.int16))
