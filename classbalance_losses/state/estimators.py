"""Class weights that follow the data: each estimator is a statistic of the batch, and a function of it.

``WeightedCrossEntropyLoss(PixelFrequency())`` calls its estimator at every forward pass. An estimator reads no
value on the host, so it compiles and can be captured in a CUDA graph. What it remembers is saved with the module.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from classbalance_losses._distributed import ProcessGroup, all_reduce_sum
from classbalance_losses._recompute import first_time
from classbalance_losses._validate_options import check_choice, check_range
from classbalance_losses.ops.batch_sums import BatchSums
from classbalance_losses.ops.class_weights import (
    curriculum_weights,
    effective_number_weights,
    image_frequency_weights,
    loss_based_weights,
    median_frequency_weights,
    pixel_frequency_weights,
)
from classbalance_losses.ops.image_counts import summed_image_counts
from classbalance_losses.state.memory import Entry, Memory
from classbalance_losses.state.saved import Saved

Accumulate = Literal["batch", "running"]

_OF_MAPS = 4  # arguments, or more: pixel_loss, target, keep, num_classes


class ClassWeightEstimator(Saved):
    """Base of the estimators: ``forward`` turns a batch into class weights.

    Write your own by subclassing and overriding ``forward``. One with the former signature, ``forward(pixel_loss,
    target, keep, num_classes, process_group)``, works until 0.3.0, with a warning; so does a call with those arguments.
    """

    _takes_maps = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._takes_maps = cls.forward.__code__.co_argcount > _OF_MAPS

    def forward(self, sums: BatchSums) -> Tensor:
        """Return the weights (C,), constant, of a batch with these sums over its classes."""
        raise NotImplementedError

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the weights (C,).

        Raises:
            TypeError: it is called with logits and labels, which its loss is to be.
        """
        if args and isinstance(args[0], Tensor) and len(args) + len(kwargs) < _OF_MAPS:
            raise TypeError(
                "Expected the sums over a batch's classes, got a tensor. An estimator is called by its loss: "
                f"WeightedCrossEntropyLoss({type(self).__name__}())(input, target). For weights from counts there are "
                "functions, such as functional.pixel_frequency_weights(counts)."
            )
        if len(args) + len(kwargs) > 1 and not takes_maps(self):
            _warn_of_maps("Calling an estimator with maps")
            args, kwargs = (BatchSums.of_maps(*args, **kwargs),), {}
        weights: Tensor = super().__call__(*args, **kwargs)
        return weights

    def extra_repr(self) -> str:
        """Show the options."""
        hidden = {"training"} | {name for name, value in vars(self).items() if isinstance(value, Tensor)}
        if vars(self).get("num_classes") is None:
            hidden.add("num_classes")
        options = {k: v for k, v in vars(self).items() if not k.startswith("_") and k not in hidden}
        return ", ".join(f"{name}={value!r}" for name, value in options.items())


class _CountEstimator(Memory, ClassWeightEstimator):
    """Weights from counts (R, C), of the batch or summed over the training batches so far."""

    counts: Tensor
    _rows = 1

    def __init__(self, accumulate: Accumulate, num_classes: int | None) -> None:
        super().__init__()
        check_choice("accumulate", accumulate, ("batch", "running"))
        self.accumulate = accumulate
        running = {"counts": Entry((self._rows, None), torch.int64)} if accumulate == "running" else {}
        self.num_classes = num_classes
        self._remember(num_classes, **running)

    def count(self, sums: BatchSums) -> Tensor:
        """Return the batch's counts on all ranks, (R, C) of int64."""
        return sums.number().unsqueeze(0)

    def weigh(self, counts: Tensor) -> Tensor:
        """Return the weights (C,) that belong to counts (R, C)."""
        raise NotImplementedError

    def forward(self, sums: BatchSums) -> Tensor:
        """Return the weights (C,), constant."""
        counts = self.count(sums)
        if self.accumulate == "running":
            total = sums.total()
            key = torch.cat([counts.flatten().to(total.dtype), total])
            counts = first_time(self, key, partial(self._added, counts, total, sums.process_group))
        return self.weigh(counts.double() if sums.dtype == torch.float64 else counts)

    def _added(self, counts: Tensor, total: Tensor, process_group: ProcessGroup) -> Tensor:
        """Add a training batch; in evaluation only look, and before the first one at the batch itself."""
        recalled = self._recall(counts.shape[1], total.isfinite().all(), process_group)
        old = recalled.values["counts"]
        if not self._moves():
            return torch.where(old.any(), old, counts)
        self._keep(recalled, counts=old + counts)
        return torch.where(recalled.finite, old + counts, old)


