"""Pictures of predictions: image, label and prediction side by side, in Cityscapes' colours; the predictions alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from examples.common.pictures import Picture, coloured, joined, of_size, photo_of, save_picture
from examples.common.scenes.domain import Domain
from examples.common.scenes.labels import CLASSES, COLOURS
from examples.semidavil.engine import Engine
from examples.semidavil.evaluation import predict

_CAMVID = {
    "pavement": "sidewalk",
    "tree": "vegetation",
    "sign_symbol": "traffic sign",
    "pedestrian": "person",
    "bicyclist": "bicycle",
}


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
        label = of_size(painted(domain.label(i), classes), image.shape[-2:])
        prediction = painted(predict(engine, domain.names[i], image).argmax(0).cpu(), classes)
        rows.append(joined([photo_of(image), label, prediction], axis=1))
        alone.append(prediction)
    save_picture(joined(rows, axis=0), folder / f"predictions_{name}.png")
    save_picture(joined(alone, axis=0), folder / f"predictions_alone_{name}.png")


def painted(label: Tensor, classes: Sequence[str]) -> Picture:
    """Class indices (H, W) -> colours (H, W, 3), black where no class is given."""
    names = [_CAMVID.get(name, name) for name in classes]
    return coloured(label, COLOURS[[CLASSES.index(name) for name in names]])
