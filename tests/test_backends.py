"""The blocked backend in steps of torch under the laws of the reference, in blocks of a pixel or two; who is chosen.

The same in loops that numba compiles is in test_compiled.py.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from subprocess import CalledProcessError
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from cases import CASES, CONSTANT, CORE, DEFAULTS, Case, Sample, close, grad, over, sample
from test_values import check
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import classbalance_losses
from classbalance_losses import DyCELoss, _dispatch, use_backend
from classbalance_losses.kernels import blocked_classes, blocked_shape, blocks, numba_threads
from classbalance_losses.ops import mining, pixel

LARGE = (2, 128, 120)  # times 19 classes: enough logits for "auto" to choose blocks


@pytest.fixture
def _tiny_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(blocks, "_ELEMENTS", 8)
    monkeypatch.setattr(blocked_shape, "_ELEMENTS", 5)
    monkeypatch.setattr(blocked_classes, "_PIXELS", 7)
    monkeypatch.setattr(mining, "_COMPILED_FROM", 0)
    monkeypatch.setattr(mining, "_SHORT", 0)
    monkeypatch.setattr(numba_threads, "can_compile", lambda: False)
    with use_backend("blocked"):
        yield


@over(CASES)
@pytest.mark.parametrize("rank", range(4))
@pytest.mark.usefixtures("_tiny_blocks")
def test_values_and_gradients(case: Case, rank: int) -> None:
    for weighted, ignored in product((False, True), (0.0, 0.3)):
        check(case, sample(rank, weighted=weighted, ignored=ignored, seed=rank))


@over(CASES)
@pytest.mark.usefixtures("_tiny_blocks")
def test_whole_images_share_a_block(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_ELEMENTS", 50)  # two of the five images
    check(case, sample(2, shape=(5, 2, 3), weighted=True))


@pytest.fixture(params=[2, 3])
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    former = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(former)


@over(DEFAULTS)
@pytest.mark.parametrize("images", [1, 2, 3])
@pytest.mark.usefixtures("_tiny_blocks", "_threads")
def test_threads_share_images_or_parts_of_one(case: Case, images: int) -> None:
    check(case, sample(2, shape=(images, 5, 6), weighted=True))


@over(DEFAULTS)
@pytest.mark.usefixtures("_tiny_blocks", "_threads")
def test_threads_with_half_logits_that_are_ignored_and_infinite(case: Case) -> None:
    clean = sample(2, shape=(1, 5, 6), dtype=torch.bfloat16)
    spoilt = replace(clean, input=torch.where(clean.valid.unsqueeze(1), clean.input, torch.inf))
    expected, actual = clean.leaf(), spoilt.leaf()
    wanted, got = case(expected), case(actual)
    assert torch.equal(got, wanted)
    assert torch.equal(grad(got, actual), grad(wanted, expected))


@over(CASES)
@pytest.mark.usefixtures("_tiny_blocks")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_ignored_pixels_are_inert(case: Case, value: float) -> None:
    clean = sample(2, weighted=True)
    assert clean.pixel_weight is not None
    spoilt = replace(
        clean,
        input=torch.where(clean.valid.unsqueeze(1), clean.input, value),
        pixel_weight=torch.where(clean.valid, clean.pixel_weight, torch.nan),
    )
    expected, actual = clean.leaf(), spoilt.leaf()
    wanted, got = case(expected), case(actual)
    close(got, wanted.detach().numpy())
    gradient = grad(got, actual)
    close(gradient, grad(wanted, expected).numpy())
    assert torch.equal(
        gradient[~clean.valid.unsqueeze(1).expand_as(gradient)].abs().sum(), torch.zeros(()).double()
    )


@over(CASES)
@pytest.mark.usefixtures("_tiny_blocks")
def test_nothing_valid_and_no_image(case: Case) -> None:
    for here in (
        sample(2, ignored=1.0),
        sample(2, shape=(0, 3, 4)),
        sample(0, shape=(0,)),
        sample(2, shape=(2, 0, 4)),
    ):
        leaf = replace(here, target=torch.full_like(here.target, -100)).leaf()
        loss = case(leaf)
        assert loss == 0
        assert not grad(loss, leaf).any()


def layouts() -> dict[str, Tensor]:
    """The same logits in memory of different layouts."""
    plain = sample(2, shape=(2, 5, 6)).input
    padded = torch.zeros(2, 4, 8, 9, dtype=plain.dtype)
    padded[:, :, 1:6, 2:8] = plain
    return {
        "channels last": plain.contiguous(memory_format=torch.channels_last),
        "transposed": plain.transpose(2, 3).contiguous().transpose(2, 3),
        "cropped": padded[:, :, 1:6, 2:8],
        "class first": plain.transpose(0, 1).contiguous().transpose(0, 1),
    }


@over(DEFAULTS)
@pytest.mark.parametrize("layout", layouts())
@pytest.mark.usefixtures("_tiny_blocks")
def test_layouts(case: Case, layout: str) -> None:
    plain = sample(2, shape=(2, 5, 6)).leaf()
    other = replace(plain, input=layouts()[layout].requires_grad_())
    assert not other.input.is_contiguous()
    assert torch.equal(plain.input, other.input)
    close(case(other), case(plain).detach().numpy(), rtol=1e-12)
    close(grad(case(other), other), grad(case(plain), plain).numpy(), rtol=1e-12)


@over(DEFAULTS)
@pytest.mark.usefixtures("_tiny_blocks")
def test_an_expanded_image(case: Case) -> None:
    base = sample(2, shape=(1, 3, 4)).input.requires_grad_()
    target = sample(2, shape=(2, 3, 4)).target
    twice = Sample(base.expand(2, -1, -1, -1), target)
    gradient = torch.autograd.grad(case(twice), base)[0]
    expected = case.expected(twice).mean_grad.sum(0, keepdims=True)
    close(gradient, expected)


@over(DEFAULTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_logits_err_no_more_than_the_reference(
    case: Case, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numba_threads, "can_compile", lambda: False)
    here = sample(2, shape=(2, 9, 11), dtype=dtype, weighted=True)
    here = replace(here, input=here.input.clone()).leaf()
    exact = replace(here, input=here.input.detach().double()).leaf()
    truth, slope = case(exact).detach(), grad(case(exact), exact)
    errors = {}
    for backend in ("reference", "blocked"):
        with use_backend(backend):
            loss = case(here)
            gradient = grad(loss, here)
        assert loss.dtype == torch.float32
        assert gradient.dtype == dtype
        errors[backend] = (float(abs(loss.detach() - truth)), float((gradient.double() - slope).abs().max()))
    # A unit in the last place apart: the two add up in different orders.
    ulps = (
        float(truth.abs()) * torch.finfo(torch.float32).eps,
        float(slope.abs().max()) * torch.finfo(dtype).eps,
    )
    for ours, theirs, ulp in zip(errors["blocked"], errors["reference"], ulps, strict=True):
        assert ours <= theirs + 2 * ulp


@over(DEFAULTS)
@pytest.mark.usefixtures("_tiny_blocks")
def test_huge_logits_stay_finite(case: Case) -> None:
    here = sample(2, dtype=torch.float32, scale=1e4).leaf()
    loss = case(here)
    assert torch.isfinite(loss)
    assert torch.isfinite(grad(loss, here)).all()


@over([case for case in CORE if case in CONSTANT])
@pytest.mark.usefixtures("_tiny_blocks")
def test_double_backward(case: Case) -> None:
    here = sample(1, 3, shape=(1, 4), weighted=True).leaf()
    assert torch.autograd.gradcheck(lambda x: case(here, input=x), here.input)
    assert torch.autograd.gradgradcheck(lambda x: case(here, input=x), here.input)


@over(CASES)
@pytest.mark.usefixtures("_tiny_blocks")
def test_no_gradient_where_none_is_asked_for(case: Case) -> None:
    assert not case(sample(2)).requires_grad


@over(DEFAULTS)
@pytest.mark.parametrize("compiled", [True, False])
def test_large_maps_are_blocked_by_themselves(
    case: Case, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numba_threads, "MAY_COMPILE", compiled)
    if not compiled:
        monkeypatch.setattr(numba_threads, "can_compile", lambda: False)
    monkeypatch.setattr(pixel, "_FUNCTION_BLOCKED_FROM", 1 << 19)
    called: list[Tensor] = []

    def spy(input: Tensor) -> blocks.FullSizeLogits:
        called.append(input)
        return blocks.FullSizeLogits(input)

    monkeypatch.setattr("classbalance_losses.ops.pixel.FullSizeLogits", spy)
    large = sample(2, 19, shape=LARGE, dtype=torch.float32).leaf()
    case(sample(2, dtype=torch.float32).leaf())
    assert not called
    loss = case(large)
    assert called
    gradient = grad(loss, large)
    with use_backend("reference"):
        close(loss, case(large).item(), rtol=1e-5)
        close(gradient, grad(case(large), large).double().numpy(), rtol=1e-4, atol=1e-9)


@over(DEFAULTS)
@pytest.mark.parametrize("compiled", [True, False])
def test_kept_bytes(case: Case, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between forward and backward: numbers for each pixel, not for each of its 19 classes."""
    if not compiled:
        monkeypatch.setattr(numba_threads, "can_compile", lambda: False)
    monkeypatch.setattr(pixel, "_FUNCTION_BLOCKED_FROM", 1 << 19)
    large = sample(2, 19, shape=LARGE, dtype=torch.float32).leaf()
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = case(large)
    own = {large.input.data_ptr(), large.target.data_ptr()}
    size = sum(size for place, size in kept.items() if place not in own)
    assert size <= 0.3 * large.input.numel() * 4
    loss.backward()


