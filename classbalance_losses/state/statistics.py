"""Counts of a whole data set, and the class weights that follow from them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sized
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import RandomSampler

from classbalance_losses._dispatch import backend_for_maps
from classbalance_losses._validate import check_target_range
from classbalance_losses._validate_features import check_labels, check_num_classes
from classbalance_losses._validate_options import as_label, check_choice
from classbalance_losses._validate_tasks import TASKS
from classbalance_losses.kernels.call import Labels, replaced
from classbalance_losses.ops.class_weights import (
    effective_number_weights,
    enet_weights,
    image_frequency_weights,
    median_frequency_weights,
    pixel_frequency_weights,
)
from classbalance_losses.ops.image_counts import image_class_counts, summed_image_counts
from classbalance_losses.ops.tasks import grouped
from classbalance_losses.state.accumulate import add_labels, count_batches

SCHEMES = ("pixel_frequency", "median_frequency", "image_frequency", "effective_number", "enet")


class ClassStatistics(nn.Module):
    """Counts of the classes over a data set, kept in int64 buffers: saved, moved and restored with the module.

    Example:
        >>> statistics = ClassStatistics(19, ignore_index=255).accumulate(loader)  # doctest: +SKIP
        >>> loss = WeightedCrossEntropyLoss(statistics.weights("median_frequency"))  # doctest: +SKIP

    Args:
        num_classes: C, at least 2; of many labels L, at least 1; of one, binary, 2.
        ignore_index: the label of the pixels that do not count.
        task: "multiclass" counts classes; "binary" and "multilabel" count where each label is absent and present, as
            classes 2l and 2l + 1.

    Attributes:
        pixel_counts: valid pixels of each class, (C,).
        image_counts: images that contain each class, (C,).
        image_pixel_counts: valid pixels, of any class, of the images that contain each class, (C,).
        num_images: images, a volume being one; 0-dim, like the next two.
        num_pixels: valid pixels.
        num_ignored: ignored pixels.

    Raises:
        ValueError: ``num_classes`` is below 2, or not 2 of a binary task.
    """

    pixel_counts: Tensor
    image_counts: Tensor
    image_pixel_counts: Tensor
    num_images: Tensor
    num_pixels: Tensor
    num_ignored: Tensor

    def __init__(self, num_classes: int = 2, *, ignore_index: int = -100, task: str = "multiclass") -> None:
        super().__init__()
        check_choice("task", task, TASKS)
        check_num_classes(num_classes, 1 if task == "multilabel" else 2)
        if task == "binary" and num_classes != 2:
            raise ValueError(
                f'task="binary" has 2 classes, absent and present, got num_classes={num_classes}. Leave num_classes '
                'out, or pass task="multilabel" for several labels.'
            )
        self.task = task
        self.num_classes = 2 * num_classes if task == "multilabel" else num_classes
        self.ignore_index = as_label(ignore_index)
        for name in ("pixel_counts", "image_counts", "image_pixel_counts"):
            self.register_buffer(name, torch.zeros(self.num_classes, dtype=torch.int64, device="cpu"))
        for name in ("num_images", "num_pixels", "num_ignored"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64, device="cpu"))

    def update(self, target: Tensor) -> None:
        """Count a batch of label maps.

        Args:
            target: class indices (N, *) of uint8, int16, int32 or int64; each of the N maps is one image. Of
                labels 0 and 1, also bool or int8: (N, *) or (N, 1, *) for one, (N, L, *) for many.

        Raises:
            TypeError: ``target`` has another dtype.
            ValueError: ``target`` has no batch axis.
            IndexError: a label is neither a class nor ``ignore_index`` (on CUDA: a device-side assertion).
        """
        labels = self._labels(target)
        self.to(target.device)  # the counts begin on the CPU, whatever torch's default device is
        counts = summed_image_counts(image_class_counts(labels, backend_for_maps(labels)))
        for name, count in counts._asdict().items():
            getattr(self, name).add_(count)
        self.num_images.add_(target.shape[0])
        self.num_pixels.add_(counts.pixel_counts.sum())
        self.num_ignored.add_(target.numel() - counts.pixel_counts.sum())

    def _labels(self, target: Tensor) -> Labels:
        """Return the labels of a batch, checked: of many, each as a class of its own where absent and present."""
        is_own = self.task != "multiclass"
        if is_own and isinstance(target, Tensor) and target.dtype in (torch.bool, torch.int8):
            target = target.to(torch.int16)
        check_labels("target", target, 2 if is_own else self.num_classes)
        if target.ndim == 0:
            raise ValueError("Expected labels of shape (N, *), got a 0-dim tensor.")
        labels = Labels(target, 2 if is_own else self.num_classes, self.ignore_index)
        check_target_range(*labels)
        if self.task != "multilabel":
            return labels
        number = self.num_classes // 2
        if target.ndim < 2 or target.shape[1] != number:
            raise ValueError(
                f"Expected labels of shape (N, {number}, *), got {tuple(target.shape)}. Of classes, one a pixel, pass "
                f"torch.nn.functional.one_hot(target.long(), {number}).movedim(-1, 1)."
            )
        signs = grouped(replaced(labels, target=target.flatten(0, 1)), number)
        return replaced(signs, target=signs.target.view(target.shape))

    def merge(self, other: ClassStatistics) -> ClassStatistics:
        """Add the counts of another part of the data set (another worker's, another rank's); returns self.

        Raises:
            ValueError: ``other`` counts other classes, ignores another label, or is of another task.
            TypeError: ``other`` is none.
        """
        if not isinstance(other, ClassStatistics):
            raise TypeError(
                f"Expected ClassStatistics of another part of the data, got {type(other).__name__}."
            )
        ours, theirs = (
            f"{of.num_classes} classes with ignore_index={of.ignore_index}, task={of.task!r}"
            for of in (self, other)
        )
        if ours != theirs:
            raise ValueError(f"Expected statistics of {ours}, got {theirs}.")
        for buffer, count in zip(self.buffers(), other.buffers(), strict=True):
            buffer.add_(count.to(buffer.device))
        return self

    @property
    def pixel_shares(self) -> Tensor:
        """Share of each class in the valid pixels, (C,) of float32; all 0 where nothing has been counted."""
        return self.pixel_counts / self.num_pixels.float().clamp(min=1)

    def weights(self, scheme: str, **options: float) -> Tensor:
        """Return class weights for ``WeightedCrossEntropyLoss`` or ``FocalLoss(alpha=...)``.

        Args:
            scheme: ``"pixel_frequency"``, ``"median_frequency"``, ``"image_frequency"``, ``"effective_number"`` or
                ``"enet"``; :mod:`classbalance_losses.functional` has a function of each name with
                ``_weights`` behind it. Loss-based weights need a model: use an estimator.
            options: options of that function, such as ``power=0.5`` or ``beta=0.999``.

        Returns:
            Weights (C,), float32, 0 for a class without pixels; (L, 2) of many labels.

        Raises:
            ValueError: ``scheme`` is unknown, or an option is out of its range.
        """
        check_choice("scheme", scheme, SCHEMES)
        weights = self._weights(scheme, **options)
        return weights.view(-1, 2) if self.task == "multilabel" else weights

    def _weights(self, scheme: str, **options: float) -> Tensor:
        if scheme == "pixel_frequency":
            return pixel_frequency_weights(self.pixel_counts, **options)
        if scheme == "median_frequency":
            return median_frequency_weights(self.pixel_counts, self.image_pixel_counts, **options)
        if scheme == "image_frequency":
            return image_frequency_weights(self.image_counts, self.num_images, **options)
        if scheme == "enet":
            return enet_weights(self.pixel_counts, **options)
        return effective_number_weights(self.pixel_counts, **options)

    def accumulate(
        self,
        loader: Iterable[Any],
        *,
        progress: bool = True,
        checkpoint: str | os.PathLike[str] | None = None,
    ) -> ClassStatistics:
        """Count every batch of a data loader; returns self.

        Args:
            loader: yields label maps (N, *), or (input, target), or a dict with "label" or "target".
            progress: show a bar, where tqdm is installed.
            checkpoint: file that keeps the counts every few seconds and when the loop is interrupted. Run
                again with the same loader to go on: the saved counts replace this module's, and the batches
                already counted are skipped (a data loader still has to read them, a sequence does not).

        Raises:
            ValueError: the checkpoint belongs to another loader or to other classes, or the loader shuffles.
            TypeError: a batch holds no labels that could be found, or they have a wrong dtype.
            IndexError: a label is neither a class nor ``ignore_index``.
        """
        if checkpoint is not None and isinstance(getattr(loader, "sampler", None), RandomSampler):
            raise ValueError(
                "Going on from a checkpoint needs a fixed order: expected a loader with shuffle=False."
            )
        source = f"{len(loader)} batches" if isinstance(loader, Sized) else "batches"
        count_batches(self, loader, add=add_labels, progress=progress, checkpoint=checkpoint, source=source)
        return self

    def extra_repr(self) -> str:
        """Show the options."""
        task = "" if self.task == "multiclass" else f", task={self.task!r}"
        return f"num_classes={self.num_classes}, ignore_index={self.ignore_index}{task}"
