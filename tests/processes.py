"""Starts the ranks of a test as copies of one process that has imported what takes each of them seconds to import."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable

import torch

# None of them starts a thread, which a copy would lack; one that is not installed is passed over. DDP imports dynamo.
IMPORTED = ["torch.nn.parallel", "torch._dynamo", "classbalance_losses.functional", "pytest", "torchmetrics"]


def start_ranks(main: Callable[..., None], *arguments: object, world: int = 2) -> None:
    """Run ``main(rank, *arguments)`` in ``world`` processes, whose first error is raised here.

    Their environment is that of the first call of the session.
    """
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    multiprocessing.set_forkserver_preload(IMPORTED)
    torch.multiprocessing.start_processes(main, args=arguments, nprocs=world, start_method=method)
