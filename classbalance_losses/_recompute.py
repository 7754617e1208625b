"""Activation checkpointing: a recomputation takes what its call found out the first time, and does not do it again.

``torch.utils.checkpoint`` runs a loss a second time inside the backward pass. By then the statistics may have moved
on, and the other ranks may be elsewhere: class weights from memory and sums over ranks are therefore kept with the
graph of the call that made them, and freed with it. A recomputation finds its own among them by what they were made
from, on the device: a call has no number, and recomputations come in an order of their own.

Reentrant checkpointing (``use_reentrant=True``) runs the first pass without gradients, where nothing is kept and
nothing moves; its second pass is an ordinary call. Several of those inside one backward pass are not supported: they
run, and move what is remembered, in the order of the backward pass. Nor is a checkpoint of compiled code: its graph
is run again as it stands. And whatever else runs a loss inside a backward pass, as a function that recomputes by
itself, is taken for a recomputation.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import wraps
from itertools import count
from typing import Any, NamedTuple, ParamSpec
from weakref import WeakValueDictionary

import torch
from torch import Tensor

P = ParamSpec("P")


class _Result(NamedTuple):
    site: object  # what asks, and where: the loss's function, the place among its results, and the owner
    key: Tensor  # what the value was made from
    value: Tensor
    taken: Tensor  # how often a recomputation has taken the value, 0-dim


class _Call:
    """The results of one call. The graph of the call holds it, so that both are freed together."""

    def __init__(self, function: object) -> None:
        self.function = function
        self.results: list[_Result] = []
        self.asked = 0


class _Open(threading.local):
    """The calls that are running in this thread, the innermost last; ``None`` while a result is being computed."""

    def __init__(self) -> None:
        self.calls: list[_Call | None] = []


_open = _Open()
_alive: WeakValueDictionary[int, _Call] = WeakValueDictionary()  # backward runs in threads of its own: shared
_numbers = count()


def is_recomputation() -> bool:
    """Whether a backward pass is running this code again; the second pass of a reentrant checkpoint is not meant."""
    if torch.compiler.is_compiling() or torch._C._current_graph_task_id() == -1:
        return False
    node: Any = torch._C._current_autograd_node()
    return node is None or "CheckpointFunction" not in node.name()


def recomputable(function: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Decorate a loss: what :func:`first_time` gives inside a call is kept for its recomputation."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        if not _may_be_recomputed():
            return function(*args, **kwargs)
        record = _Call(function)
        _open.calls.append(record)
        try:
            loss = function(*args, **kwargs)
        finally:
            _open.calls.pop()
        if record.results and loss.grad_fn is not None:
            number = next(_numbers)
            notes: Any = loss.grad_fn.metadata  # a dict; torch's types say that it is a method
            notes[f"classbalance_losses {number}"] = record
            _alive[number] = record
        return loss

    return call


def first_time(owner: object, key: Tensor, compute: Callable[[], Tensor]) -> Tensor:
    """Return ``compute()`` or, in a recomputation, what it was in the call that is run again.

    Args:
        owner: whose result it is, a module or a group; those of others are not looked at.
        key: what the result is made from, to tell the calls apart.
        compute: makes the result, a constant.
    """
    call = _open.calls[-1] if _open.calls else None
    if call is None or not _may_be_recomputed():
        return compute()
    key = key.detach()
    site = (call.function, call.asked, id(owner))
    call.asked += 1
    if is_recomputation():
        made = [
            result for other in list(_alive.values()) for result in other.results if _fits(result, site, key)
        ]
        if made:
            return _nearest(made, key)
    _open.calls.append(None)  # what the result is made of is not asked for again
    try:
        value = compute()
    finally:
        _open.calls.pop()
    taken = torch.zeros((), dtype=torch.int64, device=key.device)
    call.results.append(_Result(site, key, value, taken))
    return value


def _may_be_recomputed() -> bool:
    return (
        torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and torch._C._functorch.peek_interpreter_stack() is None
    )


def _fits(result: _Result, site: object, key: Tensor) -> bool:
    theirs = result.key
    return result.site == site and (theirs.shape, theirs.dtype, theirs.device) == (
        key.shape,
        key.dtype,
        key.device,
    )


def _nearest(made: list[_Result], key: Tensor) -> Tensor:
    """Return the value with the nearest key; equal ones, of a batch that was seen twice, are taken in turn.

    Nearest rather than equal: a recomputation may round otherwise than its first pass.
    """
    if len(made) == 1:
        return made[0].value
    keys = torch.stack([result.key.flatten() for result in made])
    mine = key.flatten()
    same = (keys == mine) | (keys.isnan() & mine.isnan())
    distance = torch.where(same, 0, (keys - mine).abs().nan_to_num()).sum(1)
    taken = torch.stack([result.taken for result in made])
    turn = torch.where(distance == distance.amin(), taken, torch.iinfo(torch.int64).max).argmin()
    for index, result in enumerate(made):
        result.taken.add_(turn == index)
    return torch.stack([result.value for result in made]).index_select(0, turn.view(1))[0]
