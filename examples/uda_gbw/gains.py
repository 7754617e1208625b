"""What one kind of runs gains over another, class by class: the comparisons that a grid names in `compare`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import mean, pstdev
from typing import Any

from examples.common.scoring import by_rarity
from examples.uda_gbw.collect import Run

Matrix = list[list[float]]


@dataclass(frozen=True)
class Comparison:
    """Runs without and with something, of the same seeds, that differ in nothing else."""

    title: str
    pairs: Sequence[tuple[Run, Run]]

    @property
    def classes(self) -> Sequence[str]:
        """All names."""
        names: Sequence[str] = self.pairs[0][0]["classes"]
        return names

    def order(self, test: str) -> list[int]:
        """The classes that source and test set have, that with the fewest test pixels first."""
        run = self.pairs[0][0]
        return [c for c in by_rarity(run["scores"][test]["pixels"]) if run["source_pixels"][c]]

    def gains(self, test: str, score: str) -> dict[int, float]:
        """By class, in that order: how much of "iou" or "recall" the second runs have more, the mean over seeds."""
        return {c: self._mean(partial(score_of, test=test, score=score, c=c)) for c in self.order(test)}

    def confusion(self, test: str) -> Matrix:
        """How much larger a share of each class (rows) is predicted as each (columns), in the classes' order."""
        order = self.order(test)
        return [[self._mean(partial(share, test=test, label=c, predicted=k)) for k in order] for c in order]

    def spreads(self) -> dict[str, list[float]]:
        """Of each loss of the second runs and class: the standard deviation of its weight over the logged steps."""
        return {
            loss: [
                mean(values)
                for values in zip(
                    *(_spreads(after["class_weights"][loss]) for _, after in self.pairs), strict=True
                )
            ]
            for loss in self.pairs[0][1]["class_weights"]
        }

    def _mean(self, score: Callable[[Run], float]) -> float:
        return mean(score(after) - score(before) for before, after in self.pairs)


def comparisons(results: Mapping[str, Any]) -> Iterator[Comparison]:
    """Those of a grid that have runs: pairs of variants, in every row, or pairs of rows, in every variant."""
    rows: Mapping[str, Mapping[str, Sequence[Run]]] = results["rows"]
    variants = list(next(iter(rows.values())))
    for before, after in results["compare"]:
        if before in variants:
            cells = [(row, runs[before], runs[after]) for row, runs in rows.items()]
        else:
            cells = [(variant, rows[before][variant], rows[after][variant]) for variant in variants]
        for label, without, with_it in cells:
            others = {run["seed"]: run for run in with_it}
            pairs = [(run, others[run["seed"]]) for run in without if run["seed"] in others]
            if pairs:
                yield Comparison(f"{label}: {after} against {before}", pairs)


def score_of(run: Run, test: str, score: str, c: int) -> float:
    """The "iou" or "recall" of a class."""
    return float(run["scores"][test][score][c])


def share(run: Run, test: str, label: int, predicted: int) -> float:
    """What share of a class's test pixels is predicted as another class, or as itself: its recall."""
    row = run["scores"][test]["confusion"][label]
    return float(row[predicted] / sum(row))


def _spreads(history: Mapping[str, Any]) -> list[float]:
    return [pstdev(values) for values in zip(*history["weights"], strict=True)]
