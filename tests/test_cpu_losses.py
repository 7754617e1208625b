"""Every loss by the loops that numba compiles, a few pixels at a time: under the laws of the reference."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import CASES, CORE, DEFAULTS, Case, Sample, close, grad, over, sample
from torch import Tensor

from classbalance_losses import use_backend

pytest.importorskip("numba", reason="numba is not installed")

from classbalance_losses.kernels.cpu import pixel, strided, sums, threads

if threads.failure(torch.device("cpu")):
    pytest.skip("torch has no OpenMP", allow_module_level=True)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SINGLE = {"rtol": 2e-5, "atol": 2e-6}


@pytest.fixture(autouse=True)
def _few_pixels_at_a_time(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(strided, "_PIXELS", 3)
    with use_backend("cpu"):
        yield


@pytest.fixture(params=[1, 3])
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    former = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(former)


def check(case: Case, given: Sample) -> None:
    here, expected = given.leaf(), case.expected(given)
    term, mean = case(here, reduction="none"), case(here)
    close(term, expected.pixel, **SINGLE)
    close(mean, expected.mean, **SINGLE)
    close(grad(mean, here), expected.mean_grad, **SINGLE)
    close(grad(term.sum(), here), expected.pixel_grad, **SINGLE)


@over(CASES)
@pytest.mark.parametrize("rank", range(4))
def test_values_and_gradients(case: Case, rank: int) -> None:
    for weighted, ignored in product((False, True), (0.0, 0.3)):
        check(case, sample(rank, weighted=weighted, ignored=ignored, seed=rank, dtype=torch.float32))


@over(DEFAULTS)
@pytest.mark.parametrize(("num_classes", "pixels"), [(2, 40), (3, 40), (150, 40), (1024, 10)])
@pytest.mark.usefixtures("_threads")
def test_class_counts_from_two_up(case: Case, num_classes: int, pixels: int) -> None:
    check(case, sample(1, num_classes, shape=(2, pixels), weighted=True, dtype=torch.float32))


@over(DEFAULTS)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_the_loops_run(case: Case, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the other tests are of them."""
    ran: list[Any] = []
    run = threads.run
    for module in (pixel, sums):
        monkeypatch.setattr(module, "run", lambda task, job: ran.append(task) or run(task, job))
    here = sample(2, dtype=torch.float32).leaf()
    with use_backend(backend):
        grad(case(here), here)
    assert len(ran) == (2 if backend == "cpu" else 0)


@over(CORE)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_ignored_pixels_are_inert(case: Case, dtype: torch.dtype, value: float) -> None:
    clean = sample(2, weighted=True, dtype=dtype)
    assert clean.pixel_weight is not None
    assert clean.features is not None
    out = ~clean.valid
    spoilt = replace(
        clean,
        input=torch.where(out.unsqueeze(1), value, clean.input),
        pixel_weight=torch.where(out, abs(value), clean.pixel_weight),
        features=torch.where(out.unsqueeze(1), value, clean.features),
    )
    expected, actual = clean.leaf(), spoilt.leaf()
    wanted, got = case(expected), case(actual)
    assert torch.equal(got, wanted)
    gradient = grad(got, actual)
    assert torch.equal(gradient, grad(wanted, expected))
    assert not gradient[out.unsqueeze(1).expand_as(gradient)].any()


