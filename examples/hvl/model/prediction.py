"""What the decoder predicts, and the two rules that make a segmentation of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_LEAST = 1e-6  # below it a score of a class is none


@dataclass(frozen=True)
class Prediction:
    """What the decoder says of each query, once before its first layer and once after each; and the encoder's own.

    `classes` (N, Q, K + 1), the last one "no object"; `masks` (N, Q, h, w); `own` (N, K, h', w'); all logits. The
    first `text_queries` of the Q queries are the text's: L of class 0, L of class 1, and so on.
    """

    classes: Sequence[Tensor]
    masks: Sequence[Tensor]
    text_queries: int
    own: Tensor

    def __getitem__(self, part: slice) -> Prediction:
        classes, masks = [x[part] for x in self.classes], [x[part] for x in self.masks]
        return Prediction(classes, masks, self.text_queries, self.own[part])

    def scores(self, size: tuple[int, int], rule: str) -> Tensor:
        """Scores of the classes (N, K, *size), of which a pixel takes the largest; see `RULES`."""
        scores = RULES[rule](self.classes[-1], self.masks[-1])
        return F.interpolate(scores, size=size, mode="bilinear", align_corners=False)

    def logits(self, size: tuple[int, int]) -> Tensor:
        """Logits (N, K, *size) whose softmax is the shares of the scores that are sums: they have a gradient."""
        return self.scores(size, "sum").clamp(min=_LEAST).log()


def summed(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """Mask2Former's semantic inference: Σ_q p_q(c) · sigmoid(mask_q), (N, K, h, w)."""
    return torch.einsum("nqk,nqhw->nkhw", class_logits.softmax(-1)[..., :-1], mask_logits.sigmoid())


def largest(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """The paper's: a class has the largest mask of the queries that are given it, 0 without one; (N, K, h, w).

    The largest of a pixel's scores then is its largest mask, and its class that of the query. A query that is "no
    object" has no class to give and takes no part, unless all are: then each has the likeliest of the classes.
    """
    claim, classes = claims(class_logits, mask_logits)
    number = class_logits.shape[-1] - 1
    place = classes[:, :, None, None].expand_as(claim)
    empty = claim.new_zeros(len(claim), number, *claim.shape[2:])
    return empty.scatter_reduce(1, place, claim, "amax")


def claims(class_logits: Tensor, mask_logits: Tensor) -> tuple[Tensor, Tensor]:
    """The masks (N, Q, h, w) of the queries that take part, 0 for the others; and each query's class (N, Q)."""
    number = class_logits.shape[-1] - 1
    objects = class_logits.argmax(-1) < number
    takes_part = objects | ~objects.any(1, keepdim=True)
    return mask_logits.sigmoid() * takes_part[:, :, None, None], class_logits[..., :-1].argmax(-1)


RULES = {"largest": largest, "sum": summed}
