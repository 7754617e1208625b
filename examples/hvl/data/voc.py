"""Pascal VOC 2012.

VOC/JPEGImages/2007_000032.jpg
VOC/SegmentationClass/2007_000032.png      palette PNG of class indices, 255 at the borders
VOC/SegmentationClassAug/2007_000032.png   optional: the 10 582 labels of SBD, 8-bit; used where it is there
VOC/ImageSets/Segmentation/trainaug.txt    one name a line

Class indices need no translation: 0 is the background, 255 is ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from examples.common.camvid import check_labels
from examples.common.scenes.domain import FileDomain, Size
from examples.common.scenes.labels import IGNORE_INDEX
from examples.hvl.data.files import Label, folder_domain
from examples.hvl.data.splits import read_names

CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("dining table", "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train"),
    "tv monitor",
)
# The headings of the paper's Table 2.
PRINTED = {
    **{name: name.capitalize() for name in CLASSES},
    **{"background": "Backgr.", "aeroplane": "Airplane", "dining table": "Din.Table", "motorbike": "M.bike"},
    **{"potted plant": "Plant", "tv monitor": "Monitor"},
}
LAYOUT = (
    "expected VOC/JPEGImages/NAME.jpg, VOC/SegmentationClass/NAME.png (or SegmentationClassAug) and "
    "VOC/ImageSets/Segmentation/SPLIT.txt"
)


def pascal_voc(
    folder: str | Path, split: str, size: Size | None = None, names: Sequence[str] | None = None
) -> FileDomain:
    """The images of a list in ImageSets/Segmentation: `"train"`, `"trainaug"`, `"val"`.

    Args:
        folder: the folder with `JPEGImages`; often named VOC2012.
        split: the list's name.
        size: (height, width) to resize to; None keeps each image's own.
        names: images to take in place of the list's.

    Raises:
        FileNotFoundError: a folder, list, image or label is missing; the message names it and the layout.
        ValueError: the list is empty; or on reading, a label is no 8-bit PNG of one channel or holds another class.
    """
    folder = Path(folder)
    augmented = folder / "SegmentationClassAug"
    labels = augmented if augmented.is_dir() else folder / "SegmentationClass"
    chosen = _listed(folder, split) if names is None else names
    return folder_domain(folder / "JPEGImages", labels, LAYOUT, _checked, chosen, size)


def _listed(folder: Path, split: str) -> tuple[str, ...]:
    path = folder / "ImageSets" / "Segmentation" / f"{split}.txt"
    if not path.is_file():
        raise FileNotFoundError(f"split list not found: {path} ({LAYOUT})")
    return read_names(path)


def _checked(label: Label, path: Path) -> Label:
    check_labels(label, len(CLASSES), IGNORE_INDEX, path)
    return label
