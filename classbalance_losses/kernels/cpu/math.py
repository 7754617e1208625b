"""What compiled loops are made of: memory by its address, parts for threads to take, exp and log in a few steps."""

from __future__ import annotations

import math
from functools import cache, cached_property
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from llvmlite import ir
from numba import carray, cfunc, njit, types
from numba.extending import intrinsic
from numpy.polynomial import Chebyshev, Polynomial

# A product and a sum may be rounded once, as one instruction; nothing else is let loose. Loops alone call these
# functions: what Python would call them by is not made.
_OPTIONS: dict[str, Any] = {
    "fastmath": {"contract"},
    "error_model": "numpy",
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}
compiled = njit(**_OPTIONS)
# Of one number: the loop that calls it is done in vectors only where the call is none.
inlined = njit(**_OPTIONS, forceinline=True)
# Of one caller, a step of whose way to other loops it is: it is compiled with it, and these are once fewer.
step = njit(**_OPTIONS, inline="always")
# Of a sum whose order the compiler may choose, so that it is done in vectors: always the same one.
summing = njit(**{**_OPTIONS, "fastmath": {"contract", "reassoc"}})

_INT = ir.IntType(64)
_TASK = types.void(types.voidptr)


@cache
def _stamp() -> str:
    """Return what is another one when any file has changed that loops are made of."""
    here = Path(__file__).parent
    sources = [*sorted(here.glob("*.py")), *(here.parent / "forms").glob("cpu.py")]
    return f"{crc32(b''.join(path.read_bytes() for path in sources)):08x}"


class Task:
    """What threads call on a pointer: compiled when it is first run, and kept on the disk if there is a place."""

    def __init__(self, function: Any) -> None:
        self._function = function
        # By its name numba finds what it kept, and looks at changes of the task's own file alone.
        function.__qualname__ += f"_{_stamp()}"

    @cached_property
    def compiled(self) -> Any:
        """The function, compiled."""
        try:
            return cfunc(_TASK, cache=True)(self._function)
        except RuntimeError:  # no place to write to
            return cfunc(_TASK)(self._function)


def task(function: Any) -> Task:
    """Make a function of a pointer to its job a task for `threads.run`."""
    return Task(function)


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


@intrinsic
def wide(_: Any) -> Any:
    """Have the loops of the function that says so done in vectors of 512 bits, if the processor has any.

    LLVM takes half of them by itself, for processors that clock lower for whole ones. Those that are sold today hardly
    do, and loops that are made of exponentials take 0.5 to 0.75 of the time.
    """

    def generate(_: Any, builder: Any, __: Any, ___: Any) -> Any:
        # llvmlite knows the names of some attributes, and not of those that are strings.
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return ir.Constant(_INT, 0)

    return types.int64(), generate


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


@intrinsic
def larger(_: Any, a: Any, b: Any) -> Any:
    """Return the larger of two float32, the other one if one is NaN; ``a`` is what the place has that is written to.

    As a choice of Python's, or with b first, it becomes a write through a mask, which takes AMD's processors tens of
    cycles: 0.47 ns a logit instead of 0.06.
    """

    def generate(_: Any, builder: Any, __: Any, args: Any) -> Any:
        number = ir.FloatType()
        choose = ir.FunctionType(number, [number, number])
        return builder.call(builder.module.declare_intrinsic("llvm.maxnum", [number], choose), args)

    return types.float32(types.float32, types.float32), generate


@intrinsic
def chosen(_: Any, condition: Any, a: Any, b: Any) -> Any:
    """Return one of two float32, as Python's ``a if condition else b``, but never by a way around a write.

    Where one of them is what the place has that is written to, that way becomes a write through a mask: see `larger`.
    """

    def generate(_: Any, builder: Any, __: Any, args: Any) -> Any:
        return builder.select(args[0], args[1], args[2])

    return types.float32(types.boolean, types.float32, types.float32), generate


@intrinsic
def alike(_: Any) -> Any:
    """Have the function that says so compiled once: whoever calls it gets the same bits of the same numbers.

    A copy in its caller may round a product and a sum as one, or not, as it fits there.
    """

    def generate(_: Any, builder: Any, __: Any, ___: Any) -> Any:
        builder.function.attributes.add("noinline")
        return ir.Constant(_INT, 0)

    return types.int64(), generate


