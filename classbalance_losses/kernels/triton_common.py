"""What the Triton kernels share: which inputs they take, how pixels lie in memory, and the online softmax.

Everything here holds for every kernel beside it:

- logits are read where they lie, whatever their strides, and offsets are 64 bits wide;
- arithmetic is in float32;
- each element of an output is written, so that no buffer needs to be cleared first;
- what is not kept is selected away, never multiplied by 0: it may be NaN or infinite;
- a sum has one order, so a result is the same in each run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from classbalance_losses.kernels.plain import is_plain

LOGITS = (torch.float16, torch.bfloat16, torch.float32)
TARGETS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_FEWEST_LANES = 32
_MOST_PAIRS = 4

# Said at each launch, since Triton's own default is about to change: a·b + c may be one instruction.
OPTIONS: dict[str, Any] = {"enable_fp_fusion": True}


def unsupported(input: Tensor, target: Tensor) -> list[str]:
    """Return the reasons, in words, why the kernels cannot take these logits and targets; none: []."""
    reasons = []
    if not (INTERPRETED or input.is_cuda):
        reasons.append(f"the logits are on {input.device.type}, not on CUDA")
    if target.device != input.device:
        reasons.append(f"the target is on {target.device}, the logits on {input.device}")
    if input.dtype not in LOGITS:
        reasons.append(f"the logits are {input.dtype}, not float16, bfloat16 or float32")
    if target.dtype not in TARGETS:
        reasons.append(f"the target is {target.dtype}, not an integer of 8 to 64 bits")
    if input.ndim < 2 or input.shape[1] < 1:
        reasons.append(f"the logits have shape {tuple(input.shape)}, not (N, C, *)")
    if not torch.compiler.is_compiling() and torch._C._functorch.is_functorch_wrapped_tensor(input):
        reasons.append("the logits are inside a transform of torch.func")
    return reasons


class Layout(NamedTuple):
    """Pixels (N, *) as ``outer`` stretches of ``inner`` pixels, the latter of up to three strides."""

    outer: int
    inner: int
    sizes: tuple[int, int]  # the last two of the inner sizes
    strides: tuple[tuple[int, int, int, int], ...]  # for each tensor: of outer, and of the three inner ones
    dims: int  # how many inner ones there are

    def blocks(self, block: int) -> int:
        """Return how many blocks of pixels one stretch takes."""
        return triton.cdiv(self.inner, block)  # type: ignore[no-any-return]


def pixel_layout(*tensors: Tensor) -> Layout | None:
    """Return how the pixels of tensors (N, C, *) of one shape lie, or None where that takes more strides."""
    shape = (tensors[0].shape[0], *tensors[0].shape[2:])
    pairs = merge(shape, [(t.stride(0), *t.stride()[2:]) for t in tensors])
    if len(pairs) > _MOST_PAIRS:
        return None
    # Neighbours in one stretch are neighbours in a program. Stretches that would leave its lanes idle are
    # joined, at the price of a division a pixel.
    short = math.prod(size for size, _ in pairs[1:]) < _FEWEST_LANES
    together = len(pairs) == 1 or (short and len(pairs) < _MOST_PAIRS)
    nothing = (1, (0,) * len(tensors))
    outer, inner = (nothing, pairs) if together else (pairs[0], pairs[1:])
    padded = [nothing] * (3 - len(inner)) + inner
    return Layout(
        outer=outer[0],
        inner=math.prod(size for size, _ in inner),
        sizes=(padded[1][0], padded[2][0]),
        strides=tuple(
            (outer[1][i], padded[0][1][i], padded[1][1][i], padded[2][1][i]) for i in range(len(tensors))
        ),
        dims=len(inner),
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


def by_torch(grad: Tensor) -> bool:
    """Whether a gradient has to be made of torch's operations: to be differentiated again, or for any kind of grad."""
    return torch.is_grad_enabled() or not (torch.compiler.is_compiling() or is_plain(grad))


def on_device_of(tensor: Tensor) -> AbstractContextManager[None]:
    """Launch on the device that has ``tensor``: Triton takes the current one."""
    return torch.cuda.device(tensor.get_device())  # no device: -1, which changes nothing


def bytes_of(keep: Tensor) -> Tensor:
    """Return a mask as contiguous bytes."""
    return keep.contiguous().view(torch.uint8)


