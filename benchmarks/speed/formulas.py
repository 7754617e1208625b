"""The truth of each job, written from its equation in a few lines; the engine gives it float64.

They are independent of the library's code. Weights that an equation treats as constants are detached.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.speed.inputs import (
    ALPHA,
    HARD,
    IGNORE_INDEX,
    SMOOTHING,
    Aligned,
    Head,
    Losses,
    Norms,
    Pixels,
    Texts,
    Vectors,
)

TEMPERATURE = 0.2
ALIGNMENT_TEMPERATURE = 0.07


def full_size(problem: Pixels) -> Tensor:
    """The logits at the labels' size."""
    if problem.size is None:
        return problem.input
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(problem.size)]
    return F.interpolate(problem.input, size=problem.size, mode=mode, align_corners=False)


def pixel_losses(problem: Pixels) -> Tensor:
    """ℓ, 0 where ignored."""
    return F.cross_entropy(full_size(problem), problem.target, ignore_index=IGNORE_INDEX, reduction="none")


def cross_entropy(problem: Pixels) -> Tensor:
    """Mean of ℓ."""
    return pixel_losses(problem).sum() / problem.valid


def smoothed_cross_entropy(problem: Pixels) -> Tensor:
    """Mean of (1 − ε) ℓ + ε/C Σ_k −log p_k."""
    spread = -full_size(problem).log_softmax(1).mean(1) * (problem.target != IGNORE_INDEX)
    terms = (1 - SMOOTHING) * pixel_losses(problem) + SMOOTHING * spread
    return terms.sum() / problem.valid


def focal(problem: Pixels) -> Tensor:
    """Mean of (1 − p)² ℓ."""
    loss = pixel_losses(problem)
    return ((1 - torch.exp(-loss)).square() * loss).sum() / problem.valid


def dual_focal(problem: Pixels) -> Tensor:
    """Mean of ℓ − Σ_{j≠y} log(1 − p_j) + 2 (1 − p_y)."""
    prob, picked, valid = _probabilities(problem)
    others = torch.log1p(-prob).sum(1) - torch.log1p(-picked)
    return ((-picked.log() - others + 2 * (1 - picked)) * valid).sum() / problem.valid


def dual_cross_entropy(problem: Pixels) -> Tensor:
    """Mean of ℓ + 4.5 Σ_{j≠y} log(1 + p_j)."""
    prob, picked, valid = _probabilities(problem)
    others = torch.log1p(prob).sum(1) - torch.log1p(picked)
    return ((-picked.log() + 4.5 * others) * valid).sum() / problem.valid


def hardest(problem: Pixels) -> Tensor:
    """Mean of ℓ over the hardest fifth."""
    loss = pixel_losses(problem)
    hard = _hard(loss.detach(), problem)
    return (loss * hard).sum() / hard.sum()


def dyce(problem: Pixels) -> Tensor:
    """Σ_c f_c^(ω−1) Σ_{i∈H, y=c} ℓ_i / f_H^ω with ω = 1/2."""
    loss = pixel_losses(problem)
    hard = _hard(loss.detach(), problem)
    count = _counts(problem, hard)
    weight = torch.where(count > 0, count.rsqrt(), 0)[_index(problem)]
    return (loss * weight * hard).sum() / hard.sum().sqrt()


def gbw(problem: Pixels) -> Tensor:
    """Mean of v_y ℓ, v from g_c, the class's mean of ‖p − e_y‖²; λ = 1."""
    with torch.no_grad():
        prob, picked, valid = _probabilities(problem)
        squared = (prob.square().sum(1) - 2 * picked + 1) * valid
        count = _counts(problem, valid)
        norms = torch.zeros_like(count).scatter_add_(0, _index(problem).flatten(), squared.flatten())
        weight = simplex(norms / count.clamp(min=1) / 2)
    return _weighted(problem, weight)


def gbw_as_released(problem: Pixels) -> Tensor:
    """The same with g_c = Σ_i (p − e_y)_c² / (n_y + 1)²."""
    with torch.no_grad():
        prob, _, valid = _probabilities(problem)
        index = _index(problem)
        error = prob.scatter_add_(1, index.unsqueeze(1), -torch.ones_like(prob[:, :1]))
        scale = valid / (_counts(problem, valid)[index] + 1)
        norms = (error * scale.unsqueeze(1)).square().transpose(0, 1).flatten(1).sum(1)
        weight = simplex(norms / 2)
    return _weighted(problem, weight)


