"""The kernels compile for CUDA, also where there is no device, and into code that is as lean as it was made.

A layout that a new Triton guesses otherwise shows here, as barriers, narrow loads or registers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="triton is not installed")

SCRIPT = Path(__file__).with_name("compile_kernels.py")
# (case, kernel): the most registers, barriers and instructions of a thread, the least bits of its widest load
PIXEL = {
    ("float32", "forward_kernel"): (128, 0, 14 * 4 * 19, 128),
    ("float32", "backward_kernel"): (128, 0, 13 * 4 * 19, 128),
    ("bfloat16", "forward_kernel"): (128, 0, 16 * 4 * 19, 128),
    ("bfloat16", "backward_kernel"): (128, 0, 16 * 4 * 19, 128),
    ("channels last", "forward_kernel"): (64, 0, 28 * 19, 32),
    ("channels last", "rows_backward_kernel"): (64, 0, 40 * 8, 128),
    ("150 classes", "forward_kernel"): (168, 0, 12 * 4 * 54, 128),  # rounds of 32, and 22 that are left
    ("150 classes", "backward_kernel"): (168, 0, 13 * 4 * 54 + 100, 128),  # and what is done once
}
MAPS = {
    ("maps of many classes", "class_kernel"): (96, 0, 1000, 32),
    ("maps of many classes", "spread_kernel"): (64, 1, 400, 128),
    ("maps of many classes", "label_kernel"): (64, 1, 300, 128),
    ("maps of many classes", "mean_kernel"): (96, 4, 1000, 128),
    ("maps of many classes", "gradient_kernel"): (96, 2, 750, 128),
    ("maps of many classes", "digit_kernel"): (96, 20, 2000, 128),
}
UPSAMPLED = {  # instructions as they stand, loops once
    ("upsampled", "forward"): (80, 0, 750, 32),
    ("upsampled", "backward"): (224, 0, 1450, 32),
}
LIMITS = {**PIXEL, **MAPS, **UPSAMPLED}


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
    """One case of each file: what is compiled there differs little, and takes as long."""
    cases = ("float32", "upsampled", "maps of few classes")
    assert {fact["case"] for fact in compiled(tmp_path, 80, *cases)} == set(cases)


def test_is_lean_on_hopper(tmp_path: Path) -> None:
    found = {(fact["case"], fact["kernel"]): fact for fact in compiled(tmp_path, 90)}
    for fact in found.values():
        assert fact["spills"] == 0, fact
    for key, (registers, barriers, instructions, bits) in LIMITS.items():
        fact = found[key]
        assert fact["registers"] <= registers, fact
        assert fact["barriers"] <= barriers, fact
        assert fact["instructions"] <= instructions, fact
        assert fact["loads"] >= bits, fact
