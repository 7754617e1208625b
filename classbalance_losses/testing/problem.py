"""The inputs that the laws are tried on: small, reproducible, in rising order of size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from classbalance_losses.testing.subject import Subject
from classbalance_losses.testing.violation import ViolationError, blamed_on_the_loss

_SIZES = {  # batch and spatial axes
    0: ((1,), (2,), (4,), (9,)),
    1: ((1, 1), (1, 2), (2, 2), (2, 6)),
    2: ((1, 1, 1), (1, 1, 2), (1, 2, 2), (2, 2, 3)),
    3: ((1, 1, 1, 1), (1, 1, 1, 2), (1, 1, 2, 2), (2, 2, 1, 3)),
}


@dataclass(frozen=True)
class Problem:
    """One call of a loss.

    Attributes:
        input: logits (N, C, *).
        target: class indices (N, *).
        ignore_index: the label to leave out; None: the option is not given.
        reduction: None: the option is not given.
        weight: class weights (C,), or None.
        pixel_weight: (N, *), or None.
    """

    input: Tensor
    target: Tensor
    ignore_index: int | None = None
    reduction: str | None = None
    weight: Tensor | None = None
    pixel_weight: Tensor | None = None

    @property
    def ignored(self) -> Tensor:
        """Where the label is the ignored one, (N, *)."""
        if self.ignore_index is None:
            return torch.zeros_like(self.target, dtype=torch.bool)
        return self.target.long() == self.ignore_index

    @property
    def options(self) -> dict[str, Any]:
        """The keywords of the call."""
        names = ("ignore_index", "reduction", "weight", "pixel_weight")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def pixel(self, index: int) -> Problem:
        """One of its pixels on its own."""
        shape = [1] * (self.target.ndim)
        classes = self.input.shape[1]

        def one(x: Tensor) -> Tensor:
            return x.flatten()[index].reshape(shape)

        logits = self.input.movedim(1, -1).reshape(-1, classes)[index]
        weight = None if self.pixel_weight is None else one(self.pixel_weight)
        logits = logits.reshape(1, classes, *shape[1:])
        return replace(self, input=logits, target=one(self.target), pixel_weight=weight)

    def __str__(self) -> str:
        """Python that makes it, or its shape where that would be pages."""
        tensors = {"input": self.input, "target": self.target, **self.options}
        return "\n".join(f"{name} = {_python(value)}" for name, value in tensors.items())


def _python(value: Any) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    if value.numel() > 64 or not value.numel():
        return f"{str(value.dtype)[6:]} of shape {tuple(value.shape)}"
    dtype = "" if value.dtype == torch.int64 else f", dtype={value.dtype}"
    text = str(value.detach().tolist()).replace("nan", "torch.nan").replace("inf", "torch.inf")
    return f"torch.tensor({text}{dtype})"


@dataclass(frozen=True)
class Outcome:
    """A loss's value, and the gradient of its sum with respect to the logits."""

    value: Tensor
    gradient: Tensor


def evaluate(subject: Subject, problem: Problem, **options: Any) -> Outcome:
    """Call the loss on the problem and differentiate it.

    Raises:
        ViolationError: it raises, or what it returns is no tensor with a graph.
    """
    logits = problem.input.detach().requires_grad_()
    value = forward(subject, replace(problem, input=logits), **options)
    if not value.requires_grad:
        raise ViolationError("a loss with a graph", "a loss without one")
    with blamed_on_the_loss("a gradient"):
        (gradient,) = torch.autograd.grad(value.sum(), logits)
    return Outcome(value.detach(), gradient)


def forward(subject: Subject, problem: Problem, **options: Any) -> Tensor:
    """The loss of the problem, on its own tensors.

    Raises:
        ViolationError: it raises, or returns no tensor of floats.
    """
    call = subject.bind(**{**problem.options, **options})
    with blamed_on_the_loss("a loss"):
        value = call(problem.input, problem.target)
    if not isinstance(value, Tensor) or not value.is_floating_point():
        kind = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise ViolationError("a tensor of floats", kind)
    return value


