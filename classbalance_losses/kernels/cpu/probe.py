"""A loop that does next to nothing: whether numba works shows where it is compiled and run."""

from __future__ import annotations

from typing import Any

import numpy as np

from classbalance_losses.kernels.cpu.math import take, task
from classbalance_losses.kernels.cpu.threads import run


@task
def _take_one(memory: Any) -> None:
    take(memory)


def run_one() -> None:
    """Compile the loop, and have each thread run it.

    Raises:
        RuntimeError: it did not do what it should.
    """
    job = np.zeros(1, np.int64)
    run(_take_one, job)
    if not job[0]:
        raise RuntimeError("a loop that numba compiled did not run")
