"""Pictures of predictions: image, label and prediction side by side, in Cityscapes' colours.

They stay in the run's folder: they show images of the data set, which are not ours to publish.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from examples.common.training import write_atomically
from examples.semidavil.data.domain import Domain
from examples.semidavil.data.labels import CLASSES, COLOURS
from examples.semidavil.engine import Engine
from examples.semidavil.evaluation import predict

_CAMVID = {
    "pavement": "sidewalk",
    "tree": "vegetation",
    "sign_symbol": "traffic sign",
    "pedestrian": "person",
    "bicyclist": "bicycle",
}
_GAP = 4  # pixels between the pictures


def write_pictures(
    engine: Engine, domain: Domain, classes: Sequence[str], path: Path, *, number: int = 4
) -> None:
    """Write the first images of a domain as rows of a PNG; what is unlabelled is black."""
    engine.evaluated.eval()
    rows = []
    for i in range(min(number, len(domain.names))):
        image = domain.image(i)
        prediction = predict(engine, domain.names[i], image).argmax(0).cpu()
        photo = image.mul(255).round().byte().permute(1, 2, 0).numpy()
        rows.append(_joined([photo, *(painted(x, classes) for x in (domain.label(i), prediction))], axis=1))
    picture = Image.fromarray(_joined(rows, axis=0))
    write_atomically(path, lambda partial: picture.save(partial, format="PNG"))


def painted(label: Tensor, classes: Sequence[str]) -> NDArray[np.uint8]:
    """Class indices (H, W) -> colours (H, W, 3), black where no class is given."""
    names = [_CAMVID.get(name, name) for name in classes]
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(names)] = COLOURS[[CLASSES.index(name) for name in names]]
    return colours[label.numpy()]


def _joined(parts: Sequence[NDArray[np.uint8]], axis: int) -> NDArray[np.uint8]:
    shape = list(parts[0].shape)
    shape[axis] = _GAP
    gap = np.full(shape, 255, np.uint8)
    return np.concatenate([part for picture in parts for part in (picture, gap)][:-1], axis)
