"""Sums whose gradient the pixel pass makes on its way: weighted ones, and of H's classes. On CUDA or interpreted."""

from __future__ import annotations

import pytest
import torch
from kernel_checks import DEVICE, labels, marks, poisoned
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")

from classbalance_losses.kernels import reference
from classbalance_losses.kernels.call import Hard, Labels, Logits, Resize, Share
from classbalance_losses.kernels.cuda import kth_largest, mined_sums, weighted_pass
from classbalance_losses.kernels.forms.reference import CrossEntropy, DualFocal, Focal, Form, Smoothed

__all__ = ["poisoned"]
pytestmark = marks
TABLE = torch.tensor([0.3, 1, 0, 2, 5], device=DEVICE)
WEIGHTS = {
    "none": (None, None),
    "both": (TABLE, TABLE),
    "of pixels": (TABLE, None),
    "different": (TABLE, TABLE.flip(0)),
}
FORMS = {
    "cross entropy": CrossEntropy(),
    "focal": Focal(2.0),
    "smoothed": Smoothed(0.1, TABLE + 1),
    "dual focal": DualFocal(0.5, 0.5, 2.0, 1.0),
}


def drawn(layout: str) -> Tensor:
    if layout == "last":
        return torch.randn(2, 9, 7, 5, device=DEVICE).permute(0, 3, 1, 2)
    if layout == "rows":
        return torch.randn(130, 5, device=DEVICE)
    return torch.randn(2, 5, 9, 7, device=DEVICE)


def gradients(mean: Tensor, total: Tensor, leaf: Tensor) -> list[Tensor]:
    parts = (mean, total, mean - 3 * total)
    return [torch.autograd.grad(part, leaf, retain_graph=True)[0] for part in parts]


@pytest.mark.parametrize("layout", ["first", "last", "rows"])
@pytest.mark.parametrize(
    ("name", "kind"),
    [*(("cross entropy", kind) for kind in WEIGHTS), *((name, "both") for name in list(FORMS)[1:])],
)
def test_is_that_of_the_reference(name: str, layout: str, kind: str) -> None:
    form, input, (weight, over) = FORMS[name], drawn(layout), WEIGHTS[kind]
    of = labels((len(input), *input.shape[2:]), 5)
    q = torch.rand(of.target.shape, device=DEVICE) if kind in ("both", "none") else None
    outcomes = []
    for is_ours in (False, True):
        leaf = input.clone().requires_grad_()
        logits = Logits(leaf)
        if is_ours:
            found = weighted_pass(logits, of, form, weight, over, q)
            assert found is not None
        else:
            found = reference.weighted_sums(reference.pixel_values(logits, of, form), of, weight, over, q)
        graph = torch.autograd.grad(found.mean, leaf, create_graph=True)[0].detach()
        mean, total, norm = found
        outcomes.append([mean.detach(), total.detach(), norm, *gradients(mean, total, leaf), graph])
    for truth, got in zip(*outcomes, strict=True):
        torch.testing.assert_close(got, truth, rtol=2e-5, atol=2e-6 * float(truth.abs().max()))


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("layout", ["first", "last", "rows"])
def test_over_the_hardest(form: Form, layout: str) -> None:
    input = drawn(layout).round()  # some tie
    of = labels((len(input), *input.shape[2:]), 5)
    q = torch.rand(of.target.shape, device=DEVICE) if layout == "last" else None
    slopes, outcomes = torch.linspace(0.5, 2, 5, device=DEVICE), []

    def choose(values: Tensor) -> Hard:
        return kth_largest(values, of, 1, Share(0.3, 1), None)

    leaf = input.clone().requires_grad_()
    found = mined_sums(Logits(leaf), of, form, q, choose, by_image=False)
    assert found is not None
    sums, hard = found
    values = reference.pixel_values(Logits(leaf), of, form)
    for table in (sums, reference.class_sums(of, values, None, q, hard=hard)):
        assert table.value is not None
        total = (table.value * slopes).sum()
        (first,) = torch.autograd.grad(total, leaf, create_graph=True)
        once = torch.autograd.grad(total, leaf, retain_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), leaf, retain_graph=True)
        outcomes.append([table.number.float(), table.value.detach(), first.detach(), *once, second])
    for got, truth in zip(*outcomes, strict=True):
        torch.testing.assert_close(got, truth, rtol=2e-5, atol=2e-6 * float(truth.abs().max()))


def test_no_pixels_and_none_that_count() -> None:
    of = labels((2, 40), 5)
    for target in (torch.full_like(of.target, -100), of.target[:0]):
        leaf = torch.randn(len(target), 5, 40, device=DEVICE, requires_grad=True)
        found = weighted_pass(Logits(leaf), of._replace(target=target), CrossEntropy(), TABLE, TABLE, None)
        assert found is not None
        assert found.mean == found.total == found.norm == 0
        assert not torch.autograd.grad(found.mean, leaf)[0].any()


def test_an_infinite_loss_of_no_weight_adds_nothing_and_nan_stays() -> None:
    input = torch.tensor([[0.0, 1, -torch.inf, 0, 0], [1.0, 2, 3, 4, 5]], device=DEVICE)
    of = Labels(torch.tensor([2, 1], device=DEVICE), 5, -100)
    for weight, number in ((TABLE, 1), (None, torch.inf)):
        found = weighted_pass(Logits(input), of, CrossEntropy(), weight, None, None)
        assert found is not None
        assert found.total == number if number == torch.inf else found.total.isfinite()
    input[1, 0] = torch.nan
    found = weighted_pass(Logits(input), of, CrossEntropy(), TABLE, None, None)
    assert found is not None
    assert found.mean.isnan()


def test_enlarged_logits_take_another_way() -> None:
    logits = Logits(torch.randn(1, 5, 4, device=DEVICE), Resize((8,), align_corners=False))
    of = labels((1, 8), 5)
    assert weighted_pass(logits, of, CrossEntropy(), None, None, None) is None
    assert mined_sums(logits, of, CrossEntropy(), None, pytest.fail, by_image=False) is None


def test_operators_are_well_formed() -> None:
    of, one = labels((2, 3), 5), torch.ones((), device=DEVICE)
    input, q = torch.randn(2, 5, 3, device=DEVICE), torch.rand(2, 3, device=DEVICE)
    ops, form = torch.ops.classbalance_losses, ("focal", [2.0], None, False)
    given = (input, of.target, of.ignore_index, *form, True, None, TABLE, None, q)
    torch.library.opcheck(ops.cuda_weighted_forward.default, given)
    _, norm_map = ops.cuda_weighted_forward(*given)
    hard = (q, torch.tensor([0x3F000000], device=DEVICE), one.view(1))
    for h in ((None,) * 3, hard):
        backward = (one, None, input, of.target, norm_map, one, None, TABLE, q, *h, of.ignore_index, *form)
        torch.library.opcheck(ops.cuda_weighted_backward.default, backward)
