"""The loops that numba compiles, in parts of a few pixels: under the laws of the reference, in float32 and bfloat16."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import CASES, CORE, DEFAULTS, Case, Sample, close, grad, over, sample
from torch import Tensor

from classbalance_losses import use_backend
from classbalance_losses.kernels import blocked_classes, blocked_pixel, blocks, numba_threads
from classbalance_losses.ops import mining

if not numba_threads.can_compile():
    pytest.skip("numba is not installed, or torch has no OpenMP", allow_module_level=True)

from classbalance_losses.kernels import (
    numba_map_loops,
    numba_maps,
    numba_math,
    numba_memory,
    numba_pixel,
)
from classbalance_losses.kernels.numba_math import compiled

OF_OWN_PROBABILITY = [
    case for case in DEFAULTS if not case.loss.startswith("Dual")
]  # not of all probabilities
SINGLE = {"rtol": 2e-5, "atol": 2e-6}


@pytest.fixture(autouse=True)
def _few_pixels_at_a_time(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(numba_pixel, "_PIXELS", 3)
    monkeypatch.setattr(blocks, "_ELEMENTS", 8)
    monkeypatch.setattr(mining, "_COMPILED_FROM", 0)
    monkeypatch.setattr(mining, "_SHORT", 0)
    with use_backend("blocked"):
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
@pytest.mark.parametrize("num_classes", [2, 3, 150, 1024])
@pytest.mark.usefixtures("_threads")
def test_class_counts_from_two_up(case: Case, num_classes: int) -> None:
    check(case, sample(1, num_classes, shape=(2, 40), weighted=True, dtype=torch.float32))


@over(OF_OWN_PROBABILITY)
@pytest.mark.parametrize("backend", ["reference", "blocked"])
def test_the_loops_run(case: Case, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the other tests are of them."""
    ran: list[Any] = []
    run = numba_threads.run
    monkeypatch.setattr(numba_pixel, "run", lambda task, job: ran.append(task) or run(task, job))
    here = sample(2, dtype=torch.float32).leaf()
    with use_backend(backend):
        grad(case(here), here)
    assert len(ran) == (2 if backend == "blocked" else 0)


