"""Whole losses on the Triton kernels: on CUDA or, without it, interpreted. The kernels have tests of their own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import CASES, DEFAULTS, Case, Sample, close, grad, over, sample
from kernel_checks import DEVICE, WARNINGS
from test_upsample import expected, pair
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

pytest.importorskip("triton", reason="triton is not installed")

from classbalance_losses import (
    DiceLoss,
    DualCrossEntropyLoss,
    DualFocalLoss,
    DyCELoss,
    FocalLoss,
    GBWLoss,
    LogitAdjustedLoss,
    WeightedCrossEntropyLoss,
    use_backend,
)
from classbalance_losses.kernels.cuda.common import Launch
from classbalance_losses.ops.pixels import Pixels

pytestmark = WARNINGS


def there(s: Sample) -> Sample:
    """The same in float32 where the kernels run."""

    def to(values: Tensor | None) -> Tensor | None:
        return None if values is None else values.detach().float().to(DEVICE)

    weight, features = to(s.pixel_weight), to(s.features)
    moved = replace(s, target=s.target.to(DEVICE), pixel_weight=weight, features=features)
    return replace(moved, input=s.input.detach().float().to(DEVICE)).leaf()


@over([case for case in CASES if case.core])
def test_every_loss(case: Case) -> None:
    here = sample(2, weighted=True, dtype=torch.float32)
    on_device = there(here)
    with use_backend("cuda"):
        loss = case(on_device)
        gradient = grad(loss, on_device)
    answer = case.expected(here)
    close(loss.cpu(), answer.mean, rtol=1e-5)
    close(gradient.cpu(), answer.mean_grad, rtol=1e-4, atol=1e-6)


@over(DEFAULTS)
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    ("low", "full"), [((3,), (7,)), ((2, 3), (5, 4)), ((2, 1, 2), (3, 2, 3))], ids=["1-D", "2-D", "3-D"]
)
def test_every_loss_of_enlarged_logits(
    case: Case, low: tuple[int, ...], full: tuple[int, ...], align_corners: bool
) -> None:
    """Against the interpolation and the reference in float64."""
    here = pair(low, full)
    here = replace(here, input=here.input.detach().float().double()).leaf()  # what the kernels get
    on_device = there(here)
    value, slope = expected(case, here, align_corners)
    with use_backend("cuda"):
        loss = case(on_device, upsample="linear", align_corners=align_corners)
        gradient = grad(loss, on_device)
    close(loss.cpu(), value.numpy(), rtol=1e-5)
    close(gradient.cpu(), slope.numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scope", ["batch", "image"])
@pytest.mark.parametrize("omega", [0.5, 1.0])
def test_ties_and_weightless_pixels_in_mining(omega: float, scope: str) -> None:
    """Half of the losses are equal, and some are 0: as the reference has it, which the laws of mining hold to."""
    loss = DyCELoss(omega=omega, scope=scope, hard_fraction=0.3, ignore_index=255)
    draw = torch.Generator().manual_seed(0)
    input = torch.randn(2, 3, 50, 60, generator=draw).round() * 2  # rows long enough for the search by digits
    target = torch.randint(0, 3, (2, 50, 60), generator=draw)
    input.scatter_add_(1, target.unsqueeze(1), 100.0 * (torch.rand(2, 1, 50, 60, generator=draw) < 0.5))
    weight = (torch.rand(2, 50, 60, generator=draw) * 3).floor()
    target[:, :5] = 255
    outcomes = []
    for backend, device in (("reference", "cpu"), ("cuda", DEVICE)):
        leaf = input.to(device).requires_grad_()
        with use_backend(backend):
            value = loss(leaf, target.to(device), pixel_weight=weight.to(device))
        outcomes += [(value.detach().cpu(), torch.autograd.grad(value, leaf)[0].cpu())]
    (value, gradient), (other, slope) = outcomes
    torch.testing.assert_close(other, value, rtol=1e-5, atol=0)
    torch.testing.assert_close(slope, gradient, rtol=1e-4, atol=1e-7)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels that run, one after the other."""
    names: list[str] = []
    launch = Launch.__call__

    def noted(self: Launch, *tensors: Any) -> None:
        names.append(f"{self._kernel.fn.__module__.rpartition('.')[2]}.{self._kernel.fn.__name__}")
        with _disable_current_modes():  # what the interpreter does is no step's
            launch(self, *tensors)

    monkeypatch.setattr(Launch, "__call__", noted)
    return names