@over(DEFAULTS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_in_a_valid_pixel_is_not_hidden(case: Case, value: float) -> None:
    here = sample(2, ignored=0.0, dtype=torch.float32)
    here.input[0, 1, 0, 0] = value
    leaf = here.leaf()
    loss = case(leaf, reduction="none")
    assert loss[0, 0, 0].isnan() or loss[0, 0, 0].isinf()
    assert grad(loss.sum(), leaf)[0, :, 0, 0].isnan().any()


def test_a_class_that_is_ruled_out_has_no_probability() -> None:
    case = next(case for case in DEFAULTS if case.loss == "WeightedCrossEntropyLoss")
    here = sample(2, ignored=0.0, dtype=torch.float32)
    here.input[:, 1] = -torch.inf
    leaf = replace(here, target=here.target * 2 % 4).leaf()  # 0 and 2
    gradient = grad(case(leaf), leaf)
    assert not gradient[:, 1].any()
    assert torch.isfinite(gradient).all()


@over(DEFAULTS)
def test_nothing_valid_and_no_image(case: Case) -> None:
    for shape in ((2, 3, 4), (0, 3, 4), (2, 0, 4)):
        here = sample(2, shape=shape, dtype=torch.float32)
        leaf = replace(here, target=torch.full_like(here.target, -100)).leaf()
        loss = case(leaf)
        assert loss == 0
        assert not grad(loss, leaf).any()


@over(DEFAULTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [0.1, 3, 30, 1e4])
@pytest.mark.usefixtures("_threads")
def test_they_err_no_more_than_the_reference(case: Case, dtype: torch.dtype, scale: float) -> None:
    here = sample(2, 19, shape=(2, 9, 11), dtype=dtype, scale=scale).leaf()
    exact = replace(here, input=here.input.detach().double()).leaf()
    found = {}
    for backend, leaf in (("exact", exact), ("reference", here), ("cpu", here)):
        with use_backend("reference" if backend == "exact" else backend):
            loss = case(leaf)
            found[backend] = (loss.detach().double(), grad(loss, leaf).double())
    for name, (truth, plain, ours) in enumerate(zip(*found.values(), strict=True)):
        ulp = float(truth.abs().max()) * torch.finfo(torch.float32 if name == 0 else dtype).eps
        assert _error(ours, truth) <= _error(plain, truth) + 2 * ulp


def _error(got: Tensor, truth: Tensor) -> float:
    return float((got - truth).abs().max())


def layouts(dtype: torch.dtype) -> dict[str, Tensor]:
    """The same logits in memory of different layouts: those that the loops take, and others."""
    plain = sample(2, shape=(2, 5, 6), dtype=dtype).input
    padded = torch.zeros(2, 4, 8, 9, dtype=plain.dtype)
    padded[:, :, 1:6, 2:8] = plain
    column = torch.zeros(2, 4, 30, 3, dtype=plain.dtype)
    column[..., 0] = plain.flatten(2)
    return {
        "channels last": plain.contiguous(memory_format=torch.channels_last),
        "transposed": plain.transpose(2, 3).contiguous().transpose(2, 3),
        "cropped": padded[:, :, 1:6, 2:8],
        "class first": plain.transpose(0, 1).contiguous().transpose(0, 1),
        "a column": column[..., :1],
        "images first": plain.flatten(2)
        .movedim(1, 0)
        .flatten(1)
        .movedim(0, 1),  # (N, C), pixels side by side
        "classes side by side": plain.flatten(2).movedim(1, 2).flatten(0, 1).contiguous(),
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", layouts(torch.float32))
@over(DEFAULTS)
def test_layouts(case: Case, layout: str, dtype: torch.dtype) -> None:
    plain = sample(2, shape=(2, 5, 6), dtype=dtype)
    input = layouts(dtype)[layout]
    there = replace(plain, input=input, target=plain.target.reshape(input.shape[0], *input.shape[2:])).leaf()
    there = replace(there, input=input.detach().requires_grad_())
    with use_backend("reference"):
        wanted = case(there)
        slope = grad(wanted, there)
    close(case(there), wanted.detach().numpy(), **SINGLE)
    close(grad(case(there), there), slope.double().numpy(), rtol=2 * torch.finfo(dtype).eps, atol=2e-6)


@over(DEFAULTS)
def test_an_expanded_image_and_a_gradient_that_is_not_contiguous(case: Case) -> None:
    base = sample(2, shape=(1, 3, 4), dtype=torch.float32).input.requires_grad_()
    target = sample(2, shape=(2, 3, 4)).target
    twice = Sample(base.expand(2, -1, -1, -1), target)
    slope = torch.rand(4, 3, 2).permute(2, 1, 0)
    gradient = torch.autograd.grad(case(twice, reduction="none"), base, slope)[0]
    with use_backend("reference"):
        expected = torch.autograd.grad(case(twice, reduction="none"), base, slope)[0]
    close(gradient, expected.numpy(), **SINGLE)


@over([case for case in DEFAULTS if case.loss == "FocalLoss"])
def test_double_backward(case: Case) -> None:
    slopes = []
    for backend in ("reference", "cpu"):
        here = sample(1, 3, shape=(1, 4), dtype=torch.float32).leaf()
        with use_backend(backend):
            (first,) = torch.autograd.grad(case(here), here.input, create_graph=True)
            slopes.append(torch.autograd.grad(first.square().sum(), here.input)[0])
    close(slopes[1], slopes[0].numpy(), **SINGLE)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("low", "full"), [((3,), (7,)), ((3, 4), (7, 9)), ((2, 3, 2), (4, 6, 8))])
@over(DEFAULTS)
def test_logits_that_are_enlarged(
    case: Case, low: tuple[int, ...], full: tuple[int, ...], dtype: torch.dtype
) -> None:
    here = sample(len(full), shape=(2, *full))
    here = replace(here, input=torch.randn(2, here.num_classes, *low).to(dtype)).leaf()
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(full)]
    exact = here.input.detach().double().requires_grad_()
    with use_backend("reference"):
        wanted = case(here, input=F.interpolate(exact, full, mode=mode))
    slope = torch.autograd.grad(wanted, exact)[0]
    loss = case(here, upsample="linear")
    close(loss, wanted.item(), rtol=1e-5)
    close(grad(loss, here), slope.numpy(), rtol=2 * torch.finfo(dtype).eps + 1e-5, atol=2e-6)


@over(DEFAULTS)
def test_one_thread_or_three_find_the_same_bits(case: Case) -> None:
    here = sample(2, 7, shape=(3, 40, 41), dtype=torch.float32).leaf()
    former, found = torch.get_num_threads(), []
    for number in (1, 3):
        torch.set_num_threads(number)
        term = case(here, reduction="none")
        found.append((term.detach(), grad(term.sum(), here)))
    torch.set_num_threads(former)
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


@over(DEFAULTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kept_bytes_of_few_classes(case: Case, dtype: torch.dtype) -> None:
    here = sample(2, 11, shape=(2, 40, 50), dtype=dtype).leaf()
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        case(here)
    own = {here.input.data_ptr(), here.target.data_ptr()}
    size = sum(size for place, size in kept.items() if place not in own)
    assert size <= 0.3 * here.input.numel() * here.input.element_size()