def dice(problem: Pixels) -> Tensor:
    """Mean over the classes of 1 − 2 I_c / (P_c + n_c)."""
    return _class_dice(problem).mean()


def soft_cross_entropy(problem: Pixels) -> Tensor:
    """Mean of Σ_k −t_k log p_k."""
    return -(problem.target * problem.input.log_softmax(1)).sum() / problem.valid


def binary_focal(problem: Pixels) -> Tensor:
    """Mean of α (1 − p)² ℓ for the object, (1 − α) (1 − p)² ℓ for the rest."""
    loss = pixel_losses(_two_classes(problem))
    weight = torch.where(problem.target == 1, ALPHA, 1 - ALPHA)
    return (weight * (1 - torch.exp(-loss)).square() * loss).mean()


def binary_dice(problem: Pixels) -> Tensor:
    """1 − 2 I / (P + n) of the object."""
    return _class_dice(_two_classes(problem))[1]


def of_two_classes(formula: Callable[[Pixels], Tensor]) -> Callable[[Pixels], Tensor]:
    """The formula of one logit z a pixel: a sigmoid of z is the softmax of −z/2 and z/2."""
    return lambda problem: formula(_two_classes(problem))


def added(*formulas: Callable[[Pixels], Tensor]) -> Callable[[Pixels], Tensor]:
    """The sum of the formulas."""
    return lambda problem: torch.stack([formula(problem) for formula in formulas]).sum()


def head_cross_entropy(problem: Head) -> Tensor:
    """Cross-entropy of a 1×1 convolution's output."""
    logits = F.conv2d(problem.features, problem.weight[:, :, None, None])
    return F.cross_entropy(logits, problem.target, ignore_index=IGNORE_INDEX)


def entropy(problem: Pixels) -> Tensor:
    """Mean of −Σ p log p."""
    log_p = problem.input.log_softmax(1)
    return -(log_p.exp() * log_p).sum(1).mean()


def pull_infonce(problem: Vectors) -> Tensor:
    """(1/C) Σ_c w_c mean_{y=c} −log(e^{q·k⁺/τ} / (e^{q·k⁺/τ} + Σ e^{q·k⁻/τ})), a class at a time."""
    query, keys = (F.normalize(x, dim=1) for x in (problem.queries, problem.prototypes))
    negatives = F.normalize(problem.negatives, dim=2)
    total = query.sum() * 0
    for c, key in enumerate(keys):
        mine = query[problem.labels == c]
        if len(mine):
            logits = torch.cat([mine @ key[:, None], mine @ negatives[c].T], dim=1) / TEMPERATURE
            target = torch.zeros(len(mine), dtype=torch.int64, device=mine.device)
            total = total + problem.class_weight[c] * F.cross_entropy(logits, target)
    return total / len(keys)


def pull_mse(problem: Vectors) -> Tensor:
    """(1/C) Σ_c w_c mean_{y=c} ‖q − k⁺‖²."""
    query, keys = (F.normalize(x, dim=1) for x in (problem.queries, problem.prototypes))
    total = query.sum() * 0
    for c, key in enumerate(keys):
        mine = query[problem.labels == c]
        if len(mine):
            total = total + problem.class_weight[c] * (mine - key).square().sum(1).mean()
    return total / len(keys)


def query_diversity(problem: Texts) -> Tensor:
    """Σ_k Σ_{l≠l'} cos²."""
    unit = F.normalize(problem.queries, dim=2)
    own = torch.eye(unit.shape[1], dtype=unit.dtype, device=unit.device)
    return (torch.einsum("kld,kmd->klm", unit, unit) - own).square().sum()


def topology(problem: Texts) -> Tensor:
    """‖G − G^C‖², the cosines of the learnt and of the frozen embeddings."""
    own, fixed = (F.normalize(x, dim=1) for x in (problem.text, problem.prototypes))
    return (own @ own.T - fixed @ fixed.T).square().sum()


