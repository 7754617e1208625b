"""Pictures of queries: image, label, prediction, and which query claims each pixel.

The last column shows the query with the largest mask of those that take part. Shades tell the text's queries, by the
map of the pixel decoder that they were made for; an object query is pale, with a hue of its own.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from examples.common.pictures import Picture, coloured, joined, of_size, photo_of, save_picture
from examples.common.scenes.domain import Domain
from examples.hvl.engine import Engine
from examples.hvl.model.decoder import LEVELS
from examples.hvl.model.prediction import Prediction, claims

_GOLDEN = 0.618034  # of the circle of hues, between one class and the next: neighbours lie far apart
_SHADES = (0.55, 0.78, 1.0)  # brightness of the text's queries, the coarsest map first
_TEXT, _OBJECT = 0.85, 0.25  # saturation: object queries are pale


@torch.no_grad()
def write_claims(
    engine: Engine, domain: Domain, classes: Sequence[str], folder: Path, name: str, *, number: int = 4
) -> None:
    """Write the first images of a domain as rows of `FOLDER/queries_NAME.png`; what is unlabelled is black."""
    engine.network.eval()
    text, rows = engine.text(), []
    hues = _bytes([colorsys.hsv_to_rgb(_hue(c), _TEXT, 1.0) for c in range(len(classes))])
    for i in range(min(number, len(domain.names))):
        image = domain.image(i)
        size = (image.shape[-2], image.shape[-1])
        prediction = engine.predict(image[None].to(engine.device), text)
        winner = winners(prediction, size)[0].cpu()
        classed = prediction.scores(size, engine.config.model.inference)[0].argmax(0).cpu()
        label = of_size(coloured(domain.label(i), hues), size)
        claimed = query_colours(len(classes), prediction.text_queries, prediction.masks[-1].shape[1])[winner]
        rows.append(joined([photo_of(image), label, coloured(classed, hues), claimed], axis=1))
    save_picture(joined(rows, axis=0), folder / f"queries_{name}.png")


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


def _hue(number: int) -> float:
    return number * _GOLDEN % 1


def _bytes(colours: Sequence[tuple[float, float, float]]) -> Picture:
    return np.round(255 * np.array(colours)).astype(np.uint8)
