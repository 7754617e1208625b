"""What to do about labels of another dtype, shape or encoding; same manners as ``_validate_remedies``."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from classbalance_losses._validate_remedies import may_look

_OFTEN_IGNORED = (255, -1, -100)
_COLOURS = (3, 4)  # channels of an RGB or RGBA image
_CHANNEL_LAST = "The channel axis of input is the last one, and should be axis 1: pass input.movedim(-1, 1)."
_LABELS = 3  # absent, present and left out: more kinds of whole numbers are grey values


def of_target_dtype(input: Tensor, target: Tensor, ignore_index: int) -> str:
    """Say how to get class indices (N, *) out of labels of another dtype, or out of one-hot ones."""
    num_classes, expected = input.shape[1], (input.shape[0], *input.shape[2:])
    if num_classes in target.shape and target.ndim == input.ndim:
        for axis in (1, -1):
            if tuple(target.movedim(axis, -1).shape) == (*expected, num_classes) and _may_be_classes(
                target, axis
            ):
                return of_one_hot("target", target, axis, ignore_index)
    remedy = _of_soft(input, target)
    return remedy or of_label_dtype("target", target, num_classes, ignore_index)


def _may_be_classes(labels: Tensor, axis: int) -> bool:
    """Whether the axis may be that of the classes: sums of 1, where the other axis has the size of the classes too."""
    if axis != 1 or labels.shape[-1] != labels.shape[1] or not may_look(labels):
        return True
    return _adds_up(labels)


def _adds_up(labels: Tensor) -> bool:
    """Whether each pixel's channels, on axis 1, add up to 1."""
    total = labels.detach().cpu().double().sum(1)
    return bool(((total - 1).abs() < 1e-2).all())


def _of_soft(input: Tensor, target: Tensor) -> str:
    """Say what soft labels lack that have not the shape of the logits; "" if they are none."""
    if not (
        target.is_floating_point() and target.ndim == input.ndim and may_look(target) and _adds_up(target)
    ):
        return ""
    if target.shape[:2] == input.shape[:2] and 3 <= input.ndim <= 5:
        return 'They are soft labels of another size: pass upsample="linear" to interpolate the logits to it.'
    if target.shape[1] not in (1, input.shape[1]):
        return f"Soft labels need a share of each of the {input.shape[1]} classes on axis 1, not {target.shape[1]}."
    return ""


def of_label_dtype(name: str, labels: Tensor, num_classes: int | None, ignore_index: int) -> str:
    """Say how to get class indices (N, *) out of labels of another dtype."""
    if labels.is_complex():
        return f"Labels are real: pass {name}.real."
    if not labels.is_floating_point():
        return f"Pass {name}.long()."
    if not may_look(labels) or not labels.numel():
        return f"Pass {name}.long() if they are whole numbers."
    values = labels.detach().cpu().double()
    if bool(values.isnan().any()) and _are_whole(values[~values.isnan()]):
        return f"NaN is no label; to leave those pixels out pass {name}.nan_to_num({ignore_index}).long()."
    if _are_whole(values):
        return _of_whole_floats(name, values)
    return _of_fractions(name, labels, values, num_classes, ignore_index)


def _are_whole(values: Tensor) -> bool:
    return bool((values.isfinite() & (values == values.round())).all())


def _of_whole_floats(name: str, values: Tensor) -> str:
    remedy = f"They are whole numbers: pass {name}.long()"
    if _distinct(values) in ([0, 1], [1]):
        return (
            f"{remedy}, where 1 is a class. Where it was 255 in the file, which ToTensor made 1, and marks pixels to "
            f"leave out: pass ({name} * 255).long() with ignore_index=255."
        )
    return f"{remedy}."


