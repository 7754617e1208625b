"""Other people's losses: their released code where it is installed, and published formulas written anew.

Each does the same job as ours: the same pixels, the same mean. Where a peer divides by something else, the
wrapper takes its sum, or scales by a constant that is known before the clock starts.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.speed.contenders import Contender, Skipped, Step
from benchmarks.speed.inputs import ALPHA, HARD, IGNORE_INDEX, Head, Pixels
from classbalance_losses.functional import solve_class_weights

PACKAGES = {  # import name: distribution
    "kornia": "kornia",
    "monai": "monai",
    "imbalanced_losses": "imbalanced-losses",
    "liger_kernel": "liger-kernel",
    "cvxpy": "cvxpy",
    "triton": "triton",
}


def installed(name: str) -> str | None:
    """The version of a peer, or None."""
    try:
        return version(PACKAGES[name])
    except PackageNotFoundError:
        return None


def require(name: str, module: str = "") -> Any:
    """Import a peer's module, or raise Skipped."""
    if installed(name) is None:
        raise Skipped(f"{PACKAGES[name]} is not installed: pip install '.[bench]'")
    try:
        return importlib.import_module(module or name)
    except ImportError as error:
        raise Skipped(f"{PACKAGES[name]} does not import here: {error}") from error


def _kornia_focal(problem: Pixels) -> Step:
    loss = require("kornia", "kornia.losses").focal_loss
    options = {"alpha": None, "gamma": 2.0, "reduction": "sum", "ignore_index": IGNORE_INDEX}
    return lambda: loss(problem.input, problem.target, **options) / problem.valid


def _monai_focal(problem: Pixels) -> Step:
    """Given an ``ignore_index`` its mean divides by the pixels, not by pixels times classes."""
    focal = require("monai", "monai.losses").FocalLoss
    loss = focal(to_onehot_y=True, use_softmax=True, gamma=2.0, ignore_index=IGNORE_INDEX)
    return lambda: loss(problem.input, problem.target.unsqueeze(1))


def _monai_overlap(name: str) -> Callable[[Pixels], Step]:
    """Over the batch, without smoothing constants. No pixel is ignored: DiceCELoss does not offer it."""

    def build(problem: Pixels) -> Step:
        kind = getattr(require("monai", "monai.losses"), name)
        loss = kind(to_onehot_y=True, softmax=True, batch=True, smooth_nr=0, smooth_dr=0)
        return lambda: loss(problem.input, problem.target.unsqueeze(1))

    return build


def _torchvision_focal(problem: Pixels) -> Step:
    """Sigmoid, cross-entropy and the weights, each a tensor; it takes masks of the logits' dtype."""
    target = problem.target.unsqueeze(1).to(problem.input.dtype)

    def step() -> Tensor:
        prob = problem.input.sigmoid()
        loss = F.binary_cross_entropy_with_logits(problem.input, target, reduction="none")
        right = prob * target + (1 - prob) * (1 - target)
        weight = ALPHA * target + (1 - ALPHA) * (1 - target)
        return (weight * loss * (1 - right) ** 2).mean()

    return step


def _imbalanced_focal(problem: Pixels) -> Step:
    focal = require("imbalanced_losses").SoftmaxFocalLoss
    loss = focal(gamma=2.0, reduction="mean", ignore_index=IGNORE_INDEX, gather_distributed=False)
    return lambda: loss(problem.input, problem.target)


def _deeplab_ce(problem: Pixels) -> Step:
    """Top-k of all pixels' losses, their mean. Theirs counts ignored pixels into k; here k is of the valid."""
    k = max(1, int(problem.valid * HARD))

    def step() -> Tensor:
        loss = F.cross_entropy(problem.input, problem.target, ignore_index=IGNORE_INDEX, reduction="none")
        return loss.flatten().topk(k).values.mean()

    return step


def _mmseg_ohem(problem: Pixels) -> Step:
    """A full sort of the valid pixels' p_y; those below the k-th smallest have weight 1. No threshold beside k."""
    k = max(1, int(problem.valid * HARD))

    def step() -> Tensor:
        with torch.no_grad():
            valid = problem.target != IGNORE_INDEX
            index = torch.where(valid, problem.target, 0).unsqueeze(1)
            prob = F.softmax(problem.input, dim=1).gather(1, index).squeeze(1)[valid]
            bound = prob.sort().values[min(k, prob.numel() - 1)]
            weight = torch.zeros_like(problem.target, dtype=problem.input.dtype)
            weight[valid] = (prob < bound).to(weight.dtype)
        loss = F.cross_entropy(problem.input, problem.target, ignore_index=IGNORE_INDEX, reduction="none")
        return (loss * weight).sum() / weight.sum()

    return step


