"""A loss that holds every law, in a dozen lines, and for each law one that breaks it as released code has."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sound(
    input: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    pixel_weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy."""
    index = target.long()
    keep = index != ignore_index
    index = torch.where(keep, index, 0)
    logits = torch.where(keep.unsqueeze(1), input, 0)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    share = torch.ones((), dtype=logits.dtype) if weight is None else weight.to(logits.dtype)[index]
    share = torch.where(keep, share, 0)
    loss = -logits.log_softmax(1).gather(1, index.unsqueeze(1)).squeeze(1) * share
    if pixel_weight is not None:
        loss = loss * torch.where(keep, pixel_weight, 0)
    if reduction == "none":
        return loss
    count = share.sum() if reduction == "mean" else torch.ones(())
    return loss.sum() / torch.where(count == 0, 1, count)


def scaled(input, target, *, ignore_index=-100, reduction="mean"):
    return 1.001 * sound(input, target, ignore_index=ignore_index, reduction=reduction)


def sum_over_images(input, target, *, ignore_index=-100, reduction="mean"):
    value = sound(input, target, ignore_index=ignore_index, reduction=reduction)
    return value / len(input) if reduction == "sum" else value


def weight_of_the_ignored_label(input, target, *, weight=None, ignore_index=-100, reduction="mean"):
    terms = F.cross_entropy(input, target, ignore_index=ignore_index, reduction="none")
    return (terms if weight is None else terms * weight[target]).mean()


def normalized_pixel_weight(input, target, *, pixel_weight=None, ignore_index=-100):
    if pixel_weight is not None:
        pixel_weight = pixel_weight / pixel_weight.sum()
    return sound(input, target, pixel_weight=pixel_weight, ignore_index=ignore_index)


def ignored_is_background(input, target, *, ignore_index=-100):
    return F.cross_entropy(input, target.masked_fill(target == ignore_index, 0))


def masked_by_a_product(input, target, *, ignore_index=-100):
    keep = target != ignore_index
    terms = F.cross_entropy(input, torch.where(keep, target, 0), reduction="none") * keep
    return terms.sum() / keep.sum()


def ignored_in_the_count(input, target, *, ignore_index=-100):
    return sound(input, target, ignore_index=ignore_index, reduction="none").mean()


def counts_channels_too(input, target, *, ignore_index=None):
    value = sound(input, target, ignore_index=-100 if ignore_index is None else ignore_index)
    return value / input.shape[1] if ignore_index is None else value


def zero_over_zero(input, target, *, ignore_index=-100):
    return F.cross_entropy(input, target, ignore_index=ignore_index)


def constant_for_nothing(input, target):
    return F.cross_entropy(input, target) if target.numel() else torch.zeros(())


def log_of_softmax(input, target):
    return F.nll_loss(input.softmax(1).log(), target)


def half_sum(input, target):
    terms = sound(input, target, reduction="none").to(input.dtype)
    return terms.sum() / terms.numel()


def in_float32(input, target):
    return sound(input.float(), target)


def long_labels_only(input, target):
    if target.dtype != torch.int64:
        raise TypeError("expected int64")
    return sound(input, target)


def overwrites_labels(input, target, *, ignore_index=-100):
    keep = target != ignore_index
    target[~keep] = 0
    return (F.cross_entropy(input, target, reduction="none") * keep).sum() / keep.sum()


def large_logits_penalized(input, target):
    return sound(input, target) + 1e-3 * input.logsumexp(1).square().mean()


def first_of_ties(input, target):
    terms = sound(input, target, reduction="none").flatten()
    hard = terms.argsort(descending=True, stable=True)[: max(1, 3 * len(terms) // 10)]
    return terms[hard].sum() / len(hard) + 0 * terms.sum()


def background_counts_half(input, target):
    terms = sound(input, target, reduction="none")
    return torch.where(target == 0, terms / 2, terms).mean()


def views_the_target(input, target):
    terms = sound(input, target, reduction="none")
    return terms.view(-1)[target.view(-1) >= 0].mean()


def mean_of_the_last_axis(input, target):
    return sound(input, target, reduction="none").mean(-1).sum()


def detached_factor(input, target):
    terms = sound(input, target, reduction="none")
    return (terms.detach() * terms).mean()


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, target):
        ctx.save_for_backward(input, target)
        return sound(input, target)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, slope):
        input, target = ctx.saved_tensors
        with torch.enable_grad():
            leaf = input.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(sound(leaf, target), leaf)
        return gradient * slope, None


def once_differentiable(input, target):
    return _Once.apply(input, target)


def asks_the_value(input, target):
    value = sound(input, target)
    return value if value.item() >= 0 else -value


def breaks_the_graph(input, target):
    torch._dynamo.graph_break()
    return sound(input, target)


def own_mean(input, target, *, ignore_index=-100, process_group=None):
    return sound(input, target, ignore_index=ignore_index)


BROKEN = {
    "cross_entropy": scaled,
    "reduction": sum_over_images,
    "class_weight": weight_of_the_ignored_label,
    "pixel_weight": normalized_pixel_weight,
    "ignored": ignored_is_background,
    "ignored_nan": masked_by_a_product,
    "dropped": ignored_in_the_count,
    "ignore_index": counts_channels_too,
    "all_ignored": zero_over_zero,
    "no_pixels": constant_for_nothing,
    "saturation": log_of_softmax,
    "half": half_sum,
    "dtypes": in_float32,
    "labels": long_labels_only,
    "repeatable": overwrites_labels,
    "shift": large_logits_penalized,
    "pixels": first_of_ties,
    "classes": background_counts_half,
    "layout": views_the_target,
    "shapes": mean_of_the_last_axis,
    "gradcheck": detached_factor,
    "gradgradcheck": once_differentiable,
    "vmap": asks_the_value,
    "compile": breaks_the_graph,
    "ranks": own_mean,
}
