"""T2S-DA's pull loss, against loops over pairs and the gradient derived by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from pull_cases import IGNORED, OBJECTIVES, C, D, M, Step, no_value_checks, reference, step  # noqa: F401
from test_no_sync import NoSync
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from classbalance_losses import use_backend
from classbalance_losses.functional import pull_loss


@pytest.fixture(params=["reference", "auto"])
def _backend(request: pytest.FixtureRequest) -> Iterator[None]:
    with use_backend(request.param):
        yield


@pytest.mark.usefixtures("_backend")
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("pair_reduction", ["mean", "sum"])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("size", [1, 3, 17, 60])
def test_value_and_gradient_equal_the_loops(
    objective: str, pair_reduction: str, shared: bool, masks: bool, size: int
) -> None:
    s = step(size, shared=shared, masks=masks)
    options = {"objective": objective, "pair_reduction": pair_reduction, "temperature": 0.3}
    value, gradient = reference(s, **options)
    torch.testing.assert_close(s(**options).item(), value)
    torch.testing.assert_close(s.gradient(**options), torch.from_numpy(gradient))


@pytest.mark.usefixtures("_backend")
@pytest.mark.parametrize("classes", [2, 3, 40])
@pytest.mark.parametrize("spread", ["one class", "all classes", "mostly one"])
def test_however_the_queries_are_spread(classes: int, spread: str) -> None:
    size = 37
    labels = torch.randint(0, classes, (size,))
    labels = {
        "one class": labels * 0 + classes - 1,
        "all classes": labels,
        "mostly one": labels * (labels % 3 == 1),
    }[spread]
    s = replace(
        step(size),
        labels=labels,
        prototypes=torch.randn(classes, D).double(),
        negatives=torch.randn(classes, M, D).double(),
        weight=torch.rand(classes).double(),
    )
    value, gradient = reference(s)
    torch.testing.assert_close(s().item(), value)
    torch.testing.assert_close(s.gradient(), torch.from_numpy(gradient))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("shared", [True, False])
def test_gradcheck(objective: str, shared: bool) -> None:
    s = step(7, shared=shared, masks=True)
    leaf = s.queries.requires_grad_()
    assert torch.autograd.gradcheck(lambda q: s(q, objective=objective), leaf)
    assert torch.autograd.gradgradcheck(lambda q: s(q, objective=objective), leaf)


# Limits


def test_without_negatives_it_is_zero() -> None:
    s = step()
    for none in (
        replace(s, negatives=s.negatives[:, :0]),
        replace(s, negative_mask=torch.zeros(C, M, dtype=torch.bool)),
        replace(step(shared=False), negative_mask=torch.zeros(17, M, dtype=torch.bool)),
    ):
        assert none().item() == 0
        assert not none.gradient().any()


def test_equal_keys_give_the_logarithm_of_their_number() -> None:
    s = step()
    same = replace(s, prototypes=s.prototypes[:1].expand(C, D), negatives=s.prototypes[:1].expand(C, M, D))
    weight = torch.full((C,), 1.0, dtype=torch.float64)
    same = replace(same, labels=torch.arange(17) % C, weight=weight)
    torch.testing.assert_close(same().item(), math.log(1 + M))


def test_low_temperature_is_the_hard_maximum() -> None:
    s = replace(step(), labels=torch.zeros(17).long(), weight=torch.ones(C, dtype=torch.float64))
    unit = torch.nn.functional.normalize
    q, keys = unit(s.queries, dim=1), unit(s.negatives[0], dim=1)
    gap = (q @ keys.T).amax(1) - q @ unit(s.prototypes[0], dim=0)
    torch.testing.assert_close(s(temperature=1e-5) * 1e-5 * C, gap.clamp(min=0).mean())
    single = replace(
        s, **{k: getattr(s, k).float() for k in ("queries", "prototypes", "negatives", "weight")}
    )
    assert single(temperature=1e-4).isfinite()


def test_mse_lies_between_zero_and_four() -> None:
    s = replace(step(4), labels=torch.arange(4), weight=torch.ones(C, dtype=torch.float64))
    for sign, expected in ((3, 0.0), (-3, 4.0)):
        value = replace(s, queries=sign * s.prototypes)(objective="mse")
        torch.testing.assert_close(value.item(), expected)


def test_weights_scale_the_classes() -> None:
    s = step()
    torch.testing.assert_close(replace(s, weight=3 * s.weight)(), 3 * s())
    parts = [replace(s, weight=s.weight * torch.eye(C, dtype=torch.float64)[c])() for c in range(C)]
    torch.testing.assert_close(sum(parts), s())


def test_lengths_and_order_do_not_matter() -> None:
    s = step()
    long = replace(s, queries=s.queries * 7, prototypes=s.prototypes * 0.1, negatives=s.negatives * 30)
    torch.testing.assert_close(long(), s())
    order = torch.randperm(17)
    torch.testing.assert_close(replace(s, queries=s.queries[order], labels=s.labels[order])(), s())
    torch.testing.assert_close(
        s.gradient()[order], replace(s, queries=s.queries[order], labels=s.labels[order]).gradient()
    )


def test_shared_is_own_repeated() -> None:
    s = step()
    own = replace(s, negatives=s.negatives[s.labels.clamp(max=C - 1)])
    torch.testing.assert_close(own(), s())
    # With as many queries as classes the first reading wins: shared.
    few = step(C)
    torch.testing.assert_close(few().item(), reference(few)[0])


# What takes no part


@pytest.mark.usefixtures("_backend")
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_what_is_left_out_is_inert_even_as_nan(objective: str) -> None:
    for shared in (True, False):
        s = step(shared=shared, masks=True)
        assert s.query_mask is not None
        assert s.negative_mask is not None
        assert s.prototype_mask is not None
        out = ~s.query_mask | (s.labels == IGNORED) | (s.labels == 2)
        poisoned = replace(
            s,
            queries=s.queries.masked_fill(out.unsqueeze(1), torch.nan),
            prototypes=s.prototypes.masked_fill(~s.prototype_mask.unsqueeze(1), torch.inf),
            negatives=s.negatives.masked_fill(~s.negative_mask.unsqueeze(2), torch.nan),
            weight=s.weight.masked_fill(~s.prototype_mask, torch.nan),
        )
        gradient = poisoned.gradient(objective=objective)
        torch.testing.assert_close(poisoned(objective=objective), s(objective=objective), rtol=0, atol=0)
        torch.testing.assert_close(gradient, s.gradient(objective=objective), rtol=0, atol=0)
        assert not gradient[out].any()


@pytest.mark.usefixtures("_backend")
def test_nan_in_what_nobody_uses() -> None:
    # Class 0 has no query, and place 0 holds an ignored one: padding must not bring its negatives in.
    s = step()
    s = replace(s, labels=torch.where(s.labels == 0, 1, s.labels))
    s.labels[0] = IGNORED
    negatives = s.negatives.clone()
    negatives[0] = torch.nan
    assert replace(s, negatives=negatives).gradient().isfinite().all()


@pytest.mark.usefixtures("_backend")
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_nothing_valid_is_zero_in_the_graph(objective: str) -> None:
    s = step()
    nothing = [
        replace(s, labels=torch.full((17,), IGNORED), queries=torch.full((17, D), torch.nan)),
        replace(s, query_mask=torch.zeros(17, dtype=torch.bool)),
        replace(s, prototypes=torch.zeros(C, D, dtype=torch.float64)),
        replace(s, queries=torch.zeros(0, D), labels=torch.zeros(0).long()),
    ]
    for each in nothing:
        assert each(objective=objective).item() == 0
        gradient = each.gradient(objective=objective)
        assert not gradient.any()


def test_a_zero_prototype_is_no_prototype() -> None:
    s = step()
    keys = s.prototypes.clone()
    keys[1] = 0
    masked = replace(s, prototype_mask=torch.arange(C) != 1)
    torch.testing.assert_close(replace(s, prototypes=keys)(), masked())


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_zero_vectors_have_no_direction(objective: str) -> None:
    s = step(dtype=torch.float32)
    queries, negatives = s.queries.clone(), s.negatives.clone()
    queries[0], negatives[0, 0] = 0, 0
    zero = replace(s, queries=queries, negatives=negatives)
    gradient = zero.gradient(objective=objective)
    assert zero(objective=objective).isfinite()
    assert gradient.isfinite().all()
    assert not gradient[0].any()


def test_keys_and_weights_are_constants() -> None:
    s = step()
    for part in (s.queries, s.prototypes, s.negatives, s.weight):
        part.requires_grad_()
    s().backward()
    assert s.queries.grad is not None
    assert s.prototypes.grad is s.negatives.grad is s.weight.grad is None


# Numbers and graphs


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_is_computed_in_float32(half: torch.dtype) -> None:
    s = step(dtype=half)
    whole = replace(s, **{k: getattr(s, k).float() for k in ("queries", "prototypes", "negatives", "weight")})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = s()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, whole())
    assert s.gradient().dtype == half


def test_dtypes() -> None:
    assert step()().dtype == torch.float64
    assert step(dtype=torch.float32)().dtype == torch.float32


def test_integer_labels_of_any_kind() -> None:
    s = step()
    for kind in (torch.uint8, torch.int16, torch.int32):
        torch.testing.assert_close(replace(s, labels=s.labels.to(kind))(), s())


def test_functional_transforms() -> None:
    s = step()
    torch.testing.assert_close(torch.func.grad(s)(s.queries), s.gradient())
    many = torch.stack([s.queries, s.queries + 1, -s.queries])
    torch.testing.assert_close(torch.func.vmap(s)(many), torch.stack([s(each) for each in many]))


@pytest.mark.parametrize("shared", [True, False])
def test_compile(shared: bool) -> None:
    s = step(shared=shared, masks=True)
    leaf = s.queries.clone().requires_grad_()
    value = torch.compile(s, backend="aot_eager", fullgraph=True)(leaf)
    torch.testing.assert_close(value, s())
    torch.testing.assert_close(torch.autograd.grad(value, leaf)[0], s.gradient())


class Largest(TorchDispatchMode):
    """Remember the size of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor) and tensor.is_contiguous():
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize("classes", [4, 19])
def test_memory_stays_at_twice_the_keys_and_twice_the_similarities(classes: int) -> None:
    size, many, width = 32 * classes, 64, 48
    queries = torch.randn(size, width, requires_grad=True)
    labels = torch.randint(0, classes, (size,))
    keys, negatives = torch.randn(classes, width), torch.randn(classes, many, width)
    with Largest() as largest:
        pull_loss(queries, labels, keys, negatives, torch.ones(classes)).backward()
    assert largest.elements <= 2 * max(classes * many * width, size * (many + 1))
    assert largest.elements < size * many * width / 10


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.usefixtures("no_value_checks")
def test_nothing_waits_for_the_device(shared: bool) -> None:
    s = step(shared=shared, masks=True)
    leaf = s.queries.clone().requires_grad_()
    with NoSync():
        s(leaf).backward()


