"""What the Triton kernels share on the host: which inputs they take, how pixels lie in memory, and how to launch.

Everything here holds for every kernel beside it:

- logits are read where they lie, of any strides but rare ones, and offsets are 64 bits wide;
- labels are read in their own type: there is neither a copy of them nor a mask;
- arithmetic is in float32;
- each element of an output is written, so that no buffer needs to be cleared first;
- what does not count is selected away, never multiplied by 0: it may be NaN or infinite;
- a sum has one order, so a result is the same in each run.

Kernels are launched in operators of torch's, which are called in autograd functions, so that they stay whole in a
graph of torch.compile's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.runtime import driver

from classbalance_losses.kernels import operators
from classbalance_losses.kernels.call import Labels, Logits
from classbalance_losses.kernels.cuda.device import INTERPRETED

LOGITS = (torch.float16, torch.bfloat16, torch.float32)
TARGETS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_FEWEST_LANES = 32
_MOST_PAIRS = 3

_PASSES_CONSTANTS = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 3)  # to what it compiled


def reasons(logits: Logits | None, labels: Labels) -> list[str]:
    """Return the reasons, in words, why the kernels cannot take the logits, if there are any, and labels; none: []."""
    target, found = labels.target, []
    if not (INTERPRETED or target.is_cuda):
        found.append(f"the labels are on {target.device.type}, not on CUDA")
    if target.dtype not in TARGETS:
        found.append(f"the labels are {target.dtype}, not an integer of 8 to 64 bits")
    if logits is None:
        return found
    input = logits.input
    if logits.bias is not None and logits.bias.dtype != torch.float32:
        found.append(f"the bias is {logits.bias.dtype}, not float32")
    if target.device != input.device:
        found.append(f"the logits are on {input.device}, the labels on {target.device}")
    if input.dtype not in LOGITS:
        found.append(f"the logits are {input.dtype}, not float16, bfloat16 or float32")
    if input.ndim < 2 or input.shape[1] < 1:
        found.append(f"the logits have shape {tuple(input.shape)}, not (N, C, *)")
    return found if logits.resize is None else found + _reasons_of_sizes(input, target)


def _reasons_of_sizes(input: Tensor, target: Tensor) -> list[str]:
    found = []
    for low, full in zip(input.shape[2:], target.shape[1:], strict=False):
        if low < 1:
            found.append("the logits have an axis of size 0")
        if low * full >= 1 << 29:
            found.append(f"the sizes {low} and {full} of an axis are too large for whole numbers of 32 bits")
    if math.prod(target.shape[-2:]) >= 1 << 31:
        found.append("the target has planes of 2^31 pixels or more")
    return found


class Layout(NamedTuple):
    """Pixels (N, *) as ``outer`` stretches of ``inner`` pixels, which lie in rows, or in one row alone."""

    outer: int
    inner: int
    row: int
    strides: tuple[tuple[int, int, int], ...]
    """For each tensor: of stretches, rows and pixels."""


def pixel_layout(shape: Sequence[int], *strides: Sequence[int]) -> Layout | None:
    """Return how the pixels of tensors (N, C, *) of one shape lie, or None where that takes more strides."""
    without_classes = [(of[0], *of[2:]) for of in strides]
    pairs = merge((shape[0], *shape[2:]), without_classes)
    if len(pairs) > _MOST_PAIRS:
        return None
    # Neighbours in one stretch are neighbours in a program. Stretches that would leave its lanes idle are
    # joined, at the price of a division a pixel.
    short = math.prod(size for size, _ in pairs[1:]) < _FEWEST_LANES
    nothing = (1, (0,) * len(strides))
    if len(pairs) == 1 or (short and len(pairs) < _MOST_PAIRS):
        pairs = [nothing, *pairs]
    outer, *rows, row = pairs
    (number, steps) = rows[0] if rows else nothing
    return Layout(
        outer=outer[0],
        inner=number * row[0],
        row=row[0],
        strides=tuple(zip(outer[1], steps, row[1], strict=True)),
    )


def image_layout(shape: Sequence[int], *strides: Sequence[int]) -> Layout | None:
    """Return the layout of which each stretch is an image, or None where its pixels lie along too many axes."""
    pairs = merge(shape[2:], [of[2:] for of in strides])
    if len(pairs) == _MOST_PAIRS:
        return None
    (number, steps), (row, step) = [(1, (0,) * len(strides)), *pairs][-2:]
    return Layout(
        shape[0], number * row, row, tuple(zip((of[0] for of in strides), steps, step, strict=True))
    )


def merge(shape: Sequence[int], strides: Sequence[Sequence[int]]) -> list[tuple[int, tuple[int, ...]]]:
    """Return the fewest (size, strides) that visit the same addresses in the same order, outermost first."""
    pairs: list[tuple[int, tuple[int, ...]]] = []
    for size, *steps in reversed(list(zip(shape, *strides, strict=True))):
        if size == 1:
            continue
        if pairs and all(s == pairs[-1][0] * last for s, last in zip(steps, pairs[-1][1], strict=True)):
            pairs[-1] = (size * pairs[-1][0], pairs[-1][1])
        else:
            pairs.append((size, tuple(steps)))
    return pairs[::-1] or [(1, (0,) * len(strides))]


def all_fit(device: torch.device) -> Tensor:
    """Return what a kernel sets to 0 that finds a label which is none, and `check_fit` takes."""
    return torch.ones((), dtype=torch.int32, device=device)


def check_fit(fits: Tensor, num_classes: int) -> None:
    """Assert on the device that all labels fit, without waiting for it."""
    torch._assert_async(fits, f"A target is out of bounds for {num_classes} classes.")


def define(schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    """Define an operator, see `operators.define`, and return what calls it.

    Outside of a graph the implementation is called itself: what goes by torch's dispatcher takes half as long again.
    """
    operator = operators.define(schema, implementation, fake, keys=("CPU", "CUDA"))  # on the CPU interpreted

    def call(*args: Any) -> Any:
        return operator(*args) if torch.compiler.is_compiling() else implementation(*args)

    return call


class Launch:
    """A kernel with its numbers and constants, and how many programs: called on tensors, it is launched on them.

    Where these are of the same types as before, and begin as evenly in memory, what Triton compiled is called straight
    away: that takes a quarter of the time that Triton needs to find it.
    """

    def __init__(
        self,
        kernel: Any,
        programs: int,
        numbers: tuple[float, ...] = (),
        constants: tuple[Any, ...] = (),
        **options: int,
    ) -> None:
        self._kernel, self.programs, self._options = kernel, programs, options
        self._given = (*numbers, *constants)
        self._passed = self._given if _PASSES_CONSTANTS else numbers
        self._compiled: dict[tuple[Any, ...], Any] = {}

    def __call__(self, first: Tensor, *tensors: Tensor | None) -> None:
        """Launch ``kernel(first, *tensors, *numbers, *constants)`` where the first one is."""
        if not self.programs:
            return
        if INTERPRETED:
            self._kernel[(self.programs,)](first, *tensors, *self._given)
            return
        device = first.get_device()
        key = (
            *(device, first.dtype, first.data_ptr() & 15),
            *[t if t is None else (t.dtype, t.data_ptr() & 15) for t in tensors],
        )
        compiled = self._compiled.get(key)
        if compiled is None or device != torch.cuda.current_device():
            with torch.cuda.device(device):
                # Whether a·b + c may be one instruction is said, since Triton's own default is about to change.
                self._compiled[key] = self._kernel[(self.programs,)](
                    first, *tensors, *self._given, enable_fp_fusion=True, **self._options
                )
            return
        stream = driver.active.get_current_stream(device)
        kernel, metadata = compiled.function, compiled.packed_metadata
        compiled.run(
            *(self.programs, 1, 1, stream, kernel, metadata, None, None, None),
            *(first, *tensors, *self._passed),
        )