class PixelFrequency(_CountEstimator):
    """Inverse pixel frequency, see :func:`~classbalance_losses.functional.pixel_frequency_weights`.

    Args:
        accumulate: ``"batch"`` counts the pixels of the batch, ``"running"`` those of all training batches.
        power: exponent, at least 0.
        num_classes: C, which fixes the shape of what is remembered; ``None`` to take it from the first batch.

    Raises:
        ValueError: an option is out of its range.
    """

    def __init__(
        self, *, accumulate: Accumulate = "batch", power: float = 1.0, num_classes: int | None = None
    ) -> None:
        super().__init__(accumulate, num_classes)
        check_range("power", power, 0)
        self.power = power

    def weigh(self, counts: Tensor) -> Tensor:
        """Return the weights (C,) for the pixel counts (1, C)."""
        return pixel_frequency_weights(counts[0], power=self.power)


class MedianFrequency(_CountEstimator):
    """Median frequency balancing, see :func:`~classbalance_losses.functional.median_frequency_weights`.

    Args:
        accumulate: ``"batch"`` counts the batch, ``"running"`` all training batches.
        power: exponent, at least 0.
        num_classes: C, which fixes the shape of what is remembered; ``None`` to take it from the first batch.

    Raises:
        ValueError: an option is out of its range.
    """

    _rows = 2

    def __init__(
        self, *, accumulate: Accumulate = "batch", power: float = 1.0, num_classes: int | None = None
    ) -> None:
        super().__init__(accumulate, num_classes)
        check_range("power", power, 0)
        self.power = power

    def count(self, sums: BatchSums) -> Tensor:
        """Return pixels of each class, and pixels of the images that contain it, (2, C)."""
        counts = summed_image_counts(sums.image_number())
        own = torch.stack([counts.pixel_counts, counts.image_pixel_counts])
        return all_reduce_sum(own, sums.process_group)

    def weigh(self, counts: Tensor) -> Tensor:
        """Return the weights (C,)."""
        return median_frequency_weights(counts[0], counts[1], power=self.power)


class ImageFrequency(_CountEstimator):
    """Inverse image frequency, see :func:`~classbalance_losses.functional.image_frequency_weights`.

    Args:
        accumulate: ``"batch"`` counts the images of the batch, ``"running"`` those of all training batches.
        num_classes: C, which fixes the shape of what is remembered; ``None`` to take it from the first batch.

    Raises:
        ValueError: ``accumulate`` is unknown.
    """

    _rows = 2

    def __init__(self, *, accumulate: Accumulate = "batch", num_classes: int | None = None) -> None:
        super().__init__(accumulate, num_classes)

    def count(self, sums: BatchSums) -> Tensor:
        """Return images that contain each class, and the number of images C times, (2, C)."""
        image_counts = summed_image_counts(sums.image_number()).image_counts
        own = torch.stack([image_counts, torch.full_like(image_counts, sums.num_images)])
        return all_reduce_sum(own, sums.process_group)

    def weigh(self, counts: Tensor) -> Tensor:
        """Return the weights (C,)."""
        return image_frequency_weights(counts[0], counts[1])


