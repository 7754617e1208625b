"""The laws, one file a family."""

from classbalance_losses.testing.laws import (
    autograd,
    compiled,
    distributed,
    ignoring,
    invariance,
    precision,
    values,
)
from classbalance_losses.testing.laws.law import Law

LAWS: tuple[Law, ...] = (
    *values.LAWS,
    *ignoring.LAWS,
    *precision.LAWS,
    *invariance.LAWS,
    *autograd.LAWS,
    *compiled.LAWS,
    *distributed.LAWS,
)

__all__ = ["LAWS", "Law"]
