"""A target domain that every machine has: streets of another seed, tinted, in CamVid's layout. For smoke tests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from examples.common.scenes.domain import Size
from examples.common.streets import CLASSES, IGNORE_INDEX, render_street

_FIRST_SEED = 7_000_000  # beyond those of the source
_TINT = np.array([1.0, 0.85, 0.6])


def write_street_folder(folder: Path, *, size: Size, train: int, test: int) -> Path:
    """Write `train` images of the split train_alt and `test` of val_alt, and return the folder."""
    for kind in ("images", "labels"):
        (folder / "train" / kind).mkdir(parents=True, exist_ok=True)
    (folder / "splits").mkdir(exist_ok=True)
    for i in range(train + test):
        image, label = render_street(_FIRST_SEED + i, size)
        tinted = (image * _TINT).astype(np.uint8)
        Image.fromarray(tinted).save(folder / "train" / "images" / f"toy_{i:03d}.jpg", quality=95)
        Image.fromarray(label).save(folder / "train" / "labels" / f"toy_{i:03d}.png")
    stems = [f"toy_{i:03d}\n" for i in range(train + test)]
    (folder / "splits" / "train_alt.txt").write_text("".join(stems[:train]))
    (folder / "splits" / "val_alt.txt").write_text("".join(stems[train:]))
    (folder / "dataset.json").write_text(json.dumps({"classes": CLASSES, "ignore_index": IGNORE_INDEX}))
    return folder
