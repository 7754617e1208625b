"""``upsample="linear"`` equals ``F.interpolate`` and then the loss: every loss, axis count, ratio and backend."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import CASES, CORE, DEFAULTS, FEATURES, Case, Sample, close, grad, over, sample
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from classbalance_losses import DyCELoss, FocalLoss, use_backend

MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}
SIZES: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
    ((3,), (12,)),
    ((7,), (4,)),
    ((3, 4), (12, 16)),
    ((3, 4), (7, 9)),
    ((5, 6), (3, 4)),
    ((1, 3), (4, 1)),
    ((3, 2), (3, 2)),
    ((2, 3, 2), (4, 6, 8)),
    ((3, 2, 4), (5, 7, 3)),
    ((5, 1), (40, 1)),
    ((1, 5), (1, 40)),
    ((1, 5, 1), (1, 40, 1)),
]


@pytest.fixture
def _backend() -> Iterator[None]:
    """The definition; the loops, which are of float32, have test_cpu_upsample.py, and the kernels their own."""
    with use_backend("reference"):
        yield


def pair(low: tuple[int, ...], full: tuple[int, ...], **options: Any) -> Sample:
    """Logits and features of a low resolution with a target of another."""
    here = sample(len(full), shape=(2, *full), weighted=True, **options)
    draw = torch.Generator().manual_seed(1)
    logits = torch.randn(2, here.num_classes, *low, generator=draw, dtype=torch.float64) * 3
    features = torch.randn(2, FEATURES, *low, generator=draw, dtype=torch.float64)
    return Sample(logits, here.target, here.ignore_index, here.pixel_weight, features).leaf()


def interpolated(values: Tensor, size: tuple[int, ...], align_corners: bool) -> Tensor:
    return F.interpolate(values, size, mode=MODES[len(size)], align_corners=align_corners)


def expected(case: Case, here: Sample, align_corners: bool) -> tuple[Tensor, Tensor]:
    """By torch's interpolation, and the reference on its result."""
    assert here.features is not None
    size = tuple(here.target.shape[1:])
    full = Sample(
        interpolated(here.input, size, align_corners),
        here.target,
        here.ignore_index,
        here.pixel_weight,
        interpolated(here.features, size, align_corners),
    )
    with use_backend("reference"):
        loss = case(full)
    return loss.detach(), torch.autograd.grad(loss, here.input)[0]


def check(case: Case, here: Sample, align_corners: bool) -> None:
    value, gradient = expected(case, here, align_corners)
    loss = case(here, upsample="linear", align_corners=align_corners)
    close(loss, value.numpy())
    close(grad(loss, here), gradient.numpy(), rtol=1e-7, atol=1e-10)


@over(CORE)
@pytest.mark.usefixtures("_backend")
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("low", "full"), SIZES, ids=str)
def test_equals_interpolation(
    case: Case, low: tuple[int, ...], full: tuple[int, ...], align_corners: bool
) -> None:
    check(case, pair(low, full), align_corners)


@over([case for case in CASES if not case.core])
@pytest.mark.usefixtures("_backend")
def test_every_setting(case: Case) -> None:
    check(case, pair((3, 4), (7, 9)), align_corners=False)


@over(DEFAULTS)
@pytest.mark.usefixtures("_backend")
def test_none_has_the_targets_shape(case: Case) -> None:
    here = pair((3, 4), (6, 8))
    pixel = case(here, upsample="linear", reduction="none")
    assert pixel.shape == here.target.shape
    close(pixel.sum(), case(here, upsample="linear", reduction="sum").item())


@over(DEFAULTS)
def test_module(case: Case) -> None:
    here = pair((3, 4), (6, 8))
    module = case.build(here, upsample="linear", align_corners=True)
    assert "upsample='linear', align_corners=True" in repr(module)
    close(case.by_module(here, module), case(here, upsample="linear", align_corners=True).item())


@over(DEFAULTS)
@pytest.mark.usefixtures("_backend")
def test_half_logits(case: Case) -> None:
    here = pair((3, 4), (6, 8))
    half = Sample(here.input.detach().half(), here.target, pixel_weight=here.pixel_weight).leaf()
    same = Sample(half.input.detach().double(), here.target, pixel_weight=here.pixel_weight).leaf()
    loss = case(half, upsample="linear")
    gradient = grad(loss, half)
    assert (loss.dtype, gradient.dtype) == (torch.float32, torch.float16)
    value, slope = expected(
        case, Sample(same.input, same.target, -100, same.pixel_weight, here.features), False
    )
    close(loss, value.numpy(), rtol=2e-3)
    close(gradient, slope.numpy(), rtol=2e-2, atol=2e-3 * float(slope.abs().max()))


