"""Whose losses are tried, each called as its own documentation says, with no more than a rename of options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from benchmarks.speed.peers import require
from classbalance_losses import functional


@dataclass(frozen=True)
class Contender:
    """One loss and setting.

    Attributes:
        name: column of the table.
        package: the distribution that it comes from.
        loss: makes what ``check_loss`` takes; raises ``Skipped`` where its package is absent.
        neutral: whether the setting is meant to be cross-entropy.
        dims: numbers of spatial axes that it takes.
        only: the laws to try where a setting is there for some of them; all by default.
        notes: why a law fails by design, by the law's name.
    """

    name: str
    package: str
    loss: Callable[[], Any]
    neutral: bool = False
    dims: tuple[int, ...] = (0, 1, 2, 3)
    only: tuple[str, ...] | None = None
    notes: dict[str, str] = field(default_factory=dict)


class MonaiFocal(nn.Module):
    """MONAI's, of targets (B, 1, *)."""

    def __init__(
        self,
        *,
        gamma: float,
        ignore_index: int | None = None,
        reduction: str = "mean",
        weight: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.loss = require("monai", "monai.losses").FocalLoss(
            to_onehot_y=True,
            use_softmax=True,
            gamma=gamma,
            ignore_index=ignore_index,
            reduction=reduction,
            weight=weight,
        )

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Add the channel axis to the target."""
        loss: Tensor = self.loss(input, target.unsqueeze(1))
        return loss


class ImbalancedFocal(nn.Module):
    """imbalanced-losses', whose class weights are called alpha, and which gathers the batch of all ranks."""

    def __init__(
        self,
        *,
        gamma: float,
        ignore_index: int = -100,
        reduction: str = "mean",
        weight: Tensor | None = None,
        process_group: Any = None,
    ) -> None:
        super().__init__()
        self.loss = require("imbalanced_losses").SoftmaxFocalLoss(
            gamma=gamma,
            ignore_index=ignore_index,
            reduction=reduction,
            alpha=weight,
            gather_distributed=process_group is not None,
        )

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """As it is."""
        loss: Tensor = self.loss(input, target)
        return loss


def _monai(gamma: float) -> Any:
    require("monai", "monai.losses")
    return partial(MonaiFocal, gamma=gamma)


def _imbalanced(gamma: float) -> Any:
    require("imbalanced_losses")
    return partial(ImbalancedFocal, gamma=gamma)


def _kornia(gamma: float) -> Any:
    return partial(require("kornia", "kornia.losses").focal_loss, alpha=None, gamma=gamma)


def _ours(name: str, **settings: Any) -> Callable[[], Any]:
    return lambda: partial(getattr(functional, name), **settings)


def _focal(gamma: float, *only: str) -> tuple[Contender, ...]:
    """Everybody's focal loss."""
    options: dict[str, Any] = {"neutral": gamma == 0, "only": only or None}
    return (
        Contender(
            "MONAI `FocalLoss`", "monai", lambda: _monai(gamma), dims=(1, 2, 3), notes=_COARSE, **options
        ),
        Contender("kornia `focal_loss`", "kornia", lambda: _kornia(gamma), **options),
        Contender(
            "imbalanced-losses `SoftmaxFocalLoss`",
            "imbalanced-losses",
            lambda: _imbalanced(gamma),
            notes={"ranks": _GATHERED},
            **options,
        ),
        Contender("ours, `focal_loss`", _OURS, _ours("focal_loss", gamma=gamma), **options),
    )


_OURS = "classbalance_losses"
_COARSE = dict.fromkeys(
    ("gradcheck", "gradgradcheck"),
    "It computes in float32 (see `dtypes`), too coarse for these finite differences.",
)
_GATHERED = (
    "The value is the joined batch's; the averaged gradient is the joined batch's over the number of ranks."
)
_CONSTANTS = (
    "Its class weights follow the logits and are constants to the gradient, as the method defines them; the gradient "
    "is that of cross-entropy with those weights frozen."
)

GROUPS: dict[str, tuple[Contender, ...]] = {
    "Cross-entropy": (
        Contender("torch `nn.CrossEntropyLoss`", "torch", lambda: nn.CrossEntropyLoss, neutral=True),
        Contender(
            "ours, `weighted_cross_entropy_loss`", _OURS, _ours("weighted_cross_entropy_loss"), neutral=True
        ),
    ),
    "Focal losses at γ = 2": _focal(2.0),
    "Focal losses at γ = 0, which by their formula are cross-entropy": _focal(
        0.0, "cross_entropy", "class_weight"
    ),
    "Focal losses at γ = 1/2, whose factor has no derivative at p = 1": _focal(
        0.5, "saturation", "gradcheck"
    ),
    "This library's other losses, at their defaults": (
        Contender("`dual_focal_loss`", _OURS, _ours("dual_focal_loss")),
        Contender("`dual_cross_entropy_loss`", _OURS, _ours("dual_cross_entropy_loss")),
        Contender("`dyce_loss`", _OURS, _ours("dyce_loss")),
        Contender(
            "`gbw_loss`",
            _OURS,
            _ours("gbw_loss"),
            notes={"gradcheck": _CONSTANTS, "gradgradcheck": _CONSTANTS},
        ),
    ),
}
