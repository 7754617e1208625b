"""One thread, deterministic hypothesis: a failure here is a failure everywhere."""

from __future__ import annotations

import gc
import os
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")
if "PYTEST_XDIST_WORKER" not in os.environ:  # workers, which inherit it, compile each loop once for all
    os.environ["NUMBA_CACHE_DIR"] = (_compiled := tempfile.TemporaryDirectory()).name

import hypothesis
import pytest
import torch

torch.set_num_threads(1)
if not torch.cuda.is_available():
    # Without a device Triton's kernels are interpreted, on the CPU. Triton reads this when it is imported.
    os.environ.setdefault("TRITON_INTERPRET", "1")

_COMMON = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow]}
hypothesis.settings.register_profile("ci", derandomize=True, max_examples=20, database=None, **_COMMON)
hypothesis.settings.register_profile("thorough", max_examples=500, **_COMMON)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_collection_finish() -> None:
    """What was imported and collected stays: no later collection of garbage has to walk through a million objects."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """At the end all of it goes: else extension modules complain of what leaks."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _seed() -> None:
    """As ``torch.manual_seed``, which where there is no device writes down three stack traces for a device to come."""
    torch.default_generator.manual_seed(0)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(0)