def within(builder: Any, numbers: Any, low: Any, high: Any) -> Any:
    """Write a comparison: which of a vector's int32 are from ``low`` to ``high``."""
    compared = []
    for sign, bound in ((">=", low), ("<=", high)):
        bounds = ir.Constant(numbers.type, ir.Undefined)
        for k in range(numbers.type.count):
            bounds = builder.insert_element(bounds, bound, ir.IntType(32)(k))
        compared.append(builder.icmp_signed(sign, numbers, bounds))
    return builder.and_(*compared)


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


@compiled
def lent(array: Any) -> Any:
    """Return an array's memory without a share in it: else each call that is given it counts up and down, atomically.

    The array itself has to be in use until the end: see `keep`.
    """
    return carray(_pointer(np.int64(array.ctypes.data)), array.size, array.dtype)


@compiled
def keep(_: Any) -> None:
    """Use what is to live until here."""


@inlined
def ordered(bits: Any) -> Any:
    """Return what sorts as the non-negative floats of such bits do: -0.0 and NaN may have a sign."""
    return bits & np.int32(0x7FFFFFFF)


def _fitted(series: Any, degree: int, low: float, high: float) -> list[np.float32]:
    """Return a short polynomial's coefficients in the place of a power series'."""
    fit = Chebyshev.interpolate(series, degree, [low, high]).convert(kind=Polynomial)
    return [np.float32(c) for c in fit.coef]


_HALF_LN2 = math.log(2) / 2
# exp(r) = 1 + r + r² q(r) for |r| ≤ ln 2 / 2, and log(1 + f) = f - f²/2 + f³ t(f) for 1/√2 ≤ 1 + f < √2
_Q = _fitted(Polynomial([1 / math.factorial(k + 2) for k in range(16)]), 4, -_HALF_LN2, _HALF_LN2)
_T = _fitted(Polynomial([(-1) ** k / (k + 3) for k in range(60)]), 8, 2**-0.5 - 1, 2**0.5 - 1)
# log(1 + x) = x s(x) for 0 ≤ x ≤ 1, which needs no power of 2
_S = _fitted(lambda x: np.log1p(x) / x, 9, 1e-9, 1)
_S0, _S1, _S2, _S3, _S4, _S5, _S6, _S7, _S8, _S9 = _S
_Q0, _Q1, _Q2, _Q3, _Q4 = _Q
_T0, _T1, _T2, _T3, _T4, _T5, _T6, _T7, _T8 = _T

_LOG2_E = np.float32(1 / math.log(2))
_LN2_HIGH = np.float32(math.ldexp(round(math.ldexp(math.log(2), 9)), -9))  # few bits: its products are exact
_LN2_LOW = np.float32(math.log(2) - float(_LN2_HIGH))
# A small number added to it is rounded to a whole one n, and its last bits are then n + 127, the exponent of 2^n.
_ROUND = np.float32(1.5 * 2**23 + 127)
_LOWEST = np.float32(-88)  # there the exponent's bits are 0, and so is 2^n
_ZERO, _HALF, _ONE = np.float32(0), np.float32(0.5), np.float32(1)
_EXPONENT, _BIAS = np.int32(23), np.int32(127)
_ROOT_HALF = np.int32(np.float32(2**-0.5).view(np.int32))


@inlined
def _exponential(x: Any) -> Any:
    """Return 2^n, and e with e^x = 2^n (1 + e), where x = n ln 2 + r and e = r + r² q(r)."""
    rounded = x * _LOG2_E + _ROUND
    n = rounded - _ROUND
    r = x - n * _LN2_HIGH - n * _LN2_LOW
    q = (((_Q4 * r + _Q3) * r + _Q2) * r + _Q1) * r + _Q0
    return _of_bits(np.int32(_bits_of(rounded) << _EXPONENT)), q * r * r + r


