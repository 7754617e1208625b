"""Step 3: what a step costs the GPU and what it costs the host, kernel by kernel, beside torch's cross-entropy."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.cases import QUICK, SETTINGS, Loss, contenders
from benchmarks.speed.inputs import Pixels

_STEPS = 10
_ROUNDS = 7


def timings(device: str, *, quick: bool) -> Iterator[list[dict[str, Any]]]:
    """Yield all rows so far after each contender."""
    rows: list[dict[str, Any]] = []
    for setting in QUICK if quick else SETTINGS:
        problem = setting.problem(device)
        for name, build in contenders(setting).items():
            row: dict[str, Any] = {"setting": str(setting), "loss": name, "least_bytes": problem.least_bytes}
            try:
                row |= _measure(build(), problem, device)
            except Exception as error:  # the other rows are still wanted
                row["error"] = f"{type(error).__name__}: {str(error)[:500]}"
            rows.append(row)
            yield rows


def _measure(loss: Loss, problem: Pixels, device: str) -> dict[str, Any]:
    def step() -> Tensor:
        return torch.autograd.grad(loss(problem.input, problem.target), problem.input)[0]

    for _ in range(3):
        step()
    if device != "cuda":
        return {"host_us": _host(step, lambda: None)}
    torch.cuda.synchronize()
    return {
        "host_us": _host(step, torch.cuda.synchronize),
        "alone_us": _median([_events(step, 1) for _ in range(2 * _ROUNDS)]),
        "in_a_row_us": _median([_events(step, _STEPS) for _ in range(_ROUNDS)]),
        **_kernels(step),
        **_memory(loss, problem),
        **_graph(step),
    }


def _host(step: Callable[[], Tensor], wait: Callable[[], None]) -> float:
    """Microseconds until a step is handed over, the device being idle at first."""
    times = []
    for _ in range(3 * _ROUNDS):
        wait()
        before = time.perf_counter()
        step()
        times.append(1e6 * (time.perf_counter() - before))
    wait()
    return statistics.median(times)


def _events(step: Callable[[], object], count: int) -> float:
    """Microseconds of a step on the device's clock, of some in a row."""
    torch.cuda.synchronize()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(count):
        step()
    end.record()
    torch.cuda.synchronize()
    return 1e3 * start.elapsed_time(end) / count


def _kernels(step: Callable[[], Tensor]) -> dict[str, Any]:
    """The launches of a step, and the device's time in each kernel."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as record:
        for _ in range(_STEPS):
            step()
        torch.cuda.synchronize()
    kernels: dict[str, list[float]] = {}
    for event in record.events():
        if event.device_type == DeviceType.CUDA:
            kernels.setdefault(event.name[:120], []).append(event.time_range.elapsed_us())
    return {
        "launches": sum(map(len, kernels.values())) / _STEPS,
        "busy_us": sum(map(sum, kernels.values())) / _STEPS,
        "kernels": [
            {"name": name, "launches": len(times) / _STEPS, "us": statistics.median(times)}
            for name, times in sorted(kernels.items(), key=lambda item: -sum(item[1]))
        ],
    }


def _memory(loss: Loss, problem: Pixels) -> dict[str, float]:
    """Bytes alive between the passes and at the peak, the gradient included, over the logits' own."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    value = loss(problem.input, problem.target)
    kept = torch.cuda.memory_allocated() - before
    torch.autograd.grad(value, problem.input)
    peak = torch.cuda.max_memory_allocated() - before
    return {"kept": kept / problem.leaf_bytes, "peak": peak / problem.leaf_bytes}


def _graph(step: Callable[[], Tensor]) -> dict[str, Any]:
    """Microseconds of a replay, where the step can be captured: the device's time without the host's."""
    try:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            kept = step()
        graph.replay()
        result = {"graph_us": _median([_events(graph.replay, _STEPS) for _ in range(_ROUNDS)])}
        del kept
    except Exception as error:
        torch.cuda.synchronize()
        return {"graph_error": f"{type(error).__name__}: {str(error)[:300]}"}
    return result


def _median(values: list[float]) -> float:
    return statistics.median(values)
