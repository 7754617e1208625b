"""The weighted mean in two kernels against PyTorch in float64, on CUDA or under Triton's interpreter."""

from __future__ import annotations

import math

import pytest
import torch
from kernel_checks import DEVICE, all_of, kept, labels, marks, poisoned
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")

from classbalance_losses.kernels.call import Labels
from classbalance_losses.kernels.cuda import classes
from classbalance_losses.kernels.cuda.classes import weighted_sums

__all__ = ["poisoned"]
pytestmark = marks
TABLE = torch.tensor([0.3, 1, 0, 2, 5], device=DEVICE)
# what the losses ask: the mean of weights, of pixels, smoothing's norm, focal's alpha
WEIGHTS = {
    "none": (None, None),
    "both": (TABLE, TABLE),
    "of pixels": (TABLE, None),
    "of the norm": (None, TABLE),
    "different": (TABLE, TABLE.flip(0)),
}


def exact(
    value: Tensor, of: Labels, weight: Tensor | None, over: Tensor | None, q: Tensor | None
) -> tuple[Tensor, Tensor]:
    keep = kept(of)
    index = torch.where(keep, of.target.long(), 0)
    ones = torch.ones(keep.shape, dtype=torch.float64, device=DEVICE)
    own = ones if weight is None else weight.double()[index]
    scale = torch.where(keep, own if q is None else own * q.double(), 0)
    total = (scale * torch.where(keep & (scale > 0), value.double(), 0)).sum()
    norm = torch.where(keep, ones if over is None else over.double()[index], 0).sum()
    return total / torch.where(norm > 0, norm, 1), total


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_the_mean_and_the_sum_and_their_gradients(kind: str, weighted: bool) -> None:
    of = labels((3, 700), 5, torch.int32 if weighted else torch.int64)
    keep, (weight, over) = kept(of), WEIGHTS[kind]
    value = torch.where(keep, torch.rand(3, 700, device=DEVICE), math.nan)
    q = None
    if weighted:
        q = torch.where(keep, torch.rand(3, 700, device=DEVICE), math.nan)
        q[:, 30:60] = 0
        value[:, 30:40] = math.inf  # what has no weight may be infinite
    if weight is not None:
        value = torch.where(keep & (TABLE[of.target.clamp(0, 4).long()] == 0) & (weight is TABLE), 7, value)
    outcomes = []
    for how in (exact, weighted_sums):
        leaf = value.clone().requires_grad_()
        mean, total = how(leaf, of, weight, over, q)[:2]
        slopes = [
            torch.autograd.grad(part, leaf, retain_graph=True)[0] for part in (mean, total, mean - 3 * total)
        ]
        (graph,) = torch.autograd.grad(mean, leaf, create_graph=True)
        graph = torch.where(keep, graph, 0)  # what the reference makes of other pixels goes nowhere
        outcomes.append([part.detach().double().nan_to_num(0) for part in (mean, total, *slopes, graph)])
    for truth, got in zip(*outcomes, strict=True):
        torch.testing.assert_close(got, truth, rtol=5e-6, atol=1e-6 * float(truth.abs().max()))


def test_few_programs_and_no_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classes, "_PARTS", 2)
    of = labels((5, 600), 4)
    value = torch.rand(5, 600, device=DEVICE)
    torch.testing.assert_close(weighted_sums(value, of, None, None, None).mean, value[kept(of)].mean())
    for target in (torch.full_like(of.target, -100), of.target[:0]):
        leaf = value[: len(target)].clone().requires_grad_()
        empty = weighted_sums(leaf, of._replace(target=target), TABLE, TABLE, None)
        assert empty.mean == empty.total == empty.norm == 0
        assert not torch.autograd.grad(empty.mean, leaf)[0].any()


def test_a_nan_stays_one() -> None:
    value = torch.tensor([math.nan, 1.0], device=DEVICE)
    target = torch.tensor([2, 1], device=DEVICE)
    assert weighted_sums(value, all_of(target, 5), TABLE, None, None).mean.isnan()
    assert weighted_sums(value, Labels(target, 5, 2), TABLE, None, None).mean == 1


def test_the_norm_is_a_constant() -> None:
    value = torch.rand(2, 3, device=DEVICE, requires_grad=True)
    sums = weighted_sums(value, labels((2, 3), 5), TABLE, TABLE, None)
    assert sums.mean.requires_grad
    assert not sums.norm.requires_grad


def test_operators_are_well_formed() -> None:
    of, one = labels((2, 3), 5), torch.ones((), device=DEVICE)
    value = torch.rand(2, 3, device=DEVICE)
    ops = torch.ops.classbalance_losses
    torch.library.opcheck(ops.cuda_weighted_sums.default, (value, *of, True, TABLE, None, None))
    torch.library.opcheck(ops.cuda_weighted_slopes.default, (one, None, one, *of, TABLE, value))


def test_compiles_whole() -> None:
    torch.compiler.reset()

    def mean(value: Tensor, target: Tensor) -> Tensor:
        sums = weighted_sums(value * 2, Labels(target, 5, -100), TABLE, TABLE, value.detach())
        return sums.mean + sums.total

    compiled = torch.compile(mean, fullgraph=True, backend="aot_eager")
    for width in (30, 40):
        value = torch.rand(2, width, device=DEVICE, requires_grad=True)
        target = labels((2, width), 5).target
        outcomes = [torch.autograd.grad(function(value, target), value) for function in (mean, compiled)]
        torch.testing.assert_close(*outcomes)
