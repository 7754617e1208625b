"""The command line's folders of street scenes."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any, TypeVar

Config = TypeVar("Config", bound=Any)


def add_folders(parser: argparse.ArgumentParser) -> None:
    """The options that say where data lie."""
    parser.add_argument("--source", default="", help="the folder of GTA5 or SYNTHIA")
    parser.add_argument("--target", default="", help="the folder of Cityscapes, or one in CamVid's layout")


def with_folders(config: Config, given: argparse.Namespace) -> Config:
    """The configuration with the folders of the command line in its `data`, where it names them."""
    source, target = given.source or config.data.source, given.target or config.data.target
    return replace(config, data=replace(config.data, source=source, target=target))
