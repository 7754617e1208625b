"""Class weights that follow the data: each estimator is a statistic of the batch, and a function of it.

``WeightedCrossEntropyLoss(PixelFrequency())`` calls its estimator at every forward pass. An estimator reads no
value on the host, so it compiles and can be captured in a CUDA graph; what it remembers lies in buffers.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from classbalance_losses._distributed import ProcessGroup, all_reduce_sum
from classbalance_losses._validate import check_choice, check_range
from classbalance_losses.ops.class_weights import (
    curriculum_weights,
    effective_number_weights,
    image_frequency_weights,
    loss_based_weights,
    median_frequency_weights,
    pixel_frequency_weights,
)
from classbalance_losses.ops.counts import class_counts, class_sums
from classbalance_losses.ops.image_counts import summed_image_counts
from classbalance_losses.state.lazy import register_lazy_buffer

Accumulate = Literal["batch", "running"]


class ClassWeightEstimator(nn.Module):
    """Base of the estimators: ``forward`` turns a batch into class weights.

    Write your own by subclassing and overriding ``forward``.
    """

    def forward(
        self,
        pixel_loss: Tensor,
        target: Tensor,
        keep: Tensor,
        num_classes: int,
        process_group: ProcessGroup = None,
    ) -> Tensor:
        """Return the weights (C,), constant, in the dtype of ``pixel_loss``.

        Args:
            pixel_loss: cross-entropy of each pixel, (N, *), detached, float32 or float64.
            target: class indices (N, *), int64.
            keep: which pixels count, (N, *), bool; the others' targets may be anything.
            num_classes: C.
            process_group: the ranks whose statistics are joined.
        """
        raise NotImplementedError

    def extra_repr(self) -> str:
        """Show the options."""
        options = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return ", ".join(f"{name}={value!r}" for name, value in options.items() if name != "training")


class _CountEstimator(ClassWeightEstimator):
    """Weights from counts (R, C), of the batch or summed over the training batches so far."""

    counts: Tensor

    def __init__(self, accumulate: Accumulate) -> None:
        super().__init__()
        check_choice("accumulate", accumulate, ("batch", "running"))
        self.accumulate = accumulate
        register_lazy_buffer(self, "counts", torch.int64, persistent=accumulate == "running")

    def count(self, target: Tensor, keep: Tensor, num_classes: int) -> Tensor:
        """Return the batch's counts, (R, C) of int64."""
        return class_counts(target, keep, num_classes).unsqueeze(0)

    def weigh(self, counts: Tensor) -> Tensor:
        """Return the weights (C,) that belong to counts (R, C)."""
        raise NotImplementedError

    def forward(
        self,
        pixel_loss: Tensor,
        target: Tensor,
        keep: Tensor,
        num_classes: int,
        process_group: ProcessGroup = None,
    ) -> Tensor:
        """Return the weights (C,), constant, in the dtype of ``pixel_loss``."""
        counts = all_reduce_sum(self.count(target, keep, num_classes), process_group)
        if self.accumulate == "running":
            counts = self._add(counts)
        return self.weigh(counts.double() if pixel_loss.dtype == torch.float64 else counts)

    def _add(self, counts: Tensor) -> Tensor:
        """Add a training batch; in evaluation only look, and before the first one at the batch itself."""
        if self.counts.numel() == 0:
            if self.training:
                self.counts = counts
            return counts
        _check_num_classes(self.counts, counts)
        if self.training:
            self.counts.add_(counts)
        return self.counts


