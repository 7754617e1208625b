"""Features of images that never change, from an encoder that is frozen: computed once, and kept."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch
from torch import Tensor

from examples.common.vision import VisionEncoder


class FeatureCache:
    """Images -> their feature maps, of each image on its own, so that its company changes no bit.

    An image is known by its pixels, not by its name: an image that changes, or a window of it, is another one. On a
    disk each image has a file, written whole or not at all, in a folder for the encoder's weights: runs share it, and a
    run that was stopped goes on with it. Features of mixed precision are kept apart.

    Args:
        vision: the frozen encoder.
        name: what else of it decides its features, beside its weights.
        folder: where the encoders' folders lie; None keeps the features in memory.
    """

    def __init__(self, vision: VisionEncoder, name: str, folder: Path | None) -> None:
        self._vision = vision
        self._folder = None if folder is None else folder / f"features-{_digest_of(vision, name)}"
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
        self._known: dict[str, list[Tensor]] = {}

    def __call__(self, images: Tensor) -> list[Tensor]:
        """(N, 3, H, W) -> the encoder's maps of N images, on the images' device."""
        rows = [self._one(image) for image in images]
        return [torch.stack(maps).to(images.device, non_blocking=True) for maps in zip(*rows, strict=True)]

    def _one(self, image: Tensor) -> list[Tensor]:
        key = _key(image)
        if self._folder is None:
            if key not in self._known:
                self._known[key] = self._compute(image)
            return self._known[key]
        path = self._folder / f"{key}.pt"
        if not path.is_file():
            partial = path.with_suffix(f".{os.getpid()}.partial")  # ranks and runs may compute the same image
            torch.save(self._compute(image), partial)
            partial.replace(path)
        maps: list[Tensor] = torch.load(path, weights_only=True)
        return maps

    @torch.no_grad()
    def _compute(self, image: Tensor) -> list[Tensor]:
        return [x[0].contiguous().cpu() for x in self._vision(image[None])]


def _key(image: Tensor) -> str:
    kind = image.device.type
    precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
    digest = hashlib.blake2b(f"{tuple(image.shape)} {precision}".encode(), digest_size=16)
    digest.update(image.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def _digest_of(vision: VisionEncoder, name: str) -> str:
    digest = hashlib.blake2b(name.encode(), digest_size=8)
    for key, value in vision.state_dict().items():
        digest.update(key.encode())
        digest.update(value.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()
