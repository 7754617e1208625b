"""The kernels compile for CUDA, also where there is no device, and into code that is as lean as it was made.

A layout that a new Triton guesses otherwise shows here, as barriers, narrow loads or registers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from compile_kernels import CASES

SCRIPT = Path(__file__).with_name("compile_kernels.py")
# (case, kernel): the most registers, barriers and instructions of a thread, the least bits of its widest load
PIXEL = {
    ("float32", "forward"): (80, 0, 14 * 4 * 19, 128),
    ("float32", "backward"): (80, 0, 13 * 4 * 19, 128),
    ("float32, focal", "forward"): (80, 0, 14 * 4 * 19, 128),
    ("float32, focal", "backward"): (80, 0, 13 * 4 * 19, 128),
    ("float32, errors", "forward"): (128, 0, 17 * 4 * 19, 128),
    ("bfloat16", "forward"): (80, 0, 16 * 4 * 19, 128),
    ("bfloat16", "backward"): (80, 0, 16 * 4 * 19, 128),
    ("channels last", "forward"): (64, 0, 20 * 19, 32),
    ("channels last", "backward_of_rows"): (64, 0, 21 * 16, 128),
    ("150 classes", "forward"): (168, 0, 12 * 4 * 54, 128),  # rounds of 32, and 22 that are left
    ("150 classes", "backward"): (168, 0, 13 * 4 * 54, 128),
}
SUMMED = {  # programs of forward are one warp each
    ("summed", "forward"): (96, 0, 15 * 4 * 19, 128),
    ("summed", "backward"): (80, 0, 13 * 4 * 19, 128),
    ("summed", "join_weighted"): (64, 5, 300, 32),
    ("summed, bfloat16, weighted", "forward"): (96, 0, 16 * 4 * 19, 128),
    ("summed, bfloat16, weighted", "backward"): (80, 0, 16 * 4 * 19, 128),
    ("summed, channels last", "forward"): (64, 0, 20 * 19, 32),
    ("summed, channels last", "backward_of_rows"): (64, 0, 22 * 16, 128),
    ("mined", "backward"): (80, 0, 13 * 4 * 19, 128),
    ("mined, channels last", "backward_of_rows"): (64, 0, 24 * 16, 128),
}
FORMS = {  # instructions as they stand, loops once
    ("float32, any focal", "forward"): (96, 0, 16 * 4 * 19, 128),
    ("float32, smoothed", "forward"): (128, 0, 1250, 128),
    ("float32, smoothed", "backward"): (96, 1, 700, 128),
    ("float32, dual cross entropy", "forward"): (128, 0, 1250, 128),
    ("float32, dual cross entropy", "backward"): (96, 0, 400, 128),
    ("float32, dual focal", "forward"): (128, 0, 1800, 128),
    ("float32, dual focal", "backward"): (128, 0, 850, 128),
}
READ = {  # one logit a pixel, and biases
    ("single", "forward"): (48, 0, 320, 128),
    ("single", "backward"): (48, 0, 170, 128),
    ("biased", "forward"): (80, 0, 16 * 4 * 19, 128),
    ("biased", "backward"): (80, 0, 14 * 4 * 19, 128),
    ("biased, upsampled", "backward"): (224, 0, 1300, 32),
}
OVERLAP = {  # forward has eight pixels a thread, or four, and a loop over classes that stands once
    ("overlap", "forward"): (168, 0, 19 * 8 * 19, 128),
    ("overlap", "overlap_backward"): (112, 0, 18 * 4 * 19, 128),
    ("overlap, focal", "forward"): (168, 0, 20 * 8 * 19, 128),
    ("overlap, focal", "overlap_backward"): (112, 0, 18 * 4 * 19, 128),
    ("overlap, channels last", "forward"): (96, 0, 25 * 4 * 19, 128),
    ("overlap, channels last", "overlap_backward"): (64, 0, 25 * 19, 32),
    ("overlap, 150 classes", "overlap_backward"): (96, 0, 2200, 128),
    ("overlap, smoothed", "forward"): (96, 0, 1050, 128),  # of four classes, as the next
    ("overlap, smoothed", "overlap_backward"): (64, 1, 450, 128),
    ("overlap, adjusted", "forward"): (128, 0, 1450, 128),
    ("overlap, adjusted", "overlap_backward"): (80, 0, 700, 128),
    ("overlap, dual focal", "forward"): (128, 0, 2500, 128),
    ("overlap, dual focal", "overlap_backward"): (128, 0, 850, 128),
    ("tversky", "kernel"): (48, 1, 350, 32),
    ("overlap", "join_overlap"): (48, 3, 250, 32),
}
MAPS = {
    ("maps", "class_sums"): (96, 3, 900, 32),
    ("maps", "class_slopes"): (64, 1, 300, 128),
    ("mean", "weighted_sums"): (64, 5, 300, 128),
    ("mean", "weighted_slopes"): (64, 1, 250, 128),
    ("selection", "digit_kernel"): (96, 20, 2000, 128),
}
UPSAMPLED = {
    ("upsampled", "forward"): (80, 0, 750, 32),
    ("upsampled", "backward"): (224, 0, 1300, 32),
}
LIMITS = {**PIXEL, **SUMMED, **FORMS, **READ, **OVERLAP, **MAPS, **UPSAMPLED}
NAMES = list(CASES)
HALVES = {"first": NAMES[: len(NAMES) // 2], "second": NAMES[len(NAMES) // 2 :]}  # which take about as long
AMPERE = (
    *("bfloat16", "single, dual focal", "upsampled", "overlap, channels last"),
    *("maps", "mean", "selection", "projection", "tversky"),
)


def compiled(folder: Path, arch: int, *cases: str) -> list[dict[str, Any]]:
    """What came out of the cases, or of all."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(folder)}
    environment["PYTHONPATH"] = os.pathsep.join([str(SCRIPT.parents[1]), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        [sys.executable, "-W", "error", str(SCRIPT), str(arch), *cases],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return [json.loads(line) for line in run.stdout.splitlines()]


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="Triton's compiler for CUDA is for Linux"),
]


