"""HVL's losses: the laws that all of them share, over the table, and then what is true of each."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from distributed_worker import leave_group
from processes import start_ranks
from pull_cases import no_value_checks  # noqa: F401
from test_no_sync import NoSync
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from vision_language_cases import DEFAULTS, IGNORED, PIXELS, ROWS, SIZE, D, Inputs, K, L, N, Row, over

from classbalance_losses import WeightedCrossEntropyLoss, functional, use_backend
from classbalance_losses.functional import (
    anchor_loss,
    masked_consistency_loss,
    prompt_loss,
    query_diversity_loss,
    text_alignment_loss,
    topology_loss,
    vision_language_loss,
)

on_both_backends = pytest.mark.usefixtures("backend")


@pytest.fixture(params=["reference", "auto"])
def backend(request: pytest.FixtureRequest) -> Iterator[None]:
    with use_backend(request.param):
        yield


# Laws of all


@on_both_backends
@over(ROWS)
def test_value_and_gradient_equal_the_loops(row: Row) -> None:
    inputs = row.leaves()
    value, gradients = row.expected(inputs)
    torch.testing.assert_close(row(inputs).item(), float(value))
    for name, gradient in row.gradients(inputs).items():
        torch.testing.assert_close(gradient, torch.from_numpy(gradients[name]))


@on_both_backends
@over(DEFAULTS)
def test_gradcheck(row: Row) -> None:
    """Of second order too; the first is in closed form above, for every row."""
    inputs = row.leaves()

    def loss(*learnt: Tensor) -> Tensor:
        return row({**inputs, **dict(zip(row.learnt, learnt, strict=True))})

    learnt = [inputs[name] for name in row.learnt]
    assert torch.autograd.gradcheck(loss, learnt)
    assert torch.autograd.gradgradcheck(loss, learnt, fast_mode=True)


@over(ROWS)
def test_module_equals_function_and_shows_its_settings(row: Row) -> None:
    inputs, module = row.inputs(), row.module()
    torch.testing.assert_close(module(**inputs), row(inputs), rtol=0, atol=0)
    assert not module.state_dict()
    for name, value in row.settings.items():
        assert f"{name}={value!r}" in repr(module)


@over(DEFAULTS)
def test_module_and_function_take_the_same_options(row: Row) -> None:
    module, function = type(row.module()), row.function
    options = inspect.signature(module.__init__).parameters
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for name, p in options.items() if name != "self")
    call = inspect.signature(module.forward).parameters
    assert {k: p.default for k, p in options.items() if k != "self"} == {
        k: p.default for k, p in inspect.signature(function).parameters.items() if k not in call
    }


@over(ROWS)
def test_constants_get_no_gradient(row: Row) -> None:
    inputs = {k: v.requires_grad_() if v.is_floating_point() else v for k, v in row.inputs().items()}
    row(inputs).backward()
    assert {k for k, v in inputs.items() if v.grad is not None} == set(row.learnt)


@on_both_backends
@over(ROWS)
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_is_computed_in_float32(row: Row, half: torch.dtype) -> None:
    inputs = row.leaves(half)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = row(inputs)
    assert value.dtype == torch.float32
    wide = {k: v.float() if v.is_floating_point() else v for k, v in inputs.items()}
    torch.testing.assert_close(value, row(wide), rtol=1e-6, atol=1e-6)
    assert all(gradient.dtype == half for gradient in row.gradients(inputs).values())


@on_both_backends
@over(ROWS)
def test_dtypes(row: Row) -> None:
    assert row(row.inputs()).dtype == torch.float64
    single = row(row.inputs(torch.float32))
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), row(row.inputs()), rtol=1e-5, atol=1e-5)


@on_both_backends
@over(ROWS)
def test_order_of_classes_and_layout_do_not_matter(row: Row) -> None:
    inputs = row.inputs()
    strided = {
        k: v.unsqueeze(-1).expand(*v.shape, 2)[..., 0] if v.is_floating_point() else v
        for k, v in inputs.items()
    }
    torch.testing.assert_close(row(strided), row(inputs), rtol=0, atol=0)
    order = torch.randperm(K)
    inverse = torch.cat([order.argsort(), torch.full((IGNORED + 1 - K,), IGNORED)])
    moved = {
        k: v[order]
        if v.shape[0] == K
        else (v[:, order] if k == "queries" else inverse[v] if k == "target" else v)
        for k, v in inputs.items()
    }
    torch.testing.assert_close(row(moved), row(inputs))


@on_both_backends
@over(ROWS)
def test_zero_vectors_have_no_direction(row: Row) -> None:
    inputs = row.inputs(torch.float32)
    for value in inputs.values():
        if value.is_floating_point():
            value[(0,) * (value.ndim - 1)] = 0
            value[1, :] = 0
    inputs = {k: v.requires_grad_() if k in row.learnt else v for k, v in inputs.items()}
    assert row(inputs).isfinite()
    assert all(gradient.isfinite().all() for gradient in row.gradients(inputs).values())


@on_both_backends
@over(ROWS)
def test_equal_vectors_have_finite_gradients(row: Row) -> None:
    inputs = {
        k: torch.ones_like(v).requires_grad_(k in row.learnt) if v.is_floating_point() else v
        for k, v in row.inputs(torch.float32).items()
    }
    assert all(gradient.isfinite().all() for gradient in row.gradients(inputs).values())


@on_both_backends
@over(ROWS)
def test_large_and_small_lengths(row: Row) -> None:
    for scale in (1e-12, 1e12):
        inputs = {
            k: (v * scale).requires_grad_(k in row.learnt) if v.is_floating_point() else v
            for k, v in row.inputs(torch.float32).items()
        }
        assert row(inputs).isfinite()
        assert all(gradient.isfinite().all() for gradient in row.gradients(inputs).values())


@over(DEFAULTS)
def test_compile(row: Row) -> None:
    inputs = row.leaves()
    compiled = torch.compile(row.module(), backend="aot_eager", fullgraph=True)
    value = compiled(**inputs)
    torch.testing.assert_close(value, row(inputs))
    learnt = [inputs[name] for name in row.learnt]
    torch.testing.assert_close(torch.autograd.grad(value, learnt), torch.autograd.grad(row(inputs), learnt))


@over(ROWS)
def test_functional_transforms(row: Row) -> None:
    inputs, name = row.inputs(), row.learnt[0]

    def of_one(x: Tensor) -> Tensor:
        return row({**inputs, name: x})

    torch.testing.assert_close(torch.func.grad(of_one)(inputs[name]), row.gradients(row.leaves())[name])
    many = torch.stack([inputs[name], inputs[name] + 1])
    torch.testing.assert_close(torch.func.vmap(of_one)(many), torch.stack([of_one(x) for x in many]))


@over(ROWS)
@pytest.mark.usefixtures("no_value_checks")
def test_nothing_waits_for_the_device(row: Row) -> None:
    inputs = row.leaves()
    with NoSync():
        row(inputs).backward()


@over(ROWS)
def test_no_value_is_read(row: Row) -> None:
    inputs = row.inputs()
    with FakeTensorMode() as fake:
        assert row({name: fake.from_tensor(part) for name, part in inputs.items()}).shape == ()


# Diversity


def test_diversity_is_zero_where_queries_are_orthogonal_or_alone() -> None:
    basis = torch.linalg.qr(torch.randn(D, D, dtype=torch.float64)).Q
    queries = torch.stack([basis[torch.randperm(D)[:L]] * 3 for _ in range(K)])
    torch.testing.assert_close(query_diversity_loss(queries), queries.new_zeros(()))
    alone = torch.randn(K, 1, D, requires_grad=True)
    value = query_diversity_loss(alone, reduction="mean")
    value.backward()
    assert value.item() == 0
    assert alone.grad is not None
    assert not alone.grad.any()


def test_diversity_is_largest_where_queries_are_parallel() -> None:
    parallel = torch.randn(K, 1, D).double() * torch.tensor([1.0, -2.0, 0.5]).view(L, 1)
    torch.testing.assert_close(query_diversity_loss(parallel).item(), float(K * L * (L - 1)))
    torch.testing.assert_close(query_diversity_loss(parallel, pairs="unordered").item(), K * L * (L - 1) / 2)
    for pairs in ("ordered", "unordered"):
        torch.testing.assert_close(query_diversity_loss(parallel, pairs=pairs, reduction="mean").item(), 1.0)


def test_diversity_ignores_lengths_signs_and_rotations() -> None:
    queries = torch.randn(N, K, L, D, dtype=torch.float64)
    expected = query_diversity_loss(queries)
    scale = torch.randn(N, K, L, 1, dtype=torch.float64)
    torch.testing.assert_close(query_diversity_loss(queries * scale), expected)
    rotation = torch.linalg.qr(torch.randn(D, D, dtype=torch.float64)).Q
    torch.testing.assert_close(query_diversity_loss(queries @ rotation), expected)
    torch.testing.assert_close(
        expected, torch.stack([query_diversity_loss(image) for image in queries]).mean()
    )


def test_diversity_of_no_images_is_zero_in_the_graph() -> None:
    queries = torch.randn(0, K, L, D, requires_grad=True)
    value = query_diversity_loss(queries)
    value.backward()
    assert value.item() == 0
    assert queries.grad is not None


# Topology and anchors


def test_topology_is_zero_at_equality_and_at_every_rotation_of_it() -> None:
    prototypes = torch.randn(K, D, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(D, D, dtype=torch.float64)).Q
    assert topology_loss(prototypes, prototypes).item() == 0
    wide = F.pad(prototypes @ rotation, (0, 3)) * 2
    torch.testing.assert_close(topology_loss(wide, prototypes).item(), 0.0)
    text = torch.randn(K, D, dtype=torch.float64)
    assert topology_loss(text, prototypes) > 1e-3
    for moved in (text @ rotation, text * torch.rand(K, 1), text @ rotation * 7):
        torch.testing.assert_close(topology_loss(moved, prototypes), topology_loss(text, prototypes))
    torch.testing.assert_close(topology_loss(text, prototypes @ rotation), topology_loss(text, prototypes))


def test_topology_is_the_distance_of_the_gram_matrices() -> None:
    text, prototypes = torch.randn(2, K, D, dtype=torch.float64)
    gram, other = (F.normalize(x, dim=1) @ F.normalize(x, dim=1).T for x in (text, prototypes))
    torch.testing.assert_close(topology_loss(text, prototypes), (gram - other).square().sum())


def test_one_class_has_no_topology_and_a_plain_distance() -> None:
    text, prototype = torch.randn(2, 1, D, dtype=torch.float64)
    assert topology_loss(text, prototype, reduction="mean").item() == 0
    assert topology_loss(text, prototype).item() == 0
    distance = torch.linalg.vector_norm(text - prototype)
    torch.testing.assert_close(anchor_loss(text, prototype, normalize=False), distance)
    assert anchor_loss(3 * prototype, prototype).item() == pytest.approx(0, abs=1e-12)
    leaf = prototype.clone().requires_grad_()
    anchor_loss(leaf, prototype, normalize=False).backward()
    assert leaf.grad is not None
    assert not leaf.grad.any()  # at the prototype itself: a subgradient, not NaN


def test_anchors_at_the_prototypes_are_repulsion_alone() -> None:
    prototypes = F.normalize(torch.randn(K, D, dtype=torch.float64), dim=1)
    apart = torch.pdist(prototypes)
    torch.testing.assert_close(anchor_loss(prototypes, prototypes), -2 * apart.log1p().sum())


def test_without_normalisation_the_repulsion_wins() -> None:
    """The reason of the default: literal embeddings leave the unit sphere, normalised ones cannot."""
    classes = 10
    prototypes = F.normalize(torch.randn(classes, 16, dtype=torch.float64), dim=1)
    ends = {}
    for normalize in (True, False):
        projected = prototypes.clone().requires_grad_()
        optimizer = torch.optim.Adam([projected], lr=0.1)
        for _ in range(400):
            optimizer.zero_grad()
            anchor_loss(projected, prototypes, normalize=normalize).backward()
            optimizer.step()
        ends[normalize] = projected.detach()
    assert ends[False].norm(dim=1).mean() > (classes - 1) / 2
    cosine = F.cosine_similarity(ends[True], prototypes, dim=1)
    assert cosine.mean() > 0.5


def test_prompt_is_topology_and_anchors() -> None:
    text, projected, prototypes = torch.randn(3, K, D)
    for reduction in ("sum", "mean"):
        for normalize in (True, False):
            total = prompt_loss(text, projected, prototypes, normalize=normalize, reduction=reduction)
            first = topology_loss(text, prototypes, reduction=reduction)
            second = anchor_loss(projected, prototypes, normalize=normalize, reduction=reduction)
            torch.testing.assert_close(total, first + second)


# Consistency and alignment


def test_consistency_is_zero_at_equality_and_two_at_the_opposite() -> None:
    features = torch.randn(N, D, *SIZE)
    mask = torch.rand(N, *SIZE) < 0.5
    assert masked_consistency_loss(features, features, mask).item() == 0
    torch.testing.assert_close(masked_consistency_loss(features, 5 * features).item(), 0.0)
    torch.testing.assert_close(masked_consistency_loss(features, -3 * features, mask).item(), 2.0)
    terms = masked_consistency_loss(features, torch.randn(N, D, *SIZE), reduction="none")
    assert terms.min() >= 0
    assert terms.max() <= 2 + 1e-6


def test_consistency_is_one_minus_the_cosine() -> None:
    first, second = torch.randn(2, N, D, *SIZE, dtype=torch.float64)
    terms = masked_consistency_loss(first, second, reduction="none")
    torch.testing.assert_close(terms, 1 - F.cosine_similarity(first, second, dim=1))
    zero = masked_consistency_loss(torch.zeros_like(first), second)
    assert zero.item() == 1


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("rank", [0, 1, 2, 3])
@pytest.mark.parametrize("ignored", [True, False])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_alignment_is_cross_entropy_of_cosines(
    backend: str, rank: int, ignored: bool, reduction: str
) -> None:
    size = (2, 3, 2)[:rank]
    features, text = torch.randn(7, D, *size, dtype=torch.float64), torch.randn(K, D, dtype=torch.float64)
    target = torch.randint(0, K, (7, *size))
    if ignored:
        target[::3] = IGNORED
    logits = torch.einsum("nd...,kd->nk...", F.normalize(features, dim=1), F.normalize(text, dim=1)) / 0.3
    options: dict[str, Any] = {"ignore_index": IGNORED, "reduction": reduction}
    with use_backend(backend):
        value = text_alignment_loss(features, text, target, temperature=0.3, **options)
    torch.testing.assert_close(value, F.cross_entropy(logits, target, **options))
    torch.testing.assert_close(value, WeightedCrossEntropyLoss(**options)(logits, target))


def test_alignment_at_its_limits() -> None:
    x = torch.randn(1, D, dtype=torch.float64)
    opposite = torch.cat([2 * x, -x])
    least = text_alignment_loss(x, opposite, torch.tensor([0]), temperature=0.5)
    torch.testing.assert_close(least.item(), math.log1p(math.exp(-4)))
    equal = text_alignment_loss(x, x.expand(K, D), torch.tensor([1]))
    torch.testing.assert_close(equal.item(), math.log(K))
    cold = text_alignment_loss(x.float(), opposite.float(), torch.tensor([1]), temperature=1e-4)
    torch.testing.assert_close(cold.item(), 2e4)


def test_integer_labels_of_any_kind() -> None:
    row = next(row for row in PIXELS if row.loss == "TextAlignmentLoss")
    inputs = row.inputs()
    for kind in (torch.uint8, torch.int16, torch.int32):
        torch.testing.assert_close(row({**inputs, "target": inputs["target"].to(kind)}), row(inputs))


def test_vision_language_is_the_sum_and_needs_labels_for_one_part_only() -> None:
    first, second = torch.randn(2, N, D, *SIZE)
    text, mask = torch.randn(K, D), torch.rand(N, *SIZE) < 0.5
    target = torch.randint(0, K, (N, *SIZE))
    target[0] = IGNORED
    for reduction in ("none", "sum", "mean"):
        options: dict[str, Any] = {"reduction": reduction}
        align = text_alignment_loss(first, text, target, mask=mask, ignore_index=IGNORED, **options)
        consistency = masked_consistency_loss(first, second, mask, **options)
        total = vision_language_loss(
            first, second, text, target, mask, mask_weight=0.5, ignore_index=IGNORED, **options
        )
        torch.testing.assert_close(total, align + 0.5 * consistency)
    unlabelled = torch.full_like(target, IGNORED)
    total = vision_language_loss(first, second, text, unlabelled, mask, ignore_index=IGNORED)
    torch.testing.assert_close(total, masked_consistency_loss(first, second, mask))


@on_both_backends
@over(PIXELS)
def test_reductions(row: Row) -> None:
    inputs = row.inputs()
    if row.loss == "VisionLanguageLoss":  # else its two parts are means over different sets
        inputs["target"] = inputs["target"].clamp(max=K - 1)
    counted = inputs["mask"]
    if "target" in inputs:
        counted = counted & (inputs["target"] != IGNORED)
    terms, total, mean = (row(inputs, reduction=each) for each in ("none", "sum", "mean"))
    assert terms.shape == (N, *SIZE)
    assert not terms[~inputs["mask"]].any()
    torch.testing.assert_close(terms.sum(), total)
    torch.testing.assert_close(total / counted.sum(), mean)


@on_both_backends
@over(PIXELS)
def test_pixels_outside_the_region_are_inert_even_as_nan(row: Row) -> None:
    inputs = row.leaves()
    out = ~inputs["mask"]
    if row.loss == "TextAlignmentLoss":
        out |= inputs["target"] == IGNORED
    poisoned = {
        k: v.detach().masked_fill(out.unsqueeze(1), torch.nan) if v.is_floating_point() and v.ndim == 4 else v
        for k, v in inputs.items()
    }
    poisoned = {
        k: v.detach().requires_grad_(k in row.learnt) if v.is_floating_point() else v
        for k, v in poisoned.items()
    }
    torch.testing.assert_close(row(poisoned), row(inputs), rtol=0, atol=0)
    clean = row.gradients(inputs)
    for name, gradient in row.gradients(poisoned).items():
        torch.testing.assert_close(gradient, clean[name], rtol=0, atol=0)
        if gradient.ndim == 4:
            assert not gradient[out.unsqueeze(1).expand_as(gradient)].any()


@on_both_backends
@over(PIXELS)
def test_an_empty_region_is_zero_in_the_graph(row: Row) -> None:
    inputs = row.leaves()
    empties: list[Inputs] = [{**inputs, "mask": torch.zeros(N, *SIZE, dtype=torch.bool)}]
    if row.loss == "TextAlignmentLoss":
        empties.append({**inputs, "target": torch.full((N, *SIZE), IGNORED)})
    none = {k: v[:0] if v.shape[0] == N else v for k, v in inputs.items()}
    empties.append({k: v.detach().requires_grad_(k in row.learnt) for k, v in none.items()})
    for empty in empties:
        for reduction in ("sum", "mean"):
            assert row(empty, reduction=reduction).item() == 0
            assert not any(gradient.any() for gradient in row.gradients(empty, reduction=reduction).values())


# Ranks


def _uneven(inputs: Inputs) -> Iterator[tuple[str, Inputs]]:
    yield "uneven", inputs
    alone = {k: v.clone() for k, v in inputs.items()}
    alone["mask"][1] = False
    yield "one empty", alone


def _share(inputs: Inputs, row: Row, rank: int) -> Inputs:
    return {
        k: v[rank : rank + 1].detach().requires_grad_(k in row.learnt) if v.shape[0] == N else v.detach()
        for k, v in inputs.items()
    }


def _rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    out: dict[tuple[str, str], Any] = {}
    for row in PIXELS:
        for name, whole in _uneven(row.inputs()):
            share = _share(whole, row, rank)
            value = row(share, process_group="world")
            gradient = torch.autograd.grad(value, share[row.learnt[0]])[0]
            out[row.id, name] = value.detach(), gradient
    torch.save(out, f"{folder}/{rank}.pt")
    leave_group()


def test_two_ranks_equal_one_process(tmp_path: Path) -> None:
    start_ranks(_rank, str(tmp_path))
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for row in PIXELS:
        for name, whole in _uneven(row.inputs()):
            inputs = {k: v.requires_grad_(k in row.learnt) for k, v in whole.items()}
            for rank in ranks:
                torch.testing.assert_close(rank[row.id, name][0], row(inputs).detach())
            joined = (
                torch.cat([rank[row.id, name][1] for rank in ranks]) / 2
            )  # DistributedDataParallel's mean
            torch.testing.assert_close(joined, row.gradients(inputs)[row.learnt[0]])


# Errors

MAP, LABELS, TEXT = torch.zeros(N, D, *SIZE), torch.zeros(N, *SIZE).long(), torch.zeros(K, D)
HALF = torch.ones(N, 6, 8, dtype=torch.bool)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: query_diversity_loss(torch.zeros(K, D)), ValueError, r"queries.unsqueeze\(1\)"),
        (lambda: query_diversity_loss(torch.zeros(K, L, D).long()), TypeError, "queries of a floating"),
        (
            lambda: query_diversity_loss(torch.zeros(K, L, D), pairs="all"),
            ValueError,
            "'ordered', 'unordered'",
        ),
        (lambda: query_diversity_loss(torch.zeros(K, L, D), reduction="none"), ValueError, "'sum', 'mean'"),
        (lambda: topology_loss(TEXT[0], TEXT), ValueError, r"text of shape \(K, D\).*unsqueeze\(0\)"),
        (lambda: topology_loss(TEXT, TEXT[:2]), ValueError, "a prototype for each of the 4 rows"),
        (lambda: topology_loss(TEXT, TEXT.long()), TypeError, "prototypes of a floating"),
        (lambda: topology_loss(TEXT, TEXT, reduction="none"), ValueError, "reduction"),
        (lambda: anchor_loss(TEXT[:, :3], TEXT), ValueError, r"torch.nn.Linear\(3, 5\)"),
        (lambda: anchor_loss(TEXT, TEXT, reduction="none"), ValueError, "reduction"),
        (lambda: prompt_loss(TEXT, TEXT[:, :3], TEXT), ValueError, r"torch.nn.Linear\(3, 5\)"),
        (lambda: masked_consistency_loss(MAP, MAP[:1]), ValueError, "of one shape"),
        (lambda: masked_consistency_loss(MAP[0, :, 0, 0], MAP[0, :, 0, 0]), ValueError, r"\(N, D, \*\)"),
        (lambda: masked_consistency_loss(MAP, MAP, HALF), ValueError, r"interpolate\(mask\[:, None\]"),
        (
            lambda: masked_consistency_loss(MAP, MAP, LABELS),
            TypeError,
            r"mask of dtype torch.bool.*\.bool\(\)",
        ),
        (lambda: masked_consistency_loss(MAP, MAP, HALF[:1]), ValueError, r"mask of shape \(2, 3, 4\)"),
        (lambda: masked_consistency_loss(MAP, MAP, reduction="all"), ValueError, "reduction"),
        (lambda: text_alignment_loss(MAP, TEXT[:, :3], LABELS), ValueError, "from 5 to 3 channels"),
        (lambda: text_alignment_loss(MAP, TEXT[:1], LABELS), ValueError, "at least 2 classes"),
        (lambda: text_alignment_loss(MAP, TEXT, LABELS[..., :2]), ValueError, r"interpolate\(target"),
        (lambda: text_alignment_loss(MAP, TEXT, LABELS + IGNORED), IndexError, "ignore_index=255"),
        (lambda: text_alignment_loss(MAP, TEXT, LABELS.float()), TypeError, "target of class indices"),
        (lambda: text_alignment_loss(MAP, TEXT, LABELS, temperature=0), ValueError, "temperature"),
        (lambda: text_alignment_loss(MAP, TEXT, LABELS, mask=HALF), ValueError, r"interpolate\(mask"),
        (lambda: text_alignment_loss(MAP, TEXT, LABELS, process_group="all"), ValueError, "process_group"),
        (lambda: vision_language_loss(MAP, MAP, TEXT, LABELS, mask_weight=-1), ValueError, "mask_weight"),
        (lambda: vision_language_loss(MAP, MAP[:1], TEXT, LABELS), ValueError, "of one shape"),
    ],
)
def test_errors(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("QueryDiversityLoss", {"pairs": "all"}, "pairs"),
        ("TopologyLoss", {"reduction": "none"}, "reduction"),
        ("AnchorLoss", {"reduction": "none"}, "reduction"),
        ("PromptLoss", {"reduction": "none"}, "reduction"),
        ("MaskedConsistencyLoss", {"reduction": "all"}, "reduction"),
        ("TextAlignmentLoss", {"temperature": 0.0}, "temperature"),
        ("VisionLanguageLoss", {"mask_weight": -0.5}, "mask_weight"),
    ],
)
def test_modules_check_their_options_at_once(name: str, options: dict[str, Any], message: str) -> None:
    module = next(type(row.module()) for row in ROWS if row.loss == name)
    with pytest.raises(ValueError, match=message):
        module(**options)


def test_the_table_has_every_function_of_the_two_files() -> None:
    files = {getattr(functional, row.twin).__module__ for row in ROWS}
    public = {name for name in functional.__all__ if getattr(functional, name).__module__ in files}
    assert public == {row.twin for row in ROWS}
