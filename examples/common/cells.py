"""The cells of a grid's tables, made of the metrics of a row's runs, one a seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from examples.common.markdown import spread
from examples.common.published import NONE
from examples.common.scoring import rare_mean

Run = Mapping[str, Any]
ONE = "†"  # marks a cell of one seed


def seeds(runs: Sequence[Any]) -> str:
    """How many there are."""
    return f"{len(runs)}{ONE if len(runs) == 1 else ''}"


def overall(runs: Sequence[Run], test: str, main: str) -> str:
    """The mean IoU over the seeds."""
    return spread([run["scores"][test]["mean_iou"][main] for run in runs]) if runs else NONE


def overall_and_rare(runs: Sequence[Run], test: str, main: str, *more: str) -> str:
    """The mean IoU, that of the rarest classes, whatever else, and the number of seeds."""
    if not runs:
        return NONE
    rare = spread([rare_mean(run["scores"][test]) for run in runs])
    return f"{' / '.join([overall(runs, test, main), rare, *more])} ({seeds(runs)})"


def class_heads(run: Run, test: str, order: Sequence[int]) -> list[str]:
    """The names of classes, with their shares of the test pixels."""
    pixels = run["scores"][test]["pixels"]
    return [f"{run['classes'][c].replace('_', ' ')} ({100 * pixels[c] / sum(pixels):.2g} %)" for c in order]


def of_classes(runs: Sequence[Run], test: str, order: Sequence[int], score: str = "iou") -> list[str]:
    """A score of each class, the mean over the seeds."""
    return [f"{100 * mean(run['scores'][test][score][c] for run in runs):.1f}" for c in order]