def test_compiles_for_ampere(tmp_path: Path) -> None:
    """One case of each file, with what is compiled otherwise there: numbers of 16 bits."""
    found = compiled(tmp_path, 80, *AMPERE)
    assert {fact["case"] for fact in found} == set(AMPERE)
    assert [fact for fact in found if fact["spills"]] == []


def test_limits_are_of_cases() -> None:
    assert {case for case, _ in LIMITS} <= set(CASES)


@pytest.mark.skipif(
    tuple(map(int, version("triton").split(".")[:2])) < (3, 5),
    reason="the limits are those of the Tritons that torch 2.9 and newer bring",
)
@pytest.mark.parametrize("half", HALVES)
def test_is_lean_on_hopper(tmp_path: Path, half: str) -> None:
    """Two processes, since most of the time is the compiler's, and it has one thread."""
    found = compiled(tmp_path, 90, *HALVES[half])
    assert {fact["case"] for fact in found} == set(HALVES[half])
    assert [fact for fact in found if fact["spills"]] == []
    limits = {key: most for key, most in LIMITS.items() if key[0] in HALVES[half]}
    for key, (registers, barriers, instructions, bits) in limits.items():
        facts = [fact for fact in found if (fact["case"], fact["kernel"]) == key]
        assert facts, key
        for fact in facts:
            assert fact["registers"] <= registers, fact
            assert fact["barriers"] <= barriers, fact
            assert fact["instructions"] <= instructions, fact
            assert fact["loads"] >= bits, fact


def test_is_launched_as_triton_would(tmp_path: Path) -> None:
    """What was compiled gets the same from us as from Triton, which is asked the first time alone."""
    assert compiled(tmp_path, 90, "--launches") == [{"launches": 2, "differ": []}]