def anchors(problem: Texts) -> Tensor:
    """Σ_k ‖Φ_k − t_k‖ − 2 Σ_{j<k} log(1 + ‖Φ_k − Φ_j‖)."""
    own, fixed = (F.normalize(x, dim=1) for x in (problem.projected, problem.prototypes))
    return torch.linalg.vector_norm(own - fixed, dim=1).sum() - 2 * F.pdist(own).log1p().sum()


def prompt(problem: Texts) -> Tensor:
    """Topology and anchors."""
    return topology(problem) + anchors(problem)


def masked_consistency(problem: Aligned) -> Tensor:
    """Mean of 1 − cos over the region."""
    cosine = F.cosine_similarity(problem.masked, problem.reference, dim=1)
    return 1 - (cosine * problem.mask).sum() / problem.mask.sum()


def text_alignment(problem: Aligned) -> Tensor:
    """Cross-entropy of the cosines over τ, over the labelled pixels of the region."""
    pixels, names = F.normalize(problem.masked, dim=1), F.normalize(problem.text, dim=1)
    logits = torch.einsum("nd...,kd->nk...", pixels, names) / ALIGNMENT_TEMPERATURE
    target = torch.where(problem.mask, problem.target, IGNORE_INDEX)
    return F.cross_entropy(logits, target, ignore_index=IGNORE_INDEX)


def vision_language(problem: Aligned) -> Tensor:
    """Alignment and consistency."""
    return text_alignment(problem) + masked_consistency(problem)


def hard_mask(problem: Losses) -> Tensor:
    """Every kept loss that is at least the k-th largest kept one."""
    kept = problem.loss[problem.keep]
    return problem.keep & (problem.loss >= kept.sort(descending=True).values[problem.kept - 1])


def class_weights(problem: Norms) -> Tensor:
    """The argmin of −g·v + ‖v‖² with v ≥ 0 and Σ v = C."""
    return simplex(problem.norms / 2)


def simplex(point: Tensor) -> Tensor:
    """The nearest v ≥ 0 with Σ v = C, by bisection for its offset."""
    low, high = point.min() - 1, point.max()
    for _ in range(100):
        middle = (low + high) / 2
        over = (point - middle).clamp(min=0).sum() > len(point)
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    return (point - (low + high) / 2).clamp(min=0)


def _two_classes(problem: Pixels) -> Pixels:
    """Not 0 and z: with halves a loss of z and the other label's of −z are equal to the last bit, so that they tie."""
    half = problem.input / 2
    logits = torch.cat([-half, half], 1)
    return replace(problem, input=logits, target=problem.target.long())


def _class_dice(problem: Pixels) -> Tensor:
    """The loss of each class, where it has a pixel."""
    prob, picked, valid = _probabilities(problem)
    number = _counts(problem, valid)
    own = torch.zeros_like(number).scatter_add(0, _index(problem).flatten(), (picked * valid).flatten())
    total = (prob * valid.unsqueeze(1)).transpose(0, 1).flatten(1).sum(1)
    return 1 - 2 * own / (total + number)


def _index(problem: Pixels) -> Tensor:
    return torch.where(problem.target == IGNORE_INDEX, 0, problem.target)


def _probabilities(problem: Pixels) -> tuple[Tensor, Tensor, Tensor]:
    """p, p_y, and which pixels are valid."""
    prob = full_size(problem).softmax(1)
    picked = prob.gather(1, _index(problem).unsqueeze(1)).squeeze(1)
    return prob, picked, problem.target != IGNORE_INDEX


def _hard(loss: Tensor, problem: Pixels) -> Tensor:
    """1 of the hardest; the pixels that tie for the last places, as many with one logit do, have a share of them."""
    valid = problem.target != IGNORE_INDEX
    places = max(1, int(problem.valid * HARD))
    last = loss[valid].sort(descending=True).values[places - 1]
    harder, tied = valid & (loss > last), valid & (loss == last)
    return harder + tied * (places - harder.sum()).double() / tied.sum()


def _counts(problem: Pixels, keep: Tensor) -> Tensor:
    """Pixels of each class among the kept, in float64."""
    count = torch.zeros(problem.input.shape[1], dtype=torch.float64, device=keep.device)
    return count.scatter_add_(0, _index(problem).flatten(), keep.flatten().double())


def _weighted(problem: Pixels, class_weight: Tensor) -> Tensor:
    return (pixel_losses(problem) * class_weight[_index(problem)]).sum() / problem.valid
