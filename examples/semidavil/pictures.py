"""Pictures of predictions: image, label and prediction side by side, in Cityscapes' colours.

They stay in the run's folder: they show images and labels of the data set, which are not ours to publish. A second
picture has the predictions alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from examples.common.scenes.domain import Domain
from examples.common.scenes.labels import CLASSES, COLOURS
from examples.common.training import write_atomically
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
    engine: Engine, domain: Domain, classes: Sequence[str], folder: Path, name: str, *, number: int = 4
) -> None:
    """Write the first images of a domain as rows of `FOLDER/predictions_NAME.png`; what is unlabelled is black.

    `FOLDER/predictions_alone_NAME.png` has the column of predictions.
    """
    engine.evaluated.eval()
    rows, alone = [], []
    for i in range(min(number, len(domain.names))):
        image = domain.image(i)
        photo = image.mul(255).round().byte().permute(1, 2, 0).numpy()
        label = _of_size(painted(domain.label(i), classes), photo.shape[:2])
        prediction = painted(predict(engine, domain.names[i], image).argmax(0).cpu(), classes)
        rows.append(_joined([photo, label, prediction], axis=1))
        alone.append(prediction)
    _save(_joined(rows, axis=0), folder / f"predictions_{name}.png")
    _save(_joined(alone, axis=0), folder / f"predictions_alone_{name}.png")


def painted(label: Tensor, classes: Sequence[str]) -> NDArray[np.uint8]:
    """Class indices (H, W) -> colours (H, W, 3), black where no class is given."""
    names = [_CAMVID.get(name, name) for name in classes]
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(names)] = COLOURS[[CLASSES.index(name) for name in names]]
    return colours[label.numpy()]


def _of_size(picture: NDArray[np.uint8], size: Sequence[int]) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(picture).resize((size[1], size[0]), Image.Resampling.NEAREST))


def _save(picture: NDArray[np.uint8], path: Path) -> None:
    write_atomically(path, lambda partial: Image.fromarray(picture).save(partial, format="PNG"))


def _joined(parts: Sequence[NDArray[np.uint8]], axis: int) -> NDArray[np.uint8]:
    shape = list(parts[0].shape)
    shape[axis] = _GAP
    gap = np.full(shape, 255, np.uint8)
    return np.concatenate([part for picture in parts for part in (picture, gap)][:-1], axis)
