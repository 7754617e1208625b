"""Sums over the classes of a batch, as estimators of class weights get them: each is made when it is asked for."""

from __future__ import annotations

import torch
from torch import Tensor

from classbalance_losses._dispatch import Backend, backend_for_maps
from classbalance_losses._distributed import ProcessGroup, all_reduce_sum
from classbalance_losses.kernels.call import Labels
from classbalance_losses.kernels.factors import indices
from classbalance_losses.ops.image_counts import image_class_counts


class BatchSums:
    """Sums over the pixels of each class. All are constants.

    Attributes:
        num_classes: C.
        num_images: images of this rank's batch.
        dtype: of the loss, float32 or float64.
        process_group: the ranks whose sums are joined.
    """

    def __init__(
        self,
        pixel_loss: Tensor,
        labels: Labels,
        backend: Backend,
        process_group: ProcessGroup,
        *,
        share: Tensor | None = None,
    ) -> None:
        self._share = share  # of soft labels, which are counted in whole pixels, rounded
        self._pixel_loss, self._labels, self._backend = pixel_loss.detach(), labels, backend
        self._own: tuple[Tensor, Tensor] | None = None
        self.num_classes, self.num_images = labels.num_classes, labels.target.shape[0]
        self.dtype, self.process_group = pixel_loss.dtype, process_group

    @classmethod
    def of_maps(
        cls,
        pixel_loss: Tensor,
        target: Tensor,
        keep: Tensor,
        num_classes: int,
        process_group: ProcessGroup = None,
    ) -> BatchSums:
        """Return the sums of cross-entropies (N, *) over class indices (N, *), where kept (N, *)."""
        labels = Labels(torch.where(keep, target.long(), -1), num_classes, -1)
        return cls(pixel_loss, labels, backend_for_maps(labels, pixel_loss), process_group)

    def number(self) -> Tensor:
        """Return n_c, the pixels of each class on all ranks, (C,) of int64."""
        if self._share is not None:
            return all_reduce_sum(self._sums()[0].round().long(), self.process_group)
        own = self._backend.class_sums(self._labels).number if self._own is None else self._own[0]
        return all_reduce_sum(own.view(-1), self.process_group)

    def number_and_loss(self) -> tuple[Tensor, Tensor]:
        r"""Return n_c and :math:`S_c = \sum_{y_i = c} \ell_i` of all ranks, (C,) each, in the loss's dtype."""
        number, loss = self._sums()
        joined = all_reduce_sum(torch.stack([number.to(loss.dtype), loss]), self.process_group)
        return joined[0], joined[1]

    def image_number(self) -> Tensor:
        """Return the pixels of each image and class of this rank's batch, (N, C) of int64."""
        if self._share is None:
            return image_class_counts(self._labels, self._backend)
        counts = self._backend.class_sums(self._labels, self._share, rows=max(self.num_images, 1)).value
        assert counts is not None
        return counts[: self.num_images].round().long()

    def total(self) -> Tensor:
        """Return the sum of this rank's losses, (1,): it tells whether a batch is finite, and one from another."""
        return self._sums()[1].sum().view(1)

    def maps(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the losses, the class indices and which of them count, (N, *) each."""
        return self._pixel_loss, *indices(self._labels)

    def _sums(self) -> tuple[Tensor, Tensor]:
        if self._own is None:
            sums = self._backend.class_sums(self._labels, self._pixel_loss, None, self._share)
            assert sums.value is not None
            number = sums.number
            if self._share is not None:
                shares = self._backend.class_sums(self._labels, self._share).value
                assert shares is not None
                number = shares
            self._own = number[0], sums.value[0]
        return self._own
