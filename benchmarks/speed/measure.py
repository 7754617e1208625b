"""Time of a forward and a backward pass, and the memory that they hold."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median
from typing import Protocol

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.speed.contenders import Contender, Step
from benchmarks.speed.inputs import Problem


class Clock(Protocol):
    """Marks moments; seconds between them afterwards."""

    def mark(self) -> None:
        """Note the present moment of the device."""

    def seconds(self) -> list[float]:
        """Seconds from the first mark to each later one."""


class WallClock:
    """For the CPU, whose operations are done when they return."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def mark(self) -> None:
        """Note the present moment."""
        self.marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Seconds from the first mark to each later one."""
        return [mark - self.marks[0] for mark in self.marks[1:]]


class CudaClock:
    """For CUDA: events in the stream, read once all is done."""

    def __init__(self) -> None:
        torch.cuda.synchronize()
        self.marks: list[torch.cuda.Event] = []

    def mark(self) -> None:
        """Put an event into the stream."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self.marks.append(event)

    def seconds(self) -> list[float]:
        """Seconds from the first mark to each later one."""
        torch.cuda.synchronize()
        return [self.marks[0].elapsed_time(mark) / 1000 for mark in self.marks[1:]]


def clock_of(device: str) -> Clock:
    """Return a new clock for the device."""
    return CudaClock() if device == "cuda" else WallClock()


@dataclass
class Runner:
    """A contender on a problem: runs a step and forgets it again."""

    contender: Contender
    problem: Problem
    step: Step

    def clear(self) -> None:
        """Drop the gradients of the last step."""
        for leaf in self.problem.leaves:
            leaf.grad = None

    def run(self) -> Tensor:
        """Forward and backward; the gradients stay at the leaves."""
        self.clear()
        with self.contender.context():
            output = self.step()
            if self.problem.leaves:
                output.backward()
        return output.detach()

    def timed(self, device: str, *, rehearse: bool = False) -> tuple[float, float]:
        """Seconds of the forward pass, and of forward and backward together.

        With ``rehearse`` the step runs once untimed before: a step of microseconds would else be timed with the
        caches that the other contender left.
        """
        if rehearse:
            self.run()
        self.clear()
        clock = clock_of(device)
        with self.contender.context():
            clock.mark()
            output = self.step()
            clock.mark()
            if self.problem.leaves:
                output.backward()
            clock.mark()
        forward, total = clock.seconds()
        return forward, total


@dataclass(frozen=True)
class Memory:
    """Bytes beyond the problem's own. ``peak`` holds the gradient that backward returns, ``kept`` does not."""

    kept: int  # alive between forward and backward
    peak: int  # the most at any moment


def memory_of(runner: Runner, device: str) -> Memory:
    """One step's memory, as the allocator of the device counts it."""
    runner.clear()
    with runner.contender.context():
        return step_memory(runner.step, device, backward=bool(runner.problem.leaves))


def step_memory(step: Step, device: str, *, backward: bool = True) -> Memory:
    """The memory of a function, and of the backward pass of what it returns."""
    return (_cuda_memory if device == "cuda" else _cpu_memory)(step, backward)


def _cuda_memory(step: Step, has_backward: bool) -> Memory:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    output = step()
    kept = torch.cuda.memory_allocated() - before
    if has_backward:
        output.backward()
    torch.cuda.synchronize()
    return Memory(kept, torch.cuda.max_memory_allocated() - before)


def _cpu_memory(step: Step, has_backward: bool) -> Memory:
    """Replay the profiler's record of every allocation and release."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as forward:
        output = step()
    changes = _changes(forward)
    kept = sum(changes)
    if has_backward:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as backward:
            output.backward()
        changes += _changes(backward)
    return Memory(kept, highest(changes))


def _changes(record: profile) -> list[int]:
    """Bytes allocated (or, below 0, released), in the order of time."""
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    return [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]


def highest(changes: list[int]) -> int:
    """The highest running sum."""
    total = most = 0
    for change in changes:
        total += change
        most = max(most, total)
    return most


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """The lower quartile, the median and the upper quartile, interpolated."""
    ordered = sorted(values)

    def at(share: float) -> float:
        place = share * (len(ordered) - 1)
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (place - low) * (ordered[high] - ordered[low])

    return at(0.25), median(ordered), at(0.75)
