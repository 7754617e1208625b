"""On a CUDA device: values and gradients of the CPU, no synchronisation, capture in a graph. Else skipped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from cases import CASES, CORE, Case, Sample, close, grad, over, sample
from torch import Tensor

from classbalance_losses import DyCELoss, WeightedCrossEntropyLoss

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


def on_cuda(s: Sample) -> Sample:
    def to(x: Tensor) -> Tensor:
        return x.cuda()

    weight, features = s.pixel_weight, s.features
    return Sample(
        to(s.input),
        to(s.target),
        s.ignore_index,
        None if weight is None else to(weight),
        None if features is None else to(features),
    ).leaf()


@contextmanager
def no_synchronisation() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@over(CASES)
def test_equals_the_cpu(case: Case) -> None:
    here = sample(2, weighted=True).leaf()
    there = on_cuda(here)
    value, expected = case(there), case(here)
    close(value.cpu(), expected.detach())
    close(grad(value, there).cpu(), grad(expected, here))


@over(CASES)
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature:UserWarning")
def test_synchronises_nowhere(case: Case) -> None:
    there = on_cuda(sample(2, weighted=True, dtype=torch.float32))
    module = case.build(there).cuda()
    case.by_module(
        there, module
    ).backward()  # compiles, which reads and writes files and may wait for the device
    with no_synchronisation():
        for _ in range(2):
            case.by_module(there, module).backward()


@over(CASES)
def test_equals_the_cpu_on_kernels(case: Case) -> None:
    """In float32, which the kernels take."""
    here = sample(2, weighted=True, dtype=torch.float32).leaf()
    there = on_cuda(here)
    value = case(there)
    answer = case.expected(here)
    close(value.cpu(), answer.mean, rtol=1e-5)
    close(grad(value, there).cpu(), answer.mean_grad, rtol=1e-4, atol=1e-6)


@over(CORE)
def test_is_captured_in_a_graph(case: Case) -> None:
    there = on_cuda(sample(2, weighted=True, dtype=torch.float32, seed=0))
    other = on_cuda(sample(2, weighted=True, dtype=torch.float32, seed=1))
    module = case.build(there).cuda()

    def step() -> Tensor:
        return grad(case.by_module(there, module), there)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        there.input.copy_(other.input)
    graph.replay()
    fresh = replace(there, input=other.input)
    close(captured.cpu(), grad(case(fresh), fresh).cpu().double().numpy(), rtol=1e-4, atol=1e-6)


def test_large_maps_are_mined_exactly() -> None:
    """2 x 512 x 1024 pixels: the threshold against a sort."""
    logits = torch.randn(2, 19, 512, 1024, device="cuda", generator=torch.Generator("cuda").manual_seed(0))
    target = torch.randint(19, (2, 512, 1024), device="cuda")
    kept = DyCELoss(reduction="none")(logits, target) > 0
    k = int(0.2 * target.numel())

    def hardest(loss: Tensor) -> Tensor:
        return loss >= loss.flatten().sort(descending=True).values[k - 1]

    own = WeightedCrossEntropyLoss(reduction="none")(logits, target)
    assert torch.equal(kept, hardest(own))
    # torch rounds otherwise, which moves the pixels next to the threshold
    other = torch.nn.functional.cross_entropy(logits, target, reduction="none")
    assert int((kept != hardest(other)).sum()) <= 4
