"""One builder a family: the tensors that a contender gets.

Values are rounded to bfloat16 whatever the dtype, so that one float64 truth serves every dtype of a shape.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from torch import Tensor

from benchmarks.speed.settings import Shape

IGNORE_INDEX = 255
IGNORED = 0.04  # share of the pixels
FOREGROUND = 0.05  # share of the pixels, where they are of an object or not
HARD = 0.2  # share of the valid pixels that mining keeps
SMOOTHING = 0.1  # of the labels
ALPHA = 0.25  # of the focal loss, where pixels are of an object or not

P = TypeVar("P", bound="Problem")


@dataclass(frozen=True)
class Problem:
    """Tensors of one job; those that ask for a gradient are its leaves."""

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    @property
    def leaves(self) -> list[Tensor]:
        """What the backward pass has to give a gradient for."""
        return [tensor for tensor in self.tensors.values() if tensor.requires_grad]

    @property
    def leaf_bytes(self) -> int:
        """Their bytes: the logits', in most families."""
        return sum(leaf.nbytes for leaf in self.leaves)

    @property
    def least_bytes(self) -> int:
        """What forward and backward must move at least: each reads everything, backward writes the gradient."""
        return 2 * sum(tensor.nbytes for tensor in self.tensors.values()) + self.leaf_bytes

    def in_float64(self: P) -> P:
        """The same problem, to compute the truth with."""
        wide = {
            name: tensor.detach().double().requires_grad_(tensor.requires_grad)
            for name, tensor in self.tensors.items()
            if tensor.is_floating_point()
        }
        return replace(self, **wide)


@dataclass(frozen=True)
class Pixels(Problem):
    """Logits (N, C, *) and labels (N, *), or shares (N, C, *). With ``size`` the logits are coarser than the labels."""

    input: Tensor
    target: Tensor
    valid: int  # the number of pixels that are not ignored: peers need not count them
    size: Shape | None = None


@dataclass(frozen=True)
class Head(Problem):
    """Features (N, F, H, W), a 1×1 convolution's weight (C, F), and labels (N, H, W)."""

    features: Tensor
    weight: Tensor
    target: Tensor


@dataclass(frozen=True)
class Vectors(Problem):
    """Queries (Q, D) with labels, prototypes (C, D), negatives (C, M, D) and class weights, for the pull loss."""

    queries: Tensor
    labels: Tensor
    prototypes: Tensor
    negatives: Tensor
    class_weight: Tensor


@dataclass(frozen=True)
class Domains(Problem):
    """Features of both domains (N, D, *), labels (N, *) and probabilities (N, C, *), for ``PullLoss``."""

    student: Tensor
    student_labels: Tensor
    source: Tensor
    source_labels: Tensor
    target: Tensor
    target_probabilities: Tensor


@dataclass(frozen=True)
class Texts(Problem):
    """Queries (K, L, D), embeddings (K, D) and their prototypes, for the losses that see no pixels."""

    queries: Tensor
    text: Tensor
    projected: Tensor
    prototypes: Tensor


@dataclass(frozen=True)
class Aligned(Problem):
    """Features (N, D, *) of masked and of whole images, text (K, D), labels (N, *) and the region (N, *)."""

    masked: Tensor
    reference: Tensor
    text: Tensor
    target: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Losses(Problem):
    """A loss for each pixel, to choose the hardest from."""

    loss: Tensor
    keep: Tensor
    kept: int  # k


@dataclass(frozen=True)
class Norms(Problem):
    """The squared gradient norm of each class."""

    norms: Tensor


def pixels(
    shape: Shape,
    dtype: str,
    device: str,
    size: Shape | None = None,
    channels_last: bool = False,
    ignored: float = IGNORED,
) -> Pixels:
    """Return logits, and labels of which the last classes are rare and, at equal size, harder."""
    draw = _generator(device)
    logits = _normal(shape, dtype, draw, scale=2)
    target = _labels((shape[0], *(size or shape[2:])), shape[1], draw, ignored)
    if size is None:
        _raise_the_right(logits, target)
    if channels_last:
        logits = logits.contiguous(memory_format=torch.channels_last)
    valid = int((target != IGNORE_INDEX).sum())
    return Pixels(logits.requires_grad_(), target, valid, size)


def labelled(shape: Shape, dtype: str, device: str) -> Pixels:
    """Return the same without ignored pixels, which some peers cannot leave out."""
    return pixels(shape, dtype, device, ignored=0)


def binary(shape: Shape, dtype: str, device: str) -> Pixels:
    """Return one logit a pixel, and whether the pixel is of a rare object, as a mask of bytes holds it."""
    draw = _generator(device)
    target = torch.rand((shape[0], *shape[2:]), generator=draw, device=device) < FOREGROUND
    right = torch.where(target, 1.0, -4.0).unsqueeze(1)
    logits = (_normal(shape, "float32", draw, scale=2) + right).bfloat16().to(getattr(torch, dtype))
    return Pixels(logits.requires_grad_(), target.byte(), target.numel())


