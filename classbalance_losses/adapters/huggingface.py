"""Hugging Face: a loss as ``Trainer(compute_loss_func=...)``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from classbalance_losses._distributed import all_reduce_sum, world_size
from classbalance_losses._validate import check_tensor
from classbalance_losses.adapters._losses import named_outputs, terms_of
from classbalance_losses.losses._base import PixelLoss, SumLoss
from classbalance_losses.losses.deep_supervision import DeepSupervision

TRAINER_IGNORES = -100  # what transformers.Trainer leaves out when it counts num_items_in_batch


class ComputeLoss:
    r"""A loss that ``transformers.Trainer`` calls with the model's outputs and the labels.

    .. math:: L = L_{batch} \cdot \frac{n}{n_{items}}

    n counts the labels of this batch that are not -100, and n_items = ``num_items_in_batch`` those of all the
    batches of the optimizer step, on all processes; the Trainer itself does not divide such a loss by its
    accumulation steps. So the step's loss is the mean of its batches' losses, each weighted by its labels.
    Where the mean runs over valid pixels and the ignored ones are -100, that is the joined batch's loss.

    A loss with a ``process_group`` has the mean and the gradient of the ranks' joined batch already. n counts the
    labels of all its G ranks then, and the result is divided by G, for the Trainer multiplies by its processes:

    .. math:: L = \frac{1}{G} L_{joined} \cdot \frac{n_{joined}}{n_{items}}

    Both need ``average_tokens_across_devices=True``, the Trainer's default: else n_items is of one process alone.

    SegFormer's logits have a quarter of the labels' size: give the loss ``upsample="linear"``, which interpolates
    them without storing them; with ``num_labels=1`` give it ``task="binary"`` too. Logits of three axes whose first two
    the labels have are those of tokens, (B, T, C). The loss follows the logits to their device. Its state (class
    weights and counts) moves in training alone, known by the logits' gradient, for the Trainer does not call
    ``eval()`` on it.

    Args:
        loss: with ``reduction="mean"``, or a sum of such.
        head_weights: factors of the outputs that count, by name, ``{"logits": 1.0, "auxiliary_logits": 0.4}``, or by
            place in a tuple; ``None`` for the logits alone.

    Raises:
        ValueError: the loss has another reduction.
        TypeError: it is no loss of this package on logits, nor a sum of such.

    Examples:
        >>> loss = ComputeLoss(DyCELoss(ignore_index=255, upsample="linear"))
        >>> trainer = Trainer(model=model, args=args, train_dataset=data, compute_loss_func=loss)  # doctest: +SKIP
    """

    def __init__(
        self, loss: PixelLoss | SumLoss, *, head_weights: Mapping[str | int, float] | None = None
    ) -> None:
        for term in terms_of(loss):
            if term.reduction != "mean":
                raise ValueError(f'Expected a loss with reduction="mean", got {term.reduction!r}.')
        if head_weights is not None and not (isinstance(head_weights, Mapping) and head_weights):
            raise TypeError(
                f'Expected head_weights to be a mapping, as {{"logits": 1.0}}, or None, got {head_weights!r}. Of a '
                "list of factors pass dict(enumerate(head_weights)), by the places in a tuple of outputs."
            )
        self.loss = loss
        self.head_weights = head_weights

    def __call__(
        self,
        outputs: Any,
        labels: Tensor | None,
        num_items_in_batch: Tensor | int | None = None,
        *,
        pixel_weight: Tensor | None = None,
    ) -> Tensor:
        """Return this batch's part of the step's loss.

        Args:
            outputs: the model's, with ``"logits"`` (N, C, *) or (B, T, C), or a tuple that begins with them, or they
                alone; or with those that ``head_weights`` names.
            labels: of the loss's ``task``; of tokens (B, T) or (B, T, C).
            num_items_in_batch: labels other than -100 in the whole optimizer step; ``None``: those of this batch.
            pixel_weight: of the labels' shape (N, *) or (B, T).

        Raises:
            ValueError: there are no labels, or as from the loss.
            TypeError: there are no logits, or as from the loss.
        """
        if labels is None:
            raise ValueError('Expected labels, got None: the batches need an entry "labels".')
        names = self.head_weights
        heads = [_logits(outputs)] if names is None else named_outputs(outputs, names)
        self.loss.to(heads[0].device).train(heads[0].requires_grad)
        loss = self._of(heads, labels, pixel_weight)
        if num_items_in_batch is None:
            return loss
        group = self.loss.joined_group
        count = all_reduce_sum((labels != TRAINER_IGNORES).sum(), group)
        return loss * (count / (_at_least_one(num_items_in_batch) * world_size(group)))

    def _of(self, heads: list[Tensor], labels: Tensor, pixel_weight: Tensor | None) -> Tensor:
        if all(_are_tokens(head, labels) for head in heads):
            heads, labels = [_with_classes_second(head) for head in heads], _with_classes_second(labels)
            pixel_weight = None if pixel_weight is None else _with_classes_second(pixel_weight)
        weights = self.head_weights
        loss = self.loss if weights is None else DeepSupervision(self.loss, list(weights.values()))
        result: Tensor = loss(heads[0] if weights is None else heads, labels, pixel_weight=pixel_weight)
        return result


def _are_tokens(logits: Tensor, labels: Tensor) -> bool:
    """Whether logits are (B, T, C) and labels (B, T) or (B, T, C), as transformers has them."""
    return logits.ndim == 3 and labels.ndim in (2, 3) and labels.shape[:2] == logits.shape[:2]


def _with_classes_second(tensor: Tensor) -> Tensor:
    return tensor.movedim(-1, 1) if tensor.ndim == 3 else tensor


def _logits(outputs: Any) -> Tensor:
    """Return the logits among a model's outputs, or outputs that are the logits.

    Raises:
        TypeError: there are none.
    """
    found = outputs
    if isinstance(outputs, Mapping):
        found = outputs.get("logits")
    elif hasattr(outputs, "logits"):
        found = outputs.logits
    elif isinstance(outputs, (tuple, list)) and outputs:
        found = outputs[0]
    if isinstance(found, Tensor):
        return found
    if hasattr(found, "__array__"):
        check_tensor("logits", found)
    entries = dict(outputs) if isinstance(outputs, Mapping) else {}
    tensors = [name for name, entry in entries.items() if isinstance(entry, Tensor)]
    name = repr(tensors[0]) if len(tensors) == 1 else "name"
    raise TypeError(
        f'Expected outputs with an entry "logits", (N, C, *), got {list(entries) or type(outputs).__name__}. Where '
        f"they have another name, say it: ComputeLoss(loss, head_weights={{{name}: 1.0}})."
    )


def _at_least_one(count: Tensor | int) -> Tensor | int:
    return torch.clamp(count, min=1) if isinstance(count, Tensor) else max(count, 1)
