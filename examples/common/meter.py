"""Steps with their log rows: losses, learning rate, throughput, memory; and the seconds that training took."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from examples.common.distributed import world_size
from examples.common.logs import Logs
from examples.common.provenance import Stopwatch, peak_memory_mib


class Engine(Protocol):
    """What makes steps. `config.training` has `log_every` and `iterations`."""

    config: Any
    device: torch.device
    step: int
    scheduler: torch.optim.lr_scheduler.LRScheduler

    def advance(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """One step on the streams of a batch; what to log, "loss" among it."""


class Meter:
    """Carries out the steps of an engine, and logs those whose turn it is.

    Reading losses and clock waits for the device, so it is done for the logged steps alone. The throughput is that of
    all steps since the last row, loading included, evaluation and checkpoints not.

    Args:
        engine: what steps.
        logs: where the rows go; None on ranks that write nothing.
        seconds: what training took before.
    """

    def __init__(self, engine: Engine, logs: Logs | None, seconds: float) -> None:
        self._engine, self._logs = engine, logs
        self._watch = Stopwatch(engine.device, seconds)
        self._images, self._since = 0, seconds

    @property
    def seconds(self) -> float:
        """Of training, pauses left out."""
        return self._watch.seconds()

    @contextmanager
    def pause(self) -> Iterator[float]:
        """A block whose time does not count; gives the seconds until it."""
        seconds = self._watch.seconds()
        try:
            yield seconds
        finally:
            self._watch.go_on()

    def advance(self, batch: Mapping[str, Any]) -> None:
        """One step on streams that have an `image` (N, ...).

        Raises:
            FloatingPointError: the loss of a logged step is not finite.
        """
        engine, recipe = self._engine, self._engine.config.training
        rate = engine.scheduler.get_last_lr()[0]
        values = engine.advance(batch)
        self._images += world_size() * sum(len(stream.image) for stream in batch.values())
        if engine.step % recipe.log_every and engine.step != recipe.iterations:
            return
        numbers = {name: float(value) for name, value in values.items()}
        if not torch.isfinite(values["loss"]):
            raise FloatingPointError(
                f"the loss is {numbers['loss']} at step {engine.step}: lower training.lr"
            )
        now = self.seconds
        speed = self._images / (now - self._since)
        self._images, self._since = 0, now
        if self._logs is not None:
            cost = {"images_per_second": speed, "peak_memory_mib": peak_memory_mib(engine.device)}
            self._logs.write("log", engine.step, numbers | {"lr": rate} | cost)
