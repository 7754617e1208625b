"""Every loss again, in float64 and in plain loops over pixels, written to read like the papers' equations.

Nothing here is shared with the package: no torch, no log_softmax, no sorting, no scatter. Slow on purpose.

A loss is described by three things, which is all that the laws need:

* ``pixel[n, l]``: what ``reduction="none"`` must return; ``"sum"`` is its sum;
* ``pixel_grad[n, c, l]``: the gradient of that sum with respect to the logits, where selections and class weights are
  constants;
* ``scale``: ``"mean"`` is ``scale * sum``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Batch:
    """What a loss sees, with the spatial axes flattened into one: N images, C classes, L pixels an image."""

    logits: np.ndarray  # (N, C, L) float64
    target: np.ndarray  # (N, L) int
    ignore_index: int = -100
    pixel_weight: np.ndarray | None = None  # (N, L)
    features: np.ndarray | None = None  # (N, D, L): what enters the last layer

    @property
    def num_classes(self) -> int:
        return self.logits.shape[1]

    def pixels(self) -> Iterator[tuple[int, int, int]]:
        """(image, position, class) of every pixel that counts."""
        for n in range(self.target.shape[0]):
            for i in range(self.target.shape[1]):
                if self.target[n, i] != self.ignore_index:
                    yield n, i, int(self.target[n, i])

    def q(self, n: int, i: int) -> float:
        return 1.0 if self.pixel_weight is None else float(self.pixel_weight[n, i])

    def class_counts(self) -> list[int]:
        counts = [0] * self.num_classes
        for _, _, y in self.pixels():
            counts[y] += 1
        return counts


@dataclass
class Result:
    pixel: np.ndarray
    pixel_grad: np.ndarray
    scale: float = 1.0
    notes: dict[str, list[float]] = field(default_factory=dict)

    @property
    def sum(self) -> float:
        return float(self.pixel.sum())

    @property
    def mean(self) -> float:
        return self.scale * self.sum

    @property
    def mean_grad(self) -> np.ndarray:
        return self.scale * self.pixel_grad


def _empty(batch: Batch) -> Result:
    return Result(np.zeros(batch.target.shape), np.zeros(batch.logits.shape))


def log_softmax(z: Sequence[float]) -> list[float]:
    top = max(z)
    log_sum = top + math.log(math.fsum(math.exp(v - top) for v in z))
    return [v - log_sum for v in z]


def softmax(z: Sequence[float]) -> list[float]:
    return [math.exp(v) for v in log_softmax(z)]


def cross_entropy(z: Sequence[float], y: int) -> float:
    """log(1 + e^g), where g is how much the others together are above y."""
    others = [v for k, v in enumerate(z) if k != y]
    g = max(others) - z[y] + math.log(math.fsum(math.exp(v - max(others)) for v in others))
    return max(g, 0.0) + math.log1p(math.exp(-abs(g)))


def through_softmax(p: Sequence[float], a: Sequence[float]) -> list[float]:
    """dL/dz_k = p_k (a_k - sum_j p_j a_j), where a = dL/dp.

    As sum_j p_j = 1, that is p_k sum_j p_j (a_k - a_j), which does not cancel where some a is huge and its p tiny.
    """
    pairs = list(zip(p, a, strict=True))
    return [pk * math.fsum(pj * (ak - aj) for pj, aj in pairs) for pk, ak in pairs]


def _one_hot(k: int, y: int) -> float:
    return 1.0 if k == y else 0.0


def _share(k: int, y: int, smoothing: float, classes: int) -> float:
    return (1 - smoothing) * _one_hot(k, y) + smoothing / classes


def smooth_cross_entropy(z: Sequence[float], y: int, smoothing: float) -> float:
    if not smoothing:  # of a thousand classes each is a sum of a thousand
        return cross_entropy(z, y)
    each = [cross_entropy(z, k) for k in range(len(z))]
    return (1 - smoothing) * each[y] + smoothing * math.fsum(each) / len(z)


def _inverse(x: float) -> float:
    return 1.0 / x if x else 0.0


# Weighted cross-entropy ---------------------------------------------------------------------------------------------


def weighted_cross_entropy(
    batch: Batch,
    *,
    weight: Sequence[float] | None = None,
    normalize: str = "weights",
    label_smoothing: float = 0.0,
) -> Result:
    classes = batch.num_classes
    w = [1.0] * classes if weight is None else [float(x) for x in weight]
    eps = label_smoothing
    out = _empty(batch)
    for n, i, y in batch.pixels():
        log_p = log_softmax(batch.logits[n, :, i])
        soft = [(1 - eps) * _one_hot(k, y) + eps / classes for k in range(classes)]
        out.pixel[n, i] = -batch.q(n, i) * math.fsum(soft[k] * w[k] * log_p[k] for k in range(classes))
        total = math.fsum(soft[k] * w[k] for k in range(classes))
        for k in range(classes):
            out.pixel_grad[n, k, i] = batch.q(n, i) * (total * math.exp(log_p[k]) - soft[k] * w[k])
    valid = list(batch.pixels())
    z = math.fsum(w[y] for _, _, y in valid) if normalize == "weights" else float(len(valid))
    out.scale = _inverse(z)
    return out


def logit_adjusted(batch: Batch, *, prior: Sequence[float], tau: float = 1.0) -> Result:
    """Cross-entropy of logits to which the logarithms of the classes' shares are added."""
    bias = [tau * math.log(x / math.fsum(prior)) for x in prior]
    shifted = batch.logits + np.array(bias)[None, :, None]
    return weighted_cross_entropy(replace(batch, logits=shifted))


