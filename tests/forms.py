"""Every form, and the law that its value and slope obey on each backend. A new backend or form is a row."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from classbalance_losses.kernels import reference
from classbalance_losses.kernels.call import Labels, Logits
from classbalance_losses.kernels.forms.reference import (
    CrossEntropy,
    DualCrossEntropy,
    DualFocal,
    Focal,
    Form,
    Smoothed,
)

PixelValues = Callable[[Logits, Labels, Form], Tensor]


def class_weight(num_classes: int) -> Tensor:
    """Unequal weights, a zero among them."""
    return torch.tensor([0.5 * ((3 * c + 1) % 7) for c in range(num_classes)], dtype=torch.float32)


# Built for a number of classes.
FORMS: dict[str, Callable[[int], Form]] = {
    "cross-entropy": lambda classes: CrossEntropy(),
    "focal": lambda classes: Focal(2.0),
    "focal, 0.5": lambda classes: Focal(0.5),
    "smoothed": lambda classes: Smoothed(0.1, class_weight(classes)),
    "smoothed, all": lambda classes: Smoothed(0.9, torch.ones(classes, dtype=torch.float32)),
    "dual cross-entropy": lambda classes: DualCrossEntropy(1.0, 1.0),
    "dual cross-entropy, 0.1": lambda classes: DualCrossEntropy(0.1, 1.5),
    "dual cross-entropy, small": lambda classes: DualCrossEntropy(1e-4, 1.0),
    "dual cross-entropy, off": lambda classes: DualCrossEntropy(1.0, 0.0),
    "dual focal": lambda classes: DualFocal(1.0, 1.0, 1.0, 1.0),
    "dual focal, squares": lambda classes: DualFocal(0.5, 2.0, 2.0, 1.0),
    "dual focal, roots": lambda classes: DualFocal(1.0, 1.0, 0.5, 1.0),
    "dual focal, ones": lambda classes: DualFocal(1.0, 1.0, 0.0, 1.0),
    "dual focal, room": lambda classes: DualFocal(0.5, 1.0, 3.0, 1.01),
    "dual focal, no room": lambda classes: DualFocal(1.0, 0.0, 1.0, 1.0),
    "dual focal, room alone": lambda classes: DualFocal(0.0, 1.0, 1.0, 1.0),
}


def exact(form: Form) -> Form:
    """The same for float64."""
    return form._replace(weight=form.weight.double()) if isinstance(form, Smoothed) else form


class Outcome(NamedTuple):
    """Value and gradient."""

    value: Tensor
    gradient: Tensor


def outcome(
    pixel_values: PixelValues, form: Form, input: Tensor, labels: Labels, grad: Tensor | None = None
) -> Outcome:
    """Run a backend's pixel pass both ways; by default the slopes of the pixels are 1."""
    leaf = input.detach().requires_grad_()
    value = pixel_values(Logits(leaf), labels, form)
    grad = torch.ones_like(value) if grad is None else grad.to(value.dtype)
    (gradient,) = torch.autograd.grad(value, leaf, grad)
    return Outcome(value.detach(), gradient)


def truth(form: Form, input: Tensor, labels: Labels, grad: Tensor | None = None) -> Outcome:
    """What the reference has in float64."""
    return outcome(reference.pixel_values, exact(form), input.double(), labels, grad)


def check_form(
    pixel_values: PixelValues, form: Form, input: Tensor, labels: Labels, grad: Tensor | None = None
) -> None:
    """Its value and its gradient are about as near to float64 as the reference's in the logits' own type."""
    wanted = truth(form, input, labels, grad)
    plain = outcome(reference.pixel_values, form, input, labels, grad)
    got = outcome(pixel_values, form, input, labels, grad)
    assert got.gradient.dtype == input.dtype
    for name, exactly, theirs, ours in zip(Outcome._fields, wanted, plain, got, strict=True):
        assert ours.isfinite().all(), name
        assert _error(ours, exactly) <= 2 * _error(theirs, exactly) + 1e-6, name


def _error(got: Tensor, wanted: Tensor) -> float:
    return float(((got - wanted).abs() / (1 + wanted.abs())).max())
