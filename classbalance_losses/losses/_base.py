"""What the modules share: the common options, their process group, class weights that are given, and their sums."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from classbalance_losses._distributed import HeldGroup, ProcessGroup
from classbalance_losses._options import Common, completed
from classbalance_losses._recompute import recomputable
from classbalance_losses._validate_options import (
    as_labels,
    check_choice,
    check_common,
    check_range,
    check_upsample,
)
from classbalance_losses._validate_tasks import TASKS
from classbalance_losses.kernels.plain import is_exporting, is_transformed
from classbalance_losses.ops.batch import Batch
from classbalance_losses.ops.soft import batch_for
from classbalance_losses.ops.sums import Needs
from classbalance_losses.state.saved import Saved, moved

_SHARED = ("task", "ignore_index", "upsample", "align_corners", "process_group")  # by the terms of a sum


class Loss(Saved):
    """Base of all losses: holds the process group, and says when a call may use it."""

    _group: HeldGroup | str | None = None

    @property
    def process_group(self) -> ProcessGroup:
        """``None``, "world", or the group whose ranks' statistics are joined."""
        return self._group.group if isinstance(self._group, HeldGroup) else self._group  # type: ignore[return-value]

    @process_group.setter
    def process_group(self, group: ProcessGroup) -> None:
        check_common(-100, "mean", group)
        self._group = group if group is None or isinstance(group, str) else HeldGroup(group)

    @property
    def joined_group(self) -> ProcessGroup:
        """The process group in training with gradients on; else none, so that one rank can validate alone."""
        return self.process_group if self.training and torch.is_grad_enabled() else None


class FeatureLoss(Loss):
    """Base of the losses on features and embeddings, each with options of its own: shows them in its repr."""

    _shown: tuple[str, ...] = ()

    def extra_repr(self) -> str:
        """Show the hyper-parameters."""
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in self._shown)


class PixelLoss(Loss):
    """Base of the losses: stores the common options and shows the hyper-parameters in its repr."""

    _shown: tuple[str, ...] = ()
    takes_features = False
    """Whether a call needs ``features=``."""

    def __init__(self, **common: Unpack[Common]) -> None:
        options = completed(common, type(self))
        check_common(options["ignore_index"], options["reduction"], options["process_group"])
        check_upsample(options["upsample"], options["align_corners"])
        check_choice("task", options["task"], TASKS)
        super().__init__()
        self.task = options["task"]
        self.upsample = options["upsample"]
        self.align_corners = options["align_corners"]
        self.ignore_index = as_labels(options["ignore_index"])
        self.reduction = options["reduction"]
        self.process_group = options["process_group"]

    @property
    def needs(self) -> Needs:
        """What `of` asks of the logits: of most losses, ℓ."""
        is_smooth = bool(getattr(self, "label_smoothing", 0))
        return Needs(loss=not is_smooth, form=is_smooth)

    def of(self, batch: Batch) -> Tensor:
        """Return the loss of a batch that was checked, which the terms of a sum share."""
        raise NotImplementedError

    @property
    def learned(self) -> tuple[object, ...]:
        """Weights that may be learned."""
        return ()

    @property
    def common(self) -> Common:
        """The common options as keywords for the functional twin, for the call that is running."""
        return {
            "task": self.task,
            "upsample": self.upsample,
            "align_corners": self.align_corners,
            "ignore_index": self.ignore_index,
            "reduction": self.reduction,
            "process_group": self.joined_group,
        }

    def __add__(self, other: PixelLoss | SumLoss) -> SumLoss:
        return self * 1.0 + other

    def __mul__(self, factor: float) -> SumLoss:
        return SumLoss([(factor, self)])

    __rmul__ = __mul__

    def extra_repr(self) -> str:
        """Show the hyper-parameters and the common options."""
        task = ("task",) if self.task != "multiclass" else ()
        upsampling = ("upsample", "align_corners") if self.upsample else ()
        names = (*self._shown, *task, *upsampling, "ignore_index", "reduction")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)


