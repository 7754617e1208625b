"""What compiled loops are made of: memory by its address, parts for threads to take, and exp in a few instructions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, cfunc, njit, types
from numba.extending import intrinsic
from numpy.polynomial import Chebyshev, Polynomial

# A product and a sum may be rounded once, as one instruction; nothing else is let loose.
compiled = njit(fastmath={"contract"}, error_model="numpy")

_INT = ir.IntType(64)
_TASK = types.void(types.voidptr)


def task(function: Any) -> Any:
    """Compile what threads call on a pointer, and keep it on the disk, if there is a place that can be written."""
    try:
        return cfunc(_TASK, cache=True)(function)
    except RuntimeError:
        return cfunc(_TASK)(function)


@intrinsic
def _pointer(_: Any, address: Any) -> Any:
    def generate(_: Any, builder: Any, __: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), generate


@intrinsic
def _add(_: Any, place: Any, value: Any) -> Any:
    def generate(_: Any, builder: Any, __: Any, args: Any) -> Any:
        place = builder.bitcast(args[0], _INT.as_pointer())
        return builder.atomic_rmw("add", place, args[1], "monotonic")

    return types.int64(types.voidptr, types.int64), generate


@compiled
def add(address: int, value: int) -> None:
    """Add to the int64 at an address in one step, which no other thread can part."""
    _add(_pointer(address), value)


@compiled
def take(memory: Any) -> int:
    """Add 1 to the int64 at a pointer in such a step, and return what was there."""
    taken: int = _add(memory, 1)
    return taken


@intrinsic
def _bits_of(_: Any, value: Any) -> Any:
    def generate(_: Any, builder: Any, __: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(32))

    return types.int32(types.float32), generate


@intrinsic
def _of_bits(_: Any, bits: Any) -> Any:
    def generate(_: Any, builder: Any, __: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), generate


@compiled
def floats(address: int, size: int) -> Any:
    """Return the float32 array at an address."""
    return carray(_pointer(address), size, np.float32)


@compiled
def doubles(address: int, size: int) -> Any:
    """Return the float64 array at an address."""
    return carray(_pointer(address), size, np.float64)


@compiled
def words(address: int, size: int) -> Any:
    """Return the array of 32 bits at an address, as whole numbers."""
    return carray(_pointer(address), size, np.int32)


@compiled
def integers(address: int, size: int) -> Any:
    """Return the int64 array at an address."""
    return carray(_pointer(address), size, np.int64)


@compiled
def shorts(address: int, size: int) -> Any:
    """Return the int16 array at an address."""
    return carray(_pointer(address), size, np.int16)


@compiled
def halves(address: int, size: int) -> Any:
    """Return the bfloat16 or float16 array at an address, as whole numbers of 16 bits."""
    return carray(_pointer(address), size, np.uint16)


@compiled
def flags(address: int, size: int) -> Any:
    """Return the array of bool or uint8 at an address."""
    return carray(_pointer(address), size, np.uint8)


def _fitted(series: Polynomial, degree: int, low: float, high: float) -> list[np.float32]:
    """Return a short polynomial's coefficients in the place of a power series'."""
    fit = Chebyshev.interpolate(series, degree, [low, high]).convert(kind=Polynomial)
    return [np.float32(c) for c in fit.coef]


_HALF_LN2 = math.log(2) / 2
# exp(r) = 1 + r + r² q(r) for |r| ≤ ln 2 / 2, and log(1 + f) = f - f²/2 + f³ t(f) for 1/√2 ≤ 1 + f < √2
_Q = _fitted(Polynomial([1 / math.factorial(k + 2) for k in range(16)]), 4, -_HALF_LN2, _HALF_LN2)
_T = _fitted(Polynomial([(-1) ** k / (k + 3) for k in range(60)]), 8, 2**-0.5 - 1, 2**0.5 - 1)
_Q0, _Q1, _Q2, _Q3, _Q4 = _Q
_T0, _T1, _T2, _T3, _T4, _T5, _T6, _T7, _T8 = _T

_LOG2_E = np.float32(1 / math.log(2))
_LN2_HIGH = np.float32(math.ldexp(round(math.ldexp(math.log(2), 9)), -9))  # few bits: its products are exact
_LN2_LOW = np.float32(math.log(2) - float(_LN2_HIGH))
_ROUND = np.float32(
    1.5 * 2**23
)  # a small number added to it is rounded to a whole one, which its last bits are
_LOWEST = np.float32(-87)  # below, exp is less than the smallest normal number, and is returned as 0
_ZERO, _HALF, _ONE = np.float32(0), np.float32(0.5), np.float32(1)
_EXPONENT, _BIAS = np.int32(23), np.int32(127)
_ROOT_HALF = np.int32(np.float32(2**-0.5).view(np.int32))


@compiled
def exp(x: Any) -> Any:
    """Return e^x of a float32 x ≤ 0, as 2^n (1 + r + r² q(r)) with x = n ln 2 + r.

    A call of the C library's would keep a loop from being done in vectors, here and in `logarithm`.
    """
    rounded = x * _LOG2_E + _ROUND
    n = rounded - _ROUND
    r = x - n * _LN2_HIGH - n * _LN2_LOW
    q = (((_Q4 * r + _Q3) * r + _Q2) * r + _Q1) * r + _Q0
    power = _of_bits(np.int32((_bits_of(rounded) + _BIAS) << _EXPONENT))
    value = (q * r * r + r + _ONE) * power
    return _ZERO if x < _LOWEST else value


@compiled
def _logarithm(x: Any, rest: Any) -> Any:
    """Return the logarithm of a normal float32 x > 0, as n ln 2 + log(1 + f) with x + rest = 2^n (1 + f), or NaN."""
    bits = _bits_of(x)
    n = np.int32((bits - _ROOT_HALF) >> _EXPONENT)
    f = _of_bits(np.int32(bits - (n << _EXPONENT))) - _ONE
    f += rest * _of_bits(np.int32((_BIAS - n) << _EXPONENT))
    t = (((((((_T8 * f + _T7) * f + _T6) * f + _T5) * f + _T4) * f + _T3) * f + _T2) * f + _T1) * f + _T0
    n = np.float32(n)
    value = n * _LN2_HIGH + (f + (n * _LN2_LOW + f * f * (t * f - _HALF)))
    return x if np.isnan(x) else value


@compiled
def logarithm(x: Any) -> Any:
    """Return the logarithm of a normal float32 x > 0, or NaN."""
    return _logarithm(x, _ZERO)


@compiled
def log1p(x: Any) -> Any:
    """Return log(1 + x) for x ≥ 0, however small, or NaN: what rounding takes from the sum is given back."""
    total = _ONE + x
    return _logarithm(total, x - (total - _ONE))


@compiled
def widened(half: Any) -> Any:
    """Return the float32 of a bfloat16's bits."""
    return _of_bits(np.int32(half) << np.int32(16))


@compiled
def narrowed(x: Any) -> Any:
    """Return the bits of a float32 as a bfloat16, rounded to the nearest, ties to even."""
    bits = _bits_of(x)
    rounded = (bits + np.int32(0x7FFF) + ((bits >> np.int32(16)) & np.int32(1))) >> np.int32(16)
    return np.uint16(np.int32(0x7FC0) if np.isnan(x) else rounded)
