"""How long a run is, and how its learning rates go."""

from __future__ import annotations

from dataclasses import replace

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from examples.hvl.config import Config


def with_steps(config: Config, unlabelled: int) -> Config:
    """The configuration with `training.epochs` turned into `training.iterations`; the same where there are no epochs.

    An epoch is one pass through the unlabelled images in whole batches, as in SemiVL and UniMatch, on which the paper
    builds; the labelled ones are drawn meanwhile as often as it takes.

    Args:
        config: of a run.
        unlabelled: the number of unlabelled images.

    Raises:
        ValueError: an epoch has no whole batch.
    """
    epochs, batch = config.training.epochs, config.data.batch_size
    if not epochs:
        return config
    if unlabelled < batch:
        raise ValueError(
            f"{unlabelled} unlabelled images make no epoch of batches of {batch}: set training.iterations, and "
            "training.epochs to 0"
        )
    return replace(config, training=replace(config.training, iterations=epochs * (unlabelled // batch)))


def polynomial(optimizer: Optimizer, steps: int, power: float, warmup: int) -> LambdaLR:
    """The rates rise linearly for `warmup` steps under a polynomial, (1 − step / steps)^power, that falls over all.

    Section 4.1 of the paper has a polynomial decay of power 0.9 in one sentence, and a linear decay behind the warm-up
    in another; power 1 is the latter.
    """

    def factor(step: int) -> float:
        rise = min((step + 1) / (warmup + 1), 1.0)
        return float(rise * max(1 - step / steps, 0.0) ** power)

    return LambdaLR(optimizer, factor)
