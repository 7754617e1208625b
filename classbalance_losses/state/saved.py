"""What all modules of the package share: a checkpoint of one of them loads into any other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

# What our losses and estimators have in their state dicts.
ENTRIES = frozenset(
    ("alpha", "class_confidence", "class_loss", "class_weight", "counts", "prior", "seen", "step", "weight")
)
# Where they are: an estimator is its loss's `weight`, a loss that of deep supervision or one of a sum's.
_HOLDERS = frozenset(("loss", "losses", "weight"))


def moved(value: Tensor, fn: Callable[[Tensor], Tensor]) -> Tensor:
    """Return what ``fn`` of a module's ``_apply`` makes of a tensor whose dtype is its own."""
    there = fn(value)
    return there if there.dtype == value.dtype else value.to(there.device)


class Saved(nn.Module):
    """Base of the losses and the estimators: entries of ours that are missing or too many do not stop a load.

    So a model that was trained with one loss goes on with another, whatever the two remember.
    """

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        missing: list[str] = []
        unexpected: list[str] = []
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing, unexpected, error_msgs
        )
        missing_keys += [key for key in missing if not _is_ours(key, prefix)]
        unexpected_keys += [key for key in unexpected if not _is_ours(key, prefix)]


def _is_ours(key: str, prefix: str) -> bool:
    *holders, entry = key.removeprefix(prefix).split(".")
    return entry in ENTRIES and all(holder in _HOLDERS or holder.isdigit() for holder in holders)
