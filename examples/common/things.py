r"""Thing-class feature distance of DAFormer (Hoyer et al., CVPR 2022): features of things do not forget ImageNet.

Where source pixels are things, the coarsest features stay near to those of the first, pretrained encoder,

.. math:: L_{FD} = \frac{\sum_{j \in things} \lVert F^{first}_j - F_j \rVert_2}{|things|}.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from examples.common.distributed import all_sum, joined_sum
from examples.common.scenes.labels import IGNORE_INDEX

THINGS: Mapping[str, tuple[str, ...]] = {
    "cityscapes": (
        *("traffic light", "traffic sign", "person", "rider", "car"),
        *("truck", "bus", "train", "motorcycle", "bicycle"),
    ),
    "camvid": ("sign_symbol", "car", "pedestrian", "bicyclist"),
}
"""The classes of each data set that ImageNet has too: things, and no stuff."""


def thing_classes(names: Sequence[str], chosen: Sequence[str] = ()) -> list[int]:
    """The indices of the thing classes, those chosen or the data set's own.

    Raises:
        ValueError: a chosen class does not exist.
    """
    if unknown := [name for name in chosen if name not in names]:
        raise ValueError(f"feature_distance.classes must be among {', '.join(names)}, got {unknown[0]!r}")
    things = tuple(chosen) or next(group for group in THINGS.values() if set(group) <= set(names))
    return [names.index(name) for name in things]


def thing_cells(
    label: Tensor, things: Sequence[int], num_classes: int, size: Sequence[int], share: float
) -> Tensor:
    """Which cells of a feature map are of a thing: (N, H, W) -> bool (N, *size).

    A cell belongs to the class that most of its pixels have, if these are at least `share` of them.
    """
    codes = torch.where(label == IGNORE_INDEX, num_classes, label)
    planes = F.one_hot(codes, num_classes + 1).permute(0, 3, 1, 2).float()
    most, cell = F.adaptive_avg_pool2d(planes, tuple(size)).max(1)
    return torch.isin(cell, torch.tensor(things, device=label.device)) & (most >= share)


def feature_distance(now: Tensor, first: Tensor, cells: Tensor) -> Tensor:
    """L_FD of features (N, D, h, w) over the chosen cells (N, h, w) of all ranks; 0, in the graph, without any."""
    distance = (first - now).float().norm(dim=1)
    count = all_sum(cells.sum()).clamp(min=1)
    return joined_sum(torch.where(cells, distance, 0).sum() / count)
