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

from classbalance_losses import GBWLoss


@pytest.fixture(scope="module", params=[2, 3], ids=["2 ranks", "3 ranks"])
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    """What every rank computed; starting processes takes seconds, so they run all cases in one go."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(worker.main, args=(request.param, str(folder)), nprocs=request.param)
    return [torch.load(Path(folder) / f"rank{rank}.pt") for rank in range(request.param)]


@pytest.mark.xdist_group("ranks")
@pytest.mark.parametrize("scenario", worker.SCENARIOS)
def test_ranks_are_one_process(ranks: list[dict[Any, Any]], scenario: str) -> None:
    """Against the loops on the joined batch. DDP divides gradients by the number of ranks; so does this."""
    world = len(ranks)
    whole, shares = worker.joined(scenario, world)
    for case in CASES:
        expected = case.expected(whole)
        for rank, images in enumerate(shares):
            pixel, pixel_grad = ranks[rank][scenario, case.id, "none"]
            close(pixel, expected.pixel[images])
            close(pixel_grad, expected.pixel_grad[images])
            for reduction, value, slope in (
                ("sum", expected.sum, expected.pixel_grad),
                ("mean", expected.mean, expected.mean_grad),
            ):
                loss, gradient = ranks[rank][scenario, case.id, reduction]
                np.testing.assert_allclose(
                    loss, value, rtol=1e-9, err_msg=f"{case.id} {reduction} rank {rank}"
                )
                np.testing.assert_allclose(
                    gradient / world,
                    slope[images],
                    rtol=1e-8,
                    atol=1e-11,
                    err_msg=f"{case.id} {reduction} rank {rank}",
                )


@pytest.mark.xdist_group("ranks")
@pytest.mark.parametrize("scenario", worker.SCENARIOS)
def test_distributed_data_parallel_is_one_process(ranks: list[dict[Any, Any]], scenario: str) -> None:
    """Through a real network, DDP's own averaging, and a rank that may have nothing to say."""
    whole, shares = worker.joined(scenario, len(ranks))
    for case in DEFAULTS:
        expected = worker.train_step(case, whole, worker.layer())
        for result in ranks:
            for ours, theirs in zip(result[scenario, case.id, "ddp"], expected, strict=True):
                close(ours, theirs.numpy(), rtol=1e-8)
        for rank, images in enumerate(shares):
            close(ranks[rank][scenario, case.id, "alone"], case(worker.share(whole, images)).item())


@pytest.mark.xdist_group("ranks")
def test_a_group_of_some_ranks(ranks: list[dict[Any, Any]]) -> None:
    if len(ranks) < 3:
        pytest.skip("two of three ranks form the group")
    whole, shares = worker.joined("uneven", 3)
    both = worker.share(whole, slice(0, shares[1].stop))
    for case in DEFAULTS:
        for rank in range(2):
            close(ranks[rank]["pair", case.id, "mean"], case(both).item())


@pytest.fixture
def _alone() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


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