class PixelFrequency(_CountEstimator):
    """Inverse pixel frequency, see :func:`~classbalance_losses.functional.pixel_frequency_weights`.

    Args:
        accumulate: ``"batch"`` counts the pixels of the batch, ``"running"`` those of all training batches.
        power: exponent, at least 0.

    Raises:
        ValueError: an option is out of its range.
    """

    def __init__(self, *, accumulate: Accumulate = "batch", power: float = 1.0) -> None:
        super().__init__(accumulate)
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

    Raises:
        ValueError: an option is out of its range.
    """

    def __init__(self, *, accumulate: Accumulate = "batch", power: float = 1.0) -> None:
        super().__init__(accumulate)
        check_range("power", power, 0)
        self.power = power

    def count(self, target: Tensor, keep: Tensor, num_classes: int) -> Tensor:
        """Return pixels of each class, and pixels of the images that contain it, (2, C)."""
        counts = summed_image_counts(target, keep, num_classes)
        return torch.stack([counts.pixel_counts, counts.image_pixel_counts])

    def weigh(self, counts: Tensor) -> Tensor:
        """Return the weights (C,)."""
        return median_frequency_weights(counts[0], counts[1], power=self.power)


class ImageFrequency(_CountEstimator):
    """Inverse image frequency, see :func:`~classbalance_losses.functional.image_frequency_weights`.

    Args:
        accumulate: ``"batch"`` counts the images of the batch, ``"running"`` those of all training batches.

    Raises:
        ValueError: ``accumulate`` is unknown.
    """

    def __init__(self, *, accumulate: Accumulate = "batch") -> None:
        super().__init__(accumulate)

    def count(self, target: Tensor, keep: Tensor, num_classes: int) -> Tensor:
        """Return images that contain each class, and the number of images C times, (2, C)."""
        image_counts = summed_image_counts(target, keep, num_classes).image_counts
        return torch.stack([image_counts, torch.full_like(image_counts, target.shape[0])])

    def weigh(self, counts: Tensor) -> Tensor:
        """Return the weights (C,)."""
        return image_frequency_weights(counts[0], counts[1])


class EffectiveNumber(_CountEstimator):
    """Effective number of samples, see :func:`~classbalance_losses.functional.effective_number_weights`.

    Args:
        accumulate: ``"batch"`` counts the pixels of the batch, ``"running"`` those of all training batches.
        beta: in [0, 1].

    Raises:
        ValueError: an option is out of its range.
    """

    def __init__(self, *, accumulate: Accumulate = "batch", beta: float = 0.9999) -> None:
        super().__init__(accumulate)
        check_range("beta", beta, 0, 1)
        self.beta = beta

    def weigh(self, counts: Tensor) -> Tensor:
        """Return the weights (C,) for the pixel counts (1, C)."""
        return effective_number_weights(counts[0], beta=self.beta)


class _LossEstimator(ClassWeightEstimator):
    """Weights from the mean loss of each class, of the batch or as a moving average over training batches."""

    class_loss: Tensor

    def __init__(self, momentum: float | None) -> None:
        super().__init__()
        if momentum is not None:
            check_range("momentum", momentum, 0, 1)
        self.momentum = momentum
        register_lazy_buffer(self, "class_loss", persistent=momentum is not None)

    def weigh(self, class_loss: Tensor) -> Tensor:
        """Return the weights (C,) that belong to mean losses (C,), nan for a class never seen."""
        raise NotImplementedError

    def forward(
        self,
        pixel_loss: Tensor,
        target: Tensor,
        keep: Tensor,
        num_classes: int,
        process_group: ProcessGroup = None,
    ) -> Tensor:
        """Return the weights (C,), constant, in the dtype of ``pixel_loss``."""
        sums = class_sums(pixel_loss, target, keep, num_classes)
        counts = class_counts(target, keep, num_classes).to(sums.dtype)
        total, count = all_reduce_sum(torch.stack([sums, counts]), process_group)
        mean = total / count
        if self.momentum is not None:
            mean = self._average(
                mean.float(), self.momentum
            )  # the buffer's dtype must not depend on the loss's
        return self.weigh(mean.to(pixel_loss.dtype))

    def _average(self, mean: Tensor, momentum: float) -> Tensor:
        """Move the average towards a training batch.

        A class keeps its average where the batch has none of it, or an overflow made its loss infinite.
        """
        if self.class_loss.numel() == 0:
            if self.training:
                self.class_loss = mean
            return mean
        _check_num_classes(self.class_loss, mean)
        if self.training:
            old = self.class_loss
            moved = torch.where(old.isfinite(), momentum * old + (1 - momentum) * mean, mean)
            self.class_loss.copy_(torch.where(mean.isfinite(), moved, old))
        return self.class_loss


class LossBased(_LossEstimator):
    """GBW's quadratic programme over mean losses, see :func:`~classbalance_losses.functional.loss_based_weights`.

    In a weighted cross-entropy with ``normalize="pixels"`` this is ``GBWLoss(gradient="loss")``.

    Args:
        regularization: λ > 0.
        momentum: of the moving average of each class's loss; None takes the batch's alone.

    Raises:
        ValueError: an option is out of its range.
    """

    def __init__(self, *, regularization: float = 1.0, momentum: float | None = None) -> None:
        super().__init__(momentum)
        check_range("regularization", regularization, 0, open_low=True)
        self.regularization = regularization

    def weigh(self, class_loss: Tensor) -> Tensor:
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
    ) -> None:
        super().__init__(momentum)
        check_range("start", start, 0, 100, open_low=True)
        check_range("increment", increment, 0, 100, open_low=True)
        check_range("every", every, 1)
        check_choice("order", order, ("easy_first", "hard_first"))
        self.start, self.increment, self.every, self.order = start, increment, every, order
        self.register_buffer("step", torch.zeros((), dtype=torch.int64, device="cpu"))

    def weigh(self, class_loss: Tensor) -> Tensor:
        """Return 1 for the active classes and 0 for the others, (C,), and count a training step."""
        first, more = (
            max(1, round(share * class_loss.numel() / 100)) for share in (self.start, self.increment)
        )
        weight = curriculum_weights(class_loss, first + more * (self.step // self.every), order=self.order)
        if self.training:
            self.step.add_(1)
        return weight


def _check_num_classes(buffer: Tensor, batch: Tensor) -> None:
    if buffer.shape != batch.shape:
        raise ValueError(
            f"This estimator has followed {buffer.shape[-1]} classes, the batch has {batch.shape[-1]}. "
            "Use one estimator for each task."
        )
