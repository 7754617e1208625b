"""Compile every kernel for a CUDA device that need not be there, as the library launches it, and print what came out.

The interpreter runs what the compiler may refuse: a variable that changes its type in a loop, say; and it does not tell
what a layout costs. This is a script of its own, since a process that interprets kernels cannot compile them. It prints
a line of JSON for each kernel and case or, for "--launches", what is passed to a kernel that was compiled.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from struct import unpack_from
from types import SimpleNamespace
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction, driver

from classbalance_losses.kernels import cuda
from classbalance_losses.kernels.call import Hard, Labels, Logits, Resize, Share
from classbalance_losses.kernels.forms.reference import (
    Adjusted,
    CrossEntropy,
    DualCrossEntropy,
    DualFocal,
    Focal,
    Form,
    Smoothed,
)
from classbalance_losses.kernels.tversky import Index

BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@contextmanager
def compiled_only(arch: int) -> Iterator[list[tuple[str, Any]]]:
    """Compile what is launched on CPU tensors, as for a device, and run nothing. Yields the kernels and their names."""
    target = GPUTarget("cuda", arch, 32)
    nothing = SimpleNamespace(
        get_current_target=lambda: target,
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
    )
    driver.set_active(nothing)
    kernels: list[tuple[str, Any]] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        kernels.append((self.__name__, run(self, *args, grid=grid, warmup=True, **kwargs)))

    JITFunction.run = compile_only
    yield kernels
    JITFunction.run = run


def code(cubin: bytes) -> bytes:
    """Return a kernel's instructions, of 16 bytes each, out of the ELF file that holds them."""
    (headers,), (size, count, names) = unpack_from("<Q", cubin, 40), unpack_from("<3H", cubin, 58)
    sections = [unpack_from("<2I4Q", cubin, headers + place * size) for place in range(count)]
    start = sections[names][4]
    (found,) = (
        cubin[offset : offset + length]
        for name, *_, offset, length in sections
        if cubin.startswith(b".text.", start + name)
    )
    return found


def disassembled(codes: list[bytes], arch: int) -> list[list[str]]:
    """Return the names of each one's instructions. The disassembler starts once, which takes it longer than to read."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"".join(codes))
        file.flush()
        how = ["--binary", f"SM{arch}", "--no-dataflow"]
        read = subprocess.run(
            [str(BINARIES / "nvdisasm"), *how, file.name], capture_output=True, text=True, check=True
        )
    names = re.findall(r"/\*\w{4,}\*/\s+(?:@\S+ )?(\w+)", read.stdout)
    assert 16 * len(names) == sum(map(len, codes))
    left = iter(names)
    return [list(islice(left, len(each) // 16)) for each in codes]


def registers(cubin: bytes) -> int:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        how = [str(BINARIES / "cuobjdump"), "-res-usage", file.name]
        used = subprocess.run(how, capture_output=True, text=True, check=True).stdout
    (found,) = re.findall(r"REG:(\d+)", used)
    return int(found)


def width(ptx: str, access: str) -> int:
    """Return the bits of the widest access to global memory."""
    found = re.findall(rf"{access}\.global(?:\.\w+)*?(?:\.v(\d))?\.\w(\d+) ", ptx)
    return max((int(lanes or 1) * int(bits) for lanes, bits in found), default=0)


def facts(kernels: list[Any], arch: int) -> list[dict[str, int]]:
    codes = [code(kernel.asm["cubin"]) for kernel in kernels]
    return [
        {
            "registers": registers(kernel.asm["cubin"]),
            "spills": sum(name in ("STL", "LDL") for name in names),
            "barriers": names.count("BAR"),
            "instructions": len(names) - names.count("NOP"),
            "loads": width(kernel.asm["ptx"], "ld"),
            "stores": width(kernel.asm["ptx"], "st"),
        }
        for kernel, names in zip(kernels, disassembled(codes, arch), strict=True)
    ]


def logits(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype, requires_grad=True)


def step(
    input: Tensor,
    form: Form | None = None,
    label: Any = torch.int64,
    size: Any = None,
    *,
    biased: bool = False,
    single: bool = False,
) -> None:
    """A pass each way: of a form, or of the cross-entropy with the squared errors."""
    target = torch.zeros((input.shape[0], *(size or input.shape[2:])), dtype=label)
    labels = Labels(target, 2 if single else input.shape[1], 255)
    resize = None if size is None else Resize(size, align_corners=len(size) == 3)
    where = Logits(input, resize, torch.zeros(labels.num_classes) if biased else None, single)
    if form is None:
        value, _ = cuda.cross_entropy_and_error(where, labels)
    else:
        value = cuda.pixel_values(where, labels, form)
    value.sum().backward()


def summed(input: Tensor, form: Form, *, weighted: bool = False, mined: bool = False) -> None:
    """A pass each way, whose values are summed under weights, or over H's classes."""
    target, classes = torch.zeros((input.shape[0], *input.shape[2:]), dtype=torch.int64), input.shape[1]
    labels, table = Labels(target, classes, 255), torch.ones(classes) if weighted else None
    q = torch.ones(target.shape) if weighted else None
    if mined:
        hard = Hard(torch.ones(target.shape), torch.zeros(1, dtype=torch.int64), torch.zeros(1))
        found = cuda.mined_sums(Logits(input), labels, form, q, lambda _: hard, by_image=False)
        assert found is not None
        assert found[0].value is not None
        found[0].value.sum().backward()
    else:
        mean = cuda.weighted_pass(Logits(input), labels, form, table, table, q)
        assert mean is not None
        mean.mean.backward()


