"""Class prototypes and T2S-DA's dynamic class weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from distributed_worker import leave_group
from processes import start_ranks
from torch import Tensor

from classbalance_losses.functional import class_confidence_weights, class_prototypes
from classbalance_losses.ops.prototypes import unit_vectors

C = 5


def mean_features(features: Tensor, labels: Tensor) -> Tensor:
    """Equation 10 in loops: features (N, D, *), labels (N, *)."""
    rows, names = features.double().movedim(1, -1).reshape(-1, features.shape[1]), labels.flatten().tolist()
    out = torch.zeros(C, features.shape[1], dtype=torch.float64)
    for c in range(C):
        own = [rows[i] for i, name in enumerate(names) if name == c]
        if own:
            out[c] = sum(own) / len(own)  # type: ignore[assignment]
    return out


@pytest.mark.parametrize("space", [(), (7,), (3, 4), (2, 3, 2)])
@pytest.mark.parametrize("label_dtype", [torch.uint8, torch.int16, torch.int64])
def test_prototypes_are_the_class_means(space: tuple[int, ...], label_dtype: torch.dtype) -> None:
    features = torch.randn(6, 4, *space, dtype=torch.float64)
    labels = torch.randint(0, C - 1, (6, *space))
    labels.view(-1)[:2] = 255
    features.movedim(1, -1)[labels == 255] = torch.nan
    if label_dtype == torch.int16:
        labels[labels == 255] = -1
    ignored = -1 if label_dtype == torch.int16 else 255
    out = class_prototypes(features, labels.to(label_dtype), C, ignore_index=ignored)
    torch.testing.assert_close(out, mean_features(features, labels))
    assert not out[C - 1].any()  # absent: exactly zero


def test_prototypes_do_not_depend_on_strides_and_carry_no_gradient() -> None:
    features = torch.randn(2, 4, 6, 5, requires_grad=True)
    labels = torch.randint(0, C, (2, 6, 5))
    out = class_prototypes(features, labels, C)
    last = class_prototypes(features.to(memory_format=torch.channels_last), labels, C)
    torch.testing.assert_close(out, last)
    assert not out.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_features_are_summed_in_float32(dtype: torch.dtype) -> None:
    # In half precision the running sum of ones would stop at 2048 (or 256).
    features = torch.ones(1, 3, 5000, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = class_prototypes(features, torch.zeros(1, 5000, dtype=torch.int64), 2)
    assert out.dtype == torch.float32
    assert (out[0] == 1).all()


def test_empty_and_all_ignored_give_zeros() -> None:
    assert not class_prototypes(torch.zeros(0, 3, 4), torch.zeros(0, 4, dtype=torch.int64), C).any()
    labels = torch.full((2, 4), -100)
    assert not class_prototypes(torch.full((2, 3, 4), torch.nan), labels, C).any()


def test_prototypes_compile() -> None:
    features, labels = torch.randn(2, 4, 6), torch.randint(0, C, (2, 6))

    def f(features: Tensor, labels: Tensor) -> Tensor:
        weight = class_confidence_weights(features[:, 0].sigmoid(), labels, C)
        return class_prototypes(features, labels, C) * weight.unsqueeze(1)

    out = torch.compile(f, backend="aot_eager", fullgraph=True)(features, labels)
    torch.testing.assert_close(out, f(features, labels))


def test_unit_vectors() -> None:
    v = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-18, 0.0], [math.nan, 1.0]], requires_grad=True)
    unit = unit_vectors(v)
    torch.testing.assert_close(unit[:3].detach(), torch.tensor([[0.6, 0.8], [0.0, 0.0], [1.0, 0.0]]))
    assert unit[3].isnan().all()  # NaN is not taken for zero
    (gradient,) = torch.autograd.grad(unit[1].sum(), v)
    assert not gradient[:3].any()


@pytest.mark.parametrize(
    ("features", "labels", "classes", "error", "message"),
    [
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, 8, 8).long(), C, ValueError, r"nearest"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, 1, 4, 4).long(), C, ValueError, r"labels.squeeze\(1\)"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(3, 4, 4).long(), C, ValueError, r"feature axis"),
        (torch.zeros(4), torch.zeros(4).long(), C, ValueError, r"\(N, D, \*\)"),
        (torch.zeros(4, 3).long(), torch.zeros(4).long(), C, TypeError, r"features of a floating"),
        (torch.zeros(4, 3), torch.zeros(4), C, TypeError, r"labels of class indices"),
        (torch.zeros(4, 3), torch.full((4,), 255), C, IndexError, r"ignore_index=255"),
        (torch.zeros(4, 3), torch.zeros(4).long(), 1, ValueError, r"num_classes"),
        (torch.zeros(4, 3), torch.zeros(4).long(), 2.0, TypeError, r"num_classes"),
    ],
)
def test_prototype_errors(
    features: Tensor, labels: Tensor, classes: int, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        class_prototypes(features, labels, classes)


# Dynamic re-weighting


def printed_weights(confidence: list[float], power: float) -> list[float]:
    """Equations 17 and 18 as printed, maximum included."""
    largest = max(1 - conf for conf in confidence)
    w = [((1 - conf) / largest) ** power for conf in confidence]
    return [x / sum(w) for x in w]


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_equal_the_printed_equations(power: float, dtype: torch.dtype) -> None:
    labels = torch.arange(C).repeat(40)
    confidence = torch.rand(labels.shape, dtype=dtype)
    out = class_confidence_weights(confidence, labels, C, power=power)
    means = [confidence[labels == c].double().mean().item() for c in range(C)]
    torch.testing.assert_close(out, torch.tensor(printed_weights(means, power), dtype=dtype))
    assert out.dtype == dtype
    assert math.isclose(out.sum().item(), 1, rel_tol=1e-6)


@pytest.mark.parametrize("absent", ["max", "exclude"])
@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_equal_confidences_give_equal_weights(absent: str, value: float) -> None:
    out = class_confidence_weights(torch.full((C,), value), torch.arange(C), C, absent=absent)
    torch.testing.assert_close(out, torch.full((C,), 1 / C))


def test_absent_classes() -> None:
    labels, confidence = torch.tensor([0, 0, 1, 2]), torch.tensor([0.5, 0.7, 1.0, 0.2])
    excluded = class_confidence_weights(confidence, labels, C, power=1, absent="exclude")
    torch.testing.assert_close(excluded, torch.tensor([0.4, 0.0, 0.8, 0.0, 0.0]) / 1.2)
    doubted = class_confidence_weights(confidence, labels, C, power=1, absent="max")
    torch.testing.assert_close(doubted, torch.tensor([0.4, 0.0, 0.8, 1.0, 1.0]) / 3.2)
    uniform = class_confidence_weights(confidence, labels, C, power=0, absent="exclude")
    torch.testing.assert_close(uniform, torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0]) / 3)
    sure = class_confidence_weights(torch.ones(4), labels, C, absent="exclude")
    torch.testing.assert_close(sure, torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0]) / 3)


def test_nothing_present() -> None:
    nobody = torch.full((4,), 255)
    assert not class_confidence_weights(torch.rand(4), nobody, C, absent="exclude").any()
    torch.testing.assert_close(
        class_confidence_weights(torch.rand(4), nobody, C, absent="max"), torch.full((C,), 1 / C)
    )


def test_labels_outside_the_classes_are_skipped() -> None:
    labels, confidence = torch.tensor([0, 1, 255, -1, 2]), torch.tensor([0.1, 0.2, 0.9, 0.9, 0.9])
    out = class_confidence_weights(confidence, labels, C, ignore_index=2, absent="exclude")
    torch.testing.assert_close(out, class_confidence_weights(confidence[:2], labels[:2], C, absent="exclude"))


def test_rounding_above_one_and_high_powers_stay_finite() -> None:
    confidence = torch.tensor([1.0000002, 0.5, 0.75])
    out = class_confidence_weights(confidence, torch.arange(3), 3, absent="exclude")
    torch.testing.assert_close(out, torch.tensor([0.0, 0.5**0.5, 0.25**0.5]) / (0.5**0.5 + 0.25**0.5))
    # 0.5^2000 underflows even in float64; the paper's normaliser, which cancels, prevents it.
    high = class_confidence_weights(torch.tensor([0.5, 0.5, 0.9]), torch.arange(3), 3, power=2000)
    torch.testing.assert_close(high, torch.tensor([0.5, 0.5, 0.0]))


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((torch.rand(3), torch.zeros(4).long()), {}, ValueError, "one shape"),
        ((torch.rand(4), torch.zeros(4)), {}, TypeError, "class indices"),
        ((torch.zeros(4).long(), torch.zeros(4).long()), {}, TypeError, "floating-point"),
        ((torch.full((4,), 3.0), torch.zeros(4).long()), {}, ValueError, "softmax"),
        ((torch.full((4,), torch.nan), torch.zeros(4).long()), {}, ValueError, "softmax"),
        ((torch.rand(4), torch.zeros(4).long()), {"power": -1}, ValueError, "power"),
        ((torch.rand(4), torch.zeros(4).long()), {"absent": "carry"}, ValueError, "absent"),
    ],
)
def test_weight_errors(
    arguments: tuple[Tensor, Tensor], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        class_confidence_weights(*arguments, C, **options)


# Ranks


def _batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(3, 4, 7, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, C, (3, 7), generator=generator)
    labels[2] = -100
    return features, labels, torch.rand(3, 7, generator=generator, dtype=torch.float64)


def _rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    features, labels, confidence = (part[:2] if rank == 0 else part[2:] for part in _batch())
    if rank == 1:
        features = torch.full_like(features, torch.nan)
    prototypes = class_prototypes(features, labels, C, process_group="world")
    weights = class_confidence_weights(confidence, labels, C, process_group="world")
    torch.save((prototypes, weights), f"{folder}/{rank}.pt")
    leave_group()


def test_two_ranks_equal_one_process(tmp_path: Path) -> None:
    start_ranks(_rank, str(tmp_path))
    features, labels, confidence = _batch()
    expected = class_prototypes(features, labels, C), class_confidence_weights(confidence, labels, C)
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), expected)