def test_chosen_as_context_and_for_good() -> None:
    assert _dispatch._chosen == "auto"
    with use_backend("reference"):
        assert _dispatch._chosen == "reference"
        with use_backend("blocked") as nothing:
            assert nothing is None
            assert _dispatch._chosen == "blocked"
        assert _dispatch._chosen == "reference"
        use_backend("auto")
        assert _dispatch._chosen == "auto"
    assert _dispatch._chosen == "auto"
    assert repr(use_backend("auto")) == "use_backend('auto')"


def test_unknown_backend() -> None:
    with pytest.raises(
        ValueError, match="Expected backend to be one of 'auto', 'reference', 'blocked', 'triton'"
    ):
        use_backend("cuda")
    assert _dispatch._chosen == "auto"


def test_blocked_says_why_it_cannot() -> None:
    here = sample(2)
    with use_backend("blocked"):
        with pytest.raises(ValueError, match="on the CPU, got one on meta"):
            DyCELoss()(here.input.to("meta"), here.target.to("meta"))
        with pytest.raises(ValueError, match=r"inside a transform of torch\.func"):
            torch.func.grad(lambda x: DyCELoss()(x, here.target))(here.input)


@over(DEFAULTS)
def test_transforms_take_the_reference_by_themselves(case: Case) -> None:
    large = sample(2, 19, shape=LARGE)
    expected = large.leaf()
    gradient = torch.func.grad(lambda x: case(large, input=x))(large.input)
    close(gradient, grad(case(expected), expected).numpy(), rtol=1e-7)


