"""Whether Triton works on a device: it may be installed and lack a C compiler, Python's headers, or a newer device."""

from __future__ import annotations

from subprocess import SubprocessError

import torch
import triton
import triton.language as tl
from triton.errors import TritonError

from classbalance_losses.kernels.cuda.common import Launch


def failure(device: torch.device) -> str | None:
    """Compile a kernel of one line, launch it, and return what went wrong; ``None`` if nothing did."""
    try:
        launch, out = Launch(_write_one, 1), torch.empty(1, dtype=torch.int32, device=device)
        for _ in range(2):  # what was compiled is called in another way
            launch(out)
    except (TritonError, RuntimeError, OSError, SubprocessError) as error:  # all that a missing part raises
        return f"{type(error).__name__}: {error}"
    return None


@triton.jit
def _write_one(out: tl.tensor) -> None:
    tl.store(out, 1)
