"""The scores of a test set: IoU, and the recall and confusions of each class, which the paper's Figure 4a is about."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from torch import Tensor

from examples.common.evaluation import scores_from_confusion
from examples.common.scoring import scores_entry


def entry_of(confusion: Tensor, means: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Scores of a confusion matrix (C, C) as plain data; its rows are the labels.

    Args:
        confusion: numbers of pixels.
        means: the sets of classes that a mean is taken over, by name.

    Returns:
        What `scores_entry` gives, and `recall` of each class, None for one without test pixels; `mean_recall` by the
        names of `means`; and the matrix itself.
    """
    recall = [None if math.isnan(value) else value for value in scores_from_confusion(confusion).recall]
    of_means = {
        name: [recall[c] for c in classes if recall[c] is not None] for name, classes in means.items()
    }
    return scores_entry(confusion, means) | {
        "recall": recall,
        "mean_recall": {name: mean(values) if values else math.nan for name, values in of_means.items()},
        "confusion": confusion.tolist(),
    }