def _of_fractions(
    name: str, labels: Tensor, values: Tensor, num_classes: int | None, ignore_index: int
) -> str:
    scaled = values * 255
    label = scaled.round()
    exact = 1e-2 if labels.dtype in (torch.float32, torch.float64) else 0.25
    known = (label == 255) | (label == ignore_index) | (label < (256 if num_classes is None else num_classes))
    if bool((((scaled - label).abs() < exact) & (label >= 0) & known).all()):
        ignored = (
            ", with ignore_index=255 if that label is to be left out" if bool((label == 255).any()) else ""
        )
        return (
            f"They are multiples of 1/255, as ToTensor makes them of labels. Pass "
            f"({name} * 255).round().to(torch.int64){ignored}; or read labels without it."
        )
    return (
        f"They lie between labels, from {float(values.min()):.4g} to {float(values.max()):.4g}. Resize labels with "
        f'mode="nearest", which mixes no two classes; probabilities of one object pass as ({name} > 0.5).long().'
    )


def of_label_shape(
    name: str,
    labels: Tensor,
    shape: tuple[int, ...],
    num_classes: int | None,
    ignore_index: int,
) -> str:
    """Say how to bring labels to the shape (N, *), of which the sizes * may differ; "" where nothing is known."""
    batch, axes = shape[0], len(shape) - 1
    if labels.ndim == axes + 2 and labels.shape[0] == batch:
        remedy = _of_channels(name, labels, shape, num_classes, ignore_index)
        if remedy:
            return remedy
    if labels.ndim == axes and batch == 1:
        return f"It has no batch axis: pass {name}.unsqueeze(0)."
    if tuple(labels.shape) == (*shape[:-2], *shape[:-3:-1]) and axes > 1:
        return f"Its last two axes are the other way round: pass {name}.transpose(-1, -2)."
    if labels.numel() == torch.Size(shape).numel() and 1 in (labels.ndim, len(shape)):
        return f"Pass {name}.reshape{shape}."
    return ""


def _of_channels(
    name: str, labels: Tensor, shape: tuple[int, ...], num_classes: int | None, ignore_index: int
) -> str:
    """Say what to do with an axis too many: of size 1, of the classes, or of colours."""
    # First the axis without which the labels have the size that they should have.
    axes = sorted((1, -1), key=lambda axis: tuple(labels.movedim(axis, -1).shape[:-1]) != shape)
    likely = [
        axis for sizes in ((1,), (num_classes,), _COLOURS) for axis in axes if labels.shape[axis] in sizes
    ]
    if not likely:
        return ""
    axis = likely[0]
    if labels.shape[axis] == 1:
        return f"Pass {name}.squeeze({axis})."
    small = not may_look(labels) or not labels.numel() or bool((labels.abs() <= 1).all())
    if labels.shape[axis] == num_classes and (small or num_classes not in _COLOURS):
        return of_one_hot(name, labels, axis, ignore_index)
    return _of_colours(name, labels, axis)


def _of_colours(name: str, labels: Tensor, axis: int) -> str:
    channels = labels.movedim(axis, -1)
    if may_look(labels) and bool((channels[..., :3] == channels[..., :1]).all()):
        return f"Its channels are alike, a grey image: pass {name}{'[:, 0]' if axis == 1 else '[..., 0]'}."
    last = f"{name}.movedim(1, -1)" if axis == 1 else name
    colour = ":" if labels.shape[axis] == 3 else ":3"
    return (
        "Colours are no class indices. With palette (C, 3), the classes' colours in order, pass "
        f"({last}[..., None, {colour}] == palette).all(-1).int().argmax(-1)."
    )