@over(DEFAULTS)
@pytest.mark.usefixtures("_backend")
def test_nan_under_ignored_pixels_is_inert(case: Case) -> None:
    """A NaN that only ignored pixels see."""
    here = pair((4, 4), (8, 8), ignored=0.0)
    target = here.target.clone()
    target[:, :, :4] = -100  # the columns that column 0 of the logits, and none that others alone, reaches
    clean = Sample(here.input.detach(), target, pixel_weight=here.pixel_weight).leaf()
    spoilt = clean.input.detach().clone()
    spoilt[..., 0] = torch.nan
    dirty = Sample(spoilt, target, pixel_weight=here.pixel_weight).leaf()
    close(case(dirty, upsample="linear"), case(clean, upsample="linear").item())
    gradient = grad(case(dirty, upsample="linear"), dirty)
    close(gradient, grad(case(clean, upsample="linear"), clean).numpy())
    assert not gradient[..., 0].any()


@over([case for case in CORE if case.constant])
@pytest.mark.usefixtures("_backend")
def test_double_backward(case: Case) -> None:
    here = pair((2, 2), (3, 4))
    assert torch.autograd.gradgradcheck(lambda x: case(here, input=x, upsample="linear"), here.input)


@pytest.mark.usefixtures("_backend")
def test_no_images() -> None:
    input = torch.zeros(0, 3, 4, 4, requires_grad=True)
    loss = DyCELoss(upsample="linear")(input, torch.zeros(0, 8, 8, dtype=torch.long))
    loss.backward()
    assert loss == 0
    assert input.grad is not None


class Largest(TorchDispatchMode):
    """The number of entries of the largest floating-point tensor that any operation returns, and of all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.entries = self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                self.entries = max(self.entries, tensor.numel())
                self.total += tensor.numel()
        return result


def test_full_size_logits_never_exist() -> None:
    """No tensor is larger than a block, in forward or backward; the reference's are, so this would see one."""
    full = 19 * 256 * 256
    largest = {}
    for backend in ("reference", "cpu"):
        input = torch.randn(1, 19, 64, 64, requires_grad=True)
        target = torch.randint(19, (1, 256, 256))
        with use_backend(backend), Largest() as seen:
            DyCELoss(upsample="linear")(input, target).backward()
        largest[backend] = seen.entries
    assert largest["reference"] == full
    assert largest["cpu"] <= 19 * 64 * 64 < full  # the logits that are given


@pytest.mark.parametrize(
    ("low", "full"),
    [
        ((2500,), (20000,)),
        ((2500, 1), (20000, 1)),
        ((1, 2500), (1, 20000)),
        ((1250, 3), (5000, 12)),
        ((2500, 1, 1), (20000, 1, 1)),
        ((1, 2500, 1), (1, 20000, 1)),
        ((1, 1, 2500), (1, 1, 20000)),
        ((20000,), (2500,)),
    ],
    ids=str,
)
def test_signals_cost_what_their_interpolation_and_the_loss_do(
    low: tuple[int, ...], full: tuple[int, ...]
) -> None:
    """In one axis, and where the others are short: no tensor is larger, and not many more are made."""
    input, target = torch.randn(1, 4, *low, requires_grad=True), torch.randint(4, (1, *full))
    with use_backend("cpu"):
        with Largest() as ours:
            FocalLoss(upsample="linear")(input, target).backward()
        with Largest() as theirs:
            FocalLoss()(interpolated(input, full, False), target).backward()
    assert ours.entries <= theirs.entries
    assert ours.total <= 2 * theirs.total


def test_kept_bytes() -> None:
    """Numbers for each full-size pixel are kept, not for each of its classes."""
    input = torch.randn(1, 19, 64, 64, requires_grad=True)
    target = torch.randint(19, (1, 256, 256))
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = DyCELoss(upsample="linear")(input, target)
    for given in (input, target):
        kept.pop(given.untyped_storage().data_ptr(), None)
    assert 0 < sum(kept.values()) <= 0.12 * 19 * 256 * 256 * 4
    loss.backward()


@pytest.mark.parametrize(
    ("input", "target", "match"),
    [
        ((2, 3), (2,), "1 to 3 spatial axes"),
        ((2, 3, 4, 4), (2, 1, 8, 8), r"Pass target.squeeze\(1\)"),
        ((2, 3, 4, 4), (1, 8, 8), "input holds 2 images and target 1"),
        ((2, 3, 0, 4), (2, 8, 8), "at least 1 to interpolate"),
        ((2, 3, 4, 4), (2, 0, 8), "at least 1 to interpolate"),
    ],
)
def test_shapes_that_cannot_be_resized(input: tuple[int, ...], target: tuple[int, ...], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        FocalLoss(upsample="linear")(torch.zeros(input), torch.zeros(target, dtype=torch.long))


def test_options() -> None:
    with pytest.raises(ValueError, match="Expected upsample to be one of 'linear'"):
        FocalLoss(upsample="nearest")
    with pytest.raises(ValueError, match='Expected upsample="linear" with align_corners=True'):
        FocalLoss(align_corners=True)
    with pytest.raises(TypeError, match="align_corners to be a bool"):
        FocalLoss(upsample="linear", align_corners=1)  # type: ignore[arg-type]


def test_the_remedy_for_another_size_is_upsample() -> None:
    with pytest.raises(ValueError, match='Pass upsample="linear"'):
        FocalLoss()(torch.zeros(2, 3, 4, 4), torch.zeros(2, 8, 8, dtype=torch.long))
