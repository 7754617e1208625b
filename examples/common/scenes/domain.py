"""What training sees of a data set: names, images and labels, each read on its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from examples.common.evaluation import LabelledImages

Size = tuple[int, int]  # height, width


class Domain(Protocol):
    """A data set. The unlabelled stream and the captions call `image` and never `label`."""

    @property
    def names(self) -> Sequence[str]:
        """A unique name for each image; splits and caption caches refer to it."""

    def image(self, index: int) -> Tensor:
        """Image `index`, float32 (3, H, W) in [0, 1]."""

    def label(self, index: int) -> Tensor:
        """Its class indices, int64 (H, W); 255 where unlabelled."""


class FileDomain:
    """Image and label files, decoded when they are asked for; images are resized bilinearly, labels to the nearest.

    Args:
        names: a name for each image.
        read_image: index -> RGB image.
        read_label: index -> class indices, or whatever a pixel has a number for, (H, W) of the image's own size.
        size: (height, width) to resize to; None keeps the files' size.
        resize_labels: labels too; else they keep the files' size, to score predictions at.
    """

    def __init__(
        self,
        names: Sequence[str],
        read_image: Callable[[int], Image.Image],
        read_label: Callable[[int], NDArray[np.integer]],
        size: Size | None = None,
        *,
        resize_labels: bool = True,
    ) -> None:
        self.names = tuple(names)
        self._read_image, self._read_label = read_image, read_label
        self._size, self._label_size = size, size if resize_labels else None

    def image(self, index: int) -> Tensor:
        """Image `index`, float32 (3, H, W) in [0, 1]."""
        image = _resized(self._read_image(index), self._size, Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div_(255).contiguous()

    def label(self, index: int) -> Tensor:
        """Its class indices, int64 (H, W)."""
        label = Image.fromarray(self._read_label(index))
        label = _resized(label, self._label_size, Image.Resampling.NEAREST)
        return torch.from_numpy(np.array(label)).long()


class PairDomain:
    """Any data set of `(image, label)` pairs, such as streets or CamVid, as a domain."""

    def __init__(self, data: LabelledImages, names: Sequence[str]) -> None:
        if len(data) != len(names):
            raise ValueError(f"expected a name for each image, got {len(data)} images and {len(names)} names")
        self._data, self.names = data, tuple(names)

    def image(self, index: int) -> Tensor:
        """Image `index`, float32 (3, H, W) in [0, 1]."""
        return self._data[index][0]

    def label(self, index: int) -> Tensor:
        """Its class indices, int64 (H, W)."""
        return self._data[index][1]


class Subset:
    """Some images of a domain."""

    def __init__(self, domain: Domain, indices: Sequence[int]) -> None:
        self._domain, self._indices = domain, tuple(indices)
        self.names = tuple(domain.names[i] for i in self._indices)

    def image(self, index: int) -> Tensor:
        """Image `index` of the subset."""
        return self._domain.image(self._indices[index])

    def label(self, index: int) -> Tensor:
        """Its class indices."""
        return self._domain.label(self._indices[index])


def select(domain: Domain, names: Sequence[str]) -> Subset:
    """The images of these names.

    Raises:
        ValueError: the domain has no image of one of the names.
    """
    place = {name: index for index, name in enumerate(domain.names)}
    if missing := [name for name in names if name not in place]:
        raise ValueError(f"the data has no image named {missing[:3]}: was the split written for other data?")
    return Subset(domain, [place[name] for name in names])


def _resized(image: Image.Image, size: Size | None, how: Image.Resampling) -> Image.Image:
    return image if size is None else image.resize((size[1], size[0]), how)
