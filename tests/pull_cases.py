"""What the tests of T2S-DA's pull loss share: small inputs, and equations 4 and 5 in loops."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from classbalance_losses import PullLoss
from classbalance_losses.functional import pull_loss

C, D, M = 4, 5, 6
IGNORED = 255
OBJECTIVES = ["infonce", "mse"]


@dataclass(frozen=True)
class Step:
    """What ``pull_loss`` sees."""

    queries: Tensor
    labels: Tensor
    prototypes: Tensor
    negatives: Tensor
    weight: Tensor
    query_mask: Tensor | None = None
    negative_mask: Tensor | None = None
    prototype_mask: Tensor | None = None

    def __call__(self, queries: Tensor | None = None, **options: Any) -> Tensor:
        return pull_loss(
            self.queries if queries is None else queries,
            self.labels,
            self.prototypes,
            self.negatives,
            self.weight,
            query_mask=self.query_mask,
            negative_mask=self.negative_mask,
            prototype_mask=self.prototype_mask,
            **{"ignore_index": IGNORED, **options},
        )

    def gradient(self, **options: Any) -> Tensor:
        leaf = self.queries.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(self(leaf, **options), leaf)
        return gradient


def step(
    size: int = 17, *, shared: bool = True, dtype: torch.dtype = torch.float64, masks: bool = False
) -> Step:
    labels = torch.randint(0, C, (size,))
    labels[1::5] = IGNORED
    rows = C if shared else size
    made = Step(
        torch.randn(size, D, dtype=dtype),
        labels,
        torch.randn(C, D, dtype=dtype),
        torch.randn(rows, M, D, dtype=dtype),
        torch.rand(C, dtype=dtype),
    )
    if not masks:
        return made
    return replace(
        made,
        query_mask=torch.rand(size) < 0.7,
        negative_mask=torch.rand(rows, M) < 0.6,
        prototype_mask=torch.tensor([True, True, False, True]),
    )


def reference(
    s: Step, objective: str = "infonce", temperature: float = 0.2, pair_reduction: str = "mean"
) -> tuple[float, np.ndarray]:
    """Equations 4 and 5 in loops, and the gradient of formulas: through the unit vector, (I - ûûᵀ)/‖q‖."""
    queries, classes = s.queries.double().numpy(), len(s.prototypes)
    unit = [k / np.linalg.norm(k) for k in s.prototypes.double().numpy()]
    own = s.negatives.shape[0] != classes
    value, gradient = 0.0, np.zeros_like(queries)
    for c in range(classes):
        pairs = [i for i, y in enumerate(s.labels.tolist()) if y == c]
        pairs = [i for i in pairs if s.query_mask is None or s.query_mask[i]]
        if s.prototype_mask is not None and not s.prototype_mask[c]:
            pairs = []
        for i in pairs:
            length = np.linalg.norm(queries[i])
            q, row = queries[i] / length, i if own else c
            kept = [
                j for j in range(s.negatives.shape[1]) if s.negative_mask is None or s.negative_mask[row, j]
            ]
            away = [s.negatives[row, j].double().numpy() for j in kept]
            away = [k / np.linalg.norm(k) for k in away]
            if objective == "mse":
                loss, d = float(((q - unit[c]) ** 2).sum()), -2 * unit[c]
            else:
                top = math.exp(q @ unit[c] / temperature)
                others = [math.exp(q @ k / temperature) for k in away]
                total = top + sum(others)
                loss = -math.log(top / total)
                d = -(1 - top / total) * unit[c] + sum(
                    e / total * k for e, k in zip(others, away, strict=True)
                )
                d = d / temperature
            factor = s.weight[c].item() / classes / (len(pairs) if pair_reduction == "mean" else 1)
            value += factor * loss
            gradient[i] = factor * (d - q * (q @ d)) / length
    return value, gradient


def module(**options: Any) -> PullLoss:
    small = {"num_classes": C, "queries_per_class": 8, "negatives": 12, "ignore_index": IGNORED}
    return PullLoss(**{**small, **options})


def batch(seed: int = 0, *, classes: int = C) -> dict[str, Tensor]:
    chance = torch.Generator().manual_seed(seed)

    def features() -> Tensor:
        return torch.randn(2, D, 6, 7, generator=chance)

    labels = torch.randint(0, classes, (2, 6, 7), generator=chance)
    labels[0, 0] = IGNORED
    return {
        "student_features": features(),
        "student_labels": labels,
        "source_features": features(),
        "source_labels": labels,
        "target_features": features(),
        "target_probabilities": torch.randn(2, C, 6, 7, generator=chance).mul(2).softmax(1),
    }


def run(loss: PullLoss, data: dict[str, Tensor], seed: int = 0) -> Tensor:
    return loss(**data, generator=torch.Generator().manual_seed(seed))  # type: ignore[no-any-return]


@pytest.fixture
def no_value_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values are read on the CPU to give better errors; here the path of a device is wanted."""
    for name, found in list(sys.modules.items()):
        if name.startswith("classbalance_losses") and hasattr(found, "can_read_values"):
            monkeypatch.setattr(found, "can_read_values", lambda tensor: False)
