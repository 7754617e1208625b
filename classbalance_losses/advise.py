"""What to start from on a folder of labels, by what was measured on data with such shares of the classes.

    python -m classbalance_losses.advise path/to/labels

The folder is read as by ``python -m classbalance_losses.stats``, whose options it takes. What is said goes no further
than the studies in ``benchmarks/results``: where none is near, that is what is said.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from classbalance_losses.stats.command import add_reading_options, check_reading, guarded
from classbalance_losses.stats.counting import BINARY, MULTICLASS, MULTILABEL
from classbalance_losses.stats.folder import count_folder
from classbalance_losses.stats.label_summary import LabelSummary

_CRACKS = "benchmarks/results/cracks/README.md"
_CAMVID = "benchmarks/results/camvid-small/README.md"
_HEARTS = "benchmarks/results/acdc/README.md"
_MOST_NAMED = 6


class Labels(NamedTuple):
    """What is known of a folder: one object or none, one class a pixel, or several labels; shares by name."""

    task: str
    shares: dict[str, float]

    @property
    def rarest(self) -> float:
        """The smallest share of what occurs."""
        return min((share for share in self.shares.values() if share), default=0.0)

    @property
    def largest(self) -> float:
        """The largest share."""
        return max(self.shares.values(), default=0.0)


class Rule(NamedTuple):
    """What to do with labels that it applies to; the first that does is taken."""

    applies: Callable[[Labels], bool]
    near: str  # the data that it comes from, and how near
    start: str  # code
    measured: str
    watch: str
    where: str


RULES = (
    Rule(
        lambda labels: labels.task == BINARY and 0.005 <= labels.rarest < 0.05,
        "photographs of cracks, 1.5 % of the pixels, one logit",
        "cross-entropy, and a threshold chosen on images kept apart; where it has to be 0.5, "
        'DyCELoss(task="binary", omega=0.5)',
        "IoU 9.9 points over cross-entropy after 200 steps, each at its own learning rate, 10.2 with DiceLoss beside "
        "it; weights by frequency lost 15.1. With thresholds chosen on training images, one for each run: 3.5, 3.0, "
        "and 0.5 lost",
        "the lead, half of which is gone after 600 steps and all of it after 2000, but for recall; probabilities, "
        "which add up to 2.4 times the object, or 1.5 with DiceLoss beside it",
        _CRACKS,
    ),
    Rule(
        lambda labels: labels.task == MULTICLASS and labels.largest >= 0.9 and 0.005 <= labels.rarest < 0.05,
        "slices of hearts, three structures with 1.0 to 1.5 % of the pixels in a background of 96 %, and of abdomens",
        'WeightedCrossEntropyLoss() + DiceLoss(per_image=True, classes="all", smooth=0.5e-5)',
        "mean Dice of the structures 2.0 points over cross-entropy after 400 steps, each loss at its own learning "
        "rate, as MONAI's DiceCELoss, whose value this is; DyCELoss 1.1, which is not sure; weights by frequency lost "
        "14.8. On four organs of abdomens 3.2, which is not sure; DyCELoss lost 3.0",
        "the learning rate first: cross-entropy gained 4.3 points from 0.002 to 0.008",
        _HEARTS,
    ),
    Rule(
        lambda labels: labels.task == MULTICLASS and 0.001 <= labels.rarest < 0.015,
        "CamVid, 11 classes of streets, the rarest with 0.3 % of the pixels",
        "DyCELoss(omega=0.5), and beside it weights by the root of the frequency",
        "mean IoU 8.4 points over cross-entropy after 300 steps, 2.4 after 1500; most of it from classes below 2 %. On "
        "small squares, each loss at its own learning rate: DyCELoss 3.2, with DiceLoss 4.2, weights by the root 5.4, "
        "the first of which is not sure",
        "the lead, which shrinks as training goes on: compare at the end of a run of your length",
        _CAMVID,
    ),
    Rule(
        lambda labels: labels.task != MULTILABEL and labels.rarest >= 0.05,
        "CamVid's frequent classes, with 5 % of the pixels and more",
        'WeightedCrossEntropyLoss() or, of one object, WeightedCrossEntropyLoss(task="binary")',
        "no loss gained more than 1.3 points of IoU on such a class; GBW, DyCE and weights by frequency cost up to "
        "21.0",
        "which classes are bad, and whether they are the rare ones at all",
        _CAMVID,
    ),
    Rule(
        lambda labels: True,
        "none: nothing was measured here on labels with such shares",
        "cross-entropy, beside DyCELoss and a sum with DiceLoss, two seeds each",
        "nothing",
        "recall and precision of the rarest, on a validation set that has enough of them",
        "docs/reproducing/index.md",
    ),
)


def advice(labels: Labels) -> str:
    """Return the page: the rarest classes, and the first rule that applies."""
    rule = next(rule for rule in RULES if rule.applies(labels))
    rare = sorted((share, name) for name, share in labels.shares.items() if share)[:_MOST_NAMED]
    unseen = [name for name, share in labels.shares.items() if not share]
    lines = [
        "rarest: " + ", ".join(f"{name} {share:.2%}" for share, name in rare),
        *([f"never seen: {', '.join(unseen)}"] if unseen else []),
        "",
        f"nearest study: {rule.near}",
        f"start from:    {rule.start}",
        f"measured:      {rule.measured}",
        f"watch:         {rule.watch}",
        f"all of it:     {rule.where} and docs/choosing.md, in the repository",
    ]
    return "\n".join(lines)


def labels_of(options: argparse.Namespace) -> Labels:
    """Count the folder; of two classes the smaller is an object, and the other what is left."""
    statistics, names = count_folder(options)
    if options.task == MULTILABEL:
        shares = LabelSummary(options.task, statistics, names, None).shares()
        return Labels(options.task, dict(zip(names, shares, strict=True)))
    shares = statistics.pixel_shares.tolist()
    if len(shares) > 2:
        return Labels(MULTICLASS, dict(zip(names, shares, strict=True)))
    absent = f"not {names[0]}" if len(names) == 1 else names[0]
    share, name = min(zip(shares, (absent, names[-1]), strict=True))
    return Labels(BINARY, {name: share})


def run(options: argparse.Namespace) -> None:
    """Count the folder and print the page."""
    check_reading(options)
    print(advice(labels_of(options)))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 0, 1 after an error, 130 after an interruption."""
    parser = argparse.ArgumentParser(
        prog="python -m classbalance_losses.advise",
        description="Say what to start from on a folder of label files, by what was measured on such labels.",
    )
    add_reading_options(parser)
    return guarded(run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