def _published_dyce(problem: Pixels) -> Step:
    """Compaction of the valid pixels, top-k, a bincount of their classes, ω = 1/2."""

    def step() -> Tensor:
        loss = F.cross_entropy(problem.input, problem.target, ignore_index=IGNORE_INDEX, reduction="none")
        valid = problem.target != IGNORE_INDEX
        loss, label = loss[valid], problem.target[valid]
        hard, place = loss.topk(int(len(loss) * HARD))
        label = label[place]
        count = torch.bincount(label, minlength=problem.input.shape[1]).float()
        weight = (count + 1e-8).rsqrt()
        return (weight[label] * hard).sum() / count.sum().sqrt()

    return step


def _published_gbw(problem: Pixels) -> Step:
    """Dense one-hots, the gradient of every class's logit over every pixel, a QP on the host, weighted loss."""
    require("cvxpy")
    classes = problem.input.shape[1]

    def step() -> Tensor:
        valid = problem.target != IGNORE_INDEX
        index = torch.where(valid, problem.target, 0)
        with torch.no_grad():
            onehot = F.one_hot(index, classes).movedim(-1, 1).to(problem.input.dtype)
            onehot = onehot * valid.unsqueeze(1)
            count = onehot.float().transpose(0, 1).flatten(1).sum(1)
            error = problem.input.softmax(1) * valid.unsqueeze(1) - onehot
            error = error.float() / (count + 1)[index].unsqueeze(1)
            norms = error.square().transpose(0, 1).flatten(1).sum(1)
            weight = solve_class_weights(norms, regularization=1.0, solver="cvxpy")
        loss = F.cross_entropy(problem.input, problem.target, ignore_index=IGNORE_INDEX, reduction="none")
        return (loss * weight[index]).sum() / problem.valid

    return step


def _liger_cross_entropy(problem: Pixels) -> Step:
    """Rows of classes, so a copy of the logits with the classes last; it overwrites that copy."""
    loss = _liger("LigerCrossEntropyLoss", problem.input)(ignore_index=IGNORE_INDEX)
    classes = problem.input.shape[1]
    return lambda: loss(problem.input.movedim(1, -1).reshape(-1, classes), problem.target.flatten())


def _linear_cross_entropy(problem: Head) -> Step:
    """Core torch; rows of features, so a copy with the features last."""
    loss = getattr(F, "linear_cross_entropy", None)
    if loss is None:
        raise Skipped("torch has linear_cross_entropy from 2.13")
    options = torch.nn.LinearCrossEntropyOptions()
    rows = problem.features.shape[1]
    return lambda: loss(
        problem.features.movedim(1, -1).reshape(-1, rows),
        problem.weight,
        problem.target.flatten(),
        ignore_index=IGNORE_INDEX,
        options=options,
    )


def _liger_linear_cross_entropy(problem: Head) -> Step:
    loss = _liger("LigerFusedLinearCrossEntropyLoss", problem.features)(ignore_index=IGNORE_INDEX)
    rows = problem.features.shape[1]
    return lambda: loss(
        problem.weight, problem.features.movedim(1, -1).reshape(-1, rows), problem.target.flatten()
    )


def _liger(name: str, tensor: Tensor) -> Any:
    if tensor.device.type != "cuda":
        raise Skipped("Liger needs a CUDA device")
    return getattr(require("liger_kernel", "liger_kernel.transformers"), name)


KORNIA_FOCAL = Contender("kornia focal_loss", _kornia_focal, "peer")
MONAI_FOCAL = Contender("MONAI FocalLoss", _monai_focal, "peer")
MONAI_DICE = Contender("MONAI DiceLoss", _monai_overlap("DiceLoss"), "peer")
MONAI_DICE_CE = Contender("MONAI DiceCELoss", _monai_overlap("DiceCELoss"), "peer")
TORCHVISION_FOCAL = Contender("formula of torchvision's sigmoid_focal_loss", _torchvision_focal, "formula")
IMBALANCED_FOCAL = Contender("imbalanced-losses SoftmaxFocalLoss", _imbalanced_focal, "peer")
LIGER_CROSS_ENTROPY = Contender("Liger cross-entropy", _liger_cross_entropy, "peer")
DEEPLAB_CE = Contender("formula of detectron2's DeepLabCE", _deeplab_ce, "formula")
MMSEG_OHEM = Contender("formula of mmseg's OHEM", _mmseg_ohem, "formula")
PUBLISHED_DYCE = Contender("formula of the published DyCE", _published_dyce, "formula")
PUBLISHED_GBW = Contender("formula of the published GBW, QP by cvxpy", _published_gbw, "formula")
LINEAR_CROSS_ENTROPY = Contender("F.linear_cross_entropy", _linear_cross_entropy, "torch")
LIGER_LINEAR = Contender("Liger fused linear cross-entropy", _liger_linear_cross_entropy, "peer")
