"""torch.compile with fullgraph=True gives eager's numbers, for functions and modules."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from cases import CORE, DEFAULTS, Case, close, grad, over, sample
from torch import Tensor
from torch._dynamo.testing import EagerAndRecordGraphs

from classbalance_losses.ops.soft import batch_for

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
    "ignore:Skipping serialization:UserWarning",  # torch 2.6 says so of its own settings where it writes a trace
)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def check(case: Case, backend: str, dtype: torch.dtype, tolerance: float) -> None:
    here = sample(2, weighted=True, dtype=dtype).leaf()
    there = replace(here, target=here.target.to(torch.int32)).leaf()
    module, eager = case.build(here), case.build(here)

    def loss(z: Tensor) -> Tensor:
        return module(z, there.target, **case.extras(there))  # type: ignore[no-any-return]

    expected = case.by_module(here, eager)
    value = torch.compile(loss, fullgraph=True, backend=backend)(there.input)
    close(value, expected.item(), rtol=tolerance, atol=tolerance)
    close(grad(value, there), grad(expected, here).numpy(), rtol=tolerance, atol=tolerance)
    for name, buffer in eager.named_buffers():
        close(dict(module.named_buffers())[name], buffer.numpy(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("soft", [False, True])
def test_a_batch_is_copied_whole(soft: bool) -> None:
    """Its names are written down, since not every torch.compile follows `copy`."""
    logits, target = torch.randn(2, 3, 4), torch.randint(3, (2, 4))
    shares = torch.nn.functional.one_hot(target, 3).movedim(-1, 1).float()
    batch = batch_for(logits, shares if soft else target, torch.rand(2, 4), {})
    copied = batch._copied()
    assert type(copied) is type(batch)
    assert vars(copied).keys() == vars(batch).keys()
    assert all(vars(copied)[name] is value for name, value in vars(batch).items())


@over(CORE)
def test_compiled_module(case: Case) -> None:
    check(case, "aot_eager", torch.float64, 1e-9)


@over([case for case in DEFAULTS if case.loss in {"WeightedCrossEntropyLoss", "DyCELoss", "GBWLoss"}])
def test_compiled_for_changing_shapes(case: Case) -> None:
    """One compilation serves images of any size; here of the functions, elsewhere of the modules."""
    compiled = torch.compile(case.function, fullgraph=True, backend="aot_eager", dynamic=True)
    for shape in ((2, 3, 4), (2, 5, 7), (3, 4, 6)):
        here = sample(2, shape=shape).leaf()
        value = compiled(here.input, here.target, **case.keywords(here))
        close(value, case(here).item())
        close(grad(value, here), grad(case(here), here).numpy())


@pytest.mark.slow
@over([case for case in DEFAULTS if case.loss in {"DyCELoss", "GBWLoss"}])
def test_inductor(case: Case) -> None:
    check(case, "inductor", torch.float32, 1e-5)


@over(DEFAULTS)
def test_loops_stay_in_the_graph(case: Case) -> None:
    pytest.importorskip("numba", reason="numba is not installed")
    here = sample(2, 19, shape=(2, 90, 91), dtype=torch.float32).leaf()
    graphs = EagerAndRecordGraphs()
    module = case.build(here)
    value = torch.compile(module, fullgraph=True, backend=graphs)(here.input, here.target)
    (graph,) = graphs.graphs
    expected = case.by_module(here, module)
    assert torch.equal(value, expected)
    assert torch.equal(grad(value, here), grad(expected, here))
    inside = [str(node.target) for module in graph.modules() for node in module.graph.nodes]
    forward = ("cpu_pixel_forward", "cpu_pixel_sums", "cpu_hardest_sums")
    assert any(operator in name for name in inside for operator in forward)
    assert any("cpu_pixel_backward" in name for name in inside)


@over([case for case in DEFAULTS if case.loss == "DyCELoss"])
def test_transforms_inside_a_graph_take_the_reference(case: Case) -> None:
    """An operator has no rule for them: its gradient would be silently wrong."""
    here = sample(2, 19, shape=(2, 90, 91), dtype=torch.float32).leaf()
    gradient = torch.func.grad(lambda x: case(here, input=x))
    compiled = torch.compile(gradient, fullgraph=True, backend="aot_eager")
    close(compiled(here.input.detach()), grad(case(here), here).double().numpy(), rtol=1e-4, atol=1e-9)
