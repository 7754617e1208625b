"""Student and teacher of a configuration."""

from __future__ import annotations

import torch
from torch.optim.swa_utils import AveragedModel

from examples.common.ema import ema_teacher
from examples.t2s_da.config import Config
from examples.t2s_da.hrda import TwoResolutions
from examples.t2s_da.model import Segmenter


def build_student(config: Config, num_classes: int) -> Segmenter:
    """The student, the weights of each part drawn from `training.seed` whatever the other parts are."""
    with torch.random.fork_rng():
        kind = TwoResolutions if config.hrda.enabled else Segmenter
        return kind(config.model, num_classes, config.training.seed, pulls=config.components.pull)


def build_teacher(config: Config, student: Segmenter) -> AveragedModel:
    """The student's running average, that starts as its copy."""
    model = config.model
    return ema_teacher(student, student, model.ema_decay, warmup=model.ema_warmup)
