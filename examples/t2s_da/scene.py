"""What a step reads: large crops, from which pseudo-target images are made; then everything is cut to its last size.

The order of section 4: source crops of 512x1024 are restyled by a target image of that size, then both are cropped to
512x512. The target's own crop comes of that same image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from examples.common.sampling import generator
from examples.common.scenes.augment import random_crop_flip
from examples.common.scenes.batches import Images, Stream
from examples.common.scenes.domain import Domain
from examples.common.scenes.task import Task, streams
from examples.t2s_da.config import Config
from examples.t2s_da.translation import Translator, read_picture

_SOURCE, _TARGET = 3, 4  # streams of random numbers: where the last crops lie


class Scene(NamedTuple):
    """The images of a step, at their last size. `styled` (N, 3, H, W), the pseudo-target, has the source's labels."""

    source: Images
    styled: Tensor | None
    target: Images | None


class Translated:
    """What a trained network has made of a domain's images: FOLDER/NAME.png or .jpg, resized to them; without labels.

    Raises:
        ValueError: no folder is named.
    """

    def __init__(self, domain: Domain, folder: str) -> None:
        if not folder:
            raise ValueError(
                'translation.engines has "translated": name the folder in translation.translated'
            )
        self.names, self.folder = domain.names, Path(folder)
        self.size = tuple(domain.image(0).shape[-2:])

    def image(self, index: int) -> Tensor:
        """Image `index`, float32 (3, H, W) in [0, 1]."""
        paths = [self.folder / f"{self.names[index]}{suffix}" for suffix in (".png", ".jpg")]
        for path in paths:
            if path.is_file():
                return read_picture(path, self.size)
        raise FileNotFoundError(f"translation.translated has neither {paths[0]} nor {paths[1].name}")

    def label(self, index: int) -> Tensor:
        """No label is read of it: it has the source's."""
        raise LookupError(f"{self.names[index]} has no label of its own")


def scene_streams(config: Config, task: Task, kept: Path) -> dict[str, Stream]:
    """Large crops of "source" and, where training reads them, "target" and "translated".

    A translated image is cut and mirrored as the source's image is.
    """
    large = replace(config.data, crop=config.translation.size)
    found = streams(task, large, kept, config.training.seed, unlabelled=config.uses_target)
    chosen = {"source": found["source"]}
    if config.uses_target:
        chosen["target"] = found["unlabelled"]
    if config.restyles and "translated" in config.translation.engines:
        domain = Translated(task.source, config.translation.translated)
        chosen["translated"] = replace(found["source"], domain=domain, labelled=False)
    return chosen


class SceneMaker:
    """Batches of large crops -> scenes. The draws depend on the images' places in the streams alone."""

    def __init__(self, config: Config) -> None:
        self.crop, self.seed, self.restyles = config.data.crop, config.training.seed, config.restyles
        self.before_crop = config.translation.before_crop
        self.translate = Translator(config)

    def __call__(self, batch: Mapping[str, Images]) -> Scene:
        """The scene of a step, on the batch's device."""
        streams = {"source": _SOURCE, "target": _TARGET, "translated": _SOURCE}
        small = {name: self.cut(images, streams[name]) for name, images in batch.items()}
        read = batch if self.before_crop else small
        styled = None
        if self.restyles:
            styled = self.translate(read["source"], read.get("target"), read.get("translated"))
            if self.before_crop:
                styled = self.cut(replace(read["source"], image=styled, label=None), _SOURCE).image
        return Scene(small["source"], styled, small.get("target"))

    def cut(self, images: Images, stream: int) -> Images:
        """Each image at its last size, at a place of its own."""
        pairs = [
            random_crop_flip(
                image,
                None if images.label is None else images.label[i],
                self.crop,
                generator(self.seed, position, stream),
                flip=False,
            )
            for i, (image, position) in enumerate(zip(images.image, images.positions, strict=True))
        ]
        labels = [label for _, label in pairs if label is not None]
        return replace(
            images,
            image=torch.stack([image for image, _ in pairs]),
            label=torch.stack(labels) if labels else None,
        )
