"""The laws of a per-pixel loss, runnable on anybody's: ``report = check_loss(my_loss); print(report); assert report``.

Nothing here knows a loss of this library, and nothing but torch is imported.
"""

from classbalance_losses.testing.check import check_loss
from classbalance_losses.testing.laws import LAWS, Law
from classbalance_losses.testing.problem import Problem
from classbalance_losses.testing.report import Report, Result

__all__ = ["LAWS", "Law", "Problem", "Report", "Result", "check_loss"]
