"""The loss under test: which of the usual options it takes, and how it is called with them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from classbalance_losses.testing.violation import blamed_on_the_loss

OPTIONS = ("ignore_index", "reduction", "weight", "pixel_weight", "process_group")
Loss = Callable[..., Any]  # a function, a module, or the class of one


@dataclass(frozen=True)
class Subject:
    """A loss and what its caller says of it.

    Attributes:
        loss: a function of (input, target, options), a module, or the class of one.
        options: those of ``OPTIONS`` that it takes.
        built: those of them that its constructor takes; empty but for a class.
        num_classes: C of every input.
        dims: numbers of spatial axes that it takes, rising.
        ignore_index: the label that it ignores where that is no option of it.
        neutral: whether it is said to equal cross-entropy.
        one_logit: whether it takes one logit (N, 1, *), of the second of two classes against the first.
    """

    loss: Loss
    options: frozenset[str]
    built: frozenset[str]
    num_classes: int
    dims: tuple[int, ...]
    ignore_index: int | None
    neutral: bool
    one_logit: bool = False

    @property
    def name(self) -> str:
        """How the loss is called in a report."""
        loss = _inner(self.loss)
        return str(getattr(loss, "__name__", type(loss).__name__))

    @property
    def ignores(self) -> bool:
        """Whether there is a label that it leaves out."""
        return "ignore_index" in self.options or self.ignore_index is not None

    @property
    def reductions(self) -> tuple[str | None, ...]:
        """What may be asked for: the three, or nothing where it has no such option."""
        return ("mean", "sum", "none") if "reduction" in self.options else (None,)

    @property
    def scalars(self) -> tuple[str | None, ...]:
        """The reductions to one number."""
        return ("sum", "mean") if "reduction" in self.options else (None,)

    @property
    def mean(self) -> str | None:
        """The reduction for laws that need but one."""
        return "mean" if "reduction" in self.options else None

    def bind(self, **options: Any) -> Callable[[Tensor, Tensor], Tensor]:
        """The loss as a function of input and target; options that are None keep the loss's own default."""
        call = self._bound(
            {name: value for name, value in options.items() if value is not None and name in self.options}
        )
        return functools.partial(_of_difference, call) if self.one_logit else call

    def _bound(self, given: dict[str, Any]) -> Callable[[Tensor, Tensor], Tensor]:
        if not _is_class(self.loss):
            return functools.partial(self.loss, **given)
        with blamed_on_the_loss("a module"):
            module = self.loss(**{name: value for name, value in given.items() if name in self.built})
        return functools.partial(module, **{k: v for k, v in given.items() if k not in self.built})


def subject_of(
    loss: Loss,
    *,
    num_classes: int,
    dims: tuple[int, ...],
    options: Collection[str] | None,
    ignore_index: int | None,
    neutral: bool,
    one_logit: bool = False,
) -> Subject:
    """Read off the loss's signature what was not said.

    Raises:
        ValueError: for options that nothing here knows, or a signature that does not tell.
    """
    constructor = _parameters(loss) if _is_class(loss) else frozenset()
    if options is None:
        takes = _told(constructor, loss) | _told(_call_parameters(loss), loss)
    else:
        unknown = set(options) - set(OPTIONS)
        if unknown:
            raise ValueError(
                f"Expected options among {OPTIONS}, got {sorted(unknown)}. Rename them in a wrapper."
            )
        takes = frozenset(options)
    built = takes & constructor if "**" not in constructor else takes
    fixed = None if "ignore_index" in takes else ignore_index
    if fixed is None and "ignore_index" not in takes and isinstance(loss, nn.Module):
        own = getattr(loss, "ignore_index", None)
        fixed = own if isinstance(own, int) else None
    return Subject(loss, takes, built, num_classes, dims, fixed, neutral, one_logit)


def _of_difference(call: Callable[[Tensor, Tensor], Tensor], input: Tensor, target: Tensor) -> Tensor:
    return call(input[:, 1:] - input[:, :1], target)


def _inner(loss: Loss) -> Any:
    while isinstance(loss, functools.partial):
        loss = loss.func
    return loss


def _is_class(loss: Loss) -> bool:
    return isinstance(_inner(loss), type)


def _call_parameters(loss: Loss) -> frozenset[str]:
    inner = _inner(loss)
    if isinstance(inner, (type, nn.Module)):
        forward = getattr(inner, "forward", None) or inner.__call__
        return _parameters(forward)
    return _parameters(loss)


def _parameters(loss: Loss) -> frozenset[str]:
    """The names that a call may give; "**" among them where any name may."""
    try:
        parameters = inspect.signature(loss).parameters.values()
    except (TypeError, ValueError):
        return frozenset({"**"})
    return frozenset("**" if p.kind is inspect.Parameter.VAR_KEYWORD else p.name for p in parameters)


def _told(parameters: frozenset[str], loss: Loss) -> frozenset[str]:
    if "**" in parameters:
        raise ValueError(
            f"Expected a signature that tells which options {loss!r} takes, got one with any keywords, or none. "
            f'Say it: options=("ignore_index", "reduction"), of {OPTIONS}.'
        )
    return parameters & set(OPTIONS)