def test_public_name() -> None:
    assert "use_backend" in classbalance_losses.__all__


def test_nan_in_a_valid_pixel_is_not_hidden() -> None:
    here = sample(2, 19, shape=LARGE, ignored=0.0, dtype=torch.float32)
    here.input[0, 3, 5, 5] = torch.nan
    leaf = here.leaf()
    loss = classbalance_losses.FocalLoss()(leaf.input, leaf.target)
    assert loss.isnan()
    assert grad(loss, leaf)[0, :, 5, 5].isnan().all()
    assert F.cross_entropy(here.input, here.target).isnan()


def test_triton_is_asked_for_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dispatch, "_HAS_TRITON", False)
    here = sample(2)
    with use_backend("triton"), pytest.raises(ValueError, match=r"classbalance_losses\[triton\]"):
        DyCELoss()(here.input.float(), here.target)


def test_loops_are_compiled_where_numba_and_torchs_threads_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    can_compile, openmp = numba_threads.can_compile.__wrapped__, numba_threads._openmp.__wrapped__
    with monkeypatch.context() as broken:
        broken.setitem(
            sys.modules, "numba", None
        )  # an import raises ImportError, as beside a numpy too new for it
        with pytest.warns(
            UserWarning, match=r"numba is installed and does not work.*pip install -U numba numpy"
        ):
            assert not can_compile()
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(numba_threads, "_LIBRARY", tmp_path / "libtorch_cpu.so")
        assert openmp() is None
        elsewhere.setattr(numba_threads, "_openmp", openmp)
        assert not can_compile()
        elsewhere.setattr(numba_threads, "MAY_COMPILE", False)
        assert not can_compile()


