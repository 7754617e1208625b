"""Captions: composed from class names and their places, or read from a file that BLIP-2 filled once.

A captioner gets the images' names and a map of classes for each: the label of a source image, what the teacher predicts
in one of the target. It never gets a target's label: a caption cannot tell what only a label knows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

Predict = Callable[[], Tensor]  # class indices for the batch, (N, h, w); 255 where there is none
_CENTRE = 1 / 6  # of an image's side: nearer to its middle, a class is in the centre


class Captioner(Protocol):
    """Names of N images -> N captions. `predict` is called only where the captions need it."""

    def __call__(self, names: Sequence[str], predict: Predict) -> list[str]:
        """The captions of a batch."""


class DomainCaptions:
    """One caption for all images, with every class: what the domain is known to contain."""

    def __init__(self, classes: Sequence[str], scene: str) -> None:
        self._caption = compose(scene, classes)

    def __call__(self, names: Sequence[str], predict: Predict) -> list[str]:
        """The same caption N times."""
        return [self._caption] * len(names)


class PredictedCaptions:
    """The classes in an image, the largest first, and where each is: content and position (supplement F)."""

    def __init__(self, classes: Sequence[str], scene: str, min_share: float = 0.002) -> None:
        self._classes, self._scene, self._min_share = tuple(classes), scene, min_share

    def __call__(self, names: Sequence[str], predict: Predict) -> list[str]:
        """A caption for each map; classes with less than `min_share` of its pixels are left out."""
        return [self._describe(prediction) for prediction in predict()]

    def _describe(self, prediction: Tensor) -> str:
        number = len(self._classes)
        counts = torch.bincount(prediction[prediction < number], minlength=number)
        order = counts.argsort(descending=True, stable=True).tolist()
        least = self._min_share * prediction.numel()
        seen = [c for c in order if counts[c] >= max(least, 1)]
        return compose(self._scene, [f"{self._classes[c]} {place_of(prediction == c)}" for c in seen])


class FileCaptions:
    """Captions from a JSON file `{image name: caption}`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: on use, an image without a caption.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        if not self._path.is_file():
            raise FileNotFoundError(
                f"caption file not found: {self._path}; `python -m examples semidavil caption` writes one with BLIP-2"
            )
        self._captions = read_captions(self._path)

    def __call__(self, names: Sequence[str], predict: Predict) -> list[str]:
        """The file's captions of these images."""
        if missing := [name for name in names if name not in self._captions]:
            raise ValueError(
                f"{self._path} has no caption of {missing[:3]}: `python -m examples semidavil caption` adds them"
            )
        return [self._captions[name] for name in names]


def place_of(region: Tensor) -> str:
    """Where in the image the mean position of a region (h, w) is: above, below, left, right or in the centre."""
    down, right = (
        (float(index.double().mean()) + 0.5) / side - 0.5
        for index, side in zip(region.nonzero(as_tuple=True), region.shape, strict=True)
    )
    if max(abs(down), abs(right)) < _CENTRE:
        return "in the centre"
    if abs(down) >= abs(right):
        return "above" if down < 0 else "below"
    return "left" if right < 0 else "right"


def class_texts(classes: Sequence[str]) -> tuple[str, ...]:
    """A text for each class: what SemiVL's attention takes in place of captions."""
    return tuple(f"a photo of a {name.replace('_', ' ')}" for name in classes)


def build_captioner(kind: str, classes: Sequence[str], scene: str, file: str) -> Captioner:
    """A captioner by its name: `"domain"`, `"predicted"` or `"file"`."""
    if kind == "domain":
        return DomainCaptions(classes, scene)
    if kind == "predicted":
        return PredictedCaptions(classes, scene)
    if kind == "file":
        return FileCaptions(file)
    raise ValueError(f"captions must be 'domain', 'predicted' or 'file', got {kind!r}")


def compose(scene: str, classes: Sequence[str]) -> str:
    """`"a street scene with road, car and sky"`."""
    names = [name.replace("_", " ") for name in classes]
    if not names:
        return scene
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f"{scene} with {listed}"


def read_captions(path: Path) -> dict[str, str]:
    """The captions in a file.

    Raises:
        ValueError: the file is no JSON object of strings.
    """
    try:
        captions = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} must be a JSON object of image names and captions: {error}") from error
    if not isinstance(captions, dict) or not all(isinstance(value, str) for value in captions.values()):
        raise ValueError(f"{path} must be a JSON object of image names and captions")
    return captions
