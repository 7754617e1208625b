"""Step 1: versions, the bandwidth of a copy, a compiler, and whether Triton can launch at all."""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import Any

import torch

from benchmarks.speed.machine import copy_bandwidth, describe, measured_commit


def look(device: str, *, quick: bool) -> dict[str, Any]:
    """Return what the numbers are measured on; a step that needs Triton has no use where "triton" is an error."""
    return {
        "machine": describe(device),
        "commit": measured_commit(),
        "bandwidth": copy_bandwidth(device, quick=quick),
        "compiler": next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None),
        "triton": _triton(device),
        "nvidia_smi": _nvidia_smi() if device == "cuda" else None,
        "tf32": {
            "matmul": torch.backends.cuda.matmul.allow_tf32,
            "convolution": torch.backends.cudnn.allow_tf32,
        },
    }


def _triton(device: str) -> str:
    """The version, if a loss on its kernels runs in a fresh process; else what it died of."""
    if device != "cuda":
        return "not asked"
    code = (
        "import torch, triton, classbalance_losses as cb\n"
        "x = torch.randn(1, 3, 8, 8, device='cuda', requires_grad=True)\n"
        "with cb.use_backend('cuda'):\n"
        "    cb.WeightedCrossEntropyLoss()(x, torch.zeros(1, 8, 8, dtype=torch.int64, device='cuda')).backward()\n"
        "torch.cuda.synchronize()\n"
        "print(triton.__version__)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return run.stdout.strip() if run.returncode == 0 else f"error: {run.stderr.strip()[-2000:]}"


def _nvidia_smi() -> str:
    fields = "name,driver_version,memory.total,clocks.sm,clocks.max.sm,clocks.max.mem,power.limit"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30).stdout.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"error: {error}"