@inlined
def exp(x: Any) -> Any:
    """Return e^x of a float32 x < 88, which is 0 from -87.7 down, and NaN for NaN.

    A call of the C library's would keep a loop from being done in vectors, here and in `logarithm`.
    """
    power, e = _exponential(_LOWEST if x < _LOWEST else x)
    return e * power + power


@inlined
def exp_or_zero(x: Any) -> Any:
    """Return the same, but 0 for NaN."""
    power, e = _exponential(x if x > _LOWEST else _LOWEST)
    return e * power + power


@inlined
def expm1(x: Any) -> Any:
    """Return e^x - 1 of a float32 x < 88 without cancellation, however near to 0, or NaN."""
    power, e = _exponential(_LOWEST if x < _LOWEST else x)
    return e * power + (power - _ONE)


@inlined
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


@inlined
def logarithm(x: Any) -> Any:
    """Return the logarithm of a normal float32 x > 0, or NaN."""
    return _logarithm(x, _ZERO)


@inlined
def log1p(x: Any) -> Any:
    """Return log(1 + x) for x > -0.9, however small, or NaN: what rounding takes from the sum is given back."""
    total = _ONE + x
    return _logarithm(total, x - (total - _ONE))


@inlined
def log1p_of_part(x: Any) -> Any:
    """Return the same for 0 ≤ x ≤ 1, or NaN, in fewer steps."""
    s = ((((_S9 * x + _S8) * x + _S7) * x + _S6) * x + _S5) * x + _S4
    return ((((s * x + _S3) * x + _S2) * x + _S1) * x + _S0) * x


@inlined
def log_difference(a: Any, b: Any) -> Any:
    """Return log(a - b) for a ≥ 1 and 0 ≤ b ≤ 3/4, however small, or NaN: as `log1p` does it."""
    rest = a - b
    return _logarithm(rest, (a - rest) - b)


@inlined
def of_bfloat16(half: Any) -> Any:
    """Return the float32 of a bfloat16's bits."""
    return _of_bits(np.int32(half) << np.int32(16))


@inlined
def as_bfloat16(x: Any) -> Any:
    """Return the bits of a float32 as a bfloat16, rounded to the nearest, ties to even."""
    bits = _bits_of(x)
    rounded = (bits + np.int32(0x7FFF) + ((bits >> np.int32(16)) & np.int32(1))) >> np.int32(16)
    return np.uint16(np.int32(0x7FC0) if np.isnan(x) else rounded)


# Between a float16's exponent, of 5 bits, and a float32's, of 8.
_SHIFT = np.int32(13)
_REBIAS = np.int32((127 - 15) << 23)
_SMALLEST = np.int32((127 - 14) << 23)  # of the normal float16


@inlined
def of_float16(half: Any) -> Any:
    """Return the float32 of a float16's bits."""
    bits = (np.int32(half) & np.int32(0x7FFF)) << _SHIFT
    # A float32 of the smallest exponent, less its leading 1: no arithmetic on subnormal numbers, which may be off.
    small = _bits_of(_of_bits(np.int32(bits + _SMALLEST)) - _of_bits(_SMALLEST))
    large = bits + _REBIAS if bits < np.int32(0x7C00 << 13) else bits + np.int32(2 * _REBIAS)
    value = small if bits < np.int32(1 << 23) else large
    return _of_bits(np.int32(value | (np.int32(half) & np.int32(0x8000)) << np.int32(16)))


@inlined
def as_float16(x: Any) -> Any:
    """Return the bits of a float32 as a float16, rounded to the nearest, ties to even."""
    bits = _bits_of(x)
    sign, bits = (bits >> np.int32(16)) & np.int32(0x8000), bits & np.int32(0x7FFFFFFF)
    # The last bits of x + 1/2 count units of 2^-24, as a subnormal float16 does.
    small = _bits_of(np.abs(x) + _HALF) - _bits_of(_HALF)
    large = (bits - _REBIAS + np.int32(0xFFF) + ((bits >> _SHIFT) & np.int32(1))) >> _SHIFT
    value = small if bits < _SMALLEST else min(large, np.int32(0x7C00))
    return np.uint16((np.int32(0x7E00) if np.isnan(x) else value) | sign)