class EffectiveNumber(_CountEstimator):
    """Effective number of samples, see :func:`~classbalance_losses.functional.effective_number_weights`.

    Args:
        accumulate: ``"batch"`` counts the pixels of the batch, ``"running"`` those of all training batches.
        beta: in [0, 1].
        num_classes: C, which fixes the shape of what is remembered; ``None`` to take it from the first batch.

    Raises:
        ValueError: an option is out of its range.
    """

    def __init__(
        self, *, accumulate: Accumulate = "batch", beta: float = 0.9999, num_classes: int | None = None
    ) -> None:
        super().__init__(accumulate, num_classes)
        check_range("beta", beta, 0, 1)
        self.beta = beta

    def weigh(self, counts: Tensor) -> Tensor:
        """Return the weights (C,) for the pixel counts (1, C)."""
        return effective_number_weights(counts[0], beta=self.beta)


class _LossEstimator(Memory, ClassWeightEstimator):
    """Weights from the mean loss of each class, of the batch or as a moving average over training batches.

    Attributes:
        class_loss: the moving average, (C,), 0 for a class that no batch has had.
        seen: training batches that had the class, (C,), int64.
    """

    class_loss: Tensor
    seen: Tensor

    def __init__(self, momentum: float | None, num_classes: int | None, **more: Entry) -> None:
        super().__init__()
        if momentum is not None:
            check_range("momentum", momentum, 0, 1)
            more = {
                "class_loss": Entry((None,), torch.float32),
                "seen": Entry((None,), torch.int64),
                **more,
            }
        self.momentum = momentum
        self.num_classes = num_classes
        self._remember(num_classes, **more)

    def weigh(self, class_loss: Tensor, values: dict[str, Tensor]) -> Tensor:
        """Return the weights (C,) for mean losses (C,), nan for a class never seen, and what else is remembered."""
        raise NotImplementedError

    def forward(self, sums: BatchSums) -> Tensor:
        """Return the weights (C,), constant, in the loss's dtype."""
        number, total = sums.number_and_loss()
        mean = total / number  # nan for an absent class
        if self.momentum is None:
            return self.weigh(mean, {})
        # The average's dtype must not depend on the loss's.
        follow = partial(self._follow, mean.float(), sums.total(), self.momentum, sums.process_group)
        return first_time(self, torch.cat([total, number]), follow).to(sums.dtype)

    def _follow(self, mean: Tensor, total: Tensor, momentum: float, process_group: ProcessGroup) -> Tensor:
        """Move the average towards a training batch, and return the weights; a class that is absent keeps its own."""
        recalled = self._recall(mean.shape[0], total.isfinite().all(), process_group)
        old, seen = recalled.values["class_loss"], recalled.values["seen"]
        if not self._moves():
            return self.weigh(
                torch.where(seen > 0, old, torch.where(seen.any(), torch.nan, mean)), recalled.values
            )
        present = ~mean.isnan()
        moved = torch.where(seen > 0, momentum * old + (1 - momentum) * mean, mean)
        values = {
            "class_loss": torch.where(present, moved, old),
            "seen": seen + present,
            **{name: clock + 1 for name, clock in recalled.values.items() if name == "step"},
        }
        known = torch.where(recalled.finite, values["seen"], seen) > 0
        average = torch.where(recalled.finite, values["class_loss"], old)
        weight = self.weigh(torch.where(known, average, torch.nan), recalled.values)
        self._keep(recalled, **values)
        return weight


class LossBased(_LossEstimator):
    """GBW's quadratic programme over mean losses, see :func:`~classbalance_losses.functional.loss_based_weights`.

    In a weighted cross-entropy with ``normalize="pixels"`` this is ``GBWLoss(gradient="loss")``.

    Args:
        regularization: λ > 0.
        momentum: of the moving average of each class's loss; None takes the batch's alone.
        num_classes: C, which fixes the shape of what is remembered; ``None`` to take it from the first batch.

    Raises:
        ValueError: an option is out of its range.
    """

    def __init__(
        self,
        *,
        regularization: float = 1.0,
        momentum: float | None = None,
        num_classes: int | None = None,
    ) -> None:
        super().__init__(momentum, num_classes)
        check_range("regularization", regularization, 0, open_low=True)
        self.regularization = regularization

    def weigh(self, class_loss: Tensor, values: dict[str, Tensor]) -> Tensor:
        """Return the weights (C,); a class never seen enters with loss 0."""
        return loss_based_weights(class_loss.nan_to_num(0.0), regularization=self.regularization)


