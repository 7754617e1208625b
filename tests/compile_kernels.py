"""Compile every kernel for CUDA, down to the machine code of a device that need not be there.

The interpreter runs what the compiler may refuse: a variable that changes its type in a loop, say. This is a script of
its own, since a process that interprets kernels cannot compile them.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from classbalance_losses.kernels import triton_pixel, triton_select, triton_upsample
from classbalance_losses.kernels.triton_common import OPTIONS

POINTERS = {
    "target_ptr": "*u8",
    "keep_ptr": "*u8",
    "prefix_ptr": "*i64",
    "histogram_ptr": "*i64",
    "rest_ptr": "*fp16",
}


def compile_kernel(
    kernel: Any, arch: int, pointers: Mapping[str, str], integer: str, **constants: Any
) -> None:
    if integer == "1":  # Triton makes a constant of every argument that is 1
        numbers = [n for n in kernel.arg_names if n not in constants and not n.endswith("_ptr")]
        constants = {**constants, **dict.fromkeys(numbers, 1)}

    def kind(name: str) -> str:
        if name in constants:
            return "constexpr"
        return pointers.get(name, POINTERS.get(name, "*fp32")) if name.endswith("_ptr") else integer

    signature = {name: kind(name) for name in kernel.arg_names}
    source = ASTSource(kernel, signature, constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=OPTIONS)
    if not compiled.asm["cubin"]:
        raise RuntimeError(f"{kernel} compiled to nothing")


def main(arch: int) -> None:
    for logits, integer, target, classes, dims, one_tile in (
        ("*bf16", "i32", "*u8", 19, 1, True),
        ("*fp32", "i64", "*i64", 300, 3, False),
        ("*fp16", "1", "*i16", 1, 1, True),
    ):
        block_c, block_p, _ = triton_pixel._tile(classes)
        shape: dict[str, Any] = {"dims": dims, "one_tile": one_tile, "block_c": block_c, "block_p": block_p}
        pointers = {"input_ptr": logits, "output_ptr": logits, "target_ptr": target}
        compile_kernel(
            triton_pixel._forward_kernel, arch, pointers, integer, **shape, with_error=not one_tile
        )
        compile_kernel(triton_pixel._backward_kernel, arch, pointers, integer, **shape)

        shape = {"deep": not one_tile, "tall": True, "block_c": 8, "block_p": 128}
        compile_kernel(triton_upsample._forward_kernel, arch, pointers, integer, **shape, with_error=one_tile)
        compile_kernel(triton_upsample._backward_kernel, arch, pointers, integer, **shape)

        bits = {"bits_ptr": "*i32" if one_tile else "*i64"}
        shape = {"shift": 16, "above": 32, "bins": 1 << 16, "block": 1024}
        compile_kernel(triton_select._histogram_kernel, arch, bits, integer, **shape)

        pointers = {"target_ptr": target, "partial_ptr": "*i64" if one_tile else "*fp64"}
        shape = {"counting": one_tile, "block_c": 32, "block_p": 128}
        compile_kernel(triton_select._class_kernel, arch, pointers, integer, **shape)


if __name__ == "__main__":
    main(int(sys.argv[1]))