def smoothed(reference: Callable[..., Result]) -> Callable[..., Result]:
    """A loss of pixels alone with label smoothing: (1 - eps) of the label's loss, eps of the mean of all classes'."""

    def mixed(batch: Batch, *, label_smoothing: float, **settings: Any) -> Result:
        out = reference(batch, **settings)
        valid = batch.target != batch.ignore_index
        shares = [(1 - label_smoothing, out)]
        for c in range(batch.num_classes):
            # the ignored class has a share, too
            as_label = replace(batch, target=np.where(valid, c, -1), ignore_index=-1)
            shares.append((label_smoothing / batch.num_classes, reference(as_label, **settings)))
        pixel, gradient = np.zeros_like(out.pixel), np.zeros_like(out.pixel_grad)
        for share, result in shares:
            pixel += share * result.pixel
            gradient += share * result.pixel_grad
        return Result(pixel, gradient, out.scale)

    return mixed


# Focal --------------------------------------------------------------------------------------------------------------


def focal(batch: Batch, *, gamma: float = 2.0, alpha: float | Sequence[float] | None = None) -> Result:
    out = _empty(batch)
    valid = 0
    for n, i, y in batch.pixels():
        a = 1.0 if alpha is None else float(alpha) if np.ndim(alpha) == 0 else float(alpha[y])
        p = softmax(batch.logits[n, :, i])
        log_p = log_softmax(batch.logits[n, :, i])[y]
        miss = math.fsum(p[k] for k in range(len(p)) if k != y)  # 1 - p_y, without cancellation
        out.pixel[n, i] = -batch.q(n, i) * a * miss**gamma * log_p
        slope = miss**gamma - (gamma * p[y] * miss ** (gamma - 1) * log_p if gamma and miss else 0.0)
        for k in range(len(p)):
            away = p[k] if k != y else -miss
            out.pixel_grad[n, k, i] = batch.q(n, i) * a * slope * away
        valid += 1
    out.scale = _inverse(valid)
    return out


# Dual focal (Hossain 2021) and dual cross-entropy (Li 2019) ----------------------------------------------------------


