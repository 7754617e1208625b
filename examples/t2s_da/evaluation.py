"""Scores on the test sets, and how well the network's features tell their classes apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from examples.common.distributed import rank, world_size
from examples.common.feature_distance import ClassCentres, Discrimination
from examples.common.scenes.domain import Domain, Subset
from examples.common.scenes.task import Task
from examples.common.scoring import evaluating, score_tests, sliding_window
from examples.t2s_da.engine import Engine
from examples.t2s_da.model import shrink


def evaluate(engine: Engine, task: Task, *, progress: bool = False) -> dict[str, dict[str, Any]]:
    """Score the engine's network on each test set of the task, as `common.scoring.scores_entry` has it.

    The ranks share the images, and each gets the scores of all; where there are several, all must call this.
    """
    return _scores(engine, task, task.tests, progress=progress)


def evaluate_source(engine: Engine, task: Task, *, progress: bool = False) -> dict[str, Any] | None:
    """The same on the source domain (Table 17); None where no source image is scored."""
    domain = source_images(task, engine.config.training.source_images)
    return None if domain is None else _scores(engine, task, {"": domain}, progress=progress)[""]


def source_images(task: Task, number: int) -> Domain | None:
    """At most `number` images, evenly spread over the source; training sees them too, as it has no other split."""
    length = len(task.source.names)
    if number == 0:
        return None
    chosen = min(number, length)
    return Subset(task.source, [i * length // chosen for i in range(chosen)])


def _scores(
    engine: Engine, task: Task, tests: Mapping[str, Domain], *, progress: bool
) -> dict[str, dict[str, Any]]:
    with evaluating(engine.evaluated):
        return score_tests(
            lambda _, image: predict(engine, image[None].to(engine.device))[0],
            tests,
            task.means,
            len(task.classes),
            engine.device,
            progress=progress,
        )


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
    """What the decoder's features are like on each test set: a mean, and a value for each class or None where absent.

    CCD and PDD (equations 19 and 20), and, where source images are scored, Figure 1's "similarity": the cosine of the
    class's mean feature and that of the source. Features of whole images, with the labels shrunk to their size. Two
    passes: PDD needs the means.
    """

    def means_of(domain: Domain) -> ClassCentres:
        centres = ClassCentres(len(task.classes), engine.config.model.width)
        _visit(engine, domain, _on_features(engine, centres.update), progress=progress)
        return centres

    source = source_images(task, engine.config.training.source_images)
    own = None if source is None else means_of(source).centres()
    found = {}
    for name, domain in task.tests.items():
        centres = means_of(domain)
        shares = Discrimination(centres.centres())
        _visit(engine, domain, _on_features(engine, shares.update), progress=progress)
        found[name] = {"ccd": _entry(centres.distance()), "pdd": _entry(shares.value())}
        if own is not None:
            found[name]["similarity"] = _entry(F.cosine_similarity(own, centres.centres(), dim=1))
    return found


def _on_features(engine: Engine, take: Callable[[Tensor, Tensor], None]) -> Callable[[Tensor, Tensor], None]:
    def visit(image: Tensor, label: Tensor) -> None:
        with engine.autocast():
            features = engine.evaluated.see(image).features
        take(features, shrink(label[None], features.shape[-2:]))

    return visit


def _visit(
    engine: Engine, domain: Domain, visit: Callable[[Tensor, Tensor], None], *, progress: bool
) -> None:
    """Call `visit` with this rank's images (1, 3, H, W) and labels (H, W), the network in evaluation mode."""
    own = range(rank(), len(domain.names), world_size())
    with evaluating(engine.evaluated), torch.no_grad():
        for i in tqdm(own, desc="evaluate", unit="image", leave=False, disable=not progress):
            visit(domain.image(i)[None].to(engine.device), domain.label(i))


def _entry(values: Tensor) -> dict[str, Any]:
    return {
        "mean": float(values.nanmean()),
        "classes": [None if math.isnan(value) else value for value in values.tolist()],
    }
