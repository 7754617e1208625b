"""The table of HVL's losses: a row a loss and setting, with its equation and its gradient in loops, in float64.

The losses of ``cases.py`` take logits and labels; these take embeddings, queries and features, each its own. The laws
that all share run over these rows in ``test_vision_language.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import classbalance_losses
from classbalance_losses import functional

K, L, D, N = 4, 3, 5, 2
SIZE = (3, 4)
IGNORED = 255
Array = np.ndarray
Inputs = dict[str, Tensor]
Answer = tuple[float, dict[str, Array]]


@dataclass(frozen=True)
class Row:
    loss: str
    twin: str
    variant: str
    make: Callable[[], Inputs]
    reference: Callable[..., Answer]
    learnt: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return f"{self.loss}-{self.variant}"

    @property
    def function(self) -> Callable[..., Tensor]:
        return getattr(functional, self.twin)  # type: ignore[no-any-return]

    def module(self) -> nn.Module:
        return getattr(classbalance_losses, self.loss)(**self.settings)  # type: ignore[no-any-return]

    def inputs(self, dtype: torch.dtype = torch.float64) -> Inputs:
        torch.manual_seed(0)
        return {k: v.to(dtype) if v.is_floating_point() else v for k, v in self.make().items()}

    def __call__(self, inputs: Inputs, **over: Any) -> Tensor:
        return self.function(**inputs, **{**self.settings, **over})

    def leaves(self, dtype: torch.dtype = torch.float64) -> Inputs:
        made = self.inputs(dtype)
        return {k: v.requires_grad_() if k in self.learnt else v for k, v in made.items()}

    def gradients(self, inputs: Inputs, **over: Any) -> dict[str, Tensor]:
        """The gradient at each learnt argument."""
        value = self(inputs, **over)
        return dict(
            zip(self.learnt, torch.autograd.grad(value, [inputs[k] for k in self.learnt]), strict=True)
        )

    def expected(self, inputs: Inputs) -> Answer:
        return self.reference({k: v.detach().double().numpy() for k, v in inputs.items()}, **self.settings)


def unit(x: Array) -> Array:
    return x / np.linalg.norm(x)


def across(direction: Array, x: Array) -> Array:
    """What a gradient at x/‖x‖ is at x."""
    u = unit(x)
    return (direction - u * (u @ direction)) / np.linalg.norm(x)


def diversity(given: dict[str, Array], pairs: str = "ordered", reduction: str = "sum") -> Answer:
    images = given["queries"] if given["queries"].ndim == 4 else given["queries"][None]
    value, gradient = 0.0, np.zeros_like(images)
    _, classes, levels, _ = images.shape
    for n, image in enumerate(images):
        for k, queries in enumerate(image):
            for a in range(levels):
                for b in range(levels):
                    if a != b:
                        cosine = unit(queries[a]) @ unit(queries[b])
                        value += cosine**2
                        gradient[n, k, a] += 4 * across(cosine * unit(queries[b]), queries[a])
    scale = 1 / (classes * levels * (levels - 1)) if reduction == "mean" else 1 / (1 + (pairs == "unordered"))
    scale /= len(images)
    return value * scale, {"queries": gradient.reshape(given["queries"].shape) * scale}


def topology(given: dict[str, Array], reduction: str = "sum") -> Answer:
    text, fixed = given["text"], given["prototypes"]
    value, gradient = 0.0, np.zeros_like(text)
    for i in range(len(text)):
        for j in range(len(text)):
            gap = unit(text[i]) @ unit(text[j]) - unit(fixed[i]) @ unit(fixed[j])
            value += gap**2
            gradient[i] += 4 * across(gap * unit(text[j]), text[i])
    scale = 1 / (len(text) * (len(text) - 1)) if reduction == "mean" else 1
    return value * scale, {"text": gradient * scale}


def anchors(given: dict[str, Array], normalize: bool = True, reduction: str = "sum") -> Answer:
    raw, fixed = given["projected"], given["prototypes"]
    own = np.stack([unit(x) for x in raw]) if normalize else raw
    fixed = np.stack([unit(x) for x in fixed]) if normalize else fixed
    value, gradient = 0.0, np.zeros_like(raw)
    for k in range(len(own)):
        value += np.linalg.norm(own[k] - fixed[k])
        gradient[k] += unit(own[k] - fixed[k])
        for j in range(len(own)):
            if j != k:
                apart = np.linalg.norm(own[k] - own[j])
                value -= np.log(1 + apart)
                gradient[k] -= 2 * unit(own[k] - own[j]) / (1 + apart)
    if normalize:
        gradient = np.stack([across(g, x) for g, x in zip(gradient, raw, strict=True)])
    scale = 1 / len(own) if reduction == "mean" else 1
    return value * scale, {"projected": gradient * scale}


def prompt(given: dict[str, Array], normalize: bool = True, reduction: str = "sum") -> Answer:
    first, at_text = topology(given, reduction)
    second, at_projected = anchors(given, normalize, reduction)
    return first + second, {**at_text, **at_projected}


def pixels(given: dict[str, Array]) -> Iterator[tuple[int, ...]]:
    """The places of the region M."""
    first = next(iter(given.values()))
    region = given.get("mask", np.ones((first.shape[0], *first.shape[2:])))
    return (place for place in np.ndindex(region.shape) if region[place])


def masked(given: dict[str, Array], reduction: str = "mean") -> Answer:
    own, fixed = np.moveaxis(given["masked"], 1, -1), np.moveaxis(given["reference"], 1, -1)
    value, gradient, places = 0.0, np.zeros_like(own), list(pixels(given))
    for i in places:
        value += 1 - unit(own[i]) @ unit(fixed[i])
        gradient[i] = -across(unit(fixed[i]), own[i])
    scale = 1 / len(places) if reduction == "mean" else 1
    return value * scale, {"masked": np.moveaxis(gradient, -1, 1) * scale}


def alignment(
    given: dict[str, Array],
    temperature: float = 0.07,
    ignore_index: int = -100,
    reduction: str = "mean",
    name: str = "features",
) -> Answer:
    own, text, target = np.moveaxis(given[name], 1, -1), given["text"], given["target"].astype(int)
    value, gradient, at_text = 0.0, np.zeros_like(own), np.zeros_like(text)
    places = [i for i in pixels(given) if target[i] != ignore_index]
    for i in places:
        logits = np.array([unit(own[i]) @ unit(t) for t in text]) / temperature
        p = np.exp(logits - logits.max())
        p /= p.sum()
        value -= np.log(p[target[i]])
        error = (p - np.eye(len(text))[target[i]]) / temperature
        gradient[i] = across(sum(e * unit(t) for e, t in zip(error, text, strict=True)), own[i])
        at_text += np.stack([across(e * unit(own[i]), t) for e, t in zip(error, text, strict=True)])
    scale = 1 / len(places) if reduction == "mean" else 1
    return value * scale, {name: np.moveaxis(gradient, -1, 1) * scale, "text": at_text * scale}


def vision_language(given: dict[str, Array], mask_weight: float = 1.0, **options: Any) -> Answer:
    first, at = alignment(given, name="masked", **options)
    second, consistent = masked(given, options.get("reduction", "mean"))
    gradient = at["masked"] + mask_weight * consistent["masked"]
    return first + mask_weight * second, {"masked": gradient, "text": at["text"]}


def _queries(*shape: int) -> Callable[[], Inputs]:
    return lambda: {"queries": torch.randn(*shape, D)}


def _embeddings(**widths: int) -> Callable[[], Inputs]:
    return lambda: {name: torch.randn(K, width) for name, width in widths.items()}


def _region() -> Tensor:
    return torch.rand(N, *SIZE) < 0.6


def _labels() -> Tensor:
    labels = torch.randint(0, K, (N, *SIZE))
    labels[0, 0] = IGNORED
    return labels


def _maps(region: bool) -> Callable[[], Inputs]:
    def make() -> Inputs:
        maps = {name: torch.randn(N, D, *SIZE) for name in ("masked", "reference")}
        return {**maps, "mask": _region()} if region else maps

    return make


def _texts(region: bool) -> Callable[[], Inputs]:
    def make() -> Inputs:
        made = {"features": torch.randn(N, D, *SIZE), "text": torch.randn(K, D), "target": _labels()}
        return {**made, "mask": _region()} if region else made

    return make


def _both() -> Inputs:
    return {**_maps(True)(), "text": torch.randn(K, D), "target": _labels()}


def _rows() -> Iterator[Row]:
    one = Row(
        "QueryDiversityLoss", "query_diversity_loss", "default", _queries(K, L), diversity, ("queries",)
    )
    yield one
    yield replace(one, variant="batch-unordered", make=_queries(N, K, L), settings={"pairs": "unordered"})
    yield replace(one, variant="mean", make=_queries(N, K, L), settings={"reduction": "mean"})
    one = Row(
        "TopologyLoss", "topology_loss", "default", _embeddings(text=D, prototypes=D), topology, ("text",)
    )
    yield one
    widths = _embeddings(text=D, prototypes=D + 2)
    yield replace(one, variant="mean-other-width", make=widths, settings={"reduction": "mean"})
    made = _embeddings(projected=D, prototypes=D)
    one = Row("AnchorLoss", "anchor_loss", "default", made, anchors, ("projected",))
    yield one
    yield replace(one, variant="literal", settings={"normalize": False})
    yield replace(one, variant="mean", settings={"reduction": "mean"})
    made = _embeddings(text=D + 1, projected=D, prototypes=D)
    one = Row("PromptLoss", "prompt_loss", "default", made, prompt, ("text", "projected"))
    yield one
    yield replace(one, variant="literal-mean", settings={"normalize": False, "reduction": "mean"})
    one = Row("MaskedConsistencyLoss", "masked_consistency_loss", "default", _maps(True), masked, ("masked",))
    yield one
    yield replace(one, variant="everywhere-sum", make=_maps(False), settings={"reduction": "sum"})
    ignore = {"ignore_index": IGNORED}
    one = Row(
        *("TextAlignmentLoss", "text_alignment_loss", "default", _texts(True), alignment),
        ("features", "text"),
        ignore,
    )
    yield one
    options = {**ignore, "temperature": 0.5, "reduction": "sum"}
    yield replace(one, variant="everywhere-sum", make=_texts(False), settings=options)
    one = Row(
        *("VisionLanguageLoss", "vision_language_loss", "default", _both, vision_language),
        ("masked", "text"),
        ignore,
    )
    yield one
    yield replace(one, variant="general", settings={**options, "mask_weight": 0.25})


ROWS = list(_rows())
DEFAULTS = [row for row in ROWS if row.variant == "default"]  # one a loss
PIXELS = [row for row in DEFAULTS if "mask" in row.make()]


def over(rows: list[Row]) -> pytest.MarkDecorator:
    """Run a test once a row."""
    return pytest.mark.parametrize("row", rows, ids=lambda row: row.id)
