"""Pictures of queries: image, label, prediction, and which query claims each pixel.

The last column shows the query with the largest mask of those that take part. Shades tell the text's queries, by the
map of the pixel decoder that they were made for; an object query is pale, with a hue of its own. They stay in the run's
folder: they show images and labels of the data set, which are not ours to publish.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from examples.common.scenes.domain import Domain
from examples.common.training import write_atomically
from examples.hvl.engine import Engine
from examples.hvl.model.decoder import LEVELS
from examples.hvl.model.prediction import Prediction, claims

_GAP = 4  # pixels between the pictures
_GOLDEN = 0.618034  # of the circle of hues, between one class and the next: neighbours lie far apart
_SHADES = (0.55, 0.78, 1.0)  # brightness of the text's queries, the coarsest map first
_TEXT, _OBJECT = 0.85, 0.25  # saturation: object queries are pale
Picture = NDArray[np.uint8]


@torch.no_grad()
def write_claims(
    engine: Engine, domain: Domain, classes: Sequence[str], folder: Path, name: str, *, number: int = 4
) -> None:
    """Write the first images of a domain as rows of `FOLDER/queries_NAME.png`; what is unlabelled is black."""
    engine.network.eval()
    text, rows = engine.text(), []
    for i in range(min(number, len(domain.names))):
        image = domain.image(i)
        size = (image.shape[-2], image.shape[-1])
        prediction = engine.predict(image[None].to(engine.device), text)
        winner = winners(prediction, size)[0].cpu()
        classed = prediction.scores(size, engine.config.model.inference)[0].argmax(0).cpu()
        photo = image.mul(255).round().byte().permute(1, 2, 0).numpy()
        label = _of_size(_painted(domain.label(i), len(classes)), size)
        claimed = query_colours(len(classes), prediction.text_queries, prediction.masks[-1].shape[1])[winner]
        rows.append(_joined([photo, label, _painted(classed, len(classes)), claimed], axis=1))
    path = folder / f"queries_{name}.png"
    picture = _joined(rows, axis=0)
    write_atomically(path, lambda partial: Image.fromarray(picture).save(partial, format="PNG"))


def winners(prediction: Prediction, size: tuple[int, int]) -> Tensor:
    """The query that claims each pixel, (N, *size)."""
    claim, _ = claims(prediction.classes[-1], prediction.masks[-1])
    return F.interpolate(claim, size=size, mode="bilinear", align_corners=False).argmax(1)


def query_colours(num_classes: int, text_queries: int, queries: int) -> Picture:
    """A colour for each query (Q, 3): a text query has the hue of its class, in the shade of its level."""
    colours = [
        colorsys.hsv_to_rgb(_hue(query // LEVELS), _TEXT, _SHADES[query % LEVELS])
        if query < text_queries
        else colorsys.hsv_to_rgb(_hue(num_classes + query - text_queries), _OBJECT, 1.0)
        for query in range(queries)
    ]
    return _bytes(colours)


def _painted(label: Tensor, num_classes: int) -> Picture:
    """Class indices (H, W) -> the classes' hues (H, W, 3), black where no class is given."""
    colours = np.zeros((256, 3), np.uint8)
    colours[:num_classes] = _bytes([colorsys.hsv_to_rgb(_hue(c), _TEXT, 1.0) for c in range(num_classes)])
    return colours[label.numpy()]


def _hue(number: int) -> float:
    return number * _GOLDEN % 1


def _bytes(colours: Sequence[tuple[float, float, float]]) -> Picture:
    return np.round(255 * np.array(colours)).astype(np.uint8)


def _of_size(picture: Picture, size: tuple[int, int]) -> Picture:
    return np.asarray(Image.fromarray(picture).resize((size[1], size[0]), Image.Resampling.NEAREST))


def _joined(parts: Sequence[Picture], axis: int) -> Picture:
    shape = list(parts[0].shape)
    shape[axis] = _GAP
    gap = np.full(shape, 255, np.uint8)
    return np.concatenate([part for picture in parts for part in (picture, gap)][:-1], axis)
