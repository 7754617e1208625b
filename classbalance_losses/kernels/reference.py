"""The backend "reference": plain PyTorch, for any tensor and any derivative. What the others are tested against."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from classbalance_losses.kernels.call import (
    ClassSums,
    Hard,
    Labels,
    Logits,
    Overlap,
    Pass,
    Share,
    WeightedSums,
    accumulation_dtype,
)
from classbalance_losses.kernels.factors import (
    class_rows,
    indices,
    kept_weight,
    members,
    per_pixel,
    scaled,
    shares_of,
    sum_pixels,
)
from classbalance_losses.kernels.forms.reference import AnyForm, CrossEntropy, Focal, Form, of_all_classes
from classbalance_losses.kernels.operators import by_reference
from classbalance_losses.kernels.plain import can_read_values, is_plain
from classbalance_losses.kernels.selection import Joined, hard_count, infinite_bits, ordered_bits
from classbalance_losses.kernels.selection import kth_largest as _kth_largest
from classbalance_losses.kernels.simplex import project

__all__ = [
    "class_sums",
    "cross_entropy_and_error",
    "error_sums",
    "kth_largest",
    "loss_and_form",
    "over_classes",
    "pixel_values",
    "project",
    "soft_cross_entropy",
    "soft_sums",
    "values_and_overlap",
    "weighted_sums",
]

_SMALL = 1 / 16  # a loss from which the rounding of a sum above 1 costs it more than a digit
_BLOCK = 1 << 6  # pixels that are added one after the other: a table of at most a 64th of the logits' size


def pixel_values(logits: Logits, labels: Labels, form: Form) -> Tensor:
    """Return φ of each pixel (N, *), 0 where the label does not count."""
    input = logits.full_size()
    if isinstance(form, Focal):
        return form.of_loss(_cross_entropy(input, labels))
    if isinstance(form, CrossEntropy) and not form.ranked:
        return _cross_entropy(input, labels)
    return form.value(input, *indices(labels))


def cross_entropy_and_error(logits: Logits, labels: Labels) -> tuple[Tensor, Tensor]:
    r"""Return the cross-entropy, and the constant :math:`\lVert p_i - e_{y_i} \rVert^2` (N, *)."""
    input = logits.full_size()
    loss = _cross_entropy(input, labels)
    if labels.num_classes == 2:
        return loss, 2 * torch.expm1(-loss.detach()).square()
    return loss, errors(input, *indices(labels)).square().sum(1)


def values_and_overlap(
    logits: Logits,
    labels: Labels,
    form: Form | None,
    weight: Tensor | None,
    *,
    with_error: bool = False,
    other: Form | None = None,
) -> Pass:
    """Return the sums of probabilities, weighted by q, and φ, the error and another φ if they are asked for."""
    full, value, error = Logits(logits.full_size()), None, None
    if with_error:
        value, error = cross_entropy_and_error(full, labels)
    elif form is not None:
        value = pixel_values(full, labels, form)
    beside = None if other is None else pixel_values(full, labels, other)
    return Pass(_overlap(full.input, labels, weight), value, error, beside)


def loss_and_form(
    logits: Logits, labels: Labels, loss: CrossEntropy, form: Form, *, with_error: bool = False
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return ℓ, the error if it is asked for, and φ of a form."""
    full, error = Logits(logits.full_size()), None
    if with_error:
        value, error = cross_entropy_and_error(full, labels)
    else:
        value = pixel_values(full, labels, loss)
    return value, error, pixel_values(full, labels, form)


def _overlap(input: Tensor, labels: Labels, weight: Tensor | None) -> Overlap:
    target, keep = indices(labels)
    prob = F.softmax(torch.where(keep.unsqueeze(1), input, 0), 1, dtype=accumulation_dtype(input.dtype))
    own = prob.gather(1, torch.where(keep, target, 0).unsqueeze(1)).squeeze(1)
    q = kept_weight(weight, keep)
    share = keep.to(prob.dtype) if q is None else q
    images = max(input.shape[0], 1)  # a batch of none has one row of no pixels
    sums = class_sums(labels, own, None, weight, rows=images).value
    assert sums is not None
    total = (prob * share.unsqueeze(1)).unsqueeze(-1).flatten(2).sum(2)  # (N, C) has no spatial axis
    return Overlap(total, sums[: input.shape[0]])


def soft_cross_entropy(logits: Logits, target: Tensor, weight: Tensor | None) -> Tensor:
    r"""Return :math:`\sum_c w_c t_{ic} (-\log p_{ic})` (N, *) of label vectors t (N, C, *), constant, without NaN.

    A class of weight or label 0 adds nothing, whatever its probability; a pixel of no label has 0.
    """
    input = logits.full_size()
    keep = (target != 0).any(1)
    surprise = -F.log_softmax(
        torch.where(keep.unsqueeze(1), input, 0), 1, dtype=accumulation_dtype(input.dtype)
    )
    share = target.to(surprise.dtype)
    if weight is not None:
        share = share * weight.view(-1, *[1] * (input.ndim - 2))
    return scaled(surprise, share).sum(1)


