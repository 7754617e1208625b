"""Class weights from counts and from class losses: pure functions, on the device of their arguments.

Notation: n_c pixels of class c, N = Σ n_c, C classes, K of them present. A class without pixels gets weight
0: no pixel would use its weight, and a guard such as 1/(n_c + ε) would only let an absent class dominate
every mean.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from classbalance_losses._validate_classes import Numbers, as_numbers
from classbalance_losses._validate_options import check_choice, check_range
from classbalance_losses.kernels.plain import can_read_values
from classbalance_losses.ops.projection import solve_class_weights
from classbalance_losses.ops.weights import inverse_power

__all__ = [
    "curriculum_weights",
    "effective_number_weights",
    "enet_weights",
    "image_frequency_weights",
    "imagewise_frequency_weights",
    "loss_based_weights",
    "median_frequency_weights",
    "pixel_frequency_weights",
]


def pixel_frequency_weights(pixel_counts: Numbers, *, power: float = 1.0) -> Tensor:
    """Inverse pixel frequency, w_c = (N / (C·n_c))^power.

    With ``power=1`` every class present carries the same total weight, n_c·w_c = N/C, and, where all C
    classes are present, the weights of the pixels average to 1. The convention for the weighted
    cross-entropy of Aurelio et al. 2019 (which weighs by inverse priors), and what GBW (arXiv 2407.01327)
    calls PF. C counts the absent classes too.

    Args:
        pixel_counts: pixels of each class, (C,), any real dtype: a tensor, an array or a sequence.
        power: 1 is the plain inverse, 0.5 tempers it, 0 gives 1 to every class present.

    Returns:
        Weights (C,), float32 (float64 for float64 counts), 0 for a class without pixels.

    Raises:
        ValueError: ``pixel_counts`` is not one-dimensional, or ``power`` is negative.
    """
    check_range("power", power, 0)
    pixel_counts = as_numbers("pixel_counts", pixel_counts)
    count = _class_vector("pixel_counts", pixel_counts)
    mean = count.sum() / count.numel()
    return torch.where(count > 0, (mean / count) ** power, 0)


def median_frequency_weights(
    pixel_counts: Numbers, image_pixel_counts: Numbers | None = None, *, power: float = 1.0
) -> Tensor:
    """Median frequency balancing, w_c = (median_k(freq_k) / freq_c)^power.

    The median is over the classes present. Eigen & Fergus 2015: freq_c = n_c / (pixels of the images that
    contain c), ``power=1``. Without ``image_pixel_counts`` freq_c = n_c, which with ``power=0.5`` is the
    weighting of Alonso et al. 2021; their released code gives an absent class the largest weight, here it
    gets 0. For an even K the two middle frequencies are averaged.

    Args:
        pixel_counts: pixels of each class, (C,), any real dtype: a tensor, an array or a sequence.
        image_pixel_counts: valid pixels of the images that contain each class, (C,), or None.
        power: exponent, at least 0.

    Returns:
        Weights (C,), float32 (float64 for float64 counts), 0 for a class without pixels.

    Raises:
        ValueError: the counts are not one-dimensional or differ in length, or ``power`` is negative.
    """
    check_range("power", power, 0)
    pixel_counts = as_numbers("pixel_counts", pixel_counts)
    count = frequency = _class_vector("pixel_counts", pixel_counts)
    if image_pixel_counts is not None:
        image_pixel_counts = as_numbers("image_pixel_counts", image_pixel_counts)
        if image_pixel_counts.shape != count.shape:
            raise ValueError(
                f"Expected image_pixel_counts of the shape of pixel_counts, {tuple(count.shape)}, "
                f"got {tuple(image_pixel_counts.shape)}."
            )
        frequency = count / torch.where(count > 0, image_pixel_counts.detach().to(count.dtype), 1)
    return torch.where(count > 0, (_median(frequency, count > 0) / frequency) ** power, 0)


def image_frequency_weights(image_counts: Numbers, num_images: int | Tensor) -> Tensor:
    """Inverse image frequency, w_c = (number of images) / (number of images that contain c).

    What the text of GBW (arXiv 2407.01327) calls IF. The paper it cites for it does something else:
    see :func:`imagewise_frequency_weights`.

    Args:
        image_counts: images that contain each class, (C,), any real dtype: a tensor, an array or a sequence.
        num_images: number of images, an int or a tensor that broadcasts.

    Returns:
        Weights (C,), float32 (float64 for float64 counts), at least 1, and 0 for a class in no image.

    Raises:
        ValueError: ``image_counts`` is not one-dimensional.
    """
    image_counts = as_numbers("image_counts", image_counts)
    count = _class_vector("image_counts", image_counts)
    return torch.where(count > 0, num_images / count, 0).to(count.dtype)


def imagewise_frequency_weights(prediction_counts: Numbers, *, alpha: float = 0.2) -> Tensor:
    """Image-wise weights of Max-squares (Chen et al. 2019), w_nc = 1 / (N_nc^α · N_n^(1−α)).

    N_nc counts the pixels of image n *predicted* as class c, and N_n = Σ_c N_nc. The released code clamps
    the denominator at 1, which matters only for classes that the image lacks: they get 0 here, as
    everywhere in this package. It sums the weighted loss and divides by (images · classes): use these
    weights with ``reduction="sum"``.

    Args:
        prediction_counts: predicted pixels of each image and class, (N, C), any real dtype: a tensor or an array.
        alpha: in [0, 1]; 1 balances the classes of an image fully, 0 not at all.

    Returns:
        Weights (N, C), float32 (float64 for float64 counts).

    Raises:
        ValueError: ``prediction_counts`` is not two-dimensional, or ``alpha`` lies outside [0, 1].
    """
    prediction_counts = as_numbers("prediction_counts", prediction_counts)
    if prediction_counts.ndim != 2:
        raise ValueError(f"Expected prediction_counts of shape (N, C), got {tuple(prediction_counts.shape)}.")
    check_range("alpha", alpha, 0, 1)
    count = prediction_counts.detach()
    dtype = _result_dtype(count)
    of_image = inverse_power(count.sum(1, keepdim=True, dtype=dtype), 1 - alpha, dtype)
    return inverse_power(count, alpha, dtype) * of_image


def effective_number_weights(pixel_counts: Numbers, *, beta: float = 0.9999) -> Tensor:
    """Effective number of samples, w_c ∝ (1 − β) / (1 − β^n_c), scaled to Σ w_c = K (Cui et al., CVPR 2019).

    β = 0 weighs all classes alike; β = 1 stands for its limit, inverse frequency. A class of far more than
    1/(1 − β) members counts as 1/(1 − β) of them: with the usual β = 0.9999, made for images per class, all
    classes of a segmentation set come out alike, so for pixels take β near 1 − 1/N. The paper scales the sum
    to C; with every class present that is K.

    Args:
        pixel_counts: members of each class, (C,), any real dtype: a tensor, an array or a sequence.
        beta: in [0, 1].

    Returns:
        Weights (C,), float32 (float64 for float64 counts), 0 for a class without pixels.

    Raises:
        ValueError: ``pixel_counts`` is not one-dimensional, or ``beta`` lies outside [0, 1].
    """
    check_range("beta", beta, 0, 1)
    pixel_counts = as_numbers("pixel_counts", pixel_counts)
    count = _class_vector("pixel_counts", pixel_counts)
    log_beta = math.log(beta) if beta > 0 else -math.inf
    # 1 − β^n by expm1 keeps its digits where β^n rounds to 1; the factor 1 − β cancels in the scaling.
    effective = count if beta == 1 else -torch.expm1(count * log_beta)
    weight = torch.where(count > 0, 1 / effective, 0)
    return weight * (count > 0).sum() / torch.where((count > 0).any(), weight.sum(), 1)


def enet_weights(pixel_counts: Numbers) -> Tensor:
    """ENet's bounded weights, w_c = 1 / ln(1.02 + n_c/N) (Paszke et al. 2016, arXiv 1606.02147).

    They stay between 1.42, for a class that has every pixel, and 50.5, for one that has next to none: no clamp
    is needed, as plain inverse frequencies do for very rare classes.

    Args:
        pixel_counts: pixels of each class, (C,), any real dtype: a tensor, an array or a sequence.

    Returns:
        Weights (C,), float32 (float64 for float64 counts), 0 for a class without pixels.

    Raises:
        ValueError: ``pixel_counts`` is not one-dimensional.
    """
    pixel_counts = as_numbers("pixel_counts", pixel_counts)
    count = _class_vector("pixel_counts", pixel_counts)
    share = count / torch.where((count > 0).any(), count.sum(), 1)
    # ln(1 + (0.02 + share)) by log1p keeps the digits of a small share.
    return torch.where(count > 0, 1 / torch.log1p(0.02 + share), 0)


def loss_based_weights(class_loss: Numbers, *, regularization: float = 1.0) -> Tensor:
    """Loss-based weights: GBW's quadratic programme with a class's mean loss m_c for its gradient norm.

    v = argmin −mᵀv + λ‖v‖² over v ≥ 0, Σ v = C: one reading of the baseline "LBW" of GBW (arXiv 2407.01327);
    the other is :func:`curriculum_weights`. As in GBW an absent class enters with m_c = 0 and keeps its share
    of Σ v = C.

    Args:
        class_loss: mean loss of each class, (C,), floating.
        regularization: λ > 0; at λ → ∞ all weights are 1.

    Returns:
        Weights (C,), at least 0, of sum C.

    Raises:
        ValueError: ``class_loss`` is not one-dimensional, or ``regularization`` is not positive.
    """
    class_loss = as_numbers("class_loss", class_loss)
    loss = _class_vector("class_loss", class_loss)
    return solve_class_weights(loss, regularization=regularization)


def curriculum_weights(
    class_loss: Numbers,
    num_active: int | Tensor,
    *,
    order: Literal["easy_first", "hard_first"] = "easy_first",
) -> Tensor:
    """Curriculum class mask: 1 for the active classes, 0 for the others.

    CCL, the paper that GBW (arXiv 2407.01327) cites for its "LBW". Active are the ``num_active`` classes of
    smallest mean loss or, with ``order="hard_first"``, the anti-curriculum, of largest. Equal losses keep the
    order of the classes. The paper's loss is the mean over the pixels of the active classes: a weighted
    cross-entropy with ``normalize="weights"``.

    Args:
        class_loss: mean loss of each class, (C,), floating; a class of loss nan, never seen, is never active.
        num_active: number of active classes, an int or a 0-dim tensor.
        order: ``"easy_first"`` or ``"hard_first"``.

    Returns:
        Weights (C,), 0 or 1.

    Raises:
        ValueError: ``class_loss`` is not one-dimensional, or ``order`` is unknown.
    """
    check_choice("order", order, ("easy_first", "hard_first"))
    class_loss = as_numbers("class_loss", class_loss)
    loss = _class_vector("class_loss", class_loss)
    difficulty = torch.where(loss.isnan(), math.inf, loss if order == "easy_first" else -loss)
    rank = difficulty.argsort(stable=True).argsort()
    return ((rank < num_active) & ~loss.isnan()).to(loss.dtype)


def _median(value: Tensor, present: Tensor) -> Tensor:
    # torch.median takes the lower of the two middle values, and nanquantile has no batching rule for vmap.
    ordered = torch.where(present, value, math.inf).sort().values
    number = present.sum()
    middle = torch.stack([(number - 1) // 2, number // 2]).clamp(min=0)
    return ordered.gather(0, middle).mean()


def _class_vector(name: str, value: Tensor) -> Tensor:
    if value.ndim != 1 or value.numel() == 0:
        remedy = f" For counts of each image pass {name}.sum(0)." if value.ndim == 2 else ""
        raise ValueError(
            f"Expected {name} of shape (C,), one number for each class, got {tuple(value.shape)}.{remedy}"
        )
    numbers = value.detach().to(_result_dtype(value))
    if name.endswith("counts") and can_read_values(value) and bool((numbers < 0).any()):
        raise ValueError(f"Expected non-negative {name}, got {value.tolist()}. A class without any has 0.")
    return numbers


def _result_dtype(value: Tensor) -> torch.dtype:
    return torch.float64 if value.dtype == torch.float64 else torch.float32
