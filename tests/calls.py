"""Calls of all that computes with tensors, on inputs that are made beforehand: for laws about what is around a call.

Of the losses on logits there are small calls, and large ones at which the compiled loops and the blocks run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pull_cases
import torch
import vision_language_cases
from cases import CASES, CORE, DEFAULTS, Case, Sample, sample
from test_estimators import ESTIMATORS
from torch import Tensor, nn

from classbalance_losses import (
    ClassStatistics,
    DiceLoss,
    DyCELoss,
    EntropyLoss,
    FocalLoss,
    GBWLoss,
    PromptLoss,
    TverskyLoss,
    WeightedCrossEntropyLoss,
    functional,
)

LARGE = (2, 128, 130)  # with 8 classes, 2^18 logits
STEPS = 2


@dataclass(frozen=True)
class Call:
    """A call by name; running it gives all tensors that come out, by name: a first value is "value 0"."""

    name: str
    run: Callable[[], dict[str, Tensor]]


def trained(
    make: Callable[[], nn.Module], learnt: list[Tensor], call: Callable[[nn.Module], Tensor]
) -> dict[str, Tensor]:
    """Run a new module for some steps, and return values, gradients and what it remembers."""
    module, found = make(), {}
    for step in range(STEPS):
        value = call(module)
        found[f"value {step}"] = value.detach()
        if value.requires_grad:
            for at, gradient in enumerate(torch.autograd.grad(value.sum(), learnt)):
                found[f"gradient {step}.{at}"] = gradient
    return {**found, **{k: v.clone() for k, v in module.state_dict().items() if isinstance(v, Tensor)}}


def of_logits(name: str, make: Callable[[], nn.Module], here: Sample, **extras: Any) -> Call:
    leaf = here.leaf()
    return Call(
        name, partial(trained, make, [leaf.input], lambda module: module(leaf.input, leaf.target, **extras))
    )


def of_case(case: Case, here: Sample, what: str, **over: Any) -> Call:
    make = partial(case.module, **case.keywords(here, **over))
    return of_logits(f"{case.id} {what}", make, here, **case.extras(here))


def losses() -> Iterator[Call]:
    """All losses on logits, small; with other dtypes and lower resolution a row each."""
    small = sample(2, weighted=True, dtype=torch.float32)
    for case in CASES:
        yield of_case(case, small, "small")
    low = replace(
        small, input=small.input[..., ::2, ::2].contiguous(), features=small.features[..., ::2, ::2]
    )
    for case in DEFAULTS:
        yield of_case(case, small, "terms", reduction="none")
        yield of_case(case, low, "upsampled", upsample="linear")
        for dtype in (torch.float16, torch.bfloat16):
            yield of_case(case, sample(2, dtype=dtype), str(dtype))
    for name, (kind, options) in ESTIMATORS.items():
        make = partial(lambda kind, options: WeightedCrossEntropyLoss(kind(**options)), kind, options)
        yield of_logits(f"estimator {name}", make, small)
    yield from doors(small)
    listed = [0.5, 1.5, 0.25, 2.0]
    yield of_logits("a list of weights", partial(WeightedCrossEntropyLoss, listed), small)
    yield of_logits("a list of alphas", partial(FocalLoss, alpha=listed), small)
    yield of_logits("momentum", partial(GBWLoss, momentum=0.5), small)


def doors(here: Sample, size: str = "") -> Iterator[Call]:
    """One logit, many labels, soft labels, overlaps, sums."""
    one = replace(
        here, input=here.input[:, :1].contiguous(), target=torch.where(here.target > 0, 1, here.target)
    )
    share = torch.rand(here.input.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    soft = replace(here, target=share / share.sum(1, keepdim=True))
    many = replace(here, target=(share > 0.7).long(), pixel_weight=None)
    for case in DEFAULTS:
        if case.loss != "LogitAdjustedLoss":
            make = partial(
                case.module, task="binary", **{**case.settings(2), "ignore_index": here.ignore_index}
            )
            yield of_logits(f"{case.id} binary {size}", make, one, pixel_weight=one.pixel_weight)
        make = partial(case.module, **case.settings(here.num_classes))
        yield of_logits(f"{case.id} soft {size}", make, soft, pixel_weight=soft.pixel_weight)
    for name, overlap in {
        "Dice": DiceLoss,
        "Tversky": partial(TverskyLoss, gamma=0.75, per_image=True),
    }.items():
        yield of_logits(f"{name} {size}", overlap, here, pixel_weight=here.pixel_weight)
        yield of_logits(f"{name} multilabel {size}", partial(overlap, task="multilabel"), many)
    yield of_logits(f"DyCE multilabel {size}", partial(DyCELoss, task="multilabel"), many)
    yield of_logits(f"sum {size}", lambda: DyCELoss() + 0.5 * DiceLoss() + GBWLoss(), here)


def large_losses() -> Iterator[Call]:
    """The losses at sizes where blocks and compiled loops run."""
    large = sample(2, 8, shape=LARGE, weighted=True, dtype=torch.float32)
    low = replace(large, input=large.input[..., ::2, ::2].contiguous())
    for case in CORE:
        yield of_case(case, large, "large")
    yield from doors(large, "large")
    for case in DEFAULTS:
        yield of_case(case, replace(large, input=large.input.bfloat16()), "large bfloat16")
        yield of_case(case, low, "large upsampled", upsample="linear")
    for name in ("pixel-running", "loss-momentum"):
        kind, options = ESTIMATORS[name]
        make = partial(lambda kind, options: WeightedCrossEntropyLoss(kind(**options)), kind, options)
        yield of_logits(f"estimator {name} large", make, large)


def vision_language() -> Iterator[Call]:
    """HVL's losses, which take other inputs each; of one there are vectors enough for blocks."""
    for row in vision_language_cases.ROWS:
        leaves = row.leaves(torch.float32)
        learnt = [leaves[name] for name in row.learnt]
        yield Call(
            row.id, partial(trained, row.module, learnt, lambda module, leaves=leaves: module(**leaves))
        )
    vectors = [torch.randn(48, 32, requires_grad=at < 2) for at in range(3)]
    call = partial(trained, PromptLoss, vectors[:2], lambda module: module(*vectors))
    yield Call("PromptLoss large", call)


