"""The jobs on logits: the truth of each, and who competes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from benchmarks.speed import formulas, peers
from benchmarks.speed.contenders import (
    BINARY_CROSS_ENTROPY,
    CROSS_ENTROPY,
    RAW_CROSS_ENTROPY,
    SMOOTHED,
    SOFT_CROSS_ENTROPY,
    Contender,
    compiled,
    on_every_backend,
)
from benchmarks.speed.inputs import ALPHA, SMOOTHING, Pixels


@dataclass(frozen=True)
class Task:
    """One job. ``chosen`` jobs select pixels, and rounding may choose a few others near the threshold."""

    name: str
    truth: Callable[[Any], Tensor]
    contenders: tuple[Contender, ...]
    baseline: Contender = CROSS_ENTROPY
    chosen: bool = False

    @property
    def own(self) -> tuple[Contender, ...]:
        """The library's contenders."""
        return tuple(c for c in self.contenders if c.origin == "ours")


PIXEL_TASKS = (
    Task(
        "cross-entropy",
        formulas.cross_entropy,
        (
            CROSS_ENTROPY,
            RAW_CROSS_ENTROPY,
            compiled(CROSS_ENTROPY),
            peers.LIGER_CROSS_ENTROPY,
            *on_every_backend("WeightedCrossEntropyLoss"),
        ),
    ),
    Task(
        "focal",
        formulas.focal,
        (
            peers.KORNIA_FOCAL,
            peers.MONAI_FOCAL,
            peers.IMBALANCED_FOCAL,
            *on_every_backend("FocalLoss"),
        ),
    ),
    Task(
        "smoothing",
        formulas.smoothed_cross_entropy,
        (
            SMOOTHED,
            *on_every_backend(
                "WeightedCrossEntropyLoss",
                title="WeightedCrossEntropyLoss, smoothed",
                label_smoothing=SMOOTHING,
            ),
        ),
    ),
    Task("dual focal", formulas.dual_focal, on_every_backend("DualFocalLoss")),
    Task("dual cross-entropy", formulas.dual_cross_entropy, on_every_backend("DualCrossEntropyLoss")),
    Task(
        "hard mining",
        formulas.hardest,
        (
            peers.DEEPLAB_CE,
            peers.MMSEG_OHEM,
            *on_every_backend("DyCELoss", title="DyCELoss ω=1", omega=1.0),
        ),
        chosen=True,
    ),
    Task("DyCE", formulas.dyce, (peers.PUBLISHED_DYCE, *on_every_backend("DyCELoss")), chosen=True),
    Task("GBW", formulas.gbw, on_every_backend("GBWLoss")),
    Task(
        "GBW as released",
        formulas.gbw_as_released,
        (peers.PUBLISHED_GBW, *on_every_backend("GBWLoss", title="GBWLoss official", gradient="official")),
    ),
)


def _binary_task(
    name: str,
    truth: Callable[[Pixels], Tensor],
    loss: str,
    *others: Contender,
    chosen: bool = False,
    **options: Any,
) -> Task:
    own = on_every_backend(loss, task="binary", **options)
    return Task(name, truth, (*others, *own), BINARY_CROSS_ENTROPY, chosen)


BINARY_TASKS = (
    _binary_task(
        "cross-entropy",
        formulas.of_two_classes(formulas.cross_entropy),
        "WeightedCrossEntropyLoss",
        BINARY_CROSS_ENTROPY,
    ),
    _binary_task("focal", formulas.binary_focal, "FocalLoss", peers.TORCHVISION_FOCAL, alpha=ALPHA),
    _binary_task("DyCE", formulas.of_two_classes(formulas.dyce), "DyCELoss", chosen=True),
    _binary_task("GBW", formulas.of_two_classes(formulas.gbw), "GBWLoss"),
    _binary_task("Dice", formulas.binary_dice, "DiceLoss"),
)

OVERLAP_TASKS = (
    Task("Dice", formulas.dice, (peers.MONAI_DICE, *on_every_backend("DiceLoss"))),
    Task(
        "DyCE + Dice",
        formulas.added(formulas.dyce, formulas.dice),
        on_every_backend("DyCELoss + DiceLoss"),
        chosen=True,
    ),
    Task(
        "cross-entropy + Dice",
        formulas.added(formulas.cross_entropy, formulas.dice),
        (peers.MONAI_DICE_CE, *on_every_backend("WeightedCrossEntropyLoss + DiceLoss")),
    ),
)

SOFT_TASKS = (
    Task(
        "cross-entropy",
        formulas.soft_cross_entropy,
        (SOFT_CROSS_ENTROPY, *on_every_backend("WeightedCrossEntropyLoss")),
        SOFT_CROSS_ENTROPY,
    ),
)


def pixel_task(name: str) -> Task:
    """The task of that name."""
    return next(task for task in PIXEL_TASKS if task.name == name)
