"""The command line's folders: those of street scenes, and of style images."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from examples.common.scenes.folders import add_folders, with_folders
from examples.t2s_da.config import Config

RUNS = Path("runs/t2s_da")


def add_scene_folders(parser: argparse.ArgumentParser) -> None:
    """The options that say where data, styles and runs lie."""
    add_folders(parser, RUNS)
    parser.add_argument(
        "--styles", default="", help="a folder of pictures to take styles from, without a target"
    )


def with_scene_folders(config: Config, given: argparse.Namespace) -> Config:
    """The configuration with the folders of the command line, where it names them."""
    config = with_folders(config, given)
    styles = given.styles or config.translation.styles
    return replace(config, translation=replace(config.translation, styles=styles))