def overlap(
    input: Tensor,
    form: Form | None = None,
    *,
    weighted: bool = False,
    single: bool = False,
    other: Form | None = None,
) -> None:
    """A pass each way, of overlap sums."""
    target = torch.zeros((input.shape[0], *input.shape[2:]), dtype=torch.int64)
    labels, weight = Labels(target, 2 if single else input.shape[1], 255), torch.ones(target.shape)
    found = cuda.values_and_overlap(
        Logits(input, single=single),
        labels,
        form,
        weight if weighted else None,
        with_error=weighted,
        other=other,
    )
    maps = [*found.overlap, *(values for values in (found.value, found.other) if values is not None)]
    torch.stack([values.sum() for values in maps]).sum().backward()


def maps(label: torch.dtype, num_classes: int, *, of_classes: bool = True, weighted: bool = True) -> None:
    value = torch.zeros(1 << 16, requires_grad=True)
    labels, rank = Labels(torch.zeros(1 << 16, dtype=label), num_classes, 255), value.detach()
    if not of_classes:
        weight = torch.ones(num_classes) if weighted else None
        cuda.weighted_sums(value, labels, weight, weight, rank if weighted else None).mean.backward()
        return
    bits, share = torch.zeros(1, dtype=torch.int64), torch.zeros(1)
    hard = Hard(rank, bits, share) if weighted else None
    sums = cuda.class_sums(labels, value, None if weighted else rank, hard=hard).value
    assert sums is not None
    sums.sum().backward()


def selection(label: torch.dtype) -> None:
    value = torch.zeros(1 << 16)
    cuda.kth_largest(value, Labels(torch.zeros(1 << 16, dtype=label), 19, 255), 1, Share(0.2, 1), None)


def projection() -> None:
    cuda.project(torch.zeros(19), torch.zeros(19, dtype=torch.int64), 1.0, present=False, by_number=False)


def tversky() -> None:
    sums = (torch.zeros(1, 19, requires_grad=True) for _ in range(2))
    index = Index(0.3, 0.7, 0.75, 1.0)
    cuda.mean_missed(*sums, torch.zeros(1, 19, dtype=torch.int64), torch.ones(1, 19), index)


