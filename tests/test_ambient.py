"""What a program sets for all of torch changes nothing: default dtype and device, gradients off, threads, determinism.

Lightning's "bf16-true", say, makes bfloat16 the default dtype. Before, a loop then wrote past the end of a tensor that
had been made without a dtype: so everything is called in a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from ambient_worker import SETTINGS


@pytest.fixture(scope="module")
def reports() -> dict[str, list[str]]:
    """What differed in each setting that the process lived to see the end of."""
    worker = Path(__file__).with_name("ambient_worker.py")
    run = subprocess.run([sys.executable, str(worker)], capture_output=True, text=True, check=False)
    found = {"said": [f"exit {run.returncode}: {run.stderr[-2000:]}"]}
    for line in run.stdout.splitlines():
        found.update(json.loads(line))
    return found


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_same_comes_out(setting: str, reports: dict[str, list[str]]) -> None:
    assert not reports.get(setting, reports["said"])
