"""The smoke configuration on toy data, its engine and its batches, for the tests of the pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from examples.common.scenes.batches import Images, Steps
from examples.common.scenes.task import Task, load_task, streams
from examples.semidavil.config import Config, load_config
from examples.semidavil.engine import Engine


def toy_config(target: Path) -> Config:
    """The smoke configuration on a toy target, with smaller crops and windows."""
    config = load_config("smoke", ["data.budget=2", "data.crop=[16, 24]", "training.window=[16, 24]"])
    return replace(config, data=replace(config.data, target=str(target), streets=3))


def engine(config: Config, folder: Path) -> tuple[Engine, Task]:
    """A new engine and its task; `folder` keeps label lists and streets."""
    task = load_task(config.data, folder)
    return Engine(config, task, torch.device("cpu"), folder), task


def batch(config: Config, task: Task, folder: Path, step: int = 0) -> Mapping[str, Images]:
    """The streams of a step."""
    seed = config.training.seed
    unlabelled, flip = config.components.consistency, config.data.flip
    found = streams(task, config.data, folder, seed, unlabelled=unlabelled, flip=flip)
    return Steps(found, seed, step, step + 1)[0]
