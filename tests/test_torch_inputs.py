"""torch's own test inputs for its cross-entropies give torch's value and gradient, or an error that the test names."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from classbalance_losses import WeightedCrossEntropyLoss
from classbalance_losses.functional import weighted_cross_entropy_loss

pytest.importorskip("expecttest", reason="torch's inputs need it")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal import common_methods_invocations, common_modules

Call = tuple[tuple[Tensor, ...], dict[str, Any]]


def of_module() -> Iterator[Call]:
    made = partial(common_modules.module_inputs_torch_nn_CrossEntropyLoss, None, "cpu")
    for seed in range(2):
        torch.manual_seed(seed)
        for row in made(torch.float64, requires_grad=True, training=True):
            yield row.forward_input.args, dict(row.constructor_input.kwargs)


def of_function() -> Iterator[Call]:
    for seed in range(5):
        torch.manual_seed(seed)
        for row in common_methods_invocations.sample_inputs_cross_entropy(None, "cpu", torch.float64, True):
            yield (row.input, *row.args), dict(row.kwargs)


CALLS = [*of_module(), *of_function()]


def outcome(function: Any, args: tuple[Tensor, ...], **options: Any) -> tuple[Tensor, Tensor]:
    leaf = args[0].detach().clone().requires_grad_()
    value = function(leaf, *args[1:], **options)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), gradient


def ours(args: tuple[Tensor, ...], options: dict[str, Any]) -> dict[str, Any]:
    """torch divides by the pixels where labels are shares, whatever the weights."""
    return {**options, "normalize": "pixels"} if args[1].is_floating_point() else options


@pytest.mark.parametrize("at", range(len(CALLS)))
def test_weighted_cross_entropy_is_torchs(at: int) -> None:
    args, options = CALLS[at]
    weight = options.get("weight")
    if weight is not None and bool((weight < 0).any()):
        for call in (partial(weighted_cross_entropy_loss, *args), WeightedCrossEntropyLoss):
            with pytest.raises(ValueError, match="non-negative weight"):
                call(**ours(args, options))
        options = {**options, "weight": weight.abs()}
    expected = outcome(F.cross_entropy, args, **options)
    if not args[1].is_floating_point() and bool((args[1] == options.get("ignore_index", -100)).all()):
        expected = torch.zeros(()).double(), torch.zeros_like(args[0])  # torch: 0 / 0
    torch.testing.assert_close(outcome(weighted_cross_entropy_loss, args, **ours(args, options)), expected)
    module = WeightedCrossEntropyLoss(**ours(args, options))
    torch.testing.assert_close(outcome(module, args), expected)


def test_a_gradient_of_the_shares_is_torchs() -> None:
    logits, shares = torch.randn(2, 3, 4, dtype=torch.float64), torch.rand(2, 3, 4, dtype=torch.float64)
    found = []
    for function in (weighted_cross_entropy_loss, F.cross_entropy):
        leaf = shares.clone().requires_grad_()
        found.append(torch.autograd.grad(function(logits, leaf), leaf)[0])
    torch.testing.assert_close(*found)


def test_where_everything_is_ignored_the_loss_is_0() -> None:
    logits, target = torch.randn(2, 3, 4), torch.full((2, 4), 1)
    assert F.cross_entropy(logits, target, ignore_index=1).isnan()
    assert weighted_cross_entropy_loss(logits, target, ignore_index=1) == 0


def binary_calls() -> Iterator[Call]:
    torch.manual_seed(0)
    made = common_modules.module_inputs_torch_nn_BCEWithLogitsLoss(None, "cpu", torch.float64, True, True)
    for row in made:
        yield row.forward_input.args, dict(row.constructor_input.kwargs)
    samples = common_methods_invocations.sample_inputs_binary_cross_entropy_with_logits
    for row in samples(None, "cpu", torch.float64, True):
        yield (row.input, *row.args), dict(row.kwargs)


BINARY = list(binary_calls())


@pytest.mark.parametrize("at", range(len(BINARY)))
def test_many_labels_are_torchs_binary_cross_entropy(at: int) -> None:
    """Its weight is ours of entries, by which neither divides."""
    (input, target), options = BINARY[at]
    target = target.detach()
    weight = options.pop("weight", None)
    options.pop("pos_weight", None)  # it has a law of its own, in test_tasks
    if target.amin() < 0 or target.amax() > 1:
        with pytest.raises(ValueError, match="probabilities"):
            weighted_cross_entropy_loss(input, target, task="multilabel")
        target = target.clamp(0, 1)
    weight = None if weight is None else weight.detach().abs()
    if input.ndim < 2:  # one pixel of many labels
        input, target = input.reshape(1, -1), target.reshape(1, -1)
    expected = outcome(F.binary_cross_entropy_with_logits, (input, target), weight=weight, **options)
    entry = None if weight is None else weight.expand(input.shape).contiguous()
    got = outcome(
        partial(weighted_cross_entropy_loss, task="multilabel", pixel_weight=entry),
        (input, target),
        **options,
    )
    torch.testing.assert_close(got, expected)