class Curriculum(_LossEstimator):
    """Classes join the loss one after the other, see :func:`~classbalance_losses.functional.curriculum_weights`.

    K = round(start·C/100) classes are active at first (at least one), and round(increment·C/100) more (at
    least one) after every ``every`` training steps (CCL). CCL orders the classes by their mean loss over the
    last epoch; a loss knows no epochs, so here it is the moving average of each class's loss, at every step.
    CCL's percentages are in files that were not released: the defaults are this package's.

    Args:
        start: per cent of the classes active at first, in (0, 100].
        increment: per cent of the classes that join each time, in (0, 100].
        every: training steps between two increments, at least 1.
        order: ``"easy_first"`` (smallest loss first) or ``"hard_first"``.
        momentum: of the moving average of each class's loss, in [0, 1].
        num_classes: C, which fixes the shape of what is remembered; ``None`` to take it from the first batch.

    Raises:
        ValueError: an option is out of its range.
    """

    step: Tensor

    def __init__(
        self,
        *,
        start: float = 25.0,
        increment: float = 25.0,
        every: int = 1000,
        order: Literal["easy_first", "hard_first"] = "easy_first",
        momentum: float = 0.99,
        num_classes: int | None = None,
    ) -> None:
        super().__init__(momentum, num_classes, step=Entry((), torch.int64))
        check_range("start", start, 0, 100, open_low=True)
        check_range("increment", increment, 0, 100, open_low=True)
        check_range("every", every, 1)
        check_choice("order", order, ("easy_first", "hard_first"))
        self.start, self.increment, self.every, self.order = start, increment, every, order

    def weigh(self, class_loss: Tensor, values: dict[str, Tensor]) -> Tensor:
        """Return 1 for the active classes and 0 for the others, (C,)."""
        first, more = (
            max(1, round(share * class_loss.numel() / 100)) for share in (self.start, self.increment)
        )
        return curriculum_weights(class_loss, first + more * (values["step"] // self.every), order=self.order)


def is_estimator(weight: object) -> bool:
    """Whether weights are made of each batch, by a module or a function; a class is none, nor are statistics."""
    return callable(weight) and not isinstance(weight, (Tensor, type)) and not hasattr(weight, "pixel_counts")


def estimate(estimator: Callable[..., Tensor], sums: BatchSums) -> Tensor:
    """Return what an estimator, a module or a function, makes of a batch, by its present or its former signature."""
    if not takes_maps(estimator):
        return estimator(sums)
    _warn_of_maps(f"An estimator of maps, {type(estimator).__name__},")
    return estimator(*sums.maps(), sums.num_classes, sums.process_group)


def takes_maps(estimator: Callable[..., Tensor]) -> bool:
    """Whether an estimator has the former signature, of five arguments."""
    if isinstance(estimator, ClassWeightEstimator):  # torch 2.6 does not trace what follows
        return estimator._takes_maps
    if isinstance(estimator, nn.Module):  # a graph may be traced here, which takes no signature
        return type(estimator).forward.__code__.co_argcount > _OF_MAPS
    return len(inspect.signature(estimator).parameters) >= _OF_MAPS


def _warn_of_maps(what: str) -> None:
    if not torch.compiler.is_compiling():
        warnings.warn(
            f"{what} is the former way and will go in 0.3.0: an estimator takes the sums over a batch's classes, "
            "forward(sums), see classbalance_losses.state.BatchSums.",
            FutureWarning,
            stacklevel=4,
        )
