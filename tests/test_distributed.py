"""N ranks give the loss and the gradient of one process on the joined batch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import distributed_worker as worker
import numpy as np
import pytest
import torch
import torch.distributed as dist
from cases import CASES, DEFAULTS, Case, close, grad, over, sample
from processes import start_ranks

from classbalance_losses import GBWLoss

BY_ID = {case.id: case for case in CASES}


Ranks = list[dict[tuple[str, str, str], Any]]


@pytest.mark.parametrize(
    ("world", "backend"), [(2, "reference"), (3, "reference"), (2, "auto"), (3, "mixed")]
)
def test_ranks_are_one_process(world: int, backend: str, tmp_path: Path) -> None:
    """Starting processes takes seconds, so they run everything in one go, and everything is checked here."""
    start_ranks(worker.main, world, str(tmp_path), backend, world=world)
    ranks: Ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(world)]
    for scenario in worker.SCENARIOS:
        check_losses(ranks, scenario)
        check_training(ranks, scenario)
        check_sums(ranks, scenario)
    if world == 3:
        check_a_group_of_some_ranks(ranks)


def check_losses(ranks: Ranks, scenario: str) -> None:
    """Against the loops on the joined batch. DDP divides gradients by the number of ranks; so does this."""
    whole, shares = worker.joined(scenario, len(ranks))
    for rank, images in enumerate(shares):
        for (of, name, reduction), result in ranks[rank].items():
            if of != scenario or reduction not in worker.REDUCTIONS:
                continue
            loss, gradient = result
            expected = BY_ID[name].expected(whole)
            value = {"none": expected.pixel[images], "sum": expected.sum, "mean": expected.mean}[reduction]
            slope = (expected.mean_grad if reduction == "mean" else expected.pixel_grad)[images]
            share = 1 if reduction == "none" else len(ranks)
            where = f"{name}, {reduction}, {scenario}, rank {rank}"
            np.testing.assert_allclose(loss, value, rtol=1e-9, atol=1e-11, err_msg=where)
            np.testing.assert_allclose(gradient / share, slope, rtol=1e-8, atol=1e-11, err_msg=where)


def check_sums(ranks: Ranks, scenario: str) -> None:
    """Overlaps, sums of losses and one logit against one process on the joined batch."""
    whole, shares = worker.joined(scenario, len(ranks))
    whole = worker.share(whole, slice(None))
    expected = {
        (f"{name}, {soft}", "overlap"): worker.overlap(name, whole, soft)
        for name in worker.OVERLAPS
        for soft in (False, True)
    }
    expected |= {(case.loss, "binary"): worker.binary(case.loss, whole) for case in worker.DEFAULTS}
    for name in worker.UNLIKE:
        alike = worker.unlike(name, whole, 0)
        for rank in ranks:
            ours, where = rank[scenario, name, "unlike"], f"{name}, unlike, {scenario}"
            np.testing.assert_allclose(ours, alike, rtol=1e-9, atol=1e-11, err_msg=where)
    for rank, images in enumerate(shares):
        for (of, name, kind), result in ranks[rank].items():
            if of == scenario and (name, kind) in expected:
                value, slope = expected[name, kind]
                where = f"{name}, {kind}, {scenario}, rank {rank}"
                np.testing.assert_allclose(result[0], value, rtol=1e-9, atol=1e-11, err_msg=where)
                np.testing.assert_allclose(
                    result[1] / len(ranks), slope[images], rtol=1e-8, atol=1e-11, err_msg=where
                )


def check_training(ranks: Ranks, scenario: str) -> None:
    """Through a real network, DDP's own averaging, and a rank that may have nothing to say."""
    whole, shares = worker.joined(scenario, len(ranks))
    for case in DEFAULTS:
        expected = worker.train_step(case, whole, worker.layer())
        for rank, images in enumerate(shares):
            for ours, theirs in zip(ranks[rank][scenario, case.id, "ddp"], expected, strict=True):
                close(ours, theirs.numpy(), rtol=1e-8)
            close(ranks[rank][scenario, case.id, "alone"], case(worker.share(whole, images)).item())
    for smoothing in worker.SMOOTHINGS:
        of_ranks = [rank[scenario, f"weight, {smoothing}", "learned"] for rank in ranks]
        close(torch.stack(of_ranks).mean(0), worker.learned(whole, smoothing, None).numpy(), rtol=1e-8)


def check_a_group_of_some_ranks(ranks: Ranks) -> None:
    """Two of three ranks form the group."""
    whole, shares = worker.joined("uneven", 3)
    both = worker.share(whole, slice(0, shares[1].stop))
    for case in DEFAULTS:
        for rank in range(2):
            close(ranks[rank]["pair", case.id, "mean"], case(both).item())


@pytest.fixture
def _alone() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    worker.leave_group()


@over(CASES)
@pytest.mark.usefixtures("_alone")
def test_a_world_of_one_is_no_world(case: Case) -> None:
    here = sample(2, weighted=True).leaf()
    for reduction in worker.REDUCTIONS:
        ours, theirs = case(here, reduction=reduction, process_group="world"), case(here, reduction=reduction)
        close(ours, theirs.detach().numpy())
        close(grad(ours.sum(), here), grad(theirs.sum(), here).numpy())


@over(DEFAULTS)
def test_world_without_a_process_group_is_this_process(case: Case) -> None:
    """The same script runs with and without torchrun."""
    here = sample(2)
    assert torch.equal(case(here, process_group="world"), case(here))


@pytest.mark.usefixtures("_alone")
def test_gbw_module_keeps_the_joined_weights() -> None:
    here = sample(2)
    one, world = GBWLoss(regularization=0.1), GBWLoss(regularization=0.1, process_group="world")
    one(here.input, here.target)
    world(here.input, here.target)
    assert torch.equal(one.class_weight, world.class_weight)