def entropies() -> Iterator[Call]:
    """The entropy of logits without labels, with weights of all kinds."""
    leaf = torch.randn(2, 4, 6, 5, dtype=torch.float32).requires_grad_()
    mask, weight = torch.rand(2, 6, 5) < 0.7, torch.rand(2, 6, 5)
    made: dict[str, dict[str, Any]] = {"plain": {}, "a list": {"weight": [0.5, 1.5, 0.25, 2.0]}}
    made |= {f"gbw {name}": {"weight": "gbw", "gradient": name} for name in ("pixel_mean", "bias", "loss")}
    for name, options in made.items():
        for given in ({}, {"mask": mask, "pixel_weight": weight}):
            call = partial(
                trained,
                partial(EntropyLoss, **options),
                [leaf],
                lambda module, given=given: module(leaf, **given),
            )
            yield Call(f"EntropyLoss {name} {'masked' if given else ''}", call)


def pulls() -> Iterator[Call]:
    """The pull loss: its objectives, and one with so many similarities that it goes class by class."""
    for name, options in {
        "infonce": {},
        "mse exclude": {"objective": "mse", "absent": "exclude"},
        "max sum": {"absent": "max", "pair_reduction": "sum"},
        "large": {"queries_per_class": 256, "negatives": 64},
    }.items():
        data = pull_cases.batch()
        leaf = data["student_features"].requires_grad_()
        make = partial(pull_cases.module, **options)
        call = partial(trained, make, [leaf], lambda module, data=data: pull_cases.run(module, data))
        yield Call(f"PullLoss {name}", call)


def functions() -> Iterator[Call]:
    """Class weights and statistics, of counts and of logits."""
    counts, images = torch.tensor([1000, 3, 0, 20_000_001]), torch.tensor([9, 2, 0, 10])
    losses = torch.tensor([0.5, 2.0, 0.0, 1.0])
    small = sample(2, dtype=torch.float32)
    logits, target = small.input, small.target
    made: dict[str, Callable[[], Tensor]] = {
        "pixel frequency": lambda: functional.pixel_frequency_weights(counts, power=0.5),
        "pixel frequency of floats": lambda: functional.pixel_frequency_weights(counts.float()),
        "median frequency": lambda: functional.median_frequency_weights(counts, 7 * counts),
        "median frequency of pixels": lambda: functional.median_frequency_weights(counts, power=0.5),
        "image frequency": lambda: functional.image_frequency_weights(images, 10),
        "imagewise frequency": lambda: functional.imagewise_frequency_weights(counts.view(2, 2)),
        "effective number": lambda: functional.effective_number_weights(counts, beta=0.999),
        "loss-based": lambda: functional.loss_based_weights(losses),
        "curriculum": lambda: functional.curriculum_weights(losses, 2),
        "projection": lambda: functional.solve_class_weights(losses, regularization=0.1),
        "gradient norms": lambda: functional.class_gradient_norms(logits, target),
        "entropy's gradient norms": lambda: functional.entropy_gradient_norms(logits),
        "GBW's weights": lambda: functional.gbw_class_weights(logits, target, gradient="bias"),
    }
    for name, function in made.items():
        yield Call(name, lambda function=function: {"value 0": function()})
    labels = sample(2, 4, shape=LARGE).target
    yield Call("statistics", partial(_statistics, target))
    yield Call("statistics large", partial(_statistics, labels))


def _statistics(target: Tensor) -> dict[str, Tensor]:
    statistics = ClassStatistics(4)
    statistics.update(target)
    schemes = ("pixel_frequency", "median_frequency", "image_frequency", "effective_number", "enet")
    weights = {f"value {scheme}": statistics.weights(scheme) for scheme in schemes}
    return {**weights, "value 0": statistics.pixel_shares, **statistics.state_dict()}


def small_calls() -> list[Call]:
    return [*losses(), *entropies(), *vision_language(), *pulls(), *functions()]


def all_calls() -> list[Call]:
    return [*small_calls(), *large_losses()]
