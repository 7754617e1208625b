"""Pseudo-target images: a source image, of which the labels hold, as another domain might show it.

fda            Fourier style of another image (equation 8): of the target, or of a folder where there is no target
adain          mean and spread of each colour, taken from another image: AdaIN's statistics on pixels
color_jitter, gaussian_blur   SimCLR's
weather        fog, snow or another brightness
cartoon        flat colours and dark edges
translated     the picture that a trained network has made of it, read from a folder

FDA and SimCLR's two are those of Table 11 that need no training; "translated" stands for those that do (CyCADA, Wang et
al. 2021b), and in domain generalisation for a style network that is given drawn embeddings. There, by section 4.2, each
image draws one of several.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from examples.common.fourier import fourier_style
from examples.common.sampling import generator
from examples.common.scenes.batches import Images
from examples.t2s_da.config import REFERENCED, Config
from examples.t2s_da.styles import adain, cartoon, color_jitter, gaussian_blur
from examples.t2s_da.weather import weather

_PICTURES = (".png", ".jpg", ".jpeg")
_STYLE = 12  # the stream of random numbers
_DRAWN = {
    "color_jitter": color_jitter,
    "gaussian_blur": gaussian_blur,
    "weather": weather,
    "cartoon": cartoon,
}


class Translator:
    """Source images -> pseudo-target images. Each image's draws depend on its place in the stream alone.

    Args:
        config: of the run.

    Raises:
        ValueError: domain generalisation takes styles from images, and no folder of them is named.
        FileNotFoundError: the folder has no image.
    """

    def __init__(self, config: Config) -> None:
        self.rule, self.seed = config.translation, config.training.seed
        self.styles: Styles | None = None
        referenced = any(name in REFERENCED for name in self.rule.engines)
        if config.restyles and config.mode == "generalization" and referenced:
            if not self.rule.styles:
                raise ValueError(
                    f"{', '.join(REFERENCED)} take their style from images: name their folder with --styles FOLDER, "
                    "or in translation.styles"
                )
            self.styles = Styles(Path(self.rule.styles))

    @torch.no_grad()
    def __call__(self, source: Images, target: Images | None, translated: Images | None) -> Tensor:
        """Images (N, 3, H, W), before the last crop, of the source's shape.

        Args:
            source: what they show.
            target: where style comes from, image by image, in domain adaptation.
            translated: what networks have made of the source, for "translated".
        """
        engines, made = self.rule.engines, []
        for place, position in enumerate(source.positions):
            draws = generator(self.seed, position, _STYLE)
            own = slice(place, place + 1)
            chosen = int(torch.randint(len(engines), (1,), generator=draws)) if len(engines) > 1 else 0
            image = source.image[own]
            if engines[chosen] in REFERENCED:
                style = self._reference(image, None if target is None else target[own], draws)
                made.append(self._referenced(engines[chosen], image, style))
            elif engines[chosen] == "translated":
                assert translated is not None  # the streams have it where this engine may be drawn
                made.append(translated.image[own])
            else:
                made.append(_DRAWN[engines[chosen]](image, draws))
        return torch.cat(made)

    def _reference(self, image: Tensor, target: Images | None, draws: torch.Generator) -> Tensor:
        if self.styles is not None:
            return self.styles.draw(draws, image)
        assert target is not None  # adaptation reads the target where an engine asks for it
        return target.image

    def _referenced(self, engine: str, image: Tensor, style: Tensor) -> Tensor:
        if engine == "fda":
            return fourier_style(image, style, self.rule.beta, self.rule.window)
        return adain(image, style)


class Styles:
    """Pictures of a folder, at any depth, to take a style from.

    Raises:
        FileNotFoundError: there is none.
    """

    def __init__(self, folder: Path) -> None:
        self.paths = pictures(folder)

    def draw(self, draws: torch.Generator, like: Tensor) -> Tensor:
        """One of them, of the size and on the device of `like` (1, 3, H, W)."""
        path = self.paths[int(torch.randint(len(self.paths), (1,), generator=draws))]
        return read_picture(path, like.shape[-2:])[None].to(like.device)


def pictures(folder: Path) -> list[Path]:
    """The pictures of a folder, sorted.

    Raises:
        FileNotFoundError: there is none.
    """
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _PICTURES)
    if not found:
        raise FileNotFoundError(
            f"{folder} has no picture: expected {', '.join(_PICTURES)}, in folders of any depth"
        )
    return found


def read_picture(path: Path, size: tuple[int, ...]) -> Tensor:
    """A picture as float32 (3, *size) in [0, 1]."""
    height, width = size
    with Image.open(path) as file:
        picture = file.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float().div_(255)