def soft(shape: Shape, dtype: str, device: str) -> Pixels:
    """Return logits, and the probabilities of a teacher who half agrees."""
    draw = _generator(device)
    logits = _normal(shape, dtype, draw, scale=2)
    target = (logits.float() + _normal(shape, "float32", draw, scale=2)).softmax(1)
    return Pixels(logits.requires_grad_(), target, target[:, 0].numel())


def head(shape: Shape, classes: int, dtype: str, device: str) -> Head:
    """Return features as a decoder gives them, and a last layer."""
    draw = _generator(device)
    features = _normal(shape, dtype, draw).requires_grad_()
    weight = _normal((classes, shape[1]), dtype, draw, scale=0.25).requires_grad_()
    return Head(features, weight, _labels((shape[0], *shape[2:]), classes, draw))


def vectors(queries: int, width: int, classes: int, negatives: int, dtype: str, device: str) -> Vectors:
    """Return what ``functional.pull_loss`` takes."""
    draw = _generator(device)
    labels = _labels((queries,), classes, draw)
    return Vectors(
        _normal((queries, width), dtype, draw).requires_grad_(),
        labels,
        _normal((classes, width), dtype, draw),
        _normal((classes, negatives, width), dtype, draw),
        torch.rand(classes, generator=draw, device=device),
    )


def domains(shape: Shape, classes: int, dtype: str, device: str) -> Domains:
    """Return what ``PullLoss`` takes."""
    draw = _generator(device)
    grid = (shape[0], *shape[2:])
    logits = _normal((shape[0], classes, *shape[2:]), "float32", draw, scale=2)
    return Domains(
        _normal(shape, dtype, draw).requires_grad_(),
        _labels(grid, classes, draw),
        _normal(shape, dtype, draw),
        _labels(grid, classes, draw),
        _normal(shape, dtype, draw),
        logits.softmax(1).to(getattr(torch, dtype)),
    )


def texts(classes: int, levels: int, width: int, learnt: tuple[str, ...], dtype: str, device: str) -> Texts:
    """Return what the losses on queries and embeddings take; those named in ``learnt`` want a gradient."""
    draw = _generator(device)
    queries = _normal((classes, levels, width), dtype, draw)
    problem = Texts(queries, *(_normal((classes, width), dtype, draw) for _ in range(3)))
    return _learning(problem, learnt)


def aligned(shape: Shape, classes: int, learnt: tuple[str, ...], dtype: str, device: str) -> Aligned:
    """Return what the losses between features and text take; half of the pixels are in the region."""
    draw = _generator(device)
    grid = (shape[0], *shape[2:])
    problem = Aligned(
        _normal(shape, dtype, draw),
        _normal(shape, dtype, draw),
        _normal((classes, shape[1]), dtype, draw),
        _labels(grid, classes, draw),
        torch.rand(grid, generator=draw, device=device) < 0.5,
    )
    return _learning(problem, learnt)


def losses(count: int, device: str) -> Losses:
    """Return a cross-entropy for each pixel of one image, a few of them ignored."""
    draw = _generator(device)
    loss = _normal((1, count), "float32", draw).exp()
    keep = torch.rand(1, count, generator=draw, device=device) >= IGNORED
    return Losses(loss, keep, int(int(keep.sum()) * HARD))


def norms(classes: int, device: str) -> Norms:
    """Return gradient norms of which some are large."""
    draw = _generator(device)
    return Norms(2 * torch.rand(classes, generator=draw, device=device) ** 2)


def _learning(problem: P, learnt: tuple[str, ...]) -> P:
    for name in learnt:
        problem.tensors[name].requires_grad_()
    return problem


def _generator(device: str) -> torch.Generator:
    return torch.Generator(device).manual_seed(0)


def _normal(shape: Shape, dtype: str, draw: torch.Generator, scale: float = 1) -> Tensor:
    values = torch.randn(shape, generator=draw, device=draw.device).mul_(scale)
    return values.bfloat16().to(getattr(torch, dtype))


def _raise_the_right(logits: Tensor, target: Tensor) -> None:
    """Add to the labelled class's logit, in place: up to 4 for a frequent class, next to nothing for a rare one."""
    index = torch.where(target == IGNORE_INDEX, 0, target).unsqueeze(1)
    more = (4 * (1 - index / logits.shape[1])).bfloat16().to(logits.dtype)
    right = (logits.gather(1, index) + more).bfloat16().to(logits.dtype)
    logits.scatter_(1, index, right)


def _labels(shape: Shape, classes: int, draw: torch.Generator, ignored: float = IGNORED) -> Tensor:
    target = (torch.rand(shape, generator=draw, device=draw.device) ** 2 * classes).long()
    return target.masked_fill_(torch.rand(shape, generator=draw, device=draw.device) < ignored, IGNORE_INDEX)