def dual_focal(
    batch: Batch, *, alpha: float = 1.0, beta: float = 1.0, gamma: float = 1.0, rho: float = 1.0
) -> Result:
    out = _empty(batch)
    valid = 0
    for n, i, y in batch.pixels():
        p = softmax(batch.logits[n, :, i])
        others = [j for j in range(len(p)) if j != y]
        left = {
            k: rho - 1 + math.fsum(p[j] for j in range(len(p)) if j != k) for k in range(len(p))
        }  # rho - p_k
        miss = math.fsum(p[j] for j in others)
        value = -log_softmax(batch.logits[n, :, i])[y]
        value -= beta * math.fsum(math.log(left[j]) for j in others) if beta else 0.0
        value += alpha * (miss**gamma + math.fsum(p[j] ** gamma for j in others)) if alpha else 0.0
        slope = [
            beta / left[j] + (alpha * gamma * p[j] ** (gamma - 1) if alpha else 0.0) for j in range(len(p))
        ]
        slope[y] = -1 / p[y] - (alpha * gamma * miss ** (gamma - 1) if alpha else 0.0)
        out.pixel[n, i] = batch.q(n, i) * value
        out.pixel_grad[n, :, i] = [batch.q(n, i) * g for g in through_softmax(p, slope)]
        valid += 1
    out.scale = _inverse(valid)
    return out


def dual_cross_entropy(batch: Batch, *, alpha: float = 1.0, beta: float = 4.5) -> Result:
    out = _empty(batch)
    valid = 0
    for n, i, y in batch.pixels():
        p = softmax(batch.logits[n, :, i])
        others = [j for j in range(len(p)) if j != y]
        value = cross_entropy(batch.logits[n, :, i], y) + beta * math.fsum(
            math.log(alpha + p[j]) for j in others
        )
        slope = [-1 / p[y] if k == y else beta / (alpha + p[k]) for k in range(len(p))]
        out.pixel[n, i] = batch.q(n, i) * value
        out.pixel_grad[n, :, i] = [batch.q(n, i) * g for g in through_softmax(p, slope)]
        valid += 1
    out.scale = _inverse(valid)
    return out


# DyCE ---------------------------------------------------------------------------------------------------------------


def hardest(losses: Sequence[float], *, fraction: float, min_kept: int = 1) -> list[float]:
    """h: 1 above the k-th largest loss, k = max(min_kept, floor(fraction * n)); those that equal it share the rest."""
    k = min(max(min_kept, math.floor(fraction * len(losses))), len(losses))
    if k == 0:
        return [0.0] * len(losses)
    threshold = sorted(losses, reverse=True)[k - 1]
    rest = k - sum(1 for loss in losses if loss > threshold)
    share = rest / sum(1 for loss in losses if loss == threshold)
    return [1.0 if loss > threshold else share if loss == threshold else 0.0 for loss in losses]


def dyce(
    batch: Batch,
    *,
    omega: float = 0.5,
    hard_fraction: float = 0.2,
    scope: str = "batch",
    min_kept: int = 1,
    normalize: str = "paper",
    label_smoothing: float = 0.0,
) -> Result:
    out = _empty(batch)
    valid = [(n, i, y) for n, i, y in batch.pixels() if batch.q(n, i) != 0]
    groups = (
        [valid]
        if scope == "batch"
        else [[v for v in valid if v[0] == n] for n in range(batch.target.shape[0])]
    )
    hard = []
    for group in groups:
        losses = [smooth_cross_entropy(batch.logits[n, :, i], y, label_smoothing) for n, i, y in group]
        shares = hardest(losses, fraction=hard_fraction, min_kept=min_kept)
        hard += [(*pixel, h) for pixel, h in zip(group, shares, strict=True) if h]
    f = [math.fsum(h for _, _, y, h in hard if y == c) for c in range(batch.num_classes)]
    for n, i, y, h in hard:
        p = softmax(batch.logits[n, :, i])
        w = h * batch.q(n, i) * f[y] ** (omega - 1)
        out.pixel[n, i] = w * smooth_cross_entropy(batch.logits[n, :, i], y, label_smoothing)
        for k in range(batch.num_classes):
            out.pixel_grad[n, k, i] = w * (p[k] - _share(k, y, label_smoothing, len(p)))
    if normalize == "paper":
        out.scale = math.fsum(f) ** -omega if hard else 0.0
    else:
        out.scale = _inverse(math.fsum(h * f[y] ** (omega - 1) for _, _, y, h in hard))
    return out


# GBW ----------------------------------------------------------------------------------------------------------------


