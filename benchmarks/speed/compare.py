"""What the numbers say: who lost to whom, and how time grows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from benchmarks.speed.results import Entry, Results

Job = tuple[str, str, str, str]
MARGIN = 1.02  # within 2 % nobody has lost


def job_of(entry: Entry) -> Job:
    """What entries must share to be compared."""
    return entry.family, entry.axis, entry.dtype, entry.task


def by_job(entries: Iterable[Entry]) -> dict[Job, list[Entry]]:
    """The timed entries of each job."""
    jobs: dict[Job, list[Entry]] = {}
    for entry in entries:
        if entry.timed:
            jobs.setdefault(job_of(entry), []).append(entry)
    return jobs


def best_of_ours(entries: Iterable[Entry]) -> Entry | None:
    """The library's fastest contender at a job."""
    return min((e for e in entries if e.origin == "ours"), key=lambda e: e.ratio[1], default=None)


def best_of_others(entries: Iterable[Entry]) -> Entry | None:
    """The fastest contender at a job that is not the library's."""
    return min((e for e in entries if e.origin != "ours"), key=lambda e: e.ratio[1], default=None)


def lost(entries: Iterable[Entry]) -> Iterator[tuple[Entry, Entry]]:
    """Each job at which the library's fastest contender is slower than the fastest of the others."""
    for job in by_job(entries).values():
        own, other = best_of_ours(job), best_of_others(job)
        if own and other and own.ratio[1] > MARGIN * other.ratio[1]:
            yield own, other


def slower_than_baseline(entries: Iterable[Entry]) -> list[tuple[Entry, float]]:
    """The library's fastest contender at each job, where it is slower than the baseline."""
    best = (best_of_ours(job) for job in by_job(entries).values())
    return [(own, own.ratio[1]) for own in best if own and own.ratio[1] > MARGIN]


def exponents(results: Results) -> dict[str, dict[str, float]]:
    """Each contender's exponent b of time ∝ size^b, by sweep."""
    fits: dict[str, dict[str, float]] = {}
    for sweep, curves in scaling(results).items():
        for name, points in curves.items():
            if len(points) > 1:
                fits.setdefault(name, {})[sweep] = fitted_exponent(points)
    return fits


def scaling(results: Results) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """By sweep and contender: size and median seconds of forward and backward."""
    sweeps: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for sweep in ("pixels", "classes"):
        for entry in results.entries(family=f"scaling, {sweep}"):
            if entry.timed:
                curve = sweeps.setdefault(sweep, {}).setdefault(entry.contender, [])
                curve.append((float(getattr(entry, sweep)), entry.milliseconds[1] / 1000))
    return sweeps


def fitted_exponent(points: list[tuple[float, float]]) -> float:
    """The slope of the least-squares line through the logarithms."""
    logs = [(math.log(x), math.log(y)) for x, y in points]
    middle = [sum(values) / len(logs) for values in zip(*logs, strict=True)]
    over = sum((x - middle[0]) * (y - middle[1]) for x, y in logs)
    return over / sum((x - middle[0]) ** 2 for x, _ in logs)
