"""The case table: one row a loss and setting. Every law of the suite runs over these rows.

A new loss adds its loop reference to ``references.py`` and its rows here; values, gradients, compile, distributed
and the rest follow. ``core`` rows are the ones that the slow laws use; ``neutral`` rows must equal ``F.cross_entropy``;
in ``constant`` rows the weights do not move with the logits, so that the gradient is the true derivative and finite
differences see it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import references
import torch
from torch import Tensor, nn

import classbalance_losses
from classbalance_losses import functional

Settings = Mapping[str, Any]
FEATURES = 3


@dataclass(frozen=True)
class Sample:
    """One call's arguments, in any spatial rank."""

    input: Tensor
    target: Tensor
    ignore_index: int = -100
    pixel_weight: Tensor | None = None
    features: Tensor | None = None

    @property
    def num_classes(self) -> int:
        return self.input.shape[1]

    @property
    def valid(self) -> Tensor:
        return self.target.long() != self.ignore_index

    def batch(self) -> references.Batch:
        """The same in numpy, float64 and with one spatial axis."""
        images, classes = self.input.shape[:2]
        pixels = self.target[0].numel() if images else 0
        weight, features = self.pixel_weight, self.features
        return references.Batch(
            logits=self.input.detach().double().reshape(images, classes, pixels).numpy(),
            target=self.target.long().reshape(images, pixels).numpy(),
            ignore_index=self.ignore_index,
            pixel_weight=None if weight is None else weight.double().reshape(images, pixels).numpy(),
            features=None
            if features is None
            else features.double().reshape(images, features.shape[1], pixels).numpy(),
        )

    def leaf(self) -> Sample:
        """The same with logits that ask for a gradient."""
        return replace(self, input=self.input.detach().clone().requires_grad_())


@dataclass(frozen=True)
class Case:
    loss: str
    variant: str
    reference: Callable[..., references.Result]
    settings: Callable[[int], Settings]
    core: bool = True
    neutral: bool = False
    constant: bool = True
    features: bool = False

    @property
    def id(self) -> str:
        return f"{self.loss}-{self.variant}"

    @property
    def module(self) -> type[nn.Module]:
        return getattr(classbalance_losses, self.loss)  # type: ignore[no-any-return]

    @property
    def function(self) -> Callable[..., Tensor]:
        return getattr(functional, FUNCTIONS[self.loss])  # type: ignore[no-any-return]

    def keywords(self, sample: Sample, **over: Any) -> dict[str, Any]:
        device = sample.input.device
        settings = {
            name: value.to(device) if isinstance(value, Tensor) else value
            for name, value in self.settings(sample.num_classes).items()
        }
        return {**settings, "ignore_index": sample.ignore_index, **over}

    def build(self, sample: Sample, **over: Any) -> nn.Module:
        return self.module(**self.keywords(sample, **over))

    def extras(self, sample: Sample) -> dict[str, Any]:
        """What a call takes besides logits and target."""
        extras: dict[str, Any] = {"pixel_weight": sample.pixel_weight}
        return {**extras, "features": sample.features} if self.features else extras

    def __call__(self, sample: Sample, *, input: Tensor | None = None, **over: Any) -> Tensor:
        """The loss by its functional form."""
        logits = sample.input if input is None else input
        return self.function(logits, sample.target, **self.extras(sample), **self.keywords(sample, **over))

    def by_module(self, sample: Sample, module: nn.Module | None = None, **over: Any) -> Tensor:
        module = self.build(sample, **over) if module is None else module
        return module(sample.input, sample.target, **self.extras(sample))  # type: ignore[no-any-return]

    def expected(self, sample: Sample) -> references.Result:
        """The loop reference, back in the sample's shape."""
        settings = {
            k: v.tolist() if isinstance(v, Tensor) else v
            for k, v in self.settings(sample.num_classes).items()
        }
        result = self.reference(sample.batch(), **settings)
        result.pixel = result.pixel.reshape(sample.target.shape)
        result.pixel_grad = result.pixel_grad.reshape(sample.input.shape)
        return result


FUNCTIONS = {
    "WeightedCrossEntropyLoss": "weighted_cross_entropy_loss",
    "LogitAdjustedLoss": "logit_adjusted_loss",
    "FocalLoss": "focal_loss",
    "DualFocalLoss": "dual_focal_loss",
    "DualCrossEntropyLoss": "dual_cross_entropy_loss",
    "DyCELoss": "dyce_loss",
    "GBWLoss": "gbw_loss",
}


