"""What the modules share: the common options."""

from __future__ import annotations

from typing import TypedDict

from torch import nn

from classbalance_losses._distributed import ProcessGroup
from classbalance_losses._validate import as_label, check_common, check_upsample


class Common(TypedDict):
    """The options that every loss has."""

    upsample: str | None
    align_corners: bool
    ignore_index: int
    reduction: str
    process_group: ProcessGroup


class FeatureLoss(nn.Module):
    """Base of the losses on features and embeddings, each with options of its own: shows them in its repr."""

    _shown: tuple[str, ...] = ()

    def extra_repr(self) -> str:
        """Show the hyper-parameters."""
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in self._shown)


class PixelLoss(nn.Module):
    """Base of the losses: stores the common options and shows the hyper-parameters in its repr."""

    _shown: tuple[str, ...] = ()

    def __init__(
        self,
        *,
        upsample: str | None,
        align_corners: bool,
        ignore_index: int,
        reduction: str,
        process_group: ProcessGroup,
    ) -> None:
        check_common(ignore_index, reduction, process_group)
        check_upsample(upsample, align_corners)
        super().__init__()
        self.upsample = upsample
        self.align_corners = align_corners
        self.ignore_index = as_label(ignore_index)
        self.reduction = reduction
        self.process_group = process_group

    @property
    def common(self) -> Common:
        """The common options as keywords for the functional twin."""
        return {
            "upsample": self.upsample,
            "align_corners": self.align_corners,
            "ignore_index": self.ignore_index,
            "reduction": self.reduction,
            "process_group": self.process_group,
        }

    def extra_repr(self) -> str:
        """Show the hyper-parameters and the common options."""
        upsampling = ("upsample", "align_corners") if self.upsample else ()
        names = (*self._shown, *upsampling, "ignore_index", "reduction")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