STREET, FEW, CE, FOCAL = (2, 19, 64, 64), (2, 4, 64, 64), CrossEntropy(), Focal(2.0)
DUALS = (DualCrossEntropy(1.0, 0.5), DualFocal(0.5, 0.5, 2.0, 1.0))
CASES: dict[str, Any] = {
    "float32": lambda: step(logits(*STREET), CE),
    "float32, focal": lambda: step(logits(*STREET), FOCAL),
    "float32, any focal": lambda: step(logits(*STREET), Focal(1.5), torch.uint8),
    "float32, errors": lambda: step(logits(*STREET)),
    "float32, smoothed": lambda: step(logits(*STREET), Smoothed(0.1, torch.ones(19))),
    "float32, dual cross entropy": lambda: step(logits(*STREET), DUALS[0]),
    "float32, dual focal": lambda: step(logits(*STREET), DUALS[1]),
    "bfloat16": lambda: step(logits(*STREET, dtype=torch.bfloat16), FOCAL),
    "channels last": lambda: step(logits(2, 64, 64, 19).permute(0, 3, 1, 2), FOCAL),
    "150 classes": lambda: step(logits(2, 150, 64, 64), CE),
    "150 classes, errors": lambda: step(logits(2, 150, 64, 64)),
    "summed": lambda: summed(logits(*STREET), FOCAL),
    "summed, bfloat16, weighted": lambda: summed(logits(*STREET, dtype=torch.bfloat16), CE, weighted=True),
    "summed, channels last": lambda: summed(logits(2, 64, 64, 19).permute(0, 3, 1, 2), CE, weighted=True),
    "mined": lambda: summed(logits(*STREET), CE, mined=True),
    "mined, channels last": lambda: summed(logits(2, 64, 64, 19).permute(0, 3, 1, 2), CE, mined=True),
    "odd": lambda: step(logits(2, 3, 7, 9, 6)[:, :, 1:, 1:], FOCAL, torch.uint8),
    "one of each": lambda: step(logits(1, 1, 1, dtype=torch.float16), CE, torch.int16),
    "upsampled": lambda: step(logits(2, 19, 32, 64), FOCAL, size=(128, 256)),
    "upsampled, 3-D": lambda: step(logits(1, 3, 8, 16, 16), None, torch.int32, size=(16, 32, 32)),
    "biased": lambda: step(logits(*STREET), FOCAL, biased=True),
    "biased, channels last": lambda: step(logits(2, 64, 64, 19).permute(0, 3, 1, 2), CE, biased=True),
    "biased, upsampled": lambda: step(logits(2, 19, 32, 64), CE, size=(128, 256), biased=True),
    "single": lambda: step(logits(2, 1, 64, 64), CE, single=True),
    "single, dual focal": lambda: step(logits(2, 1, 64, 64), DUALS[1], biased=True, single=True),
    "single, upsampled": lambda: step(logits(2, 1, 32, 64), FOCAL, size=(128, 256), single=True),
    "overlap": lambda: overlap(logits(*STREET)),
    "overlap, focal": lambda: overlap(logits(*STREET), FOCAL),
    "overlap, errors, weighted": lambda: overlap(logits(*STREET), CE, weighted=True),
    "overlap, channels last": lambda: overlap(logits(2, 64, 64, 19).permute(0, 3, 1, 2), CE),
    "overlap, 150 classes": lambda: overlap(logits(2, 150, 64, 64, dtype=torch.bfloat16), CE),
    "overlap, smoothed": lambda: overlap(logits(*FEW), other=Smoothed(0.1, torch.ones(4))),
    "overlap, adjusted": lambda: overlap(logits(*FEW), CE, other=Adjusted(torch.ones(4))),
    "overlap, dual focal": lambda: overlap(logits(*STREET), CE, other=DUALS[1]),
    "overlap, single": lambda: overlap(logits(2, 1, 64, 64), CE, weighted=True, single=True),
    "maps": lambda: maps(torch.int64, 19),
    "maps, squared": lambda: maps(torch.uint8, 150, weighted=False),
    "mean": lambda: maps(torch.int64, 19, of_classes=False),
    "mean, plain": lambda: maps(torch.uint8, 19, of_classes=False, weighted=False),
    "selection": lambda: selection(torch.int64),
    "projection": projection,
    "tversky": tversky,
}


def launches(arch: int) -> dict[str, Any]:
    """Launch a kernel twice, on nothing, and tell in what the two launches differ."""
    seen: list[tuple[Any, ...]] = []
    target, stream = GPUTarget("cuda", arch, 32), 7
    number = 5 if tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 4) else 4

    class Launcher:
        def __init__(self, source: Any, metadata: Any) -> None:
            self.source = source

        def __call__(
            self, *given: Any
        ) -> None:  # grid, stream, kernel, metadata, the launch's, two hooks, arguments
            seen.append(given[:6] + given[9:])

    driver.set_active(
        SimpleNamespace(
            launcher_cls=Launcher,
            utils=SimpleNamespace(
                load_binary=lambda *_: ("module", "kernel", 32, 0, 1024)[:number],
                get_device_properties=lambda device: {"max_shared_mem": 1 << 17},
                unload_module=lambda module: None,
            ),
            get_current_target=lambda: target,
            get_current_device=lambda: -1,
            get_current_stream=lambda device: stream,
        )
    )
    torch.cuda.current_device = lambda: -1  # of tensors on the CPU
    for _ in range(2):
        projection()
    first, second = seen
    differ = [
        place
        for place, (one, other) in enumerate(zip(first, second, strict=True))
        if not (isinstance(one, Tensor) and one.shape == other.shape) and one != other
    ]
    return {"launches": len(seen), "differ": differ}


def main(arch: int, cases: list[str]) -> None:
    if cases == ["--launches"]:
        print(json.dumps(launches(arch)))
        return
    found: list[tuple[str, str, Any]] = []
    for case in cases or CASES:
        with compiled_only(arch) as launched:
            CASES[case]()
        found += [(case, name.strip("_"), kernel) for name, kernel in launched]
    kernels = [kernel for *_, kernel in found]
    for (case, name, _), fact in zip(found, facts(kernels, arch), strict=True):
        print(json.dumps({"case": case, "kernel": name, **fact}))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