def class_vector(num_classes: int) -> Tensor:
    """Unequal class weights that every floating dtype holds exactly."""
    return torch.tensor([0.25 + 0.5 * ((3 * c) % 7) for c in range(num_classes)])


def _fixed(**settings: Any) -> Callable[[int], Settings]:
    return lambda num_classes: settings


def _row(loss: str, variant: str, reference: Callable[..., references.Result], **options: Any) -> Case:
    flags = {k: options.pop(k) for k in ("core", "neutral", "constant", "features") if k in options}
    settings = options.pop("settings", None) or _fixed(**options)
    return Case(loss, variant, reference, settings, **flags)


def _weighted_cross_entropy() -> list[Case]:
    def row(variant: str, **options: Any) -> Case:
        return _row("WeightedCrossEntropyLoss", variant, references.weighted_cross_entropy, **options)

    def weighted(**more: Any) -> Callable[[int], Settings]:
        return lambda classes: {"weight": class_vector(classes), **more}

    def one_zero(classes: int) -> Settings:
        return {"weight": class_vector(classes) * torch.tensor([0.0] + [1.0] * (classes - 1))}

    return [
        row("uniform", neutral=True, core=False),
        row("uniform-pixels", neutral=True, core=False, normalize="pixels"),
        row("weight", settings=weighted()),
        row("weight-pixels", settings=weighted(normalize="pixels")),
        row("smoothing", label_smoothing=0.1, core=False),
        row("weight-smoothing", settings=weighted(label_smoothing=0.25)),
        row(
            "weight-smoothing-pixels", settings=weighted(label_smoothing=0.25, normalize="pixels"), core=False
        ),
        row("zero-weight", settings=one_zero, core=False),
    ]


def _focal() -> list[Case]:
    def row(variant: str, **options: Any) -> Case:
        return _row("FocalLoss", variant, references.focal, **options)

    def balanced(classes: int) -> Settings:
        return {"gamma": 2.0, "alpha": class_vector(classes)}

    return [
        row("default"),
        row("gamma0", gamma=0.0, neutral=True, core=False),
        row("gamma0.5", gamma=0.5),
        row("gamma1-alpha0.25", gamma=1.0, alpha=0.25, core=False),
        row("alpha-vector", settings=balanced),
        row("gamma5", gamma=5.0, core=False),
        _row(
            "FocalLoss", "smoothing", references.smoothed(references.focal), label_smoothing=0.2, core=False
        ),
    ]


def _logit_adjusted() -> list[Case]:
    def row(variant: str, tau: float = 1.0, **options: Any) -> Case:
        def settings(classes: int) -> Settings:
            return {"prior": class_vector(classes), "tau": tau}

        return _row("LogitAdjustedLoss", variant, references.logit_adjusted, settings=settings, **options)

    return [
        row("default"),
        row("half", tau=0.5, core=False),
        row("neutral", tau=0.0, neutral=True, core=False),
    ]


def _dual() -> list[Case]:
    def focal(variant: str, **options: Any) -> Case:
        return _row("DualFocalLoss", variant, references.dual_focal, **options)

    def entropy(variant: str, **options: Any) -> Case:
        return _row("DualCrossEntropyLoss", variant, references.dual_cross_entropy, **options)

    return [
        focal("default"),
        focal("neutral", alpha=0.0, beta=0.0, neutral=True, core=False),
        focal("general", alpha=0.5, beta=2.0, gamma=2.0, rho=1.5),
        focal("gamma0.5", gamma=0.5, core=False),
        focal("beta-only", alpha=0.0, core=False),
        entropy("default"),
        entropy("neutral", beta=0.0, neutral=True, core=False),
        entropy("general", alpha=0.5, beta=1.5, core=False),
        _row(
            "DualFocalLoss",
            "smoothing",
            references.smoothed(references.dual_focal),
            label_smoothing=0.2,
            core=False,
        ),
        _row(
            "DualCrossEntropyLoss",
            "smoothing",
            references.smoothed(references.dual_cross_entropy),
            label_smoothing=0.2,
            core=False,
        ),
    ]


