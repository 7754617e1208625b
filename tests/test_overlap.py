"""Overlap losses against plain loops, MONAI's, and what mathematics says of empty and perfect overlaps."""

from __future__ import annotations

import math
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import close
from torch import Tensor

from classbalance_losses import DiceLoss, JaccardLoss, TverskyLoss, functional, use_backend

C = 4


def problem(
    shape: tuple[int, ...] = (3, 5, 4), seed: int = 0, absent: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, labels of which some are ignored and class 2 is in no image, or not in the first; weights."""
    draw = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(shape[0], C, *shape[1:], generator=draw, dtype=torch.float64)
    target = torch.randint(C, shape, generator=draw)
    target[target == 2] = 3
    if not absent:
        target[1:, 0] = 2
    weight = (torch.rand(shape, generator=draw, dtype=torch.float64) * 4).round() / 2
    return logits, target.masked_fill(torch.rand(shape, generator=draw) < 0.2, 255), weight


def loops(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    *,
    alpha: float = 0.5,
    beta: float = 0.5,
    gamma: float = 1.0,
    smooth: float = 0.0,
    per_image: bool = False,
    classes: str = "present",
    include_background: bool = True,
    class_weight: list[float] | None = None,
    generalized: str | None = None,
) -> float:
    """The equation, pixel by pixel."""
    prob = logits.softmax(1).flatten(2).tolist()
    labels = target.flatten(1).tolist()
    q = None if weight is None else weight.flatten(1).tolist()
    sums = []
    for n, row in enumerate(labels):
        i, p, m, seen = ([0.0] * C for _ in range(4))
        for at, y in enumerate(row):
            if y == 255:
                continue
            w = 1.0 if q is None else q[n][at]
            for c in range(C):
                p[c] += w * prob[n][c][at]
            i[y] += w * prob[n][y][at]
            m[y] += w
            seen[y] += 1
        sums.append((i, p, m, seen))
    if not per_image:
        sums = [tuple([math.fsum(s[k][c] for s in sums) for c in range(C)] for k in range(4))]
    losses = []
    for i, p, m, seen in sums:
        chosen = [c for c in range(0 if include_background else 1, C) if classes == "all" or seen[c]]
        union = [i[c] + alpha * (p[c] - i[c]) + beta * (m[c] - i[c]) for c in range(C)]
        if generalized is not None:
            power = {"inverse": 1, "inverse_square": 2}[generalized]
            chosen = [c for c in range(0 if include_background else 1, C) if seen[c]]
            v = [m[c] ** -power if m[c] else 1.0 for c in range(C)]
            top = math.fsum(v[c] * i[c] for c in chosen) + smooth
            low = math.fsum(v[c] * union[c] for c in chosen) + smooth
            losses.append(((1 - top / low) ** gamma if low else 0.0, 1.0))
            continue
        w = [1.0] * C if class_weight is None else class_weight
        each = [
            w[c] * ((1 - (i[c] + smooth) / (union[c] + smooth)) ** gamma if union[c] + smooth else 0.0)
            for c in chosen
        ]
        total = math.fsum(w[c] for c in chosen)
        losses.append((math.fsum(each) / total if total else 0.0, total))
    counted = [loss for loss, total in losses if total]
    return math.fsum(counted) / max(len(counted), 1)


SETTINGS: dict[str, dict[str, Any]] = {
    "dice": {},
    "jaccard": {"alpha": 1.0, "beta": 1.0},
    "tversky": {"alpha": 0.3, "beta": 0.7, "smooth": 1.0},
    "focal": {"alpha": 0.3, "beta": 0.7, "gamma": 0.75},
    "per image": {"per_image": True},
    "all classes": {"classes": "all", "per_image": True, "smooth": 0.5},
    "foreground": {"include_background": False},
    "weighted": {"class_weight": [0.5, 1.0, 2.0, 0.0]},
    "generalized": {"generalized": "inverse_square"},
    "generalized, per image": {"generalized": "inverse", "per_image": True, "include_background": False},
}


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("name", SETTINGS)
def test_values_are_the_equations(name: str, backend: str) -> None:
    for absent, weighted in product((False, True), (False, True)):
        logits, target, q = problem(absent=absent)
        weight = q if weighted else None
        dtype = torch.float64 if backend == "reference" else torch.float32
        with use_backend(backend):
            got = functional.tversky_loss(
                logits.to(dtype),
                target,
                pixel_weight=None if weight is None else weight.to(dtype),
                ignore_index=255,
                **SETTINGS[name],
            )
        expected = loops(logits, target, weight, **SETTINGS[name])
        close(got, expected, **({} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-6}))


@pytest.mark.parametrize("name", SETTINGS)
def test_gradients_are_true(name: str) -> None:
    logits, target, weight = problem((2, 3), absent=False)
    loss = TverskyLoss(ignore_index=255, **SETTINGS[name])
    leaf = logits.requires_grad_()
    assert torch.autograd.gradcheck(partial(loss, target=target, pixel_weight=weight), leaf)
    assert torch.autograd.gradgradcheck(partial(loss, target=target, pixel_weight=weight), leaf)


@pytest.mark.parametrize("name", SETTINGS)
def test_loops_have_the_references_gradient(name: str) -> None:
    logits, target, weight = problem()
    found = []
    for backend, dtype in (("reference", torch.float64), ("cpu", torch.float32)):
        leaf = logits.to(dtype).requires_grad_()
        with use_backend(backend):
            loss = functional.tversky_loss(
                leaf, target, pixel_weight=weight.to(dtype), ignore_index=255, **SETTINGS[name]
            )
        found.append(torch.autograd.grad(loss, leaf)[0].double())
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)


def test_names() -> None:
    logits, target, _ = problem()
    for loss, function, alpha in (
        (DiceLoss, functional.dice_loss, 0.5),
        (JaccardLoss, functional.jaccard_loss, 1.0),
    ):
        expected = functional.tversky_loss(logits, target, alpha=alpha, beta=alpha, ignore_index=255)
        assert loss(ignore_index=255)(logits, target) == expected
        assert function(logits, target, ignore_index=255) == expected


@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("classes", ["present", "all"])
@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("generalized", [None, "inverse"])
def test_where_nothing_counts_the_loss_is_0_in_the_graph(
    per_image: bool, classes: str, gamma: float, generalized: str | None
) -> None:
    loss = TverskyLoss(
        per_image=per_image, classes=classes, gamma=gamma, generalized=generalized, ignore_index=255
    )
    for size in ((2, 3), (0, 3), (2, 0)):
        logits = torch.full((size[0], C, *size[1:]), torch.nan).requires_grad_()
        value = loss(logits, torch.full(size, 255))
        assert value == 0
        (gradient,) = torch.autograd.grad(value, logits)
        assert torch.equal(gradient, torch.zeros_like(logits))


def test_an_image_of_one_class_alone() -> None:
    """Of "all" classes, absent ones cost 1 each; of those present, the one is all but perfect."""
    logits = 50 * F.one_hot(torch.zeros(1, 6, dtype=torch.int64), C).movedim(-1, 1).double()
    target = torch.zeros(1, 6, dtype=torch.int64)
    close(DiceLoss()(logits, target), 0.0, atol=1e-20)
    close(DiceLoss(classes="all")(logits, target), 3 / 4)


@pytest.mark.parametrize("gamma", [0.5, 0.75, 2.0])
def test_a_perfect_overlap_has_a_finite_gradient(gamma: float) -> None:
    target = torch.arange(C).view(1, C)
    logits = (1000 * F.one_hot(target, C).movedim(-1, 1).double()).requires_grad_()
    value = TverskyLoss(gamma=gamma)(logits, target)
    assert value == 0
    assert torch.autograd.grad(value, logits)[0].isfinite().all()


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_a_nan_is_not_hidden(gamma: float) -> None:
    logits, target, _ = problem()
    logits[0, 1, 2, 3] = torch.nan
    target[0, 2, 3] = 0
    assert TverskyLoss(gamma=gamma, ignore_index=255)(logits, target).isnan()


OF_LABELS = [
    (name, task)
    for name, settings in SETTINGS.items()
    for task in ("binary", "multilabel")
    if "class_weight" not in settings
    and not (settings.get("generalized") and task == "multilabel")  # one ratio of all labels
]


@pytest.mark.parametrize(("name", "task"), OF_LABELS)
def test_labels_have_the_overlap_of_what_is_present(name: str, task: str) -> None:
    """One logit is the second of two, whose background is left out."""
    draw = torch.Generator().manual_seed(0)
    labels = 1 if task == "binary" else 3
    logits = torch.randn(2, labels, 5, 4, generator=draw, dtype=torch.float64)
    target = (torch.rand(logits.shape, generator=draw) < 0.4).long()
    settings = {**SETTINGS[name], "reduction": "none"}
    got = functional.tversky_loss(logits, target, task=task, **settings)
    each = []
    for label in range(labels):
        z = logits[:, label : label + 1]
        pair = torch.cat([torch.zeros_like(z), z], 1)
        each.append(
            functional.tversky_loss(pair, target[:, label], **{**settings, "include_background": False})
        )
    close(got, torch.cat(each, -1))


@pytest.mark.parametrize("name", SETTINGS)
def test_one_hot_shares_are_indices(name: str) -> None:
    logits, target, weight = problem()
    shares = F.one_hot(target.masked_fill(target == 255, 0), C).movedim(-1, 1).double()
    shares = shares.masked_fill((target == 255).unsqueeze(1), torch.nan)
    options = {**SETTINGS[name], "pixel_weight": weight}
    expected = functional.tversky_loss(logits, target, ignore_index=255, **options)
    close(functional.tversky_loss(logits, shares, **options), expected)


def test_reductions() -> None:
    logits, target, _ = problem()
    for per_image in (False, True):
        make = partial(DiceLoss, per_image=per_image, ignore_index=255)
        each = make(reduction="none")(logits, target)
        assert each.shape == ((3, C) if per_image else (C,))
        close(make(reduction="sum")(logits, target), each.sum())
    close(DiceLoss(ignore_index=255)(logits, target), each.new_tensor(loops(logits, target, None)))


def test_monai() -> None:
    """Where settings agree: its Dice and Tversky of each image and class, without what is absent, are ours."""
    losses = pytest.importorskip("monai.losses")
    logits = torch.randn(2, C, 6, 5, dtype=torch.float64)
    target = torch.arange(60).view(2, 6, 5) % C
    hot = F.one_hot(target, C).movedim(-1, 1)
    theirs = losses.DiceLoss(softmax=True, smooth_nr=2e-5, smooth_dr=2e-5)(logits, hot)
    close(DiceLoss(per_image=True, smooth=1e-5)(logits, target), theirs)
    theirs = losses.DiceLoss(softmax=True, batch=True, include_background=False, smooth_nr=0, smooth_dr=0)(
        logits, hot
    )
    close(DiceLoss(include_background=False)(logits, target), theirs)
    theirs = losses.DiceLoss(softmax=True, jaccard=True, batch=True, smooth_nr=0, smooth_dr=0)(logits, hot)
    close(JaccardLoss()(logits, target), theirs)
    theirs = losses.TverskyLoss(softmax=True, alpha=0.3, beta=0.7, smooth_nr=1.0, smooth_dr=1.0)(logits, hot)
    close(TverskyLoss(alpha=0.3, beta=0.7, smooth=1.0, per_image=True)(logits, target), theirs)
    for w_type, ours in (("simple", "inverse"), ("square", "inverse_square")):
        loss = losses.GeneralizedDiceLoss(softmax=True, batch=True, w_type=w_type, smooth_nr=0, smooth_dr=0)
        close(DiceLoss(generalized=ours)(logits, target), loss(logits, hot))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"alpha": -1.0}, "alpha"),
        ({"alpha": 0.0, "beta": 0.0}, "alpha \\+ beta"),
        ({"gamma": 0.0}, "gamma"),
        ({"smooth": -1.0}, "smooth"),
        ({"classes": "some"}, "classes"),
        ({"generalized": "cube"}, "generalized"),
        ({"class_weight": [1.0, -1.0, 1.0, 1.0]}, "non-negative class_weight"),
        ({"task": "segmentation"}, "task"),
    ],
)
def test_options_are_checked(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TverskyLoss(**options)
    with pytest.raises(ValueError, match=words):
        functional.tversky_loss(*problem()[:2], ignore_index=255, **options)
