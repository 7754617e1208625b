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

from examples.common.scoring import scores_entry
from examples.common.streets import CLASSES, IGNORE_INDEX, THINGS
from examples.uda_gbw.panoptic.config import InstanceConfig
from examples.uda_gbw.panoptic.data import PanopticStreets, Sample, uncounted
from examples.uda_gbw.panoptic.networks import Outputs
from examples.uda_gbw.panoptic.postprocess import panoptic_map
from examples.uda_gbw.panoptic.targets import targets_of

STUFF = tuple(index for index in range(len(CLASSES)) if index not in THINGS)
QUALITIES = ("PQ", "SQ", "RQ")
_ORDER = (*sorted(THINGS), *sorted(STUFF))  # torchmetrics' order of the classes
_VOID = -1  # of labels: what counts for nothing


class PanopticScores:
    """Scores of segments (H, W, 2), image by image: mPQ, mSQ and mRQ over the classes, and those of each class.

    A segment is right where its IoU with one of its class exceeds one half. A class that neither labels nor
    predictions have is left out of the means; one that is never right counts with an SQ of 0.
    """

    def __init__(self) -> None:
        # torchmetrics forgives a segment that is missed where the prediction is void; the panoptic API of COCO and
        # Cityscapes does not. A void prediction is a class of its own here, and its row is left out.
        stuff = (*STUFF, IGNORE_INDEX)
        self._quality = PanopticQuality(THINGS, stuff, return_sq_and_rq=True, return_per_class=True)
        self._confusion = MulticlassConfusionMatrix(len(CLASSES), ignore_index=IGNORE_INDEX)

    def update(self, segments: Tensor, semantic: Tensor, label: Tensor, instance: Tensor) -> None:
        """Add an image, on the CPU: segments (H, W, 2), the semantic head's classes, labels and instances (H, W)."""
        truth = torch.stack([torch.where(uncounted(label, instance), _VOID, label), instance], -1)
        self._quality.update(segments[None], truth[None])
        self._confusion.update(semantic, label)

    def entry(self) -> dict[str, Any]:
        """The scores as plain data, shares of 1.

        `panoptic` has mPQ, mSQ and mRQ of all classes, things and stuff; `each` has PQ, SQ and RQ of every class that
        occurs; `mean_iou`, `iou` and `pixels` are of the semantic head.
        """
        found = self._quality
        occurs = (found.true_positives + found.false_positives + found.false_negatives > 0).tolist()
        rows = zip((*_ORDER, IGNORE_INDEX), found.compute().tolist(), occurs, strict=True)
        each = {index: dict(zip(QUALITIES, values, strict=True)) for index, values, there in rows if there}
        groups = {"all": _ORDER, "things": THINGS, "stuff": STUFF}
        return {
            "panoptic": {
                name: _means([each[i] for i in group if i in each]) for name, group in groups.items()
            },
            "each": {CLASSES[index]: each[index] for index in sorted(_ORDER) if index in each},
            **scores_entry(self._confusion.compute(), {"mIoU11": range(len(CLASSES))}),
        }


def score(
    outputs_of: Callable[[Sample], Outputs],
    streets: PanopticStreets,
    rule: InstanceConfig,
    *,
    progress: bool = False,
) -> dict[str, Any]:
    """The scores of all streets, as `PanopticScores.entry` gives them.

    Args:
        outputs_of: a street -> the outputs for it, a batch of one image.
        streets: the test set.
        rule: of centres and segments.
        progress: show a progress bar.
    """
    scores = PanopticScores()
    for i in tqdm(range(len(streets)), desc="evaluate", unit="image", leave=False, disable=not progress):
        _, label, instance = sample = streets[i]
        outputs = outputs_of(sample)
        semantic = outputs.logits[0].argmax(0)
        segments = panoptic_map(semantic, outputs.heat[0], outputs.offset[0], THINGS, rule)
        scores.update(segments.cpu(), semantic.cpu(), label, instance)
    return scores.entry()


def perfect_outputs(sample: Sample, sigma: float) -> Outputs:
    """What heads without any error would give: what the post-processing makes of it is the most that can be had.

    An unlabelled pixel gets the first class; it does not count.
    """
    _, label, instance = sample
    known = torch.where(label == IGNORE_INDEX, 0, label)
    logits = F.one_hot(known, len(CLASSES)).permute(2, 0, 1).float()
    targets = targets_of(instance[None], sigma)
    return Outputs(logits[None], targets.heat, targets.offset)


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The means of some classes' qualities; none of no class."""
    return {f"m{key}": mean(row[key] for row in rows) for key in QUALITIES} if rows else {}