@over(CORE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
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
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [0.1, 3, 30, 1e4])
@pytest.mark.usefixtures("_threads")
def test_they_err_no_more_than_the_reference(case: Case, dtype: torch.dtype, scale: float) -> None:
    here = sample(2, 19, shape=(2, 9, 11), dtype=dtype, scale=scale).leaf()
    exact = replace(here, input=here.input.detach().double()).leaf()
    found = {}
    for backend, leaf in (("exact", exact), ("reference", here), ("blocked", here)):
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
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
    for backend in ("reference", "blocked"):
        here = sample(1, 3, shape=(1, 4), dtype=torch.float32).leaf()
        with use_backend(backend):
            (first,) = torch.autograd.grad(case(here), here.input, create_graph=True)
            slopes.append(torch.autograd.grad(first.square().sum(), here.input)[0])
    close(slopes[1], slopes[0].numpy(), **SINGLE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
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


@over(OF_OWN_PROBABILITY)
def test_one_thread_or_three_find_the_same_bits(case: Case) -> None:
    here = sample(2, 7, shape=(3, 40, 41), dtype=torch.float32).leaf()
    former, found = torch.get_num_threads(), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        term = case(here, reduction="none")
        found.append((term.detach(), grad(term.sum(), here)))
    torch.set_num_threads(former)
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


@over(OF_OWN_PROBABILITY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
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


@over(OF_OWN_PROBABILITY)
def test_what_the_loops_do_not_take_is_left_to_the_reference_for_longer(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of torch are slower than the reference at this size, and loops quicker."""
    ran: list[Any] = []
    for function in (numba_pixel.CrossEntropy, blocked_pixel.CrossEntropy):
        forward = function.forward
        monkeypatch.setattr(
            function, "forward", lambda *args, ran=ran, forward=forward: ran.append(args[1]) or forward(*args)
        )
    plain = sample(2, 8, shape=(1, 150, 150), dtype=torch.float32)
    last = plain.input.contiguous(memory_format=torch.channels_last)
    use_backend("auto")
    for input, count in ((plain.input, 1), (last, 0), (plain.input.double(), 0), (plain.input.half(), 0)):
        ran.clear()
        case(replace(plain, input=input))
        assert len(ran) == count


def _evaluated(function: Callable[[Any], Any], x: np.ndarray, dtype: type) -> np.ndarray:
    @compiled
    def loop(x: np.ndarray, out: np.ndarray) -> None:
        for i in range(x.size):
            out[i] = function(x[i])

    out = np.empty(x.size, dtype)
    loop(x, out)
    return out


def _units(got: np.ndarray, truth: np.ndarray) -> float:
    """The largest error in units in the last place of the truth."""
    return float((np.abs(got - truth) / np.spacing(np.abs(truth).astype(np.float32))).max())


def test_exp() -> None:
    x = np.concatenate([-np.geomspace(1e-9, 87, 200_000), np.linspace(-87, 0, 200_000)]).astype(np.float32)
    assert (
        _units(_evaluated(numba_math.exp, x, np.float32).astype(np.float64), np.exp(x.astype(np.float64)))
        < 1.1
    )
    edges = np.array([0, -0.0, -88, -104, -np.inf, np.nan], np.float32)
    np.testing.assert_array_equal(_evaluated(numba_math.exp, edges, np.float32), [1, 1, 0, 0, 0, np.nan])


def test_logarithm() -> None:
    x = np.concatenate([np.linspace(1, 2, 200_000), np.geomspace(1, 5000, 200_000)[1:]]).astype(np.float32)
    x = x[x > 1]
    got = _evaluated(numba_math.logarithm, x, np.float32).astype(np.float64)
    assert _units(got, np.log(x.astype(np.float64))) < 1
    edges = np.array([1, np.nan], np.float32)
    np.testing.assert_array_equal(_evaluated(numba_math.logarithm, edges, np.float32), [0, np.nan])


def test_log1p() -> None:
    x = np.concatenate([np.geomspace(1e-37, 5000, 400_000), np.linspace(0.3, 3, 200_000)]).astype(np.float32)
    got = _evaluated(numba_math.log1p, x, np.float32).astype(np.float64)
    assert (
        _units(got, np.log1p(x.astype(np.float64))) < 1.5
    )  # at 1 + x > √2: the difference of ln 2 and its half
    edges = np.array([0, np.nan], np.float32)
    np.testing.assert_array_equal(_evaluated(numba_math.log1p, edges, np.float32), edges)


def test_every_bfloat16_is_widened() -> None:
    bits = np.arange(1 << 16).astype(np.uint16)
    wanted = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(_evaluated(numba_math.widened, bits, np.float32), wanted)


def test_any_float_is_narrowed() -> None:
    bits = np.random.default_rng(0).integers(-(2**31), 2**31, 300_000).astype(np.int32)
    halfway = (np.arange(1 << 16) << 16 | 0x8000).astype(np.uint32).view(np.int32)
    x = np.concatenate([bits, halfway]).view(np.float32)
    got = torch.from_numpy(_evaluated(numba_math.narrowed, x, np.uint16).view(np.int16)).view(torch.bfloat16)
    wanted = torch.from_numpy(x).bfloat16()
    assert torch.equal(got.isnan(), wanted.isnan())
    assert torch.equal(got[~got.isnan()], wanted[~wanted.isnan()])


@pytest.fixture
def maps() -> tuple[Tensor, Tensor, Tensor]:
    """Labels, a mask and values of more pixels than two parts have; labels are anything where not kept."""
    size = 2 * numba_map_loops.PART + 77
    keep = torch.rand(size) < 0.7
    label = torch.where(
        keep, torch.randint(0, 5, (size,)), torch.tensor([-100, 255, 3])[torch.randint(0, 3, (size,))]
    )
    return label, keep, torch.rand(size) * 3


@pytest.mark.usefixtures("_threads")
def test_maps(maps: tuple[Tensor, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    label, keep, value = maps
    weight = torch.rand(5)
    count, mean, spread, kept = (
        blocked_classes.class_counts(label, keep, 5),
        blocked_classes.class_sums(value, label, keep, 5),
        blocked_classes.per_pixel(weight, label, keep),
        blocked_classes.row_counts(keep.unsqueeze(0)),
    )
    monkeypatch.setattr(numba_threads, "can_compile", lambda: False)
    assert torch.equal(count, blocked_classes.class_counts(label, keep, 5))
    close(mean, blocked_classes.class_sums(value, label, keep, 5).numpy())
    assert torch.equal(spread, blocked_classes.per_pixel(weight, label, keep))
    assert torch.equal(kept, blocked_classes.row_counts(keep.unsqueeze(0)))


def test_labels_of_any_integer_type(maps: tuple[Tensor, Tensor, Tensor]) -> None:
    label, keep, value = maps
    label = torch.where(keep, label, 4)
    for narrow in (label.to(torch.uint8), label.int()):
        assert torch.equal(numba_maps.class_counts(narrow, keep, 5), numba_maps.class_counts(label, keep, 5))
        sums = numba_maps.class_sums(value, label, keep, 5)
        assert torch.equal(numba_maps.class_sums(value, narrow, keep, 5), sums)
        assert torch.equal(numba_maps.per_pixel(sums.float(), narrow, keep), sums.float()[label] * keep)


@pytest.mark.usefixtures("_threads")
def test_labels_outside(maps: tuple[Tensor, Tensor, Tensor]) -> None:
    label = maps[0]
    for ignored in (-100, 255):
        expected = ((label < 0) | (label > 4)) & (label != ignored)
        assert numba_maps.labels_outside(label, 5, ignored) == expected.sum() > 0


@pytest.mark.usefixtures("_threads")
def test_selection(maps: tuple[Tensor, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    _, keep, value = maps
    value = torch.where(torch.rand_like(value) < 0.3, value.round(), value)  # ties, and zeros
    rows, kept = value.expand(2, -1), torch.stack([keep, ~keep])
    found = []
    for compiles in (True, False):
        monkeypatch.setattr(numba_threads, "can_compile", lambda compiles=compiles: compiles)
        options = {"scope": "image", "min_kept": 0}
        found.append([mining.hardest(rows, kept, fraction=share, **options) for share in (0.02, 1e-9)])
    for ours, theirs in zip(*found, strict=True):
        assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))
    some, none = found[0]
    assert some.tied.any(1).all()
    assert not none.mask.any()


@pytest.mark.usefixtures("_threads")
def test_touch_writes_to_the_first_byte_of_pages_alone() -> None:
    memory = torch.ones(5 << 20, dtype=torch.uint8)
    numba_maps.touch(memory)
    changed = (memory == 0).nonzero().flatten()
    assert changed.numel() >= (5 << 20) // 4096 - 512
    assert not ((changed + memory.data_ptr()) % 4096).any()
    numba_maps.touch(memory[:0])


def test_the_loops_refuse_memory_that_they_were_not_written_for() -> None:
    """They are handed an address, and would write past the end of anything smaller."""
    job = np.zeros(1, numba_map_loops.JOB)
    job["entries"], job["classes"], job["parts"] = 6, 3, 2
    for name, (dtype, factors) in numba_map_loops.FIELDS.items():
        size = int(
            np.prod([int(job[factor][0]) if isinstance(factor, str) else factor for factor in factors])
        )
        right = torch.zeros(size, dtype=dtype)
        numba_memory.hand_over(job, numba_map_loops.FIELDS, {name: right})
        assert job[name] == right.data_ptr()
        for wrong in others(right):
            with pytest.raises(
                TypeError, match=rf"^Expected {name} for a compiled loop as {dtype} on the CPU"
            ):
                numba_memory.hand_over(job, numba_map_loops.FIELDS, {name: wrong})


def others(right: Tensor) -> list[Tensor]:
    """Tensors of another dtype, device, size, layout, sign and storage."""
    size = right.numel()
    wrong = [right.half(), right.to("meta"), torch.cat([right, right]), torch.empty(0, dtype=right.dtype)]
    freed = right.clone()
    freed.untyped_storage().resize_(0)
    negative = [torch._neg_view(right)] if right.is_floating_point() else []
    apart = [right.new_zeros(2 * size)[::2]] if size > 1 else []
    return [*wrong, freed, *apart, *negative]


@pytest.mark.parametrize("name", ["x", "label", "keep", "slope"])
def test_the_loops_of_the_cross_entropy_refuse_it_too(name: str) -> None:
    rows = {
        "label": torch.zeros(1, 6, dtype=torch.int64),
        "keep": torch.ones(1, 6, dtype=torch.bool),
        "slope": torch.zeros(1, 6),
    }

    def hand_over(**other: Tensor) -> None:
        tensors = {"x": torch.zeros(1, 3, 6), "gradient": torch.zeros(1, 3, 6), **rows, **other}
        own = {key: tensors.pop(key) for key in ("x", "gradient")}
        numba_pixel._job(blocks.Block(slice(0, 1), slice(0, 6)), tensors, **own)

    hand_over()
    right = rows.get(name, torch.zeros(1, 3, 6))
    for wrong in (
        right.double(),
        right.to("meta"),
        right[..., :-1],
        right.repeat_interleave(2, -1)[..., ::2],
    ):
        with pytest.raises(TypeError, match=r"Expected \w+ for a compiled loop"):
            hand_over(**{name: wrong})
    for wrong in (torch.zeros(1, 3, 6).bfloat16(), torch.zeros(1, 2, 6)):
        with pytest.raises(TypeError, match="Expected gradient for a compiled loop"):
            hand_over(gradient=wrong)
