"""Stage 1: from logits to a number for each pixel, by the backend that suits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from classbalance_losses._dispatch import backend_for
from classbalance_losses._validate import check_target_range, out_of_bounds
from classbalance_losses.kernels import blocked_function, blocked_pixel, numba_threads
from classbalance_losses.kernels.blocked_function import ClosedForm
from classbalance_losses.kernels.blocks import (
    BlockedLogits,
    FullSizeLogits,
    UpsampledLogits,
    accumulation_dtype,
    class_rows,
)
from classbalance_losses.kernels.plain import is_constant
from classbalance_losses.ops.logits import Logits

# log-probabilities (N, C, *), target (N, *), keep (N, *) -> a number for each pixel (N, *)
LogProbFunction = Callable[[Tensor, Tensor, Tensor], Tensor]

# A general function is computed twice, so blocks are for its memory: they win once its many full-size intermediates
# are too large for the allocator to keep.
_FUNCTION_BLOCKED_FROM = 1 << 23
_COMPILED_FROM = 1 << 17  # full-size logits from which compiled loops were measured to be quicker
_CLOSED_FORM_BLOCKED_FROM = 1 << 18  # steps in place, without autograd's tape


def long_target(target: Tensor) -> Tensor:
    """Return the class indices as int64.

    Comparing a uint8 tensor with -100 would wrap the -100 round to 156; after this it cannot.
    """
    return target.long()


def valid_pixels(target: Tensor, ignore_index: int) -> Tensor:
    """Return the mask (N, *) of the pixels that count; ``target`` is int64."""
    return target != ignore_index


def counted_pixels(target: Tensor, num_classes: int, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Return the class indices as int64 and the mask (N, *) of the pixels that count.

    On CUDA it is asserted, without synchronising, that these have a class; on the CPU that has been checked.
    """
    on_device = target.device.type == "cuda"
    compiling = torch.compiler.is_compiling()
    if not compiling and backend_for(target, blocked_from=target.numel() + 1) == "triton":
        from classbalance_losses.kernels.triton_classes import checked_labels  # noqa: PLC0415 - optional

        keep, fit = checked_labels(target, num_classes, ignore_index)
        if on_device:
            torch._assert_async(fit, out_of_bounds(num_classes))
        return long_target(target), keep
    if on_device:
        check_target_range(target, num_classes, ignore_index)
    target = long_target(target)
    return target, valid_pixels(target, ignore_index)


def pixel_log_softmax(input: Tensor, keep: Tensor) -> Tensor:
    """Return log-probabilities (N, C, *) in float32 or, for float64 logits, float64.

    Logits of dropped pixels are replaced, not multiplied by 0: they may be NaN or inf, and their gradient
    is exactly 0.
    """
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    return F.log_softmax(torch.where(keep.unsqueeze(1), input, 0), dim=1, dtype=dtype)


def pick_class(values: Tensor, target: Tensor, keep: Tensor) -> Tensor:
    """Return ``values[n, target, ...]`` (N, *) out of (N, C, *), and 0 where not kept."""
    index = torch.where(keep, target, 0).unsqueeze(1)
    return torch.where(keep, values.gather(1, index).squeeze(1), 0)


def sum_of_others(values: Tensor, target: Tensor, keep: Tensor) -> Tensor:
    """Return the sum of (N, C, *) over the classes other than the target, (N, *), and 0 where not kept."""
    classes = torch.arange(values.shape[1], dtype=torch.int64, device=values.device)
    other = (classes.view(-1, *[1] * (values.ndim - 2)) != target.unsqueeze(1)) & keep.unsqueeze(1)
    return torch.where(other, values, 0).sum(1)


def errors(log_prob: Tensor, target: Tensor, keep: Tensor) -> Tensor:
    r"""Return :math:`\delta_i = p_i - e_{y_i}` (N, C, *), 0 where not kept."""
    index = torch.where(keep, target, 0).unsqueeze(1)
    probability = log_prob.exp()
    error = probability.scatter_add(1, index, torch.full_like(probability[:, :1], -1))
    return torch.where(keep.unsqueeze(1), error, 0)


def pixel_cross_entropy(logits: Logits, target: Tensor, keep: Tensor) -> Tensor:
    r"""Return :math:`\ell_i = -\log p_{i, y_i}` (N, *), 0 where not kept."""
    backend = _backend(logits, target, _cross_entropy_blocked_from(logits))
    if backend == "triton":
        loss: Tensor = _triton(logits).cross_entropy(logits.input, target, keep, *_corners(logits))
        return loss
    if backend == "blocked":
        return blocked_pixel.cross_entropy(
            logits.input, target, keep, _layout(logits), plain_cross_entropy, _blocked_cross_entropy(logits)
        )
    return plain_cross_entropy(logits.full_size(), target, keep)


