"""Streets as a data set for torch."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from .classes import CLASSES, IGNORE_INDEX
from .render import render_street

STRIDE = 1_000_000


class Streets(Dataset[tuple[Tensor, Tensor]]):
    """`length` streets, rendered when they are first asked for.

    Image i of the set is `render_street(seed * 1_000_000 + i)`: sets with different seeds share no image, so
    train on ``Streets(n, seed=0)`` and validate on ``Streets(m, seed=1)``.

    Args:
        length: number of images, at most 1 000 000.
        size: height and width in pixels.
        seed: which set; non-negative.
        cache: keep what was rendered, as bytes (173 kB for an image of 180 x 240), in this process.

    Raises:
        ValueError: if length or seed is out of range.
    """

    classes: tuple[str, ...] = CLASSES
    ignore_index: int = IGNORE_INDEX
    num_classes: int = len(CLASSES)

    def __init__(
        self, length: int, *, size: tuple[int, int] = (180, 240), seed: int = 0, cache: bool = True
    ) -> None:
        if not 0 <= length <= STRIDE:
            raise ValueError(f"Expected a length between 0 and {STRIDE}, got {length}.")
        if seed < 0:
            raise ValueError(f"Expected a seed of 0 or more, got {seed}.")
        self.length = length
        self.size = size
        self.seed = seed
        self._cache: dict[int, tuple[NDArray[np.uint8], NDArray[np.uint8]]] | None = {} if cache else None

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Image `index`, float32 (3, H, W) in [0, 1], and its labels, int64 (H, W)."""
        if not -self.length <= index < self.length:
            raise IndexError(f"Index {index} is out of range for {self.length} streets.")
        image, label = self._rendered(index % self.length)
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float().div_(255)
        return pixels, torch.from_numpy(label).long()

    def render_seed(self, index: int) -> int:
        """The seed that `render_street` gets for image `index`."""
        return self.seed * STRIDE + index

    def _rendered(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        if self._cache is None:
            return render_street(self.render_seed(index), self.size)
        if index not in self._cache:
            self._cache[index] = render_street(self.render_seed(index), self.size)
        return self._cache[index]
