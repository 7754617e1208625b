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
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton", reason="triton is not installed")

from classbalance_losses import DualFocalLoss, DyCELoss, use_backend
from classbalance_losses.kernels import blocks

pytestmark = WARNINGS
WITHOUT_KERNELS = {"DualFocalLoss", "DualCrossEntropyLoss"}
TRITON = [case for case in CASES if case.loss not in WITHOUT_KERNELS and "smoothing" not in case.variant]
TRITON_DEFAULTS = [case for case in TRITON if case in DEFAULTS]


@pytest.fixture(autouse=True)
def _no_map_is_thin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interpreted kernels run on the CPU, where maps as small as these would be interpolated before the loss."""
    monkeypatch.setattr(blocks, "_THIN", 0)


def there(s: Sample) -> Sample:
    """The same in float32 where the kernels run."""

    def to(values: Tensor | None) -> Tensor | None:
        return None if values is None else values.detach().float().to(DEVICE)

    weight, features = to(s.pixel_weight), to(s.features)
    moved = replace(s, target=s.target.to(DEVICE), pixel_weight=weight, features=features)
    return replace(moved, input=s.input.detach().float().to(DEVICE)).leaf()


@over([case for case in TRITON if case.core])
def test_every_loss_that_has_kernels(case: Case) -> None:
    here = sample(2, weighted=True, dtype=torch.float32)
    on_device = there(here)
    with use_backend("triton"):
        loss = case(on_device)
        gradient = grad(loss, on_device)
    answer = case.expected(here)
    close(loss.cpu(), answer.mean, rtol=1e-5)
    close(gradient.cpu(), answer.mean_grad, rtol=1e-4, atol=1e-6)


@over(TRITON_DEFAULTS)
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
    with use_backend("triton"):
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
    for backend, device in (("reference", "cpu"), ("triton", DEVICE)):
        leaf = input.to(device).requires_grad_()
        with use_backend(backend):
            value = loss(leaf, target.to(device), pixel_weight=weight.to(device))
        outcomes += [(value.detach().cpu(), torch.autograd.grad(value, leaf)[0].cpu())]
    (value, gradient), (other, slope) = outcomes
    torch.testing.assert_close(other, value, rtol=1e-5, atol=0)
    torch.testing.assert_close(slope, gradient, rtol=1e-4, atol=1e-7)


class Ours(TorchDispatchMode):
    """The names of this library's operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "classbalance_losses":
            self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@over(TRITON_DEFAULTS)
@pytest.mark.parametrize("upsample", [None, "linear"])
def test_the_kernels_run(case: Case, upsample: str | None) -> None:
    """On a device "auto" takes them; on the CPU nobody would but who asks."""
    here = there(sample(2, shape=(2, 4, 5)))
    with use_backend("auto" if DEVICE == "cuda" else "triton"), Ours() as seen:
        case(here, upsample=upsample).backward()
    kind = "pixel" if upsample is None else "upsampled"
    assert {f"{kind}_forward", f"{kind}_backward"} <= seen.names


@over(TRITON_DEFAULTS)
def test_in_a_whole_graph(case: Case) -> None:
    """A chosen backend holds inside torch.compile, without a break in the graph."""
    here = sample(2, shape=(2, 5, 7), dtype=torch.float32).leaf()
    on_device = there(here)
    compiled = torch.compile(lambda x: case(on_device, input=x), fullgraph=True, backend="aot_eager")
    with use_backend("triton"):
        loss = compiled(on_device.input)
        gradient = grad(loss, on_device)
    with use_backend("reference"):
        close(loss.cpu(), case(here).item(), rtol=1e-5)
        close(gradient.cpu(), grad(case(here), here).double().numpy(), rtol=1e-4, atol=1e-7)


def test_says_why_it_cannot() -> None:
    here = there(sample(2))
    with use_backend("triton"):
        with pytest.raises(ValueError, match="not float16, bfloat16 or float32"):
            DyCELoss()(here.input.double(), here.target)
        with pytest.raises(ValueError, match="no kernel for losses of all probabilities"):
            DualFocalLoss()(here.input, here.target)
