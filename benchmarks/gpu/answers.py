"""Step 2: value and gradient of every loss in every setting against float64 on the device, on poisoned memory."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any

import torch

import classbalance_losses as cb
from benchmarks.gpu.cases import QUICK, SETTINGS, Setting, contenders
from benchmarks.speed.correctness import Truth, errors_of

_PROCESSES = 6


def answers(device: str, *, quick: bool) -> Iterator[list[dict[str, Any]]]:
    """Yield all rows so far after each setting. Settings run side by side: compiling is most of it."""
    rows: list[dict[str, Any]] = []
    settings = QUICK if quick else SETTINGS
    with ProcessPoolExecutor(1 if quick else _PROCESSES, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(_rows_of, setting, device) for setting in settings]
        for job in as_completed(jobs):
            rows += job.result()
            yield rows


def _rows_of(setting: Setting, device: str) -> list[dict[str, Any]]:
    # Uninitialised memory is filled with NaN, so that what a kernel does not write shows. What torch has no
    # deterministic way for (its own cross-entropy on maps) may run all the same.
    torch.use_deterministic_algorithms(True, warn_only=True)
    warnings.simplefilter("ignore")
    return [_row(setting, name, device) for name in contenders(setting) if "compiled" not in name]


def _row(setting: Setting, name: str, device: str) -> dict[str, Any]:
    row: dict[str, Any] = {"setting": str(setting), "loss": name}
    try:
        problem = setting.problem(device)
        wide = problem.in_float64()
        with cb.use_backend("reference"):
            value = contenders(setting)[name]()(wide.input, wide.target)
            truth = Truth(value.detach(), (torch.autograd.grad(value, wide.input)[0].float(),))
        value = contenders(setting)[name]()(problem.input, problem.target)
        value.backward()
        errors = errors_of(value, problem, truth)
    except Exception as error:  # the other rows are still wanted
        return row | {"error": f"{type(error).__name__}: {str(error)[:500]}"}
    return row | {"value_error": errors.value, "gradient_error": errors.gradient}