def pixel_cross_entropy_and_error(logits: Logits, target: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return the cross-entropy, and the constant :math:`\lVert p_i - e_{y_i} \rVert^2` (N, *); 0 where not kept."""
    backend = _backend(logits, target, _cross_entropy_blocked_from(logits))
    if backend == "triton":
        kernels = _triton(logits)
        both: tuple[Tensor, Tensor] = kernels.cross_entropy_and_error(
            logits.input, target, keep, *_corners(logits)
        )
        return both
    if backend == "blocked":
        return blocked_pixel.cross_entropy_and_error(
            logits.input, target, keep, _layout(logits), plain_cross_entropy, _blocked_cross_entropy(logits)
        )
    input = logits.full_size()
    error = errors(pixel_log_softmax(input.detach(), keep), target, keep).square().sum(1)
    return plain_cross_entropy(input, target, keep), error


def sum_over_errors(
    logits: Logits, target: Tensor, keep: Tensor, function: Callable[..., Tensor], *maps: Tensor | None
) -> Tensor:
    """Return the sum of ``function(δ (n, C, p), *parts (n, K, p))`` over parts of the batch, a constant.

    ``maps`` (N, K, *) are cut like δ, which is 0 where not kept; ``None`` stays.
    """
    if _backend(logits, target, _blocked_from(logits)) == "blocked" and target.numel():
        return blocked_pixel.sum_over_errors(logits.input, target, keep, _layout(logits), function, maps)
    log_prob = pixel_log_softmax(logits.full_size(), keep)
    error = class_rows(errors(log_prob, target, keep))
    return function(error, *(None if values is None else class_rows(values) for values in maps))


def pixel_function(
    logits: Logits,
    target: Tensor,
    keep: Tensor,
    function: LogProbFunction,
    form: ClosedForm | None = None,
    *,
    parameters: Sequence[Tensor] = (),
) -> Tensor:
    """Return ``function(log_prob, target, keep)`` (N, *) for a function that sees one pixel at a time.

    ``form`` is its closed form for the CPU, if it has one; ``parameters`` are the function's own tensors, for a
    gradient in which the reference runs.
    """
    plain = partial(_plain, function=function)
    size = target.numel() * logits.input.shape[1]
    blocked_from = _FUNCTION_BLOCKED_FROM if form is None else _CLOSED_FORM_BLOCKED_FROM
    backend = backend_for(logits.input, target, size=size, blocked_from=blocked_from, unsupported=_no_kernel)
    if backend != "blocked" or not all(is_constant(tensor) for tensor in parameters):
        return plain(logits.full_size(), target, keep)
    if form is not None:
        return blocked_function.closed_function(logits.input, target, keep, _layout(logits), plain, form)
    return blocked_function.pixel_function(logits.input, target, keep, _layout(logits), plain)


def plain_cross_entropy(input: Tensor, target: Tensor, keep: Tensor) -> Tensor:
    r"""Return the cross-entropy (N, *) in plain PyTorch, whatever the backend.

    :math:`\ell_i = \log \sum_k e^{x_k - m} - (x_y - m)` with the largest logit m. log1p is given what exceeds 1 in the
    sum: where y has the largest logit that is the others' part, however small. The sum itself would be rounded to 1,
    and the loss to 0, from a margin of 17 on.
    """
    index = torch.where(keep, target, 0).unsqueeze(1)
    x = torch.where(keep.unsqueeze(1), input, 0).to(accumulation_dtype(input.dtype))
    shifted = x - x.detach().amax(1, keepdim=True)  # the loss does not depend on m
    own = shifted.gather(1, index)
    others = shifted.exp().scatter(1, index, 0).sum(1, keepdim=True)
    return torch.where(keep, (torch.log1p(others + torch.expm1(own)) - own).squeeze(1), 0)


def _plain(input: Tensor, target: Tensor, keep: Tensor, function: LogProbFunction) -> Tensor:
    return function(pixel_log_softmax(input, keep), target, keep)


def _backend(logits: Logits, target: Tensor, blocked_from: int) -> str:
    return backend_for(
        logits.input,
        target,
        size=target.numel() * logits.input.shape[1],
        blocked_from=blocked_from,
        unsupported=partial(_missing_in_kernel, logits, target),
    )


def _blocked_from(logits: Logits) -> int:
    """Return the number of full-size logits from which blocks were measured to be quicker, for each loss."""
    return 1 << 22 if logits.input.shape[1] == 2 else 1 << 19


def _cross_entropy_blocked_from(logits: Logits) -> int:
    """Return the same where loops may be compiled for the cross-entropy, which are quicker sooner."""
    return _COMPILED_FROM if numba_threads.MAY_COMPILE and _loops_take(logits) else _blocked_from(logits)


def _loops_take(logits: Logits) -> bool:
    return numba_threads.takes(logits.input, as_it_is=logits.resize is None)


def _missing_in_kernel(logits: Logits, target: Tensor) -> list[str]:
    reasons: list[str] = _triton(logits).unsupported(logits.input, target)
    return reasons


def _no_kernel() -> list[str]:
    return ["there is no kernel for losses of all probabilities, nor for label smoothing"]


def _triton(logits: Logits) -> ModuleType:
    # Here and not above, for triton is an optional dependency.
    if logits.resize is None:
        from classbalance_losses.kernels import triton_pixel  # noqa: PLC0415

        return triton_pixel
    from classbalance_losses.kernels import triton_upsample  # noqa: PLC0415

    return triton_upsample


def _blocked_cross_entropy(logits: Logits) -> type[torch.autograd.Function]:
    """Return the compiled function where numba is, and can go over the logits; else the one in steps of torch."""
    if _loops_take(logits) and numba_threads.can_compile():
        from classbalance_losses.kernels import numba_pixel  # noqa: PLC0415 - an optional dependency

        return numba_pixel.CrossEntropy
    return blocked_pixel.CrossEntropy


def _corners(logits: Logits) -> tuple[bool, ...]:
    return () if logits.resize is None else (logits.resize.align_corners,)


def _layout(logits: Logits) -> Callable[[Tensor], BlockedLogits]:
    return FullSizeLogits if logits.resize is None else partial(UpsampledLogits, resize=logits.resize)
