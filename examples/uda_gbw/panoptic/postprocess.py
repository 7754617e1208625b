"""From the three heads to segments: centres, each thing pixel's instance, and a class for each instance."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from examples.common.scenes.labels import IGNORE_INDEX
from examples.uda_gbw.panoptic.config import InstanceConfig
from examples.uda_gbw.panoptic.targets import grid_of


def find_centres(heat: Tensor, rule: InstanceConfig) -> Tensor:
    """The rows and columns (K, 2) of a heat map's (H, W) centres, the hottest first.

    A centre is above the threshold, and nothing in the window around it is hotter.
    """
    hottest = F.max_pool2d(heat[None], rule.window, stride=1, padding=rule.window // 2)[0]
    places = ((heat == hottest) & (heat > rule.threshold)).nonzero()
    order = heat[places[:, 0], places[:, 1]].argsort(descending=True, stable=True)
    return places[order[: rule.most]]


def nearest_centre(offset: Tensor, centres: Tensor) -> Tensor:
    """The centre (H, W), 1 to K, that each pixel's offset (2, H, W) leads nearest to; 0 throughout where K is 0."""
    height, width = offset.shape[-2:]
    if not len(centres):
        return torch.zeros(height, width, dtype=torch.long, device=offset.device)
    aim = (grid_of(height, width, offset.device) + offset).flatten(1).T
    # Not by matrix products, which round away the difference between centres that are near.
    distance = torch.cdist(aim, centres.to(aim.dtype), compute_mode="donot_use_mm_for_euclid_dist")
    return (distance.argmin(1) + 1).view(height, width)


def panoptic_map(
    semantic: Tensor, heat: Tensor, offset: Tensor, things: tuple[int, ...], rule: InstanceConfig
) -> Tensor:
    """One image's segments (H, W, 2): class and instance, which is 0 for stuff.

    Every pixel of a thing class belongs to the centre that its offset leads to, and an instance has the class that
    most of its pixels have. Void (class `IGNORE_INDEX`) are stuff classes with too few pixels, and thing pixels of an
    image without a centre.

    Args:
        semantic: class indices (H, W).
        heat: (H, W).
        offset: rows and columns to the centre (2, H, W).
        things: the thing classes.
        rule: thresholds.
    """
    thing = torch.isin(semantic, torch.tensor(things, device=semantic.device))
    instance = torch.where(thing, nearest_centre(offset, find_centres(heat, rule)), 0)
    owned = instance > 0
    category = torch.where(thing, IGNORE_INDEX, semantic)
    if owned.any():
        votes = torch.zeros(int(instance.max()) + 1, int(semantic.max()) + 1, device=semantic.device)
        votes.index_put_((instance[owned], semantic[owned]), torch.ones_like(votes[0, :1]), accumulate=True)
        category = torch.where(owned, votes.argmax(1)[instance], category)
    area = torch.bincount(category[~thing], minlength=IGNORE_INDEX + 1)
    category = torch.where(~thing & (area[category] < rule.stuff_area), IGNORE_INDEX, category)
    return torch.stack([category, instance], -1)
