"""ADE20K in the form of the scene parsing challenge (ADEChallengeData2016): 150 classes.

ADE/images/training/ADE_train_00000001.jpg         ADE/images/validation/ADE_val_00000001.jpg
ADE/annotations/training/ADE_train_00000001.png    8-bit PNG: 0 is no class, 1 to 150 are the classes

Label 0 becomes 255, which is ignored, and the classes become 0 to 149.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from examples.common.scenes.domain import FileDomain, Size
from examples.hvl.data.files import Label, folder_domain

# One name of each line of the challenge's list of objects.
CLASSES = (
    *("wall", "building", "sky", "floor", "tree", "ceiling", "road", "bed", "windowpane", "grass", "cabinet"),
    *(
        "sidewalk",
        "person",
        "earth",
        "door",
        "table",
        "mountain",
        "plant",
        "curtain",
        "chair",
        "car",
        "water",
    ),
    *("painting", "sofa", "shelf", "house", "sea", "mirror", "rug", "field", "armchair", "seat", "fence"),
    *("desk", "rock", "wardrobe", "lamp", "bathtub", "railing", "cushion", "base", "box", "column"),
    *("signboard", "chest of drawers", "counter", "sand", "sink", "skyscraper", "fireplace", "refrigerator"),
    *("grandstand", "path", "stairs", "runway", "case", "pool table", "pillow", "screen door", "stairway"),
    *("river", "bridge", "bookcase", "blind", "coffee table", "toilet", "flower", "book", "hill", "bench"),
    *("countertop", "stove", "palm", "kitchen island", "computer", "swivel chair", "boat", "bar"),
    *("arcade machine", "hovel", "bus", "towel", "light", "truck", "tower", "chandelier", "awning"),
    *("streetlight", "booth", "television receiver", "airplane", "dirt track", "apparel", "pole", "land"),
    *("bannister", "escalator", "ottoman", "bottle", "buffet", "poster", "stage", "van", "ship", "fountain"),
    *("conveyer belt", "canopy", "washer", "plaything", "swimming pool", "stool", "barrel", "basket"),
    *("waterfall", "tent", "bag", "minibike", "cradle", "oven", "ball", "food", "step", "tank"),
    *("trade name", "microwave", "pot", "animal", "bicycle", "lake", "dishwasher", "screen", "blanket"),
    *("sculpture", "hood", "sconce", "vase", "traffic light", "tray", "ashcan", "fan", "pier", "crt screen"),
    *("plate", "monitor", "bulletin board", "shower", "radiator", "glass", "clock", "flag"),
)
LAYOUT = (
    "expected ADE/images/{training,validation}/NAME.jpg and ADE/annotations/{training,validation}/NAME.png, as in "
    "ADEChallengeData2016"
)


def ade20k(folder: str | Path, split: str, size: Size | None = None) -> FileDomain:
    """The images of a folder: `"training"` or `"validation"`.

    Args:
        folder: the folder with `images` and `annotations`; often named ADEChallengeData2016.
        split: the folder's name below them.
        size: (height, width) to resize to; None keeps each image's own.

    Raises:
        FileNotFoundError: a folder or annotation is missing; the message names it and the layout.
        ValueError: on reading, an annotation is no 8-bit PNG of one channel, or does not count from 0 to 150.
    """
    folder = Path(folder)
    return folder_domain(
        folder / "images" / split, folder / "annotations" / split, LAYOUT, _class_indices, size=size
    )


def _class_indices(label: Label, path: Path) -> Label:
    """0 to 150 -> 255, 0 to 149."""
    largest = int(label.max())
    if largest > len(CLASSES):
        raise ValueError(
            f"{path} holds the label {largest}: ADEChallengeData2016 has 0 (no class) to {len(CLASSES)}. Annotations "
            "that were shifted already, such as UniMatch V2's, are not read: take the challenge's own"
        )
    return label - np.uint8(1)  # of 0 it makes 255
