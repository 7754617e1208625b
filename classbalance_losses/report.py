"""What a bug report needs: ``python -m classbalance_losses.report`` prints versions, devices, backends and defaults."""

from __future__ import annotations

import os
import platform
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from classbalance_losses import __version__, _dispatch

Rows = dict[str, str]

# Of what OpenMP, numba, Triton, CUDA and torch read.
_PREFIXES = ("OMP_", "GOMP_", "KMP_", "MKL_", "NUMBA_", "TRITON_", "CUDA_", "TORCH", "PYTORCH_", "THP_MEM_")
_CPU_INFO = Path("/proc/cpuinfo")


def collect() -> dict[str, Rows]:
    """Return what is printed: for each section, its rows."""
    return {
        "Versions": _versions(),
        "Machine": _machine(),
        "Backends": _backends(),
        "Defaults": _defaults(),
        "Environment": _environment(),
    }


def main() -> None:
    """Print the sections; the home directory, whose name may be the user's, is printed as ``~``."""
    home = os.path.expanduser("~") + os.sep
    for section, rows in collect().items():
        print(section)
        for name, value in rows.items():
            print(f"  {name}: {value}".replace(home, f"~{os.sep}"))


def _versions() -> Rows:
    built_for = torch.version.cuda or torch.version.hip
    rows = {
        "classbalance_losses": __version__,
        "Python": f"{platform.python_version()} ({platform.python_implementation()})",
        "torch": f"{torch.__version__} ({f'CUDA or HIP {built_for}' if built_for else 'without CUDA'})",
    }
    return rows | {name: _version_of(name) for name in ("numpy", "numba", "triton")}


def _version_of(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _machine() -> Rows:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    accelerator = torch.accelerator.current_accelerator()
    rows = {
        "system": platform.platform(),
        "processor": f"{_processor()} ({torch.backends.cpu.get_cpu_capability()})",
        "threads": f"{torch.get_num_threads()} of torch's, for {cores} cores",
        "accelerator": "none" if accelerator is None else str(accelerator),
    }
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        rows[f"cuda:{index}"] = f"{torch.cuda.get_device_name(index)}, compute capability {major}.{minor}"
    return rows


def _processor() -> str:
    """Return the processor's name; on Linux Python does not know it."""
    lines = _CPU_INFO.read_text(encoding="utf-8").splitlines() if _CPU_INFO.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _backends() -> Rows:
    rows = {"chosen by use_backend": _dispatch._chosen, "reference": "runs"}
    with warnings.catch_warnings():  # which say what is printed here
        warnings.simplefilter("ignore")
        rows["cpu"] = _outlook("cpu", "cpu")
        for index in range(torch.cuda.device_count()):
            rows[f"cuda on cuda:{index}"] = _outlook("cuda", f"cuda:{index}")
    if not torch.cuda.is_available():
        rows["cuda"] = "does not run: torch finds no CUDA device"
    return rows


def _outlook(name: str, device: str) -> str:
    reason = _dispatch.why_not(name, device)
    if reason is not None:
        return f"does not run: {reason}"
    if name == "cuda":
        return "runs"
    from classbalance_losses.kernels.cpu.threads import whose  # noqa: PLC0415 - it imports numba

    return f'runs on {whose()} threads; "auto" takes it from {_dispatch._CPU_FROM} logits on'


def _defaults() -> Rows:
    return {
        "dtype": str(torch.get_default_dtype()),
        "device": str(torch.get_default_device()),
        "deterministic algorithms": str(torch.are_deterministic_algorithms_enabled()),
        "float32 matrix products": torch.get_float32_matmul_precision(),
    }


def _environment() -> Rows:
    return {name: value for name, value in sorted(os.environ.items()) if name.startswith(_PREFIXES)}


if __name__ == "__main__":
    main()