def soft_sums(
    logits: Logits,
    labels: Labels,
    target: Tensor,
    form: AnyForm,
    weight: Tensor | None,
    *,
    with_error: bool = False,
    choose: Callable[[Tensor], Hard] | None = None,
) -> tuple[ClassSums, Hard | None]:
    r"""Return sums over the pixels of each row and class of label vectors, (M, C), and H.

    Args:
        logits: With their gradient.
        labels: Which pixels count: those with a share of any class.
        target: t (M, C, *), without NaN.
        form: φ of each class's own cross-entropy.
        weight: q (M, *), or ``None`` for 1.
        with_error: Whether to sum :math:`(q t)^2 \lVert p - e_c \rVert^2`, too, over all pixels.
        choose: Finds H, by whose shares h all is multiplied, from the pixels' losses; ``None`` for all pixels.
    """
    keep, input = indices(labels)[1], logits.full_size()
    values, hard, share = of_all_classes(form, input, keep), None, None
    if choose is not None:
        hard = choose(scaled(values.detach(), target.detach()).sum(1))
        share = shares_of(hard, keep).unsqueeze(1)
    q, squared = kept_weight(weight, keep), None
    part = target if q is None else target * q.unsqueeze(1)
    if with_error:
        squared = sum_pixels(_errors_of_all(input, keep) * part.detach().square())
    number = sum_pixels(scaled(target.detach(), share))
    return ClassSums(number, sum_pixels(scaled(values, part, share)), squared), hard


def class_sums(
    labels: Labels,
    value: Tensor | None = None,
    squared: Tensor | None = None,
    weight: Tensor | None = None,
    *,
    rows: int = 1,
    hard: Hard | None = None,
) -> ClassSums:
    """Return the sums of maps over the pixels of each row and class, (R, C); ``weight`` is q."""
    target, keep = indices(labels)
    table = _Table(torch.where(keep, target, 0).reshape(rows, -1), labels.num_classes)
    share = None
    if hard is None:
        number = table.sums(keep.long())
    else:
        keep, tied = members(hard, keep)
        share = torch.where(tied.reshape(rows, -1), hard.share.unsqueeze(1), 1).view(keep.shape)
        every, part = (table.sums(those.long()) for those in (keep, tied))
        number = (every - part).to(share.dtype) + hard.share.unsqueeze(1) * part.to(share.dtype)

    def total(values: Tensor, *factors: Tensor | None) -> Tensor:
        return table.sums(scaled(torch.where(keep, values, 0), *factors, share))

    q = kept_weight(weight, keep)
    return ClassSums(
        number,
        None if value is None else total(value, q),
        None if squared is None else total(squared.detach(), q, q).detach(),
    )


def gradient_of_class_sums(
    grad: Tensor, labels: Labels, weight: Tensor | None, *hard: Tensor | None
) -> Tensor:
    """Return the gradient of the map, given that of its sums (R, C): they are linear in it, so any map has it."""
    ranked, bits, share = hard
    chosen = None if ranked is None or bits is None or share is None else Hard(ranked, bits, share)

    def sums(value: Tensor) -> tuple[Tensor]:
        found = class_sums(labels, value, None, weight, rows=grad.shape[0], hard=chosen).value
        assert found is not None
        return (found,)

    zeros = torch.zeros(labels.target.shape, dtype=grad.dtype, device=grad.device, requires_grad=True)
    return by_reference(sums, zeros, (grad,))


def weighted_sums(
    value: Tensor,
    labels: Labels,
    weight: Tensor | None,
    norm_weight: Tensor | None,
    pixel_weight: Tensor | None,
) -> WeightedSums:
    r"""Return :math:`\sum_i w_{y_i} q_i v_i` over :math:`\sum_i w'_{y_i}`, or over the number of pixels that count."""
    target, keep = indices(labels)
    own = None if weight is None else per_pixel(weight, target, keep)
    total = scaled(torch.where(keep, value, 0), own, kept_weight(pixel_weight, keep)).sum()
    if norm_weight is None:
        norm = keep.count_nonzero()
    elif own is not None and norm_weight is weight:
        norm = own.sum()
    else:
        norm = per_pixel(norm_weight, target, keep).sum()
    norm = norm.to(total.dtype)
    return WeightedSums(total / torch.where(norm > 0, norm, 1), total, norm)


def over_classes(
    number: Tensor, value: Tensor, weight: Tensor | None, norm_weight: Tensor | None
) -> WeightedSums:
    r"""Return :math:`\sum_c w_c S_c` over :math:`\sum_c w'_c n_c`, from sums of each class (C,), as `weighted_sums`."""

    def of_present(factor: Tensor | None) -> Tensor | None:
        return None if factor is None else torch.where(number > 0, factor, 0).to(value.dtype)

    counts, own = number.to(value.dtype), of_present(weight)
    over = own if norm_weight is weight else of_present(norm_weight)
    if own is not None:
        value = torch.where((own == 0) & (value == torch.inf), 0, value) * own
    sums, norm = value.sum(), (counts if over is None else counts * over).sum()
    return WeightedSums(sums / torch.where(norm > 0, norm, 1), sums, norm)