def _dyce() -> list[Case]:
    def row(variant: str, **options: Any) -> Case:
        return _row("DyCELoss", variant, references.dyce, **options)

    return [
        row("default"),
        row("neutral", omega=1.0, hard_fraction=1.0, neutral=True, core=False),
        row("neutral-unit", omega=1.0, hard_fraction=1.0, normalize="unit", neutral=True, core=False),
        row("class-means", omega=0.0, hard_fraction=1.0, core=False),
        row("unit", omega=0.25, hard_fraction=0.5, normalize="unit"),
        row("image", omega=0.75, hard_fraction=0.4, scope="image"),
        row(
            "image-unit-min4",
            omega=0.0,
            hard_fraction=0.1,
            scope="image",
            min_kept=4,
            normalize="unit",
            core=False,
        ),
        row("min5", min_kept=5, core=False),
        row("smoothing", label_smoothing=0.2, core=False),
        row("nothing-selected", hard_fraction=0.001, min_kept=0, core=False),
    ]


GRADIENTS = ("pixel_mean", "class_logits", "official", "bias", "loss", "last_layer_weight")
STRENGTH = {
    "pixel_mean": 0.3,
    "class_logits": 0.05,
    "official": 0.02,
    "bias": 0.1,
    "loss": 1.0,
    "last_layer_weight": 0.5,
}


def _gbw() -> list[Case]:
    def row(variant: str, **options: Any) -> Case:
        return _row("GBWLoss", variant, references.gbw, **options)

    rows = [
        row("default", constant=False),
        row("neutral", regularization=float("inf"), neutral=True, core=False),
        row("neutral-present", regularization=float("inf"), classes="present", neutral=True, core=False),
        row("inf-class", regularization=float("inf"), apply="class", core=False),
        row("one-hot", regularization=1e-6, core=False),
        row("smoothing", label_smoothing=0.2, core=False, constant=False),
    ]
    core = {
        ("pixel_mean", "present", "class"),
        ("official", "all", "pixel"),
        ("last_layer_weight", "all", "pixel"),
    }
    for gradient, classes, apply in product(GRADIENTS, ("all", "present"), ("pixel", "class")):
        rows.append(
            row(
                f"{gradient}-{classes}-{apply}",
                gradient=gradient,
                classes=classes,
                apply=apply,
                regularization=STRENGTH[gradient],
                core=(gradient, classes, apply) in core,
                constant=False,
                features=gradient == "last_layer_weight",
            )
        )
    return rows


CASES = [*_weighted_cross_entropy(), *_logit_adjusted(), *_focal(), *_dual(), *_dyce(), *_gbw()]
CORE = [case for case in CASES if case.core]
NEUTRAL = [case for case in CASES if case.neutral]
CONSTANT = [case for case in CASES if case.constant]
DEFAULTS = [case for case in CASES if case.variant in {"default", "weight"}]  # one row a loss


def over(cases: list[Case], name: str = "case") -> pytest.MarkDecorator:
    """Run a test once a row."""
    return pytest.mark.parametrize(name, cases, ids=lambda case: case.id)


SHAPES: dict[int, tuple[int, ...]] = {0: (9,), 1: (2, 7), 2: (2, 3, 4), 3: (2, 2, 3, 2)}


def sample(
    rank: int = 2,
    num_classes: int = 4,
    *,
    shape: tuple[int, ...] | None = None,
    ignored: float = 0.25,
    ignore_index: int = -100,
    weighted: bool = False,
    dtype: torch.dtype = torch.float64,
    scale: float = 2.0,
    seed: int = 0,
) -> Sample:
    """Random logits, labels in which the last classes are rare, some ignored pixels, and features for GBW."""
    draw = torch.Generator().manual_seed(seed)
    size = SHAPES[rank] if shape is None else shape
    logits = torch.randn(size[0], num_classes, *size[1:], generator=draw, dtype=torch.float64) * scale
    target = (torch.rand(size, generator=draw) ** 2 * num_classes).long()
    if ignored:
        target = target.masked_fill(torch.rand(size, generator=draw) < ignored, ignore_index)
    weight = (torch.rand(size, generator=draw) * 16).round() / 8
    features = torch.randn(size[0], FEATURES, *size[1:], generator=draw, dtype=torch.float64)
    return Sample(
        input=logits.to(dtype),
        target=target,
        ignore_index=ignore_index,
        pixel_weight=weight.to(dtype) if weighted else None,
        features=features.to(dtype),
    )


def close(actual: Tensor, expected: Any, *, rtol: float = 1e-9, atol: float = 1e-11) -> None:
    """Equal up to float64 rounding, with both numbers in the message."""
    np.testing.assert_allclose(
        actual.detach().double().numpy(), np.asarray(expected, dtype=np.float64), rtol=rtol, atol=atol
    )


def grad(loss: Tensor, sample: Sample) -> Tensor:
    return torch.autograd.grad(loss, sample.input)[0]
