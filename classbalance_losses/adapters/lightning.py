"""Lightning: a callback that logs what a loss does to each class."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from classbalance_losses.adapters._recorder import ClassRecorder, Report
from classbalance_losses.losses._base import PixelLoss, SumLoss

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise ImportError(
        "classbalance_losses.adapters.lightning needs Lightning: pip install lightning"
    ) from error


class ClassBalanceLogger(Callback):
    r"""Log each class's mean cross-entropy and weight, and a sum's terms, every ``log_every_n_steps`` steps.

    Every loss of this package on logits, and every sum of such, that is a submodule of the LightningModule is watched.
    A loss in the attribute ``criterion`` gives these entries:

    ============================= ==============================================================================
    ``criterion/loss/<class>``    Mean cross-entropy, unweighted, of the class's pixels in the training batches
                                  since the last entry; none for a class without pixels.
    ``criterion/weight/<class>``  The last batch's weights: GBW's, an estimator's, the given ones, focal's α; of
                                  DyCE the factor on a hard pixel of the class against a plain mean over all
                                  hard pixels, :math:`\pi_c^{\omega-1}`, and 0 for a class that has none.
    ``criterion/threshold``       DyCE: smallest loss among the last batch's hard pixels.
    ============================= ==============================================================================

    Of a sum each term has its last value, without its factor, in ``criterion/DyCELoss``, and its weights and threshold
    below that, ``criterion/DyCELoss/weight/<class>``. With the task "binary" or "multilabel" the classes are
    ``<label>/absent`` and ``<label>/present``; weights of an overlap are those of a ``<label>``.

    Between log steps all sums stay on the device, and nothing waits for it; a log step reads them in one transfer
    for each loss. The price is a second pass over the logits, without gradient. The steps are the optimizer's. The
    means are those of this process, or of all ranks of the loss's ``process_group``.

    Args:
        class_names: names of the classes or labels for the entries; ``None`` for their numbers.

    Raises:
        ValueError: (when training begins) the module has none of the losses; (at a log step) the number of names is
            not that of the classes.
    """

    def __init__(self, class_names: Sequence[str] | None = None) -> None:
        self.class_names = None if class_names is None else tuple(class_names)
        self._recorders: dict[str, ClassRecorder] = {}
        self._logged = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the losses and watch them."""
        losses = _losses_in(pl_module)
        if not losses:
            raise ValueError(
                f"Expected {type(pl_module).__name__} to have a loss of classbalance_losses as a submodule, got none: "
                "assign one, self.criterion = DyCELoss(), and call it."
            )
        self._stop()  # a run that an exception ended has had no teardown
        self._recorders = {name: ClassRecorder(loss) for name, loss in losses.items()}
        self._logged = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log, if the optimizer has just made a step whose number says so."""
        step, every = trainer.global_step, trainer.log_every_n_steps
        if every == 0 or step == self._logged or step % every:
            return
        self._logged = step
        metrics: dict[str, float] = {}
        for name, recorder in self._recorders.items():
            report = recorder.read()
            if report is not None:
                metrics.update(self._entries(name, report))
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=step)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stop watching."""
        self._stop()

    def _stop(self) -> None:
        for recorder in self._recorders.values():
            recorder.remove()
        self._recorders = {}

    def _entries(self, name: str, report: Report) -> Iterator[tuple[str, float]]:
        names = self._class_names(name, report)
        yield from _of_classes(f"{name}/loss", names, report.class_loss)
        for term, (value, class_weight, threshold) in report.terms.items():
            prefix = name if value is None else f"{name}/{term}"
            if value is not None:
                yield prefix, value
            yield from _of_classes(f"{prefix}/weight", names, class_weight)
            if threshold is not None and math.isfinite(threshold):
                yield f"{prefix}/threshold", threshold

    def _class_names(self, name: str, report: Report) -> tuple[str, ...]:
        """Return names of the classes or labels, as many as the report has."""
        count = len(report.class_loss) // (2 if report.of_labels else 1)
        names = tuple(map(str, range(count))) if self.class_names is None else self.class_names
        if len(names) != count:
            kind = "label" if report.of_labels else "class"
            raise ValueError(f"Expected {count} class_names, one a {kind} of {name}, got {len(names)}.")
        return names


def _losses_in(module: LightningModule) -> dict[str, PixelLoss | SumLoss]:
    """Return the losses and the sums of losses, by name; a sum's terms are not called by themselves."""
    modules = dict(module.named_modules())
    terms = {term for sum_ in modules.values() if isinstance(sum_, SumLoss) for term in sum_.losses}
    return {
        name: found
        for name, found in modules.items()
        if isinstance(found, (PixelLoss, SumLoss)) and found not in terms
    }


def _of_classes(prefix: str, names: Sequence[str], values: Sequence[float]) -> Iterator[tuple[str, float]]:
    """Return the values of classes or, of twice as many, of labels that are absent and present, but for nan."""
    if len(values) == 2 * len(names):
        names = [f"{name}/{sign}" for name in names for sign in ("absent", "present")]
    for name, value in zip(names, values, strict=False):  # a loss may have no weights
        if not math.isnan(value):
            yield f"{prefix}/{name}", value
