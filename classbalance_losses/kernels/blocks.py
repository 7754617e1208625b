"""Logits as cache-sized blocks of pixels, read from memory or interpolated on the way, and their gradient put back."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from classbalance_losses.kernels.memory import empty_like

# Logits of a block, for each thread: 2 MiB of float32. Each step on a block is one parallel region, and few long
# regions suffer less from a thread that comes late than many short ones do, even beyond a core's own cache.
_ELEMENTS = 1 << 19
# Positions of the axis that interpolated blocks cut: backward multiplies by a matrix of them and their source.
_ROWS = 1 << 8
_THIN = 1 << 10  # logits of one position
_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


class Block(NamedTuple):
    """A block's place in (N, P): a number of images, or a range of one image's pixels, which threads share out.

    torch gives the first half of an elementwise function's entries to the first of two threads, but the first half of
    the pixels where it sums over classes. So that a thread finds in its own cache what it wrote there, the first axis
    of a block has one entry, or the same number of them, for each thread: images, or parts of one.
    """

    images: slice
    pixels: slice
    parts: int = 1

    def of(self, values: Tensor) -> Tensor:
        """View the block's part of (N, K, P) as (images · parts, K, pixels / parts)."""
        values = values[self.images, :, self.pixels]
        if self.parts == 1:
            return values
        return values.view(values.shape[1], self.parts, -1).transpose(0, 1)


def _parts(pixels: int) -> int:
    """Return in how many parts a range of one image's pixels is processed."""
    threads = torch.get_num_threads()
    return threads if pixels % threads == 0 else 1


class BlockedLogits(Protocol):
    """Logits that are read block by block, in the shape of `Block.of`, and take a gradient for each."""

    def blocks(self) -> Iterator[Block]:
        """Go over all pixels once."""

    def load(self, block: Block) -> Tensor:
        """Return the block's logits in the accumulation dtype."""

    def place(self, block: Block) -> Tensor:
        """Return memory (n, C, p) for the block's gradient, in the accumulation dtype."""

    def store(self, block: Block, gradient: Tensor) -> None:
        """Take the block's gradient, from `place` or from elsewhere."""

    def gradient(self) -> Tensor:
        """Return the gradient of the input, when every block's is stored."""

    def full_size(self) -> Tensor:
        """Return all logits at once (N, C, *), with their graph."""


class Scratch:
    """Memory that one block after the other uses: fresh memory costs a page fault for every 4 KiB of it."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.float32, device="cpu")

    def take(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return uninitialised memory; what was taken before is lost."""
        size = math.prod(shape)
        if self._memory.numel() < size or self._memory.dtype != dtype:
            self._memory = torch.empty(size, dtype=dtype, device="cpu")
        return self._memory[:size].view(shape)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return float64 for float64 and float32 for all else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def flat_pixels(values: Tensor) -> Tensor:
    """(N, *) → (N, P), as the blocks count; (N,), which has no spatial axis, → (1, N)."""
    if values.ndim == 1:
        return values.unsqueeze(0)
    return values.reshape(values.shape[0], math.prod(values.shape[1:]))


