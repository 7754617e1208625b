"""Compile every kernel for a CUDA device that need not be there, as the library launches it, and print what came out.

The interpreter runs what the compiler may refuse: a variable that changes its type in a loop, say; and it does not tell
what a layout costs. This is a script of its own, since a process that interprets kernels cannot compile them. It prints
a line of JSON for each kernel and case.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction, driver

from classbalance_losses.kernels import (
    triton_classes,
    triton_mean,
    triton_pixel,
    triton_select,
    triton_upsample,
)

BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@contextmanager
def compiled_only(arch: int) -> Iterator[dict[str, Any]]:
    """Compile what is launched on CPU tensors, as for a device, and run nothing. Yields the kernels by name."""
    target = GPUTarget("cuda", arch, 32)
    nothing = SimpleNamespace(
        get_current_target=lambda: target,
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
    )
    driver.set_active(nothing)
    kernels: dict[str, Any] = {}
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernels[self.__name__] = run(self, *args, grid=grid, warmup=True, **kwargs)

    JITFunction.run = compile_only
    yield kernels
    JITFunction.run = run


def cubin_facts(cubin: bytes) -> dict[str, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        used, code = (
            subprocess.run(
                [str(BINARIES / "cuobjdump"), what, file.name], capture_output=True, text=True, check=True
            ).stdout
            for what in ("-res-usage", "-sass")
        )
    (registers,) = re.findall(r"REG:(\d+)", used)
    instructions = [name for name in re.findall(r"/\*\w{4,}\*/\s+(?:@\S+ )?(\w+)", code) if name != "NOP"]
    return {
        "registers": int(registers),
        "spills": sum(name in ("STL", "LDL") for name in instructions),
        "barriers": instructions.count("BAR"),
        "instructions": len(instructions),
    }


def width(ptx: str, access: str) -> int:
    """Return the bits of the widest access to global memory."""
    found = re.findall(rf"{access}\.global(?:\.\w+)*?(?:\.v(\d))?\.\w(\d+) ", ptx)
    return max((int(lanes or 1) * int(bits) for lanes, bits in found), default=0)


def facts(kernel: Any) -> dict[str, int]:
    ptx = kernel.asm["ptx"]
    return cubin_facts(kernel.asm["cubin"]) | {"loads": width(ptx, "ld"), "stores": width(ptx, "st")}


def logits(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype, requires_grad=True)


def step(
    kernels: Any, input: Tensor, size: tuple[int, ...], *corners: bool, label: Any = torch.int64
) -> None:
    target, keep = torch.zeros(size, dtype=label), torch.ones(size, dtype=torch.bool)
    kernels.cross_entropy_and_error(input, target, keep, *corners)[0].sum().backward()
    kernels.cross_entropy(
        input, target, keep, *corners
    ).sum().backward()  # last: its kernel is what is measured


def class_maps(label: torch.dtype, num_classes: int) -> None:
    pixels = 1 << 16
    target, value = torch.zeros(pixels, dtype=label), torch.zeros(pixels, requires_grad=True)
    keep, _ = triton_classes.checked_labels(target, num_classes, 255)
    bits, share = triton_select.kth_largest(
        value.detach()[None], keep[None], triton_select.Share(1, 0, 26, 1)
    )
    hard = triton_classes.Hard(value.detach(), bits, share)
    for gamma in (0.0, 1.5):
        weight = torch.ones(num_classes)
        triton_mean.weighted_mean(
            value,
            target,
            keep,
            weight,
            value.detach(),
            gamma=gamma,
            by_weight=True,
            plain=lambda loss: (loss, loss),
        )[0].backward()
    for which in (triton_classes.Hard(), hard):
        triton_classes.class_sums(target, keep, num_classes, value, value.detach(), hard=which)
        triton_classes.class_sums(target, keep, num_classes, value, hard=which).value.sum().backward()


CASES: dict[str, Any] = {
    "float32": lambda: step(triton_pixel, logits(2, 19, 64, 64), (2, 64, 64)),
    "bfloat16": lambda: step(triton_pixel, logits(2, 19, 64, 64, dtype=torch.bfloat16), (2, 64, 64)),
    "150 classes": lambda: step(triton_pixel, logits(2, 150, 64, 64), (2, 64, 64), label=torch.uint8),
    "odd": lambda: step(triton_pixel, logits(2, 3, 8, 7, 7, 7)[:, :, 1:, 1:, 1:, 1:], (2, 7, 6, 6, 6)),
    "channels last": lambda: step(
        triton_pixel, logits(2, 64, 64, 19, dtype=torch.float32).permute(0, 3, 1, 2), (2, 64, 64)
    ),
    "one of each": lambda: step(
        triton_pixel, logits(1, 1, 1, dtype=torch.float16), (1, 1), label=torch.int16
    ),
    "upsampled": lambda: step(triton_upsample, logits(2, 19, 32, 64), (2, 128, 256), False),
    "upsampled, 3-D": lambda: step(triton_upsample, logits(1, 3, 8, 16, 16), (1, 16, 32, 32), True),
    "maps of few classes": lambda: class_maps(torch.uint8, 19),
    "maps of many classes": lambda: class_maps(torch.int64, 150),
}


def main(arch: int, cases: list[str]) -> None:
    for case in cases or CASES:
        with compiled_only(arch) as kernels:
            CASES[case]()
        for name, kernel in kernels.items():
            print(json.dumps({"case": case, "kernel": name.strip("_"), **facts(kernel)}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