@over(DEFAULTS)
@pytest.mark.parametrize("upsample", [None, "linear"])
def test_the_kernels_run(case: Case, upsample: str | None, launched: list[str]) -> None:
    """On a device "auto" takes them; on the CPU nobody would but who asks."""
    here = there(sample(2, shape=(2, 4, 5)))
    with use_backend("auto" if DEVICE == "cuda" else "cuda"):
        case(here, upsample=upsample).backward()
    dual = case.loss.startswith("Dual")  # of enlarged logits, which are interpolated first
    kind = "pixel" if upsample is None or dual else "upsample"
    assert {f"{kind}_kernels.forward", f"{kind}_kernels.backward"} <= set(launched)


class Operations(TorchDispatchMode):
    """Notes those of torch's operations that launch a kernel on a device: no views, no memory that is left as it is."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names = names

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found, name = func(*args, **(kwargs or {})), func.overloadpacket.__name__
        is_view = any(result.alias_info is not None for result in func._schema.returns)
        if not (is_view or "empty" in name) and any(isinstance(one, Tensor) for one in tree_leaves(found)):
            self.names.append(name)
        if name == "_assert_async":
            self.names.append(name)
        return found


# The most launches of a step, a little above what it takes where that is less than was aimed at.
STEPS = [
    (WeightedCrossEntropyLoss(), 6),
    (WeightedCrossEntropyLoss([1.0, 2.0, 0.5, 1.0]), 7),
    (WeightedCrossEntropyLoss(label_smoothing=0.1), 7),
    (FocalLoss(), 6),
    (DualFocalLoss(), 6),
    (DualCrossEntropyLoss(), 6),
    (GBWLoss(), 14),
    (DyCELoss(), 24),
    (DiceLoss(), 16),
    (DyCELoss() + DiceLoss(), 36),
    (DyCELoss() + DualFocalLoss() + DiceLoss(), 40),
    (WeightedCrossEntropyLoss(label_smoothing=0.1) + DiceLoss(), 21),
    (LogitAdjustedLoss([1.0, 2.0, 3.0, 4.0]) + DyCELoss(), 36),
    (WeightedCrossEntropyLoss(task="binary"), 6),
    (FocalLoss(task="binary"), 6),
    (DyCELoss(task="binary"), 24),
]


@pytest.mark.parametrize(("loss", "most"), STEPS, ids=lambda value: str(value)[:40])
def test_a_step_launches_few_kernels(
    loss: Any, most: int, launched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted as on a device, where kernels check the labels. One goes over the logits each way, in sums as well."""
    monkeypatch.setattr(Pixels, "_check_labels", lambda self: None)
    channels = 1 if getattr(loss, "task", "multiclass") == "binary" else 4
    input = torch.randn(2, channels, 6, 7, device=DEVICE, requires_grad=True)
    target = torch.randint(max(channels, 2), (2, 6, 7), device=DEVICE)
    loss = loss.to(DEVICE)  # its vectors, which would be copied there at each step
    with use_backend("cuda"), Operations(launched):
        loss(input, target).backward()
    assert len(launched) <= most, launched
    over_logits = [
        name for name in launched if name.startswith(("pixel", "overlap_kernels.overlap_backward"))
    ]
    assert len(over_logits) == 2, over_logits


@over(DEFAULTS)
def test_in_a_whole_graph(case: Case) -> None:
    """A chosen backend holds inside torch.compile, without a break in the graph."""
    torch.compiler.reset()
    here = sample(2, shape=(2, 5, 7), dtype=torch.float32).leaf()
    on_device = there(here)
    compiled = torch.compile(lambda x: case(on_device, input=x), fullgraph=True, backend="aot_eager")
    with use_backend("cuda"):
        loss = compiled(on_device.input)
        gradient = grad(loss, on_device)
    with use_backend("reference"):
        close(loss.cpu(), case(here).item(), rtol=1e-5)
        close(gradient.cpu(), grad(case(here), here).double().numpy(), rtol=1e-4, atol=1e-7)


def test_a_sum_in_a_whole_graph() -> None:
    """With all that its pass may be asked for."""
    torch.compiler.reset()
    loss = (DyCELoss() + DualFocalLoss() + 0.5 * DiceLoss() + GBWLoss()).to(DEVICE)
    here = sample(2, shape=(2, 5, 7), dtype=torch.float32).leaf()
    on_device = there(here)
    compiled = torch.compile(lambda x: loss(x, on_device.target), fullgraph=True, backend="aot_eager")
    with use_backend("cuda"):
        gradient = grad(compiled(on_device.input), on_device)
    with use_backend("reference"):
        close(
            gradient.cpu(), grad(loss(here.input, here.target), here).double().numpy(), rtol=1e-4, atol=1e-7
        )


def test_says_why_it_cannot() -> None:
    here = there(sample(2))
    with use_backend("cuda"), pytest.raises(ValueError, match="not float16, bfloat16 or float32"):
        DyCELoss()(here.input.double(), here.target)