def sizes_of(dims: Sequence[int]) -> list[tuple[int, ...]]:
    """The sizes (N, *) of those ranks, by rising number of pixels."""
    sizes = [size for d in dims for size in _SIZES[d]]
    return sorted(sizes, key=lambda size: (torch.Size(size).numel(), len(size)))


def row(subject: Subject, pixels: int) -> tuple[int, ...]:
    """The size (N, *) of one image that is a row of pixels; of a batch of pixels for a loss without images."""
    axes = min((d for d in subject.dims if d), default=0)
    return (1, pixels, *[1] * (axes - 1)) if axes else (pixels,)


def places(count: int) -> Tensor:
    """Return 0, 1, …, count - 1."""
    return torch.arange(count, dtype=torch.int64, device="cpu")


def shuffled(count: int, generator: torch.Generator) -> Tensor:
    """Return the same in a random order."""
    return torch.randperm(count, generator=generator, dtype=torch.int64, device="cpu")


def draw(
    subject: Subject,
    size: tuple[int, ...],
    *,
    seed: int = 0,
    grid: bool = True,
    scale: float = 2.0,
    dtype: torch.dtype = torch.float64,
    **options: Any,
) -> Problem:
    """Random logits and labels, none ignored.

    Args:
        subject: gives the number of classes.
        size: (N, *).
        seed: of the draw.
        grid: round the logits to quarters, which every floating dtype holds and a reader can read.
        scale: of the logits.
        dtype: of the logits.
        options: other fields of the problem.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (size[0], subject.num_classes, *size[1:])
    logits = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu") * scale
    share = torch.rand(size, generator=generator, dtype=torch.float32, device="cpu")
    target = (share**2 * subject.num_classes).long()
    return Problem((logits * 4).round().div(4).to(dtype) if grid else logits.to(dtype), target, **options)


def with_ignored(
    subject: Subject, problem: Problem, ignore_index: int | None = None, seed: int = 0
) -> Problem:
    """The same with some pixels ignored: at least one, and not all where there are two."""
    label = subject.ignore_index if subject.ignore_index is not None else ignore_index
    label = 255 if label is None else label
    generator = torch.Generator().manual_seed(seed)
    pixels = problem.target.numel()
    count = min(max(1, pixels // 3), max(1, pixels - 1))
    hole = torch.zeros(pixels, dtype=torch.bool, device="cpu")
    hole[shuffled(pixels, generator)[:count]] = True
    target = problem.target.masked_fill(hole.reshape(problem.target.shape), label)
    return replace(problem, target=target, ignore_index=label)


def plain(subject: Subject, reductions: Sequence[str | None] | None = None) -> Iterator[Problem]:
    """Problems without ignored pixels."""
    for seed, size in enumerate(sizes_of(subject.dims)):
        for reduction in reductions or (subject.mean,):
            yield draw(subject, size, seed=seed, reduction=reduction)


def holed(subject: Subject, reductions: Sequence[str | None] | None = None) -> Iterator[Problem]:
    """Problems with ignored pixels, and some that are not."""
    for problem in plain(subject, reductions):
        if problem.target.numel() > 1:
            yield with_ignored(subject, problem, 255 if problem.target.numel() % 2 else -100)


def both(subject: Subject, reductions: Sequence[str | None] | None = None) -> Iterator[Problem]:
    """Problems without ignored pixels, then with some where the loss can ignore."""
    yield from plain(subject, reductions)
    if subject.ignores:
        yield from holed(subject, reductions)


def in_every_reduction(
    subject: Subject, problems: Callable[[Subject, Sequence[str | None]], Iterator[Problem]]
) -> Iterator[Problem]:
    """Those problems in each of the loss's reductions."""
    return problems(subject, subject.reductions)
