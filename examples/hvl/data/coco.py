"""COCO 2017 with a mask of classes for each image: its 80 things, and the background.

COCO/train2017/000000000009.jpg, COCO/val2017/000000000139.jpg
COCO/masks/000000000009.png       8-bit PNG of class indices

The masks are those that the published splits point to: UniMatch and SemiVL hand them out, COCO itself has polygons.
Class indices need no translation: 0 is the background, 1 to 80 are the things in COCO's order, 255 is ignored.
"""

from __future__ import annotations

from pathlib import Path

from examples.common.camvid import check_labels
from examples.common.scenes.domain import FileDomain, Size
from examples.common.scenes.labels import IGNORE_INDEX
from examples.hvl.data.files import Label, folder_domain

CLASSES = (
    *("background", "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat"),
    *("traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse"),
    *("sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie"),
    *("suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove"),
    *("skateboard", "surfboard", "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon"),
    *("bowl", "banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut"),
    *("cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse"),
    *("remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book"),
    *("clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush"),
)
LAYOUT = "expected COCO/train2017/NAME.jpg, COCO/val2017/NAME.jpg and COCO/masks/NAME.png"


def coco(folder: str | Path, split: str, size: Size | None = None) -> FileDomain:
    """The images of a folder: `"train2017"` or `"val2017"`.

    Args:
        folder: the folder with `train2017`, `val2017` and `masks`.
        split: the folder's name.
        size: (height, width) to resize to; None keeps each image's own.

    Raises:
        FileNotFoundError: a folder or mask is missing; the message names it and the layout.
        ValueError: on reading, a mask is no 8-bit PNG of one channel or holds another class.
    """
    folder = Path(folder)
    return folder_domain(folder / split, folder / "masks", LAYOUT, _checked, size=size)


def _checked(label: Label, path: Path) -> Label:
    check_labels(label, len(CLASSES), IGNORE_INDEX, path)
    return label
