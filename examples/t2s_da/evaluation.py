"""Scores on the test sets, and how well the network's features tell their classes apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from examples.common.distributed import rank, world_size
from examples.common.feature_distance import ClassCentres, Discrimination
from examples.common.scenes.domain import Domain
from examples.common.scenes.labels import IGNORE_INDEX
from examples.common.scenes.task import Task
from examples.common.scoring import confusion_of, scores_entry, sliding_window
from examples.t2s_da.engine import Engine
from examples.t2s_da.model import shrink


def evaluate(engine: Engine, task: Task, *, progress: bool = False) -> dict[str, dict[str, Any]]:
    """Score the engine's network on each test set of the task, as `common.scoring.scores_entry` has it.

    The ranks share the images, and each gets the scores of all; where there are several, all must call this.
    """
    entries = {}
    for name, domain in task.tests.items():
        with _evaluating(engine):
            confusion = confusion_of(
                lambda _, image: predict(engine, image[None].to(engine.device))[0],
                domain,
                len(task.classes),
                IGNORE_INDEX,
                engine.device,
                progress=progress,
            )
        entries[name] = scores_entry(confusion, task.means)
    return entries


@torch.no_grad()
def predict(engine: Engine, image: Tensor) -> Tensor:
    """Logits (1, C, H, W) of one image (1, 3, H, W), by the configuration's window."""
    recipe = engine.config.training

    def network(window: Tensor) -> Tensor:
        return engine.evaluated.predict(window).float()

    with engine.autocast():
        return sliding_window(network, image, recipe.window, recipe.stride)


@torch.no_grad()
def feature_metrics(engine: Engine, task: Task, *, progress: bool = False) -> dict[str, dict[str, Any]]:
    """CCD and PDD of the decoder's features on each test set: the mean, and for each class or None where absent.

    Features of whole images, with the labels shrunk to their size. Two passes: the second needs the centres.
    """
    classes, found = len(task.classes), {}
    for name, domain in task.tests.items():
        centres = ClassCentres(classes, engine.config.model.width)
        _visit(engine, domain, _on_features(engine, centres.update), progress=progress)
        shares = Discrimination(centres.centres())
        _visit(engine, domain, _on_features(engine, shares.update), progress=progress)
        found[name] = {"ccd": _entry(centres.distance()), "pdd": _entry(shares.value())}
    return found


def _on_features(engine: Engine, take: Callable[[Tensor, Tensor], None]) -> Callable[[Tensor, Tensor], None]:
    def visit(image: Tensor, label: Tensor) -> None:
        with engine.autocast():
            features = engine.evaluated.features(image)
        take(features, shrink(label[None], features.shape[-2:]))

    return visit


def _visit(
    engine: Engine, domain: Domain, visit: Callable[[Tensor, Tensor], None], *, progress: bool
) -> None:
    """Call `visit` with this rank's images (1, 3, H, W) and labels (H, W), the network in evaluation mode."""
    own = range(rank(), len(domain.names), world_size())
    with _evaluating(engine), torch.no_grad():
        for i in tqdm(own, desc="evaluate", unit="image", leave=False, disable=not progress):
            visit(domain.image(i)[None].to(engine.device), domain.label(i))


@contextmanager
def _evaluating(engine: Engine) -> Iterator[None]:
    was_training = engine.evaluated.training
    engine.evaluated.eval()
    try:
        yield
    finally:
        engine.evaluated.train(was_training)


def _entry(values: Tensor) -> dict[str, Any]:
    return {
        "mean": float(values.nanmean()),
        "classes": [None if math.isnan(value) else value for value in values.tolist()],
    }