def of_one_hot(name: str, labels: Tensor, axis: int, ignore_index: int) -> str:
    """Say how to get class indices out of labels with a channel for each class on ``axis``."""
    number = "" if labels.dtype.is_floating_point or labels.dtype == torch.int64 else ".long()"
    pick = f"{name}{number}.argmax({axis})"
    if not may_look(labels) or not labels.numel():
        return f"It looks one-hot: pass class indices, {pick}."
    channels = labels.detach().cpu().double().movedim(axis, -1)
    binary = bool(((channels == 0) | (channels == 1)).all())
    total = channels.sum(-1)
    if binary and bool((total > 1).any()):
        return _of_several_classes(name)
    if bool((total == 0).any()):
        none = f"{name}.sum({axis}) == 0"
        return (
            f"Pass class indices, ignored where no class is set: {pick}.masked_fill({none}, {ignore_index})."
        )
    if binary:
        return f"It is one-hot: pass class indices, {pick}."
    if bool((channels >= 0).all()) and bool(((total - 1).abs() < 1e-2).all()):
        return f"For soft labels the classes are on axis 1: pass {name}.movedim({axis}, 1)."
    return f"Its channels are no probabilities of the classes. If they are logits, the likeliest class is {pick}."


def _of_several_classes(name: str) -> str:
    return (
        "It has 0 and 1 in the shape of input, and is not one-hot. If a pixel has several labels pass "
        'task="multilabel". If input is one logit for each of its pixels, without a channel axis, pass '
        'input.unsqueeze(1) and task="binary".'
    )


def of_shares(target: Tensor, ignore_index: int | None = None) -> str:
    """Say what to do with floats in the shape of logits that are no shares: of classes or, with a label, of labels."""
    values = target.detach().cpu().double()
    if ignore_index is not None:
        known = values[~values.isnan()]
        if _are_whole(known) and len(_distinct(known)) <= _LABELS:
            return of_label_dtype("target", target, None, ignore_index)
        return "If they are logits pass their probabilities, target.sigmoid(); grey values up to 255 as target / 255."
    if bool(((values == 0) | (values == 1)).all()):
        return _of_several_classes("target")
    return (
        "If they are logits pass their probabilities, target.softmax(1); masks of 0 and 255 as target / 255 with a "
        'task of labels, "binary" or "multilabel".'
    )


def of_target_shape(input: Tensor, target: Tensor, ignore_index: int, upsample: str | None) -> str:
    """Say how to bring logits (N, C, *) and labels together."""
    shape, axes = tuple(target.shape), input.ndim - 2
    expected = (input.shape[0], *input.shape[2:])
    if axes and shape == tuple(input.shape[:-1]):
        return "The class axis of input is the last one, and should be axis 1: pass input.movedim(-1, 1)."
    if shape == tuple(input.shape[1:]):
        return (
            "For a single image add the batch axis: input, target = input.unsqueeze(0), target.unsqueeze(0)."
        )
    remedy = of_label_shape("target", target, expected, input.shape[1], ignore_index)
    if remedy:
        return remedy
    if target.ndim == input.ndim - 1 and target.shape[0] != input.shape[0]:
        return f"input holds {input.shape[0]} images and target {target.shape[0]}: take both from one batch."
    if upsample is None and target.ndim == input.ndim - 1 and 1 <= axes <= 3:
        return 'Pass upsample="linear" to interpolate the logits to the target\'s size.'
    return "input has the batch on axis 0 and the classes on axis 1, target has the batch on axis 0."


def of_label_outside(
    outside: int, target: Tensor, num_classes: int, ignore_index: int, name: str = "target"
) -> str:
    """Say what the labels may be, of which one is neither a class nor ``ignore_index``."""
    found = _distinct(target)
    kinds = [int(label) for label in found if label != ignore_index]
    if set(kinds) <= {0, 255}:
        alone = " and ".join(map(str, kinds))
        return (
            f"The labels are {alone} alone: is 255 the object, or to be left out? If it is the object, class 1, pass "
            f"({name} == 255).long(); if it is to be left out, ignore_index=255."
        )
    if kinds == [-1, 1]:
        return (
            "The labels are -1 and 1 alone: is -1 the background, or to be left out? If it is the background, class 0, "
            f"pass ({name} == 1).long(); if it is to be left out, ignore_index=-1."
        )
    beside = "" if len(kinds) == len(found) else f" beside {ignore_index}, which is ignored"
    encoding = _of_encoding(kinds, num_classes, name, beside)
    if outside in _OFTEN_IGNORED and not encoding:
        return f"Did you mean ignore_index={outside}?"
    return encoding or (
        f"Expected 0 to {num_classes - 1}, or ignore_index={ignore_index}: "
        "check the labels' encoding and the number of logit channels."
    )