def _pixels_per_block(num_classes: int) -> int:
    return max(_ELEMENTS * torch.get_num_threads() // num_classes, 1)


class FullSizeLogits:
    """Logits (N, C, *) in memory, of which ``rows`` are (N, C, P)."""

    def __init__(self, input: Tensor) -> None:
        self._input = input
        self.rows = class_rows(input)
        self._dtype = accumulation_dtype(input.dtype)
        self._loaded, self._placed = Scratch(), Scratch()

    def blocks(self) -> Iterator[Block]:
        """Go over several images together where threads can share them or they are small, else over parts of one."""
        images, classes, pixels = self.rows.shape
        threads, step = torch.get_num_threads(), _pixels_per_block(classes)
        together = max(step // max(pixels, 1), 1)
        if images % threads == 0:
            together = max(together // threads, 1) * threads
        step = max(step // (together * threads), 1) * threads
        for n in range(0, images, together):
            for p in range(0, pixels, step):
                place = slice(p, min(p + step, pixels))
                parts = _parts(place.stop - p) if together == 1 else 1
                yield Block(slice(n, n + together), place, parts)

    def load(self, block: Block) -> Tensor:
        """Return a view of the logits or, where they are of half precision, a copy that the next block overwrites."""
        x = block.of(self.rows)
        return x if x.dtype == self._dtype else self._loaded.take(x.shape, self._dtype).copy_(x)

    def place(self, block: Block) -> Tensor:
        """Return the gradient's own memory if a thread's part lies together there, and scratch memory otherwise."""
        place = block.of(self.gradient_rows)
        own = place.dtype == self._dtype and block.parts == 1
        return place if own else self._placed.take(place.shape, self._dtype)

    def store(self, block: Block, gradient: Tensor) -> None:
        """Write the block's gradient, rounded to the input's dtype, unless it is in its place already."""
        place = block.of(self.gradient_rows)
        if place.data_ptr() != gradient.data_ptr():
            place.copy_(gradient)

    def gradient(self) -> Tensor:
        """Return the gradient (N, C, *)."""
        return self._gradient.view_as(self._input)

    @cached_property
    def _gradient(self) -> Tensor:
        return _gradient_like(self._input)

    @cached_property
    def gradient_rows(self) -> Tensor:
        """Memory for the gradient (N, C, P)."""
        return class_rows(self._gradient)

    def full_size(self) -> Tensor:
        """Return the logits themselves."""
        return self._input


def class_rows(input: Tensor) -> Tensor:
    """(N, C, *) → (N, C, P), a copy only where the strides of the spatial axes ask for it; (N, C) → (1, C, N)."""
    if input.ndim == 2:
        return input.T.unsqueeze(0)
    return input.reshape(*input.shape[:2], math.prod(input.shape[2:]))


def _gradient_like(input: Tensor) -> Tensor:
    """Return memory for a gradient, in the input's layout unless its spatial axes could not be seen as one."""
    empty = empty_like(input)
    if class_rows(empty).data_ptr() == empty.data_ptr():
        return empty
    return empty_like(input, memory_format=torch.contiguous_format)


class Resize(NamedTuple):
    """Linear interpolation to a spatial size, as ``F.interpolate`` does it without antialiasing."""

    size: tuple[int, ...]
    align_corners: bool

    def __call__(self, input: Tensor) -> Tensor:
        """Resize (N, C, *) of one, two or three spatial axes."""
        mode = _MODES[len(self.size)]
        return F.interpolate(input, self.size, mode=mode, align_corners=self.align_corners)

    def rest(self, axes: int) -> Resize:
        """Return the same without the first axes."""
        return Resize(self.size[axes:], self.align_corners)


def is_thin(num_classes: int, size: tuple[int, ...]) -> bool:
    """Whether rows are too short for blocks: interpolation at once, and a loss of its result, cost less."""
    return num_classes * _row(num_classes, size) < _THIN


def _row(num_classes: int, size: tuple[int, ...]) -> int:
    """Return the pixels of a position of the axis that blocks cut: the first or, where those are many, the second."""
    outer = math.prod(size[1:])
    return math.prod(size[2:]) if len(size) > 2 and outer > _pixels_per_block(num_classes) else outer


class UpsampledLogits:
    """Logits (N, C, *low) that are interpolated to a full size a few rows at a time.

    Linear interpolation is separable. Forward mixes the two source rows of each row of the block, then resizes the
    remaining axes; backward runs the transposed steps, and adds up what the blocks give to a source row.
    """

    def __init__(self, input: Tensor, resize: Resize) -> None:
        self._input = input
        self._resize = resize
        self._dtype = accumulation_dtype(input.dtype)
        self._gradient = torch.zeros(input.shape, dtype=self._dtype, device=input.device)
        self._placed = Scratch()

    def blocks(self) -> Iterator[Block]:
        """Go over each image by positions of its first axis or, where one of those is too large, of its second."""
        size = self._resize.size
        pixels, outer = math.prod(size), math.prod(size[1:])
        num_classes = self._input.shape[1]
        unit = _row(num_classes, size)
        end = (
            pixels if unit == outer else outer
        )  # a block of the second axis stays in one position of the first
        step = min(max(_pixels_per_block(num_classes) // max(unit, 1), 1), _ROWS) * unit
        for n in range(self._input.shape[0]):
            for base in range(0, pixels, max(end, 1)):
                for p in range(base, base + end, max(step, 1)):
                    yield Block(slice(n, n + 1), slice(p, min(p + step, base + end)))

    def load(self, block: Block) -> Tensor:
        """Return the block's logits, interpolated."""
        x = self._input.detach()[block.images]
        mixes = self._mixes(block.pixels)
        for axis, mix in enumerate(mixes, start=2):
            x = x.narrow(axis, mix.first, mix.length)
        x = x.to(self._dtype)
        for axis, mix in enumerate(mixes, start=2):
            x = mix.rows(x, axis)
        rest = self._resize.rest(len(mixes))
        if rest.size:
            x = rest(x.reshape(1, -1, *x.shape[2 + len(mixes) :]))
        return x.reshape(1, self._input.shape[1], -1)

    def place(self, block: Block) -> Tensor:
        """Return scratch memory."""
        pixels = block.pixels.stop - block.pixels.start
        return self._placed.take((1, self._input.shape[1], pixels), self._dtype)

    def store(self, block: Block, gradient: Tensor) -> None:
        """Add what the block's gradient gives to the source rows."""
        mixes = self._mixes(block.pixels)
        place = self._gradient[block.images]
        size = [mix.low.shape[0] for mix in mixes] + list(self._resize.size[len(mixes) :])
        gradient = gradient.reshape(1, -1, *size)
        for axis, mix in enumerate(mixes, start=2):
            gradient = mix.transposed_rows(gradient, axis)
            place = place.narrow(axis, mix.first, mix.length)
        rest = self._resize.rest(len(mixes))
        place += _transposed_resize(
            gradient.flatten(1, 1 + len(mixes)), rest, place.shape[2 + len(mixes) :]
        ).view(place.shape)

    def gradient(self) -> Tensor:
        """Return the gradient (N, C, *low)."""
        return self._gradient.to(self._input.dtype)

    def full_size(self) -> Tensor:
        """Return the interpolated logits."""
        return self._resize(self._input)

    def _mixes(self, pixels: slice) -> list[_Mix]:
        """Return how the block's positions of the first axis, and of the second if it has but one, are mixed."""
        size, low = self._resize.size, self._input.shape[2:]
        outer = math.prod(size[1:])
        first, last = pixels.start // outer, (pixels.stop - 1) // outer
        mixes = [_Mix.between(low[0], size[0], first, last + 1, self._resize.align_corners, self._dtype)]
        if pixels.stop - pixels.start < outer:
            row = math.prod(size[2:])
            start, stop = (pixels.start % outer) // row, (pixels.stop - 1) % outer // row + 1
            mixes.append(_Mix.between(low[1], size[1], start, stop, self._resize.align_corners, self._dtype))
        return mixes


class _Mix(NamedTuple):
    """Each position of a range of an axis as ``(1 - share) · x[low] + share · x[high]``."""

    low: Tensor  # from the first source position in use
    high: Tensor
    share: Tensor
    first: int  # the source positions in use: first, ..., first + length - 1
    length: int

    @classmethod
    def between(
        cls, source: int, full: int, start: int, stop: int, align_corners: bool, dtype: torch.dtype
    ) -> _Mix:
        """Return the mix for the positions from ``start`` to ``stop`` of an axis resized from ``source``."""
        position = torch.arange(start, stop, dtype=torch.float64, device="cpu")
        if align_corners:
            place = position * ((source - 1) / max(full - 1, 1))
        else:
            place = ((position + 0.5) * (source / full) - 0.5).clamp(min=0)
        low = place.long().clamp(max=source - 1)
        high = (low + 1).clamp(max=source - 1)
        first = int(low[0])
        return cls(low - first, high - first, (place - low).to(dtype), first, int(high[-1]) - first + 1)

    def rows(self, x: Tensor, axis: int) -> Tensor:
        """Mix along an axis."""
        share = self.share.view(-1, *[1] * (x.ndim - axis - 1))
        return x.index_select(axis, self.low) * (1 - share) + x.index_select(axis, self.high) * share

    def transposed_rows(self, gradient: Tensor, axis: int) -> Tensor:
        """Give each source position in use its part of the gradient, as one product with a small matrix."""
        matrix = gradient.new_zeros(self.length, self.low.shape[0])
        column = torch.arange(self.low.shape[0], dtype=torch.int64, device="cpu")
        matrix[self.low, column] += 1 - self.share
        matrix[self.high, column] += self.share
        rows = gradient.reshape(math.prod(gradient.shape[:axis]), gradient.shape[axis], -1)
        shape = (*gradient.shape[:axis], self.length, *gradient.shape[axis + 1 :])
        return torch.matmul(matrix, rows).view(shape)


def _transposed_resize(gradient: Tensor, resize: Resize, source: torch.Size) -> Tensor:
    """Return the gradient of a resize's input, (N, C, *source)."""
    if not resize.size:
        return gradient
    backward = {
        1: torch.ops.aten.upsample_linear1d_backward,
        2: torch.ops.aten.upsample_bilinear2d_backward,
    }[len(resize.size)]
    shape = [*gradient.shape[:2], *source]
    result: Tensor = backward(gradient, list(resize.size), shape, resize.align_corners)
    return result
