"""Captions: composed from class names, or read from a file that BLIP-2 filled once.

A captioner gets the images' names and what the teacher predicts in them. It never gets a label: the caption of an
unlabelled image cannot tell what only its label knows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

Predict = Callable[[], Tensor]  # the teacher's class indices for the batch, (N, h, w)


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
    """The classes that the teacher predicts in the image, the largest first."""

    def __init__(self, classes: Sequence[str], scene: str, min_share: float = 0.002) -> None:
        self._classes, self._scene, self._min_share = tuple(classes), scene, min_share

    def __call__(self, names: Sequence[str], predict: Predict) -> list[str]:
        """A caption for each prediction; classes with less than `min_share` of its pixels are left out."""
        return [self._describe(prediction) for prediction in predict()]

    def _describe(self, prediction: Tensor) -> str:
        counts = torch.bincount(prediction.flatten(), minlength=len(self._classes))
        order = counts.argsort(descending=True, stable=True).tolist()
        least = self._min_share * prediction.numel()
        return compose(self._scene, [self._classes[c] for c in order if counts[c] >= max(least, 1)])


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
                f"caption file not found: {self._path}; `python -m examples.semidavil.caption` writes one with BLIP-2"
            )
        self._captions = read_captions(self._path)

    def __call__(self, names: Sequence[str], predict: Predict) -> list[str]:
        """The file's captions of these images."""
        if missing := [name for name in names if name not in self._captions]:
            raise ValueError(
                f"{self._path} has no caption of {missing[:3]}: `python -m examples.semidavil.caption` adds them"
            )
        return [self._captions[name] for name in names]


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
