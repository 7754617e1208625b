"""The steps of both commands, and how long each may take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """A command in a process of its own, stopped after ``limit`` seconds."""

    name: str
    limit: int
    command: tuple[str, ...]
    needed: bool = False  # without it the others are in vain
    devices: tuple[str, ...] = ("cuda",)


def _own(name: str, limit: int, *, needed: bool = False) -> Step:
    own = ("{python}", "-m", "benchmarks.gpu", "step", name, "--out", "{out}", "--device", "{device}")
    return Step(name, limit, (*own, "{quick}"), needed, ("cuda", "cpu"))


_TESTS = (
    *("pixel", "losses", "upsample", "overlap", "single", "tversky"),
    *("weighted", "project", "mean", "classes", "select"),
)
_SPEED = ("{python}", "-m", "benchmarks.speed", "run", "--device", "cuda", "--seconds", "0.15")
_SECTIONS = ("SpeedOfLight", "SchedulerStats", "WarpStateStats", "LaunchStats", "Occupancy")

_MACHINE = _own("machine", 90, needed=True)  # the first import on a new machine takes half of it
_TRAININGS = Step(
    "trainings",
    190,
    (
        *("{python}", "-m", "benchmarks.accuracy", "run", "camvid_gpu", "--device", "cuda"),
        *("--data", "{data}", "--jobs", "9"),
    ),
)
_NCU = Step(
    "ncu",
    30,
    (
        *("ncu", "--clock-control", "none", "--launch-count", "16"),
        *("--kernel-name", "regex:^_?(forward|backward|digit|class|weighted)"),
        *(word for section in _SECTIONS for word in ("--section", section)),
        *("{python}", "-m", "benchmarks.gpu", "large-target"),
    ),
)
_MEMCHECK = Step(
    "memcheck",
    50,
    ("compute-sanitizer", "--tool", "memcheck", "{python}", "-m", "benchmarks.gpu", "small"),
)

PLANS: dict[str, tuple[Step, ...]] = {
    "first": (
        _MACHINE,
        _own("answers", 60),
        _own("timings", 170),
        Step(
            "tests",
            130,
            (
                # Names as they come, for a step may be stopped; pytest-benchmark warns of the workers.
                *("{python}", "-m", "pytest", "-v", "-p", "no:cacheprovider", "-p", "no:benchmark"),
                *("-n", "12", "--tb=short"),
                *(f"tests/test_triton_{name}.py" for name in _TESTS),
                "tests/test_cuda.py",
            ),
        ),
        _NCU,
    ),
    "second": (
        _MACHINE,
        _TRAININGS,
        _own("large", 40),
        _MEMCHECK,
        Step("speed-compile", 70, (*_SPEED, "--only", "compile", "--out", "{out}/speed")),
    ),
}
