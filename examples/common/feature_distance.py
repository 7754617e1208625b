r"""How well features tell classes apart: CCD and PDD of each class, from maps of features and their labels.

With :math:`\Omega_i` the pixels of class i, :math:`x` their features, :math:`\mu_i` their mean, C classes present:

.. math::
    \mathrm{CCD}(i) = \frac{1}{C - 1} \sum_{j \ne i}
        \frac{\frac{1}{|\Omega_i|} \sum_{x \in \Omega_i} \lVert x - \mu_i \rVert^2}{\lVert \mu_i - \mu_j \rVert^2},
    \qquad
    \mathrm{PDD}(i) = 1 - \frac{1}{|\Omega_i|} \sum_{x \in \Omega_i}
        \frac{\cos(x, \mu_i)}{\sum_{j \ne i} \cos(x, \mu_j)}

These are equations 19 and 20 of T2S-DA. The class centre distance (Wang et al., "Classes Matter: A Fine-grained
Adversarial Approach to Cross-domain Semantic Segmentation", ECCV 2020) is the spread of a class over its distance to
the others. The pixel-wise discrimination distance (Xie et al., "SePiCo: Semantic-Guided Pixel Contrast for Domain
Adaptive Semantic Segmentation", TPAMI 2023) is how much nearer a pixel is to its own centre than to the others, which
equation 20 takes from 1. So both are small where classes are told apart. PDD's divisor is positive for features that a
ReLU has made; for others it may vanish.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from examples.common.distributed import all_sum


class ClassCentres:
    """Means and spreads of the classes' features, added up over maps and, at the end, over ranks.

    Args:
        num_classes: C, at least 2.
        channels: D of the features.

    Raises:
        ValueError: fewer than two classes.
    """

    def __init__(self, num_classes: int, channels: int) -> None:
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}")
        self._sums = torch.zeros(num_classes, channels, dtype=torch.float64)
        self._squares, self._count = torch.zeros(2, num_classes, dtype=torch.float64)

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Take in features (N, D, *) with labels (N, *); labels outside [0, C) are skipped."""
        rows, classes = _rows(features, labels, len(self._count))
        self._sums.index_add_(0, classes, rows)
        self._squares.index_add_(0, classes, rows.square().sum(1))
        self._count += torch.bincount(classes, minlength=len(self._count))

    def centres(self) -> Tensor:
        """The means μ, (C, D) in float64; NaN where a class has no pixel."""
        return all_sum(self._sums) / all_sum(self._count)[:, None]

    def distance(self) -> Tensor:
        """CCD of each class, (C,) in float64; NaN where a class, or every other one, has no pixel."""
        centres = self.centres()
        spread = all_sum(self._squares) / all_sum(self._count) - centres.square().sum(1)
        apart = (centres[:, None] - centres).square().sum(2)
        apart.fill_diagonal_(torch.nan)
        return spread * apart.reciprocal().nanmean(1)


class Discrimination:
    """PDD of the classes, added up over maps and, at the end, over ranks.

    Args:
        centres: the means of the same features, (C, D); a class whose mean is NaN takes no part.
    """

    def __init__(self, centres: Tensor) -> None:
        self._directions = F.normalize(centres.nan_to_num(), dim=1)
        self._sum, self._count = torch.zeros(2, len(centres), dtype=torch.float64)

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Take in features (N, D, *) with labels (N, *); labels outside [0, C) are skipped."""
        rows, classes = _rows(features, labels, len(self._count))
        cosine = F.normalize(rows, dim=1) @ self._directions.T
        own = cosine.gather(1, classes[:, None])[:, 0]
        self._sum.index_add_(0, classes, own / (cosine.sum(1) - own))
        self._count += torch.bincount(classes, minlength=len(self._count))

    def value(self) -> Tensor:
        """PDD of each class, (C,) in float64; NaN where a class has no pixel."""
        return 1 - all_sum(self._sum) / all_sum(self._count)


def _rows(features: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """The labelled pixels' features (P, D) in float64 and their classes (P,), on the CPU."""
    classes = labels.flatten().cpu()
    keep = (classes >= 0) & (classes < num_classes)
    rows = features.movedim(1, -1).flatten(0, -2).cpu()
    return rows[keep].double(), classes[keep]
