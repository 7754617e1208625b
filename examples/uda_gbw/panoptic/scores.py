"""Panoptic quality of a test set by torchmetrics, and the IoU of the semantic head."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix
from torchmetrics.detection import PanopticQuality
from tqdm import tqdm

from examples.common.scenes.domain import Domain
from examples.common.scenes.labels import IGNORE_INDEX
from examples.common.scoring import scores_entry
from examples.uda_gbw.panoptic.config import InstanceConfig
from examples.uda_gbw.panoptic.labels import Categories, decoded, uncounted
from examples.uda_gbw.panoptic.networks import Outputs
from examples.uda_gbw.panoptic.postprocess import panoptic_map
from examples.uda_gbw.panoptic.targets import targets_of

QUALITIES = ("PQ", "SQ", "RQ")
_VOID = -1  # of labels: what counts for nothing


class PanopticScores:
    """Scores of segments (H, W, 2), image by image: mPQ, mSQ and mRQ over the classes, and those of each class.

    A segment is right where its IoU with one of its class exceeds one half. A class that neither labels nor
    predictions have is left out of the means; one that is never right counts with an SQ of 0.
    """

    def __init__(self, categories: Categories) -> None:
        self.categories, number = categories, len(categories.names)
        # torchmetrics forgives a segment that is missed where the prediction is void; the panoptic API of COCO and
        # Cityscapes does not. A void prediction is a class of its own here, and its row is left out.
        stuff = (*categories.stuff, IGNORE_INDEX)
        self._quality = PanopticQuality(
            categories.things, stuff, return_sq_and_rq=True, return_per_class=True
        )
        self._confusion = MulticlassConfusionMatrix(number, ignore_index=IGNORE_INDEX)

    def update(self, segments: Tensor, semantic: Tensor, label: Tensor, instance: Tensor) -> None:
        """Add an image, on the CPU: segments (H, W, 2), the semantic head's classes, labels and instances (H, W)."""
        void = uncounted(label, instance, self.categories.things)
        truth = torch.stack([torch.where(void, _VOID, label), instance], -1)
        self._quality.update(segments[None], truth[None])
        self._confusion.update(semantic, label)

    def entry(self) -> dict[str, Any]:
        """The scores as plain data, shares of 1.

        `panoptic` has mPQ, mSQ and mRQ of all classes, things and stuff; `each` has PQ, SQ and RQ of every class that
        occurs; `mean_iou`, `iou` and `pixels` are of the semantic head.
        """
        found, names = self._quality, self.categories.names
        things, stuff = sorted(self.categories.things), sorted(self.categories.stuff)  # torchmetrics' order
        occurs = (found.true_positives + found.false_positives + found.false_negatives > 0).tolist()
        rows = zip((*things, *stuff, IGNORE_INDEX), found.compute().tolist(), occurs, strict=True)
        each = {index: dict(zip(QUALITIES, values, strict=True)) for index, values, there in rows if there}
        groups = {"all": (*things, *stuff), "things": things, "stuff": stuff}
        return {
            "panoptic": {
                name: _means([each[i] for i in group if i in each]) for name, group in groups.items()
            },
            "each": {name: each[index] for index, name in enumerate(names) if index in each},
            **scores_entry(self._confusion.compute(), {f"mIoU{len(names)}": range(len(names))}),
        }


def score(
    outputs_of: Callable[[Tensor, Tensor], Outputs],
    images: Domain,
    categories: Categories,
    rule: InstanceConfig,
    *,
    progress: bool = False,
) -> dict[str, Any]:
    """Score a test set at the size of its labels; see `PanopticScores.entry`.

    Args:
        outputs_of: image (3, H, W) and codes (H, W) -> outputs of a batch of one; a network does not read the codes.
        images: the test set, with codes for labels.
        categories: the classes.
        rule: of centres and segments.
        progress: show a progress bar.
    """
    scores = PanopticScores(categories)
    for i in tqdm(range(len(images.names)), desc="evaluate", unit="image", leave=False, disable=not progress):
        code = images.label(i)
        outputs = outputs_of(images.image(i), code).enlarged(code.shape)
        semantic = outputs.logits[0].argmax(0)
        segments = panoptic_map(semantic, outputs.heat[0], outputs.offset[0], categories.things, rule)
        scores.update(segments.cpu(), semantic.cpu(), *decoded(code))
    return scores.entry()


def perfect_outputs(code: Tensor, num_classes: int, sigma: float) -> Outputs:
    """What heads without any error would give: what the post-processing makes of it is the most that can be had.

    An unlabelled pixel gets the first class; it does not count.
    """
    label, instance = decoded(code)
    known = torch.where(label == IGNORE_INDEX, 0, label)
    logits = F.one_hot(known, num_classes).permute(2, 0, 1).float()
    targets = targets_of(instance[None], sigma)
    return Outputs(logits[None], targets.heat, targets.offset)


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The means of some classes' qualities; none of no class."""
    return {f"m{key}": mean(row[key] for row in rows) for key in QUALITIES} if rows else {}