def class_gradient_norms(batch: Batch, *, gradient: str = "pixel_mean") -> list[float]:
    """g_c, the squared norm of the gradient of class c's mean loss, in each of the readings."""
    classes = range(batch.num_classes)
    count = batch.class_counts()
    if gradient == "official":
        g = [0.0 for _ in classes]
        for n, i, y in batch.pixels():
            p = softmax(batch.logits[n, :, i])
            for k in classes:
                g[k] += (p[k] - _one_hot(k, y)) ** 2 / (count[y] + 1) ** 2
        return g
    return [_class_gradient_norm(batch, c, count[c], gradient) if count[c] else 0.0 for c in classes]


def _class_gradient_norm(batch: Batch, c: int, count: int, gradient: str) -> float:
    own = [(n, i) for n, i, y in batch.pixels() if y == c]
    errors = []  # q_i (p_i - e_c)
    for n, i in own:
        p = softmax(batch.logits[n, :, i])
        errors.append([batch.q(n, i) * (p[k] - _one_hot(k, c)) for k in range(batch.num_classes)])
    if gradient == "loss":
        return math.fsum(batch.q(n, i) * cross_entropy(batch.logits[n, :, i], c) for n, i in own) / count
    squares = math.fsum(e * e for error in errors for e in error)
    if gradient == "pixel_mean":
        return squares / count
    if gradient == "class_logits":
        return squares / count**2
    if gradient == "bias":
        mean = [math.fsum(error[k] for error in errors) / count for k in range(batch.num_classes)]
        return math.fsum(m * m for m in mean)
    if gradient == "last_layer_weight" and batch.features is not None:
        matrix = np.zeros((batch.num_classes, batch.features.shape[1]))
        for (n, i), error in zip(own, errors, strict=True):
            matrix += np.outer(error, batch.features[n, :, i]) / count
        return float((matrix**2).sum())
    raise ValueError(gradient)


def project(u: Sequence[float], total: float) -> list[float]:
    """The point of {v >= 0, sum v = total} that is nearest to u: v_c = max(0, u_c - tau), tau by bisection."""
    if not u:
        return []
    low, high = min(u) - total, max(u)  # the sum is at least total at low and 0 at high
    for _ in range(300):
        tau = (low + high) / 2
        if math.fsum(max(0.0, x - tau) for x in u) >= total:
            low = tau
        else:
            high = tau
    return [max(0.0, x - low) for x in u]


def solve_class_weights(g: Sequence[float], *, regularization: float, total: float) -> list[float]:
    """argmin_v  -g.v + lambda ||v||^2  on the simplex: the projection of g / (2 lambda)."""
    if math.isinf(regularization):
        return [total / len(g)] * len(g) if len(g) else []
    return project([x / (2 * regularization) for x in g], total)


def gbw_class_weights(
    batch: Batch, *, regularization: float = 1.0, gradient: str = "pixel_mean", classes: str = "all"
) -> list[float]:
    g = class_gradient_norms(batch, gradient=gradient)
    if classes == "all":
        return solve_class_weights(g, regularization=regularization, total=len(g))
    count = batch.class_counts()
    present = [c for c in range(len(g)) if count[c]]
    solved = solve_class_weights([g[c] for c in present], regularization=regularization, total=len(present))
    v = [1.0] * len(g)
    for c, x in zip(present, solved, strict=True):
        v[c] = x
    return v


def gbw(
    batch: Batch,
    *,
    regularization: float = 1.0,
    gradient: str = "pixel_mean",
    classes: str = "all",
    apply: str = "pixel",
    solver: str = "projection",
    label_smoothing: float = 0.0,
) -> Result:
    v = gbw_class_weights(batch, regularization=regularization, gradient=gradient, classes=classes)
    count = batch.class_counts()
    out = _empty(batch)
    for n, i, y in batch.pixels():
        p = softmax(batch.logits[n, :, i])
        w = batch.q(n, i) * v[y] / (count[y] if apply == "class" else 1)
        out.pixel[n, i] = w * smooth_cross_entropy(batch.logits[n, :, i], y, label_smoothing)
        for k in range(batch.num_classes):
            out.pixel_grad[n, k, i] = w * (p[k] - _share(k, y, label_smoothing, len(p)))
    out.scale = _inverse(sum(count)) if apply == "pixel" else 1.0
    out.notes["class_weight"] = v
    return out
