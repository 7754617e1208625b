"""Tensors that are no more than memory: those that code which reads memory can take.

Of all others a fast path would lose what makes them more, silently at worst: the tangent of forward-mode
differentiation, the batch axis of a transform, what a subclass stands for. The reference keeps all of it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

_MAKE_FX = torch._C._TorchDispatchModeKey.PROXY


def is_plain(*tensors: Tensor) -> bool:
    """Whether the tensors are no subclasses, have no tangent, and no transform of ``torch.func`` is at work."""
    return not (torch._C._are_functorch_transforms_active() or _is_recorded()) and all(
        map(_is_memory, tensors)
    )


def is_exporting() -> bool:
    """Whether ``torch.export`` or ``torch.jit.trace`` makes a program of what runs."""
    if not torch.compiler.is_compiling():
        return torch._C._is_tracing()
    if hasattr(torch.compiler, "is_exporting"):  # since torch 2.7
        return torch.compiler.is_exporting()
    return not torch.compiler.is_dynamo_compiling()


def is_transformed(tensor: Tensor) -> bool:
    """Whether vmap or grad of ``torch.func`` has wrapped the tensor; there is no public test for it."""
    return not torch.compiler.is_compiling() and torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def keepable(tensor: Tensor) -> Tensor:
    """Return what autograd may keep for the backward pass: of a tensor that was made in inference mode, a copy."""
    if torch.compiler.is_compiling() or torch.is_inference_mode_enabled() or not tensor.is_inference():
        return tensor
    return tensor.clone()


def can_read_values(tensor: Tensor) -> bool:
    """Whether a value may be looked at: on the CPU, eagerly, outside ``torch.func`` transforms and tracers.

    Elsewhere a look would synchronise the device or break the graph.
    """
    return (
        not torch.compiler.is_compiling()
        and not _is_recorded()
        and tensor.device.type == "cpu"
        and type(tensor) in (Tensor, torch.nn.Parameter)
        and not is_transformed(tensor)
    )


def is_constant(tensor: Tensor) -> bool:
    """Whether no derivative with respect to the tensor is asked for, in any mode."""
    if torch.compiler.is_compiling():
        return not tensor.requires_grad
    return is_plain(tensor) and not (tensor.requires_grad and torch.is_grad_enabled())


def needs_reference(grad: Tensor) -> bool:
    """Whether a gradient has to be made of torch's operations: to be differentiated again, or for any kind of grad."""
    return torch.is_grad_enabled() or not (torch.compiler.is_compiling() or is_plain(grad))


def _is_recorded() -> bool:
    """Whether operations are recorded one by one, by ``torch.jit.trace`` or ``make_fx``."""
    return torch._C._is_tracing() or torch._C._get_dispatch_mode(_MAKE_FX) is not None


def _is_memory(tensor: Tensor) -> bool:
    return (
        type(tensor) in (Tensor, torch.nn.Parameter)
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        and not torch._C._functorch.is_legacy_batchedtensor(tensor)  # of is_grads_batched=True
        and not _has_tangent(tensor)
    )


def _has_tangent(tensor: Tensor) -> bool:
    is_open = forward_ad._current_level >= 0
    return is_open and forward_ad.unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]