@triton.jit
def place(inner_count: tl.tensor, blocks: tl.tensor, block: tl.constexpr) -> tl.tensor:
    """Return this program's stretch, its pixels in there (block,) and which of them exist."""
    program = tl.program_id(0)
    inner = (program % blocks).to(tl.int64) * block + tl.arange(0, block)
    return (program // blocks).to(tl.int64), inner, inner < inner_count


@triton.jit
def offsets(
    inner: tl.tensor,
    size1: tl.tensor,
    size2: tl.tensor,
    stride0: tl.tensor,
    stride1: tl.tensor,
    stride2: tl.tensor,
    dims: tl.constexpr,
) -> tl.tensor:
    """Return where the pixels of a stretch lie."""
    if dims == 1:
        place = inner * stride2
    elif dims == 2:
        place = inner // size2 * stride1 + inner % size2 * stride2
    else:
        rows = inner // size2
        place = rows // size1 * stride0 + rows % size1 * stride1 + inner % size2 * stride2
    return place


INTERPRETED = not isinstance(place, triton.runtime.JITFunction)
_INTERPRETED = tl.constexpr(INTERPRETED)
LOG2E = tl.constexpr(math.log2(math.e))
LOWEST = tl.constexpr(torch.finfo(torch.float32).min)


@triton.jit
def exp2(x: tl.tensor) -> tl.tensor:
    """Return 2^x, 0 where that is not a normal number: one instruction, where tl.exp takes five."""
    if _INTERPRETED:
        y = tl.exp2(x)
    else:
        y = tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    return y


@triton.jit
def exp(x: tl.tensor) -> tl.tensor:
    """Return e^x, as ``exp2``."""
    return tl.exp(x) if _INTERPRETED else exp2(x * LOG2E)


@triton.jit
def add_classes(
    x0: tl.tensor,
    x1: tl.tensor,
    x2: tl.tensor,
    x3: tl.tensor,
    number: tl.constexpr,
    target: tl.tensor,
    top: tl.tensor,
    others: tl.tensor,
    squares: tl.tensor,
    with_error: tl.constexpr,
) -> tl.tensor:
    """Take the logits of the classes 0 to ``number`` - 1, at most four, into the sums of an online softmax.

    top = max x, others = Σ_{k≠y} e^{x_k − top}, squares = Σ_{k≠y} e^{2 (x_k − top)}; ``top`` starts from LOWEST,
    since -inf - -inf would be NaN. Classes are names and pixels the only axis: there is no
    tile whose layout Triton would have to guess, and a thread has whole pixels.
    """
    new_top = tl.maximum(top, x0)
    if number > 1:
        new_top = tl.maximum(new_top, x1)
    if number > 2:
        new_top = tl.maximum(new_top, x2)
    if number > 3:
        new_top = tl.maximum(new_top, x3)
    shrink = exp(top - new_top)
    e0 = tl.where(target == 0, 0.0, exp(x0 - new_top))
    rest = e0
    square = e0 * e0
    if number > 1:
        e1 = tl.where(target == 1, 0.0, exp(x1 - new_top))
        rest += e1
        square += e1 * e1
    if number > 2:
        e2 = tl.where(target == 2, 0.0, exp(x2 - new_top))
        rest += e2
        square += e2 * e2
    if number > 3:
        e3 = tl.where(target == 3, 0.0, exp(x3 - new_top))
        rest += e3
        square += e3 * e3
    others = others * shrink + rest
    if with_error:
        squares = squares * (shrink * shrink) + square
    return new_top, others, squares


@triton.jit
def finish(top: tl.tensor, others: tl.tensor, squares: tl.tensor, own: tl.tensor) -> tl.tensor:
    """Return the cross-entropy, ‖p − e_y‖² and log Σ e^{x_k − top} of each pixel whose own logit is ``own``.

    No difference of close numbers is taken: ‖p − e_y‖² = Σ_{k≠y} p_k² + (Σ_{k≠y} p_k)², the loss is the sum of two
    numbers that are never negative, and where the own logit is the largest it is log(1 + others), not 0 until
    ``others`` is. With t the rounded 1 + others that is log(t) · others / (t − 1).
    """
    total = others + exp(own - top)
    log_total = tl.log(total)
    above = total - 1.0
    exact = tl.where(above == 0.0, others, log_total * (others / tl.where(above == 0.0, 1.0, above)))
    log_total = tl.where(own == top, exact, log_total)
    return log_total + (top - own), (squares + others * others) / (total * total), log_total