def test_numba_that_cannot_compile_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a cache folder that it cannot write to: one warning, and the functions of torch's."""
    numba_maps = pytest.importorskip("classbalance_losses.kernels.numba_maps")

    def fail(keep: Tensor) -> Tensor:
        raise RuntimeError("cannot cache function: no locator available")

    monkeypatch.setattr(numba_maps, "count", fail)
    monkeypatch.setattr(numba_threads, "can_compile", cache(numba_threads.can_compile.__wrapped__))
    here = sample(2, 19, shape=LARGE, dtype=torch.float32)
    with pytest.warns(UserWarning, match=r"does not work.*no locator available.*uninstall numba") as said:
        loss = DyCELoss()(here.input, here.target)
    assert len(said) == 1
    close(loss, DyCELoss()(here.input, here.target).item())  # says nothing
    with use_backend("reference"):
        close(loss, DyCELoss()(here.input, here.target).item(), rtol=1e-5)


@pytest.fixture
def _triton_seems_to_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dispatch, "_HAS_TRITON", True)
    monkeypatch.setattr(_dispatch, "_triton_failure", cache(_dispatch._triton_failure.__wrapped__))
    monkeypatch.setattr(_dispatch, "is_plain", lambda *tensors: True)  # fake tensors are a subclass


@pytest.mark.parametrize("failure", ["RuntimeError: Failed to find C compiler.", None])
@pytest.mark.usefixtures("_triton_seems_to_be_there")
def test_triton_runs_where_it_works(failure: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a fake CUDA tensor: asked once for the device, warned of once, and an error where it was chosen by name."""
    asked: list[torch.device] = []
    probe = SimpleNamespace(failure=lambda device: asked.append(device) or failure)
    monkeypatch.setitem(sys.modules, "classbalance_losses.kernels.triton_probe", probe)
    monkeypatch.setattr(classbalance_losses.kernels, "triton_probe", probe, raising=False)
    with FakeTensorMode():
        tensor = torch.empty(3, device="cuda")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        chosen = [_dispatch.backend_for(tensor, blocked_from=0, unsupported=list) for _ in range(2)]
    assert asked == [tensor.device]
    if failure is None:
        assert chosen == ["triton"] * 2
        assert not said
        return
    assert chosen == ["reference"] * 2
    (warning,) = said
    assert failure in str(warning.message)
    assert "gcc and python3-dev" in str(warning.message)
    with use_backend("triton"), pytest.raises(ValueError, match=r"does not work on cuda:0.*C compiler"):
        _dispatch.backend_for(tensor, blocked_from=0, unsupported=list)


def test_a_kernel_that_cannot_be_launched_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    triton_probe = pytest.importorskip("classbalance_losses.kernels.triton_probe")
    device = torch.device("cpu")
    monkeypatch.setattr(triton_probe, "_launch", lambda device: None)
    assert triton_probe.failure(device) is None

    def fail(device: torch.device) -> None:
        raise CalledProcessError(1, ["gcc"])

    monkeypatch.setattr(triton_probe, "_launch", fail)
    assert "gcc" in triton_probe.failure(device)
