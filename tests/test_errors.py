"""Errors say what was expected, what came, and the remedy."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from cases import DEFAULTS, Case, over
from torch import Tensor

import classbalance_losses as cb

LOGITS = torch.randn(2, 19, 3, 4)
TARGET = torch.randint(19, (2, 3, 4))


def raises(
    case: Case, error: type[Exception], words: str, input: Tensor, target: Tensor, **keywords: Any
) -> None:
    """By the function and by the module."""
    settings = case.settings(input.shape[1] if input.ndim > 1 else 2)
    for call in (
        lambda: case.function(input, target, **settings, **keywords),
        lambda: case.module(**settings)(input, target, **keywords),
    ):
        with pytest.raises(error, match=words):
            call()


@over(DEFAULTS)
def test_labels_that_are_all_one_are_called_so(case: Case) -> None:
    raises(case, IndexError, "The labels are 255 alone", LOGITS, torch.full_like(TARGET, 255))


@over(DEFAULTS)
@pytest.mark.parametrize("value", [255, -1])
def test_label_out_of_range_names_the_likely_ignore_index(case: Case, value: int) -> None:
    target = TARGET.clone()
    target[1, 2, 3] = value
    exact = f"Target {value} is out of bounds for 19 classes. Did you mean ignore_index={value}?"
    raises(case, IndexError, re.escape(exact), LOGITS, target)


@over(DEFAULTS)
def test_label_out_of_range_otherwise(case: Case) -> None:
    raises(
        case, IndexError, r"Target 19 is out of bounds for 19 classes\.", LOGITS, torch.full_like(TARGET, 19)
    )
    raises(
        case, IndexError, r"Target 200 is out of bounds", LOGITS, torch.full_like(TARGET, 200).to(torch.uint8)
    )


@over(DEFAULTS)
def test_label_out_of_range_with_another_ignore_index(case: Case) -> None:
    """-100 is no class once ignore_index is something else."""
    target = TARGET.clone()
    target[0, 0, 0] = -100
    with pytest.raises(IndexError, match=r"Target -100 is out of bounds.*ignore_index=-100\?"):
        case.function(LOGITS, target, ignore_index=255, **case.settings(19))


SHAPES: dict[str, tuple[Callable[[], tuple[Tensor, Tensor]], str]] = {
    "class axis of the label": (
        lambda: (LOGITS, TARGET.unsqueeze(1)),
        r"\(2, 3, 4\).*\(2, 1, 3, 4\).*squeeze\(1\)",
    ),
    "other size": (
        lambda: (LOGITS, torch.zeros(2, 6, 8, dtype=torch.long)),
        r"\(2, 3, 4\).*\(2, 6, 8\).*interpolate",
    ),
    "other batch": (lambda: (LOGITS, TARGET[:1]), r"\(2, 3, 4\).*\(1, 3, 4\)"),
    "one-hot": (lambda: (LOGITS, torch.zeros_like(LOGITS).long()), r"argmax\(1\)"),
    "classes last": (lambda: (LOGITS.movedim(1, -1), TARGET), r"axis 1"),
    "no batch axis": (lambda: (torch.randn(19), torch.tensor([3])), r"\(N, C, \*\).*\(19,\).*unsqueeze\(0\)"),
    "one class": (lambda: (LOGITS[:, :1], TARGET * 0), r"2 classes.*\(2, 1, 3, 4\)"),
}


@over(DEFAULTS)
@pytest.mark.parametrize("name", SHAPES)
def test_shapes(case: Case, name: str) -> None:
    make, words = SHAPES[name]
    if name == "one class":  # of which there are no numbers of the classes
        prior = {"prior": [1.0, 2.0]} if case.loss == "LogitAdjustedLoss" else {}
        case = replace(case, settings=lambda classes: prior)
    raises(case, ValueError, f"(?s){words}", *make())


TYPES: dict[str, tuple[Callable[[], tuple[Tensor, Tensor]], str]] = {
    "float labels": (lambda: (LOGITS, TARGET.float()), r"float32.*\.long\(\)"),
    "boolean labels": (lambda: (LOGITS, TARGET > 3), r"bool"),
    "integer logits": (lambda: (LOGITS.long(), TARGET), r"int64.*\.float\(\)"),
}


@over(DEFAULTS)
@pytest.mark.parametrize("name", TYPES)
def test_types(case: Case, name: str) -> None:
    make, words = TYPES[name]
    raises(case, TypeError, words, *make())


@over(DEFAULTS)
def test_pixel_weights(case: Case) -> None:
    raises(
        case, ValueError, r"\(2, 3, 4\).*\(2, 1, 3, 4\)", LOGITS, TARGET, pixel_weight=torch.ones(2, 1, 3, 4)
    )
    raises(case, ValueError, r"\(2, 3, 4\).*\(2,\).*expand", LOGITS, TARGET, pixel_weight=torch.ones(2))
    raises(case, ValueError, r"non-negative", LOGITS, TARGET, pixel_weight=torch.full((2, 3, 4), -0.5))
    raises(case, TypeError, r"int64", LOGITS, TARGET, pixel_weight=TARGET)


NAN = float("nan")
HYPER_PARAMETERS = [
    ("DyCELoss", {"omega": 1.5}, r"omega.*1\.5"),
    ("DyCELoss", {"omega": -0.1}, r"omega.*-0\.1"),
    ("DyCELoss", {"omega": NAN}, r"omega.*nan"),
    ("DyCELoss", {"hard_fraction": 20}, r"hard_fraction.*20"),
    ("DyCELoss", {"hard_fraction": 0.0}, r"hard_fraction.*0\.0"),
    ("DyCELoss", {"hard_fraction": -0.2}, r"hard_fraction.*-0\.2"),
    ("DyCELoss", {"min_kept": -1}, r"min_kept.*-1"),
    ("DyCELoss", {"scope": "pixel"}, r"scope.*'batch', 'image'.*'pixel'"),
    ("DyCELoss", {"normalize": "mean"}, r"normalize.*'paper', 'unit'.*'mean'"),
    ("GBWLoss", {"regularization": 0.0}, r"regularization.*0"),
    ("GBWLoss", {"regularization": NAN}, r"regularization.*nan"),
    ("GBWLoss", {"gradient": "logits"}, r"gradient.*'pixel_mean'.*'logits'"),
    ("GBWLoss", {"classes": "some"}, r"classes.*'all', 'present'.*'some'"),
    ("GBWLoss", {"apply": "image"}, r"apply.*'pixel', 'class'.*'image'"),
    ("GBWLoss", {"solver": "scipy"}, r"solver.*'projection', 'cvxpy'.*'scipy'"),
    ("GBWLoss", {"momentum": 1.5}, r"momentum.*1\.5"),
    ("FocalLoss", {"gamma": -1.0}, r"gamma.*-1"),
    ("FocalLoss", {"gamma": NAN}, r"gamma.*nan"),
    ("FocalLoss", {"alpha": -0.25}, r"alpha.*-0\.25"),
    ("FocalLoss", {"alpha": [0.5, -1.0]}, r"alpha"),
    ("DualFocalLoss", {"alpha": -1.0}, r"alpha.*-1"),
    ("DualFocalLoss", {"beta": -1.0}, r"beta.*-1"),
    ("DualFocalLoss", {"gamma": -1.0}, r"gamma.*-1"),
    ("DualFocalLoss", {"rho": 0.9}, r"rho.*0\.9"),
    ("DualCrossEntropyLoss", {"alpha": 0.0}, r"alpha.*0"),
    ("DualCrossEntropyLoss", {"beta": -4.5}, r"beta.*-4\.5"),
    ("WeightedCrossEntropyLoss", {"normalize": "sum"}, r"normalize.*'weights', 'pixels'.*'sum'"),
    ("WeightedCrossEntropyLoss", {"label_smoothing": 1.5}, r"label_smoothing.*1\.5"),
    ("WeightedCrossEntropyLoss", {"weight": torch.tensor([1.0, -1.0])}, r"weight"),
    ("WeightedCrossEntropyLoss", {"weight": torch.tensor([1.0, NAN])}, r"weight"),
    ("WeightedCrossEntropyLoss", {"weight": torch.ones(2, 2)}, r"weight.*\(2, 2\)"),
]


@pytest.mark.parametrize(
    ("loss", "keywords", "words"),
    HYPER_PARAMETERS,
    ids=[f"{n}-{'-'.join(k)}-{i}" for i, (n, k, _) in enumerate(HYPER_PARAMETERS)],
)
def test_hyper_parameters_are_checked_on_construction(
    loss: str, keywords: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=f"(?s){words}"):
        getattr(cb, loss)(**keywords)


@over(DEFAULTS)
def test_hyper_parameters_are_checked_by_the_function_too(case: Case) -> None:
    mine = [(k, w) for loss, k, w in HYPER_PARAMETERS if loss == case.loss and "momentum" not in k]
    for keywords, words in mine:
        with pytest.raises(ValueError, match=f"(?s){words}"):
            case.function(LOGITS, TARGET, **keywords)


@over(DEFAULTS)
def test_common_options(case: Case) -> None:
    settings = case.settings(19)
    with pytest.raises(ValueError, match=r"reduction.*'mean', 'sum', 'none'.*'average'"):
        case.module(reduction="average", **settings)
    with pytest.raises(TypeError, match="ignore_index"):
        case.module(ignore_index=255.0, **settings)
    with pytest.raises(ValueError, match=r"process_group.*'world'.*'all'"):
        case.module(process_group="all", **settings)
    with pytest.raises(ValueError, match=r"reduction.*'average'"):
        case.function(LOGITS, TARGET, reduction="average", **settings)


@over(DEFAULTS)
def test_options_are_keyword_only(case: Case) -> None:
    with pytest.raises(TypeError, match="positional"):
        case.module(None, 0.5)
    with pytest.raises(TypeError, match="positional"):
        case.module()(LOGITS, TARGET, torch.ones(TARGET.shape))


@pytest.mark.parametrize(
    ("loss", "keywords"),
    [("WeightedCrossEntropyLoss", {"weight": torch.ones(5)}), ("FocalLoss", {"alpha": [1.0] * 5})],
)
def test_class_vector_of_another_length(loss: str, keywords: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\(19,\).*\(5,\)"):
        getattr(cb, loss)(**keywords)(LOGITS, TARGET)


@pytest.mark.parametrize(
    ("features", "error", "words"),
    [
        (None, ValueError, r"last_layer_weight.*features="),
        (torch.ones(2, 8, 6, 8), ValueError, r"\(2, 19, 3, 4\).*\(2, 8, 6, 8\)"),
        (torch.ones(2, 8), ValueError, r"\(N, D, \*\)"),
        (torch.ones(2, 8, 3, 4).long(), TypeError, r"int64"),
    ],
    ids=["missing", "size", "rank", "type"],
)
def test_features(features: Tensor | None, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        cb.GBWLoss(gradient="last_layer_weight")(LOGITS, TARGET, features=features)
    with pytest.raises(error, match=words):
        cb.functional.class_gradient_norms(LOGITS, TARGET, gradient="last_layer_weight", features=features)


def test_features_that_would_not_be_used() -> None:
    with pytest.raises(ValueError, match=r"last_layer_weight.*'pixel_mean'"):
        cb.GBWLoss()(LOGITS, TARGET, features=torch.ones(2, 8, 3, 4))


def test_missing_cvxpy_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cvxpy", None)
    with pytest.raises(ModuleNotFoundError, match=r"classbalance_losses\[qp\].*projection"):
        cb.GBWLoss(solver="cvxpy")(LOGITS, TARGET)


def test_nothing_is_wrong_with_a_good_call() -> None:
    """Labels at both ends of the range, and the ignored one."""
    target = TARGET.clone()
    target[0, 0, :3] = torch.tensor([0, 18, -100])
    assert torch.isfinite(cb.DyCELoss()(LOGITS, target))


@pytest.mark.parametrize("value", ["2", True, None, torch.tensor(2.0)])
def test_hyper_parameters_that_are_no_numbers(value: object) -> None:
    with pytest.raises(TypeError, match=r"gamma to be a number, got"):
        cb.FocalLoss(gamma=value)  # type: ignore[arg-type]


def test_class_vector_of_integers() -> None:
    """Counts or ranks come as integers; the loss is that of the same floats."""
    ints, floats = (cb.WeightedCrossEntropyLoss(list(map(kind, range(19)))) for kind in (int, float))
    assert torch.equal(ints(LOGITS, TARGET), floats(LOGITS, TARGET))
    assert torch.equal(
        cb.FocalLoss(alpha=list(range(19)))(LOGITS, TARGET),
        cb.FocalLoss(alpha=torch.arange(19.0))(LOGITS, TARGET),
    )


@pytest.mark.parametrize("value", [1, 0, "no", None, np.True_])
def test_options_that_are_true_or_false(value: object) -> None:
    """Any text, "no" too, would count as true."""
    for call, name in (
        (lambda: cb.DiceLoss(per_image=value), "per_image"),
        (lambda: cb.TverskyLoss(include_background=value), "include_background"),
        (lambda: cb.FocalLoss(upsample="linear", align_corners=value), "align_corners"),
        (lambda: cb.AnchorLoss(normalize=value), "normalize"),
        (lambda: cb.functional.prompt_loss(*[torch.eye(3)] * 3, normalize=value), "normalize"),
    ):
        with pytest.raises(TypeError, match=f"Expected {name} to be a bool.*Pass {name}=True"):
            call()


@over(DEFAULTS)
def test_a_group_that_is_none(case: Case) -> None:
    """A rank's number, or what `new_group` returns to a rank that is not in it."""
    settings = case.settings(19)
    for group in (0, -100, [0, 1], object()):
        for call in (
            lambda group=group: case.module(process_group=group, **settings),
            lambda group=group: case.function(LOGITS, TARGET, process_group=group, **settings),
        ):
            with pytest.raises(TypeError, match=r"process_group to be None, 'world' or a torch\.distr"):
                call()


def test_numbers_of_pixels_are_any_integers() -> None:
    expected = cb.DyCELoss(min_kept=50, hard_fraction=0.1)(LOGITS, TARGET)
    assert torch.equal(cb.DyCELoss(min_kept=np.int64(50), hard_fraction=0.1)(LOGITS, TARGET), expected)
    with pytest.raises(TypeError, match=r"Pass int\(min_kept\)"):
        cb.DyCELoss(min_kept=50.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Expected ignore_index to be an int"):
        cb.DyCELoss(ignore_index=2**64 - 1)