def kth_largest(ranked: Tensor, labels: Labels, rows: int, share: Share, joined: Joined | None) -> Hard:
    """Return H: of each row's pixels that count the k with the largest values, of those that tie the part that fills k.

    Of T that tie for the last k - A places each enters with h = (k - A) / T, so that H's size is k, and does not
    depend on the order of the pixels.
    """
    ranked = ranked.detach()
    keep = indices(labels)[1].reshape(rows, -1)
    valid = keep.sum(1)
    k = hard_count(valid if joined is None else joined(valid), share)
    digits = ranked.element_size() // 2
    found = _kth_largest(ordered_bits(ranked).reshape(keep.shape), keep, k, digits, joined)
    part = torch.where(k > 0, found.wanted.to(ranked.dtype) / found.tied.to(ranked.dtype), 0)
    return Hard(ranked, torch.where(k > 0, found.bits, infinite_bits(ranked.dtype)), part)


def error_sums(logits: Logits, labels: Labels, weight: Tensor | None, *, squared: bool) -> Tensor:
    r"""Return :math:`\sum_{y_i = a} q_i \delta_{ib}`, or of :math:`\delta_{ib}^2`, (C, C), a constant."""
    target, keep = indices(labels)
    error = class_rows(errors(logits.full_size(), target, keep))
    if squared:
        error = error.square()
    elif weight is not None:
        error = scaled(error, class_rows(torch.where(keep, weight, 0).unsqueeze(1)))
    label = class_rows(target.unsqueeze(1))
    if error.device.type != "cpu":  # a product is refused there where algorithms have to be deterministic
        return torch.stack([torch.where(label == c, error, 0).sum((0, 2)) for c in range(labels.num_classes)])
    classes = torch.arange(labels.num_classes, dtype=torch.int64, device=error.device).view(-1, 1)
    with torch.autocast("cpu", enabled=False):
        return ((label == classes).to(error.dtype) @ error.mT).sum(0)


def _cross_entropy(input: Tensor, labels: Labels) -> Tensor:
    """Return the cross-entropy of each pixel; where values may be looked at by torch's own function, as it is quicker.

    That loses the digits of small losses, which are computed again. What does not count is replaced where NaN is about.
    """
    target, keep = indices(labels)
    if input.shape[1] == 2 or not (input.numel() and can_read_values(input) and is_plain(input, target)):
        return CrossEntropy().value(input, target, keep)
    dtype = accumulation_dtype(input.dtype)
    log_prob = F.log_softmax(input, 1, dtype=dtype)
    if log_prob.detach()[:, 0].sum().isnan():
        input = torch.where(keep.unsqueeze(1), input, 0)
        log_prob = F.log_softmax(input, 1, dtype=dtype)
    loss = F.nll_loss(log_prob, target, ignore_index=labels.ignore_index, reduction="none")
    small = torch.nonzero(keep & (loss.detach() < _SMALL), as_tuple=True)
    if len(small[0]):  # the same loss, by what the others have of the probability; its gradient stays
        prob = log_prob.detach().movedim(1, -1)[small].exp_()
        others = prob.scatter_(1, target[small].unsqueeze(1), 0).sum(1)
        loss.detach().index_put_(small, -torch.log1p(-others))
    return loss


def errors(input: Tensor, target: Tensor, keep: Tensor) -> Tensor:
    r"""Return the constant :math:`\delta_i = p_i - e_{y_i}` (N, C, *), 0 where not kept."""
    probability = F.softmax(input.detach(), dim=1, dtype=accumulation_dtype(input.dtype))
    index = torch.where(keep, target, 0).unsqueeze(1)
    error = probability.scatter_add(1, index, torch.full_like(probability[:, :1], -1))
    return torch.where(keep.unsqueeze(1), error, 0)


def _errors_of_all(input: Tensor, keep: Tensor) -> Tensor:
    r"""Return the constant :math:`\lVert p_i - e_c \rVert^2` of each class (N, C, *)."""
    input = torch.where(keep.unsqueeze(1), input.detach(), 0)
    prob = F.softmax(input, 1, dtype=accumulation_dtype(input.dtype))
    return prob.square().sum(1, keepdim=True) - 2 * prob + 1


class _Table:
    """Where the pixels of class indices (R, P) are added: a table for each block of them, joined at the end.

    A million float32 additions in a row would lose the last three digits, and not every device has float64.
    """

    def __init__(self, index: Tensor, num_classes: int) -> None:
        rows, pixels = index.shape
        self._shape = rows, -(-pixels // _BLOCK), num_classes
        table = torch.arange(rows * self._shape[1], dtype=torch.int64, device=index.device) * num_classes
        of_pixel = table.repeat_interleave(_BLOCK).view(rows, self._shape[1] * _BLOCK).narrow(1, 0, pixels)
        self._place = (of_pixel + index).flatten()

    def sums(self, values: Tensor) -> Tensor:
        """Return the sum over each row and class, (R, C)."""
        zeros = torch.zeros(self._shape, dtype=values.dtype, device=values.device)
        return zeros.flatten().scatter_add(0, self._place, values.flatten()).view(self._shape).sum(1)
