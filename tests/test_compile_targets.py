"""torch.compile with fullgraph=True gives eager's numbers for one logit, many and soft labels, overlaps and sums."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from calls import LARGE, Call, doors
from cases import sample

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

SMALL = list(doors(sample(2, weighted=True, dtype=torch.float32)))
IN_LOOPS = [
    call
    for call in doors(sample(2, 8, shape=LARGE, weighted=True, dtype=torch.float32), "large")
    if call.name.startswith(("sum", "Dice ", "DyCELoss-default", "FocalLoss-default"))
]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("at", range(len(SMALL)), ids=[call.name for call in SMALL])
def test_small(at: int) -> None:
    check(SMALL, at)


@pytest.mark.parametrize("at", range(len(IN_LOOPS)), ids=[call.name for call in IN_LOOPS])
def test_in_loops(at: int) -> None:
    check(IN_LOOPS, at)


def check(calls: list[Call], at: int) -> None:
    call = calls[at]
    make, (leaf,), of_module = call.run.args  # type: ignore[attr-defined]
    eager, module = make(), make()
    compiled = torch.compile(lambda: of_module(module), fullgraph=True, backend="aot_eager")
    expected, value = of_module(eager), compiled()
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    gradients = [torch.autograd.grad(loss.sum(), leaf)[0] for loss in (value, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)
