"""What one rank of test_distributed.py does: every loss on its share of a batch, results to a file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from cases import CASES, DEFAULTS, FEATURES, Case, Sample, class_vector, grad, sample
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from classbalance_losses import (
    DiceLoss,
    DyCELoss,
    GBWLoss,
    PixelFrequency,
    WeightedCrossEntropyLoss,
    _dispatch,
    use_backend,
)
from classbalance_losses.functional import weighted_cross_entropy_loss

REDUCTIONS = ("none", "sum", "mean")
SMOOTHINGS = (0.0, 0.25)


def joined(scenario: str, world: int) -> tuple[Sample, list[slice]]:
    """The whole batch, and each rank's images: of uneven number and, in the first rank's, uneven validity."""
    counts = {
        "uneven": [2, 1, 1],
        "one ignored": [1, 1, 2],
        "one empty": [2, 0, 1],
        "all ignored": [1, 2, 1],
        "ties": [2, 1, 1],
    }[scenario][:world]
    ends = torch.tensor(counts).cumsum(0).tolist()
    shares = [slice(end - count, end) for count, end in zip(counts, ends, strict=True)]
    whole = sample(2, shape=(ends[-1], 3, 4), weighted=True, seed=world)
    target = whole.target.clone()
    target[0, :2] = -100
    if scenario == "one ignored":
        target[shares[1]] = -100
    if scenario == "all ignored":
        target[:] = -100
    if scenario == "ties":  # over all ranks, and where a loss is 0 in float32
        margin = torch.tensor([-1.0, 0.0, 2.0, 120.0], dtype=torch.float64)[torch.arange(target.numel()) % 4]
        index = target.clamp(min=0).unsqueeze(1)
        logits = torch.zeros_like(whole.input).scatter(1, index, margin.view(target.shape).unsqueeze(1))
        whole = replace(whole, input=logits)
    return replace(whole, target=target), shares


SCENARIOS = ("uneven", "one ignored", "one empty", "all ignored", "ties")
DYCE = [case for case in CASES if case.loss == "DyCELoss"]


def share(whole: Sample, images: slice) -> Sample:
    assert whole.pixel_weight is not None
    assert whole.features is not None
    parts = (
        whole.input[images],
        whole.target[images],
        whole.ignore_index,
        whole.pixel_weight[images],
        whole.features[images],
    )
    return Sample(*parts).leaf()


def layer() -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(FEATURES, 4, 1).double()


def train_step(case: Case, s: Sample, net: nn.Module, **options: Any) -> list[Tensor]:
    """The gradients of a last layer under the loss."""
    assert s.features is not None
    loss = case.by_module(replace(s, input=net(s.features)), **options)
    loss.backward()
    return [p.grad.clone() for p in net.parameters() if p.grad is not None]


def learned(s: Sample, smoothing: float, process_group: Any) -> Tensor:
    """The gradient of class weights, of which the divisor is a function too."""
    weight = class_vector(4).double().requires_grad_()
    loss = weighted_cross_entropy_loss(
        s.input,
        s.target,
        weight,
        pixel_weight=s.pixel_weight,
        label_smoothing=smoothing,
        process_group=process_group,
    )
    return torch.autograd.grad(loss, weight)[0]


OVERLAPS: dict[str, Callable[..., nn.Module]] = {
    "dice": DiceLoss,
    "dice, all classes": partial(DiceLoss, classes="all", smooth=1.0, include_background=False),
    "dice, per image": partial(DiceLoss, per_image=True, class_weight=[1.0, 2.0, 0.5, 1.0]),
    "dice, generalized": partial(DiceLoss, generalized="inverse", gamma=0.75),
    "dice, sum": partial(DiceLoss, per_image=True, reduction="sum"),
    "sum": lambda **options: DyCELoss(**options) + 0.5 * DiceLoss(**options) + GBWLoss(**options),
}


def overlap(name: str, s: Sample, soft: bool = False, **options: Any) -> tuple[Tensor, Tensor]:
    """The value of a loss of sums over all ranks, and its gradient."""
    loss = OVERLAPS[name](**options)
    target = s.target
    if soft:
        target = torch.nn.functional.one_hot(target.clamp(min=0), 4).movedim(-1, 1).to(s.input.dtype)
        target = torch.where((s.target < 0).unsqueeze(1), torch.nan, 0.75 * target + 0.0625)
    value = loss(s.input, target, pixel_weight=s.pixel_weight)
    return value.detach(), grad(value, s)


def binary(name: str, s: Sample, **options: Any) -> tuple[Tensor, Tensor]:
    """The same of one logit, the first."""
    target = torch.where(s.target > 0, 1, s.target)
    case = next(case for case in DEFAULTS if case.loss == name)
    leaf = s.input[:, :1].detach().requires_grad_()
    settings = {**case.settings(2), **options}
    value = case.module(task="binary", **settings)(leaf, target, pixel_weight=s.pixel_weight)
    return value.detach(), torch.autograd.grad(value, leaf)[0]


def unlike(name: str, s: Sample, rank: int, **options: Any) -> Tensor:
    """The value where all ranks but the first have one-hot labels and weights of 1: as if none had."""
    target, weight = s.target, None
    if rank:
        one_hot = torch.nn.functional.one_hot(target.clamp(min=0), 4).movedim(-1, 1).to(s.input.dtype)
        target = torch.where((target < 0).unsqueeze(1), torch.nan, one_hot)
        weight = torch.ones_like(s.input[:, 0])
    value: Tensor = UNLIKE[name](**options)(s.input, target, pixel_weight=weight)
    return value.detach()


UNLIKE: dict[str, Callable[..., nn.Module]] = {
    **OVERLAPS,
    "estimator": lambda **options: WeightedCrossEntropyLoss(PixelFrequency(), **options),
    **{case.loss: partial(case.module, **case.settings(4)) for case in DEFAULTS},
}


def results(rank: int, world: int) -> Iterator[tuple[tuple[str, str, str], Any]]:
    for scenario in SCENARIOS:
        whole, shares = joined(scenario, world)
        here = share(whole, shares[rank])
        for case in DYCE if scenario == "ties" else CASES:
            for reduction in REDUCTIONS if case.core else ("mean",):
                loss = case(here, reduction=reduction, process_group="world")
                yield (scenario, case.id, reduction), (loss.detach(), grad(loss.sum(), here))
        for case in DEFAULTS:
            ddp = DistributedDataParallel(layer())
            yield (scenario, case.id, "ddp"), train_step(case, here, ddp, process_group="world")
            local = case(here)
            yield (scenario, case.id, "alone"), local.detach()
        for name in OVERLAPS:
            for soft in (False, True):
                of = f"{name}, {soft}"
                yield (scenario, of, "overlap"), overlap(name, here, soft, process_group="world")
        for case in DEFAULTS:
            yield (scenario, case.loss, "binary"), binary(case.loss, here, process_group="world")
        for name in UNLIKE:
            yield (scenario, name, "unlike"), unlike(name, here, rank, process_group="world")
        for smoothing in SMOOTHINGS:
            yield (scenario, f"weight, {smoothing}", "learned"), learned(here, smoothing, "world")
    if world == 3:
        pair = dist.new_group([0, 1])
        whole, shares = joined("uneven", world)
        for case in DEFAULTS if rank < 2 else []:
            yield ("pair", case.id, "mean"), case(share(whole, shares[rank]), process_group=pair).detach()


def leave_group() -> None:
    """Destroy the process group without a deadlock.

    Before torch 2.8 destroying it holds the interpreter's lock while it waits for gloo's threads, and a thread that
    is about to let go of the last collective's tensor needs that lock (pytorch/pytorch#154976). So let it go first.
    """
    if torch.__version__ < (2, 8):
        time.sleep(0.2)
    dist.destroy_process_group()


def main(rank: int, world: int, folder: str, backend: str) -> None:
    torch.set_num_threads(1)
    if backend == "mixed":  # as where the ranks' images are of different sizes
        backend = "auto" if rank == 0 else "reference"
    use_backend(backend)
    if backend == "auto":
        _dispatch._CPU_FROM = 0  # loops, however few pixels there are
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=60),
    )
    torch.save(dict(results(rank, world)), Path(folder) / f"rank{rank}.pt")
    leave_group()
