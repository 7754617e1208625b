"""Two ranks, averaged as DistributedDataParallel does, give what one process gives on the joined batch."""

from __future__ import annotations

import pickle
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from classbalance_losses.testing.laws.law import Law, needs
from classbalance_losses.testing.problem import Problem, draw, evaluate, with_ignored
from classbalance_losses.testing.subject import Subject
from classbalance_losses.testing.violation import blamed_on_the_loss, expect_close

WORLD = 2
_PATIENCE = timedelta(seconds=30)


def _joined(subject: Subject) -> Iterator[Problem]:
    """Three images, of which the second rank has one: means over ranks are not the joined mean."""
    size = (3, *[2] * subject.dims[-1])
    problem = draw(subject, size, seed=1, reduction=subject.mean)
    yield with_ignored(subject, problem) if subject.ignores else problem


def ranks(subject: Subject, problem: Problem) -> None:
    """Start the processes, and compare the average of what they found."""
    sent = _sent(subject)
    with tempfile.TemporaryDirectory() as folder:
        with blamed_on_the_loss(f"a loss on each of {WORLD} ranks"):
            spawn(_rank, (sent, problem, folder), nprocs=WORLD)  # type: ignore[no-untyped-call]
        found = [torch.load(Path(folder) / f"rank{rank}.pt") for rank in range(WORLD)]
    expected = evaluate(subject, problem)
    value = torch.stack([value for value, _ in found]).mean()
    gradient = torch.cat([gradient for _, gradient in found]) / WORLD
    said = "averaged over the ranks the loss of the joined batch,"
    expect_close(f"{said} value", value, expected.value, expected.value.dtype)
    expect_close(f"{said} gradient", gradient, expected.gradient, expected.value.dtype)


def _sent(subject: Subject) -> bytes:
    try:
        return pickle.dumps(subject)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f'Expected a loss that can be sent to another process for the law "ranks", got {subject.loss!r} ({error}). '
            'Define it at the top level of a module, or pass skip=("ranks",).'
        ) from error


def _share(problem: Problem, rank: int) -> Problem:
    images = slice(0, 2) if rank == 0 else slice(2, 3)
    return replace(problem, input=problem.input[images], target=problem.target[images])


def _rank(rank: int, sent: bytes, problem: Problem, folder: str) -> None:
    """What one process does."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder) / "store"), WORLD)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD, timeout=_PATIENCE)
    subject: Subject = pickle.loads(sent)
    outcome = evaluate(subject, _share(problem, rank), process_group=dist.group.WORLD)
    result: tuple[Tensor, Tensor] = (outcome.value, outcome.gradient)
    torch.save(result, Path(folder) / f"rank{rank}.pt")
    time.sleep(
        0.2
    )  # before torch 2.8 gloo's threads may still hold a tensor, and destroying would wait for ever
    dist.destroy_process_group()


LAWS = (
    Law(
        "ranks",
        "Two ranks with unequal shares, averaged, are one process on the joined batch",
        ranks,
        _joined,
        needs("process_group"),
    ),
)