def _of_encoding(kinds: list[int], num_classes: int, name: str, beside: str) -> str:
    """Say what labels of other numbers than 0 to C - 1 may be, in rising order; "" where nothing is known."""
    if num_classes == len(kinds) == 2 and kinds[0] == 0:
        alone = f"0 and {kinds[1]} alone{beside}"
        return f"The labels are {alone}: if {kinds[1]} is class 1, pass ({name} == {kinds[1]}).long()."
    if kinds[-1] == num_classes and kinds[0] >= 0:
        return (
            f"The labels reach from {kinds[0]} to {kinds[-1]}: if they count from 1, pass {name}.long() - 1, where a "
            "label 0 is none of the classes with ignore_index=-1; else the model needs one output more."
        )
    gaps = [high - low for low, high in pairwise(kinds)]
    if kinds[0] == 0 and 2 < len(kinds) <= num_classes and 1 < min(gaps) >= max(gaps) - 1:
        numbered = f"torch.searchsorted(torch.tensor({kinds}, device={name}.device), {name}.long())"
        return f"The labels are {', '.join(map(str, kinds))}: if these grey levels are all classes, pass {numbered}."
    return ""


def _distinct(values: Tensor) -> list[float]:
    """Return the different values, in rising order."""
    kinds: list[float] = torch.unique(values.detach().flatten()).tolist()
    return kinds


def of_own_logits(input: Tensor, target: Tensor) -> str:
    """Say how to bring logits of labels, each present or not by itself, to their shape."""
    if input.shape == target.shape and 1 not in input.shape[1:2]:
        return 'For a map without a channel axis pass input.unsqueeze(1); for many labels a pixel task="multilabel".'
    if input.ndim > 2 and input.shape[-1] == 1 and target.squeeze(1).shape == input.shape[:-1]:
        return _CHANNEL_LAST
    if input.shape[:1] == (1,) and target.shape == input.shape[1:]:
        return (
            "For a single image add the batch axis: input, target = input.unsqueeze(0), target.unsqueeze(0)."
        )
    if input.ndim > 1 and input.shape[1] > 1:
        two = (
            ", or the logit of class 1 against class 0, input[:, 1:] - input[:, :1]"
            if input.shape[1] == 2
            else ""
        )
        return f'For a softmax over the classes pass task="multiclass"{two}; for labels each by itself "multilabel".'
    return "Pass input.unsqueeze(1) for a map without a channel axis, input.unsqueeze(0) without a batch."


def of_own_target(input: Tensor, target: Tensor, task: str) -> str:
    """Say how to bring labels, each 0 or 1, to the logits' shape."""
    if task == "multilabel" and target.ndim == input.ndim - 1:
        return (
            "Each label needs a 0 or a 1. For class indices, one a pixel, pass "
            "torch.nn.functional.one_hot(target.long(), input.shape[1]).movedim(-1, 1)."
        )
    if target.ndim == input.ndim and target.shape[-1] in (1, input.shape[1]):
        return "Its channel axis is the last: pass target.movedim(-1, 1)."
    if input.ndim > 2 and input.movedim(-1, 1).shape == target.shape:
        return _CHANNEL_LAST
    if task == "binary" and target.shape == (input.shape[0], 2, *input.shape[2:]):
        return "It has a channel where the label is absent and one where it is present: pass target[:, 1:]."
    if target.shape[1:] in (input.shape[1:], input.shape[2:]):
        return f"input holds {input.shape[0]} images and target {target.shape[0]}: take both from one batch."
    return 'Resize the labels by "nearest", or pass upsample="linear" to interpolate the logits.'