def test_no_value_is_read() -> None:
    # Fake tensors have no values: reading one raises.
    with FakeTensorMode() as fake:
        made = {name: fake.from_tensor(part) for name, part in vars(step(masks=True)).items()}
        assert Step(**made)().shape == ()


def _call(queries: Any = None, **changes: Any) -> Tensor:
    s = replace(step(), **{k: v for k, v in changes.items() if k in vars(step())})
    return s(queries, **{k: v for k, v in changes.items() if k not in vars(step())})


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"objective": "cosine"}, ValueError, "'infonce', 'mse'"),
        ({"temperature": 0}, ValueError, "temperature"),
        ({"pair_reduction": "none"}, ValueError, "pair_reduction"),
        ({"ignore_index": 1.5}, TypeError, "ignore_index"),
        ({"process_group": "all"}, ValueError, "process_group"),
        ({"queries": torch.zeros(17, D).long()}, TypeError, "queries of a floating"),
        ({"queries": torch.zeros(2, D, 4, 4)}, ValueError, r"movedim\(1, -1\)"),
        ({"labels": torch.zeros(17)}, TypeError, "query_labels"),
        ({"labels": torch.zeros(16).long()}, ValueError, r"query_labels of shape \(Q,\) = \(17,\)"),
        ({"labels": torch.full((17,), -100)}, IndexError, "ignore_index=-100"),
        ({"prototypes": torch.zeros(1, D)}, ValueError, "at least 2 classes"),
        ({"prototypes": torch.zeros(C, D + 1)}, ValueError, r"\(C, D\) = \(4, 5\)"),
        ({"weight": torch.zeros(C + 1)}, ValueError, r"class_weight of shape \(C,\)"),
        ({"weight": torch.zeros(C).long()}, TypeError, "class_weight"),
        ({"negatives": None}, ValueError, "'mse'"),
        ({"negatives": torch.zeros(C + 1, M, D)}, ValueError, r"\(Q, M, D\) = \(17, M, 5\)"),
        ({"negatives": torch.zeros(C, M, D + 1)}, ValueError, r"\(C, M, D\) = \(4, M, 5\)"),
        ({"negatives": torch.zeros(C, D)}, ValueError, r"\(C, M, D\)"),
        ({"negatives": torch.zeros(C, M, D).long()}, TypeError, "negatives"),
        ({"query_mask": torch.ones(3, dtype=torch.bool)}, ValueError, "query_mask"),
        ({"query_mask": torch.ones(17)}, TypeError, "query_mask"),
        ({"negative_mask": torch.ones(C, M + 1, dtype=torch.bool)}, ValueError, "negative_mask"),
        ({"prototype_mask": torch.ones(C + 1, dtype=torch.bool)}, ValueError, "prototype_mask"),
    ],
)
def test_errors(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        _call(**changes)


def test_mse_needs_no_negatives() -> None:
    s = step()
    torch.testing.assert_close(replace(s, negatives=None)(objective="mse"), s(objective="mse"))  # type: ignore[arg-type]