class HoldsVector(Saved):
    """Has a number for each class: given or assigned later, they are checked and saved."""

    _vector: str  # the attribute

    def _checked(self, value: Any) -> Any:
        """Return what the attribute may hold, ``None`` or a tensor among it; a tensor becomes a buffer."""
        raise NotImplementedError

    def __setattr__(self, name: str, value: Any) -> None:
        if name != self._vector:
            super().__setattr__(name, value)
            return
        value = self._checked(value)
        vars(self).pop(name, None)
        for store in ("_buffers", "_parameters", "_modules"):  # a copy by copy.copy has the same ones
            vars(self)[store] = {key: held for key, held in vars(self)[store].items() if key != name}
        if value is None or (isinstance(value, Tensor) and not isinstance(value, nn.Parameter)):
            self.register_buffer(name, value)
        else:
            super().__setattr__(name, value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move the numbers along with the module, and leave their dtype alone: counts have no place in float16."""
        own = self._buffers.get(self._vector)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if own is not None:
            self._buffers[self._vector] = moved(own, fn)
        return self

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
        key, own = prefix + self._vector, getattr(self, self._vector)
        saved = state_dict.get(key)
        if own is None and saved is not None:  # assigned in training, as deferred re-weighting does
            setattr(self, self._vector, saved)
        elif isinstance(own, Tensor) and saved is not None and own.shape != saved.shape:
            error_msgs.append(
                f"size mismatch for {key}: the checkpoint has {_size(saved)}, this {type(self).__name__} "
                f"{_size(own)}. Delete the entry from the state dict to keep its own, or set loss.{self._vector} = "
                f"state_dict[{key!r}] before loading to take the checkpoint's."
            )
            state_dict = {name: value for name, value in state_dict.items() if name != key}
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


def _size(numbers: Tensor) -> str:
    """Say of how many classes there are numbers."""
    return f"{numbers.shape[-1]} classes" if numbers.ndim else "one number for all classes"


class VectorLoss(HoldsVector, PixelLoss):
    """Base of the losses on logits and labels that take a number for each class."""


class SumLoss(Loss):
    r"""A weighted sum of losses on the same logits, :math:`L = \sum_t a_t L_t`, as ``DyCELoss() + 0.5 * DiceLoss()``.

    Cross-entropies of all kinds, focal, DyCE, GBW and the overlap losses share one pass over the logits, and one back;
    so does one dual or smoothed loss, on the CPU beside overlap losses alone, and one of adjusted logits, but for the
    CPU. Others take a pass each, as do soft labels.

    Args:
        terms: pairs of a weight :math:`a_t \ge 0` and a loss. The losses agree on ``task``, ``ignore_index``,
            ``upsample``, ``align_corners`` and ``process_group``, and none has the reduction "none".

    Attributes:
        losses: the losses, an ``nn.ModuleList``.
        terms: the last value of each, without its weight, detached: a dict by the loss's name. It synchronises nothing.

    Raises:
        ValueError: for terms that do not agree, none, or a weight below 0.
        TypeError: for what is no loss of this package on logits.

    Examples:
        >>> criterion = DyCELoss() + 0.5 * DiceLoss()
        >>> criterion = SumLoss([(1.0, DyCELoss()), (0.5, DiceLoss())])  # the same
    """

    def __init__(self, terms: Sequence[tuple[float, PixelLoss]]) -> None:
        super().__init__()
        weights, losses = _apart(terms)
        self.losses = nn.ModuleList(losses)
        self.weights = weights
        self.terms: dict[str, Tensor] = {}
        self._check()

    @property
    def weights(self) -> tuple[float, ...]:
        """Their weights, one for each term; they may be assigned."""
        return self._weights

    @weights.setter
    def weights(self, weights: Sequence[float]) -> None:
        if len(weights) != len(self.losses):
            raise ValueError(f"Expected {len(self.losses)} weights, one for each term, got {weights}.")
        for weight in weights:
            check_range("weight of a term", weight, 0)
        self._weights = tuple(map(float, weights))

    def _check(self) -> None:
        first, *others = self.losses
        check_terms(self)
        for other in others:
            for name in _SHARED:
                mine, theirs = getattr(first, name), getattr(other, name)
                if mine != theirs:
                    raise ValueError(
                        f"Expected terms that agree, got {type(first).__name__}({name}={mine!r}) and "
                        f"{type(other).__name__}({name}={theirs!r}). Build both with the same {name}."
                    )

    @property
    def process_group(self) -> Any:
        """The group of all terms."""
        return self.losses[0].process_group

    @process_group.setter
    def process_group(self, group: Any) -> None:
        for loss in self.losses:
            loss.process_group = group

    @property
    def names(self) -> list[str]:
        """The losses' names, with a number from the second of a kind on."""
        kinds = [type(loss).__name__ for loss in self.losses]
        numbers = [sum(other == kind for other in kinds[:at]) for at, kind in enumerate(kinds)]
        return [f"{kind}{number + 1 if number else ''}" for kind, number in zip(kinds, numbers, strict=True)]

    def _needs(self) -> Needs:
        each = [loss.needs for loss in self.losses]
        return Needs(*(any(values) for values in zip(*each, strict=True)))

    @recomputable
    def forward(self, input: Tensor, target: Tensor, *, pixel_weight: Tensor | None = None) -> Tensor:
        """Return the sum of the losses of logits (N, C, *) against labels (N, *)."""
        self._check()  # options may have been assigned since
        losses: list[PixelLoss] = list(self.losses)  # type: ignore[arg-type]
        learned = tuple(weight for loss in losses for weight in loss.learned)
        common = losses[0].common
        batch = batch_for(input, target, pixel_weight, common, learned=learned, needs=self._needs())
        # Those that have a form of their own come first, and bring it into the pass.
        order = sorted(range(len(losses)), key=lambda term: not losses[term].needs.form)
        values = {term: losses[term].of(batch.reduced(losses[term].reduction)) for term in order}
        # What vmap has wrapped is of no use after it, and an exported program keeps nothing.
        if not is_exporting() and not any(map(is_transformed, values.values())):
            self.terms = {name: values[term].detach() for term, name in enumerate(self.names)}
        terms = (values[term] if w == 1 else w * values[term] for term, w in enumerate(self.weights))
        return reduce(torch.add, terms)

    def extra_repr(self) -> str:
        """Show the weights."""
        return f"weights={self.weights}"

    def __add__(self, other: SumLoss | PixelLoss) -> SumLoss:
        return SumLoss([*_pairs(self), *_pairs(other)])

    def __mul__(self, factor: float) -> SumLoss:
        return SumLoss([(factor * weight, loss) for weight, loss in _pairs(self)])

    __rmul__ = __mul__


def check_terms(loss: PixelLoss | SumLoss) -> None:
    """Check that a loss, or each of a sum, gives one number from logits and labels.

    Raises:
        ValueError: one has the reduction "none", or needs features.
    """
    for term in loss.losses if isinstance(loss, SumLoss) else [loss]:
        if term.reduction == "none":
            raise ValueError(
                f'{type(term).__name__} has reduction="none", whose terms have shapes of their own: '
                'pass reduction="mean" or "sum".'
            )
        if term.takes_features:
            raise ValueError(
                f"{type(term).__name__} needs features= at each call, which a sum does not take. Add up by value: "
                "gbw(input, target, features=features) + other(input, target)."
            )


def _apart(terms: Any) -> tuple[list[float], list[PixelLoss]]:
    """Return the weights and the losses of a sum's terms, checked."""
    given = list(terms) if isinstance(terms, Iterable) and not isinstance(terms, Mapping) else [terms]
    if not given:
        raise ValueError("Expected a term at least, a pair of a weight and a loss, got none.")
    for term in given:
        if not isinstance(term, (tuple, list)) or len(term) != 2 or isinstance(term[0], nn.Module):
            raise TypeError(
                f"Expected pairs of a weight and a loss, got {type(term).__name__}: {term!r}. Pass "
                "SumLoss([(1.0, loss), (0.5, other)]), or write loss + 0.5 * other."
            )
        loss = term[1]
        if isinstance(loss, SumLoss):
            raise TypeError("Expected one loss in each term, got a sum. Write them out: 0.5 * inner + other.")
        if not isinstance(loss, PixelLoss):
            kind = f"the class {loss.__name__}" if isinstance(loss, type) else type(loss).__name__
            raise TypeError(
                f"Expected a loss of this package on logits and labels, got {kind}. Add others up by "
                "their values, each of what it takes: ours(input, target) + other(input)."
            )
    return [weight for weight, _ in given], [loss for _, loss in given]


def _pairs(loss: SumLoss | PixelLoss) -> list[tuple[float, Any]]:
    return list(zip(loss.weights, loss.losses, strict=True)) if isinstance(loss, SumLoss) else [(1.0, loss)]
