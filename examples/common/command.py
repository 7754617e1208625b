"""The command lines that the examples have in common."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from examples.common.config import run_folder
from examples.common.distributed import process_group, rank
from examples.common.outcome import TABLES


def training_parser(description: str, *, configs: str, overrides: str, smoke: str) -> argparse.ArgumentParser:
    """The options of a `train` command: a configuration, `--set`, `--device`, `--smoke`.

    Args:
        description: of the command.
        configs: the folder of the named configurations, for the help.
        overrides: an example of what `--set` takes.
        smoke: what `--smoke` does.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("config", nargs="?", help=f"a file, or a name in {configs}")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help=f"e.g. {overrides}")
    parser.add_argument("--smoke", action="store_true", help=smoke)
    _add_device(parser)
    return parser


def parse_training(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None, *, one_process: bool = False
) -> argparse.Namespace:
    """Parse a `train` command, which names a configuration or says `--smoke`; `one_process` refuses torchrun."""
    given = parser.parse_args(arguments)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        if one_process:
            parser.error("this trains in one process: start it without torchrun")
        if given.smoke:
            parser.error("--smoke is for one process")
    if given.config is None and not given.smoke:
        parser.error("name a configuration, or --smoke")
    return given


def train_named(given: argparse.Namespace, config: Any, train: Callable[..., Any]) -> None:
    """Carry out the run that a command line names, on each of its ranks; the first one prints the scores.

    Args:
        given: the parsed command line, with `config`, `runs` and `device`.
        config: what it names, with the folders.
        train: takes the configuration, the run's folder, the folder of what runs share, and `device`.
    """
    folder = run_folder(given.runs, Path(given.config).stem, config.as_dict())
    with process_group(given.device) as device:
        train(config, folder, given.runs / "kept", device=str(device))
        if rank() == 0:
            print((folder / TABLES).read_text() + f"in {folder}")


def grid_parser(description: str, *, grids: str, out: str) -> argparse.ArgumentParser:
    """The options of a `grid` command: run or report, a grid, `--seeds`, `--device`, `--out`.

    Args:
        description: of the command, laid out.
        grids: the folder of the named grids, for the help.
        out: the folder of the report.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=("run", "report"))
    parser.add_argument("grid", help=f"a file, or a name in {grids}")
    parser.add_argument("--seeds", type=int, nargs="*", help="the grid's unless given")
    parser.add_argument("--out", type=Path, default=Path(out))
    _add_device(parser)
    return parser


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
