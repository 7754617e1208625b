"""The methods of Table 5, a file each."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from examples.synapse_ssl.config import Config
from examples.synapse_ssl.methods.a_and_d import AAndD
from examples.synapse_ssl.methods.base import Method
from examples.synapse_ssl.methods.cps import Cps
from examples.synapse_ssl.methods.depl import Depl
from examples.synapse_ssl.methods.dhc import Dhc
from examples.synapse_ssl.methods.supervised import Supervised
from examples.synapse_ssl.methods.ua_mt import UaMt
from examples.synapse_ssl.methods.urpc import Urpc

METHODS: Mapping[str, type[Method]] = {
    "supervised": Supervised,
    "ua_mt": UaMt,
    "urpc": Urpc,
    "cps": Cps,
    "depl": Depl,
    "dhc": Dhc,
    "a_and_d": AAndD,
}


def build_method(config: Config, class_counts: Tensor) -> Method:
    """The method of a configuration, with new networks from torch's random numbers.

    Args:
        config: of the run.
        class_counts: (C,) voxels of each class in the labelled volumes; how many there are says how many classes.
    """
    return METHODS[config.method](config, class_counts)
