"""HVL's losses on queries, text and pixel features, each beside its equation in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from typing import Any

from torch import Tensor

from benchmarks.speed import formulas, inputs
from benchmarks.speed.case import Build, Case
from benchmarks.speed.contenders import BACKENDS, Contender, Step, require_backend
from benchmarks.speed.inputs import IGNORE_INDEX, Aligned, Texts
from benchmarks.speed.settings import Settings, label
from benchmarks.speed.tasks import Task
from classbalance_losses import functional

Call = Callable[[Any], Tensor]

ON_CPU = BACKENDS[:2]  # of losses whose distances are torch's own function there


def _diversity(problem: Texts) -> Tensor:
    return functional.query_diversity_loss(problem.queries)


def _topology(problem: Texts) -> Tensor:
    return functional.topology_loss(problem.text, problem.prototypes)


def _anchors(problem: Texts) -> Tensor:
    return functional.anchor_loss(problem.projected, problem.prototypes)


def _prompt(problem: Texts) -> Tensor:
    return functional.prompt_loss(problem.text, problem.projected, problem.prototypes)


def _consistency(problem: Aligned) -> Tensor:
    return functional.masked_consistency_loss(problem.masked, problem.reference, problem.mask)


def _alignment(problem: Aligned) -> Tensor:
    return functional.text_alignment_loss(
        problem.masked, problem.text, problem.target, mask=problem.mask, ignore_index=IGNORE_INDEX
    )


def _both(problem: Aligned) -> Tensor:
    return functional.vision_language_loss(
        problem.masked,
        problem.reference,
        problem.text,
        problem.target,
        problem.mask,
        ignore_index=IGNORE_INDEX,
    )


def _contender(name: str, call: Call, loss: str = "", backend: str = "") -> Contender:
    def build(problem: Texts | Aligned) -> Step:
        if backend:
            require_backend(backend, problem.leaves[0].device)
        return lambda: call(problem)

    return Contender(name, build, "ours" if loss else "formula", loss=loss, backend=backend)


def _task(loss: str, formula: Call, call: Call, backends: tuple[str, ...] = ("reference",)) -> Task:
    plain = _contender("formula, plain PyTorch", formula)
    own = (_contender(f"{loss}, {backend}", call, loss, backend) for backend in backends)
    return Task(loss, formula, (plain, *own), plain)


# Each with what it wants a gradient for.
WITHOUT_PIXELS = (
    (_task("QueryDiversityLoss", formulas.query_diversity, _diversity), ("queries",)),
    (_task("TopologyLoss", formulas.topology, _topology), ("text",)),
    (_task("AnchorLoss", formulas.anchors, _anchors, ON_CPU), ("projected",)),
    (_task("PromptLoss", formulas.prompt, _prompt, ON_CPU), ("text", "projected")),
)
WITH_PIXELS = (
    (_task("MaskedConsistencyLoss", formulas.masked_consistency, _consistency), ("masked",)),
    (_task("TextAlignmentLoss", formulas.text_alignment, _alignment, BACKENDS), ("masked", "text")),
    (_task("VisionLanguageLoss", formulas.vision_language, _both, BACKENDS), ("masked", "text")),
)


def cases(settings: Settings) -> Iterator[Case]:
    """150 classes in CLIP's width, and features of a street scene at an eighth of its size."""
    classes, levels, width = (9, 3, 8) if settings.quick else (150, 3, 512)
    for task, learnt in WITHOUT_PIXELS:
        build = Build(inputs.texts, (classes, levels, width, learnt, "float32", settings.device))
        for contender in task.contenders:
            axis = f"{classes} classes of {width}"
            yield Case("pieces", "text", axis, "float32", task, contender, build, 0, classes)
    shape, classes = ((1, 8, 16, 20), 5) if settings.quick else ((2, 512, 64, 128), 19)
    pixels = shape[0] * prod(shape[2:])
    for task, learnt in WITH_PIXELS:
        build = Build(inputs.aligned, (shape, classes, learnt, "float32", settings.device))
        for contender in task.contenders:
            axis = f"{label(shape)} to {classes}"
            yield Case("pieces", "text", axis, "float32", task, contender, build, pixels, classes)


def bench_text(run_case: Any, case: Case) -> None:
    run_case(case)
