"""How long a run is."""

from __future__ import annotations

from dataclasses import replace

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
