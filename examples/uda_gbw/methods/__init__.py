"""The families of Table 1, a file each."""

from __future__ import annotations

from collections.abc import Mapping

from examples.uda_gbw.config import Config
from examples.uda_gbw.data import Classes
from examples.uda_gbw.methods.adaptsegnet import AdaptSegNet
from examples.uda_gbw.methods.advent import Advent
from examples.uda_gbw.methods.base import Method
from examples.uda_gbw.methods.dacs import Dacs
from examples.uda_gbw.methods.daformer import DAFormer
from examples.uda_gbw.methods.entropy import Entropy
from examples.uda_gbw.methods.source_only import SourceOnly

METHODS: Mapping[str, type[Method]] = {
    "source_only": SourceOnly,
    "entropy": Entropy,
    "advent": Advent,
    "adaptsegnet": AdaptSegNet,
    "dacs": Dacs,
    "daformer": DAFormer,
}


def build_method(config: Config, classes: Classes) -> Method:
    """The method of a configuration, with new networks from torch's random numbers."""
    return METHODS[config.method](config, classes)
