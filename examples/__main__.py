"""The papers, and what can be done with each.

    python -m examples PAPER train CONFIG --set training.seed=1    one run; --smoke: everything on toy data
    python -m examples PAPER grid GRID                             the runs of a table that are not finished
    python -m examples PAPER report GRID                           that table, from the finished runs; it needs no data
    torchrun --nproc-per-node 2 -m examples PAPER train CONFIG     on several GPUs

`python -m examples PAPER ACTION --help` has the options of each. An action is a module of the paper's folder with a
`main`, or one of those three, which take of the folder

- `train.py`: `train`, which carries a run out; `add_folders` and `with_folders`, the options that say where data lie;
- `grid.py`: `runs`, what a command line asks for; `page`, which writes a report;
- `config.py` and `smoke.py`: `load_config` and `smoke`;
- `add_options` of the first two, where they have options of their own.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch

from examples.common.config import run_folder
from examples.common.distributed import process_group, rank
from examples.common.outcome import TABLES

# The papers, and the actions that they alone have.
PAPERS: Mapping[str, tuple[str, ...]] = {
    "hvl": (),
    "semidavil": ("pretrain", "pretraining.report", "caption", "probe"),
    "synapse_ssl": (),
    "t2s_da": (),
    "uda_gbw": (),
    "uda_gbw.panoptic": (),
}
_ONE_PROCESS = ("synapse_ssl", "uda_gbw.panoptic")


def train(paper: str, words: Sequence[str]) -> None:
    """Carry out the run of a configuration on each of its ranks, or the smoke test; the first one prints the scores."""
    training = _module(paper, "train")
    parser = _parser(paper, "train", training)
    parser.add_argument("config", nargs="?", help=f"a file, or a name in {_folder(paper)}/configs")
    parser.add_argument(
        "--set", nargs="*", action="extend", default=[], metavar="KEY=VALUE", help="e.g. training.seed=1"
    )
    parser.add_argument("--smoke", action="store_true", help="the whole pipeline on toy data, in a minute")
    _add_own(parser, training)
    given = parser.parse_args(words)
    _refuse_ranks(parser, paper)
    if given.smoke:
        if _ranks() > 1:
            parser.error("--smoke is for one process")
        _module(paper, "smoke").smoke(given.set, device=given.device)
        return
    if given.config is None:
        parser.error("name a configuration, or --smoke")
    config = training.with_folders(_module(paper, "config").load_config(given.config, given.set), given)
    folder = run_folder(given.runs, given.config, config.as_dict())
    with process_group(given.device) as device:
        training.train(config, folder, given.runs / "kept", device=str(device))
        if rank() == 0:
            tables = folder / TABLES  # some runs of earlier versions have none
            print(f"{tables.read_text() if tables.is_file() else ''}in {folder}")


def grid(paper: str, words: Sequence[str]) -> None:
    """Carry out the runs of a grid that are not finished."""
    plan, training = _module(paper, "grid"), _module(paper, "train")
    parser = _grid_parser(paper, "grid", plan)
    given = parser.parse_args(words)
    _refuse_ranks(parser, paper)
    with process_group(given.device) as device:
        for label, name, config in plan.runs(given):
            if rank() == 0:
                print(label, flush=True)
            placed = training.with_folders(config, given)
            folder = run_folder(given.runs, name, placed.as_dict())
            training.train(placed, folder, given.runs / "kept", device=str(device))


def report(paper: str, words: Sequence[str]) -> None:
    """Write the table of a grid from its finished runs, with the paper's numbers in it."""
    plan = _module(paper, "grid")
    parser = _grid_parser(paper, "report", plan)
    results = f"benchmarks/results/{paper.split('.', maxsplit=1)[0]}"
    parser.add_argument("--out", type=Path, default=Path(results), help="(%(default)s)")
    print(plan.page(parser.parse_args(words)))


ACTIONS = {"train": train, "grid": grid, "report": report}


def listing() -> str:
    """The papers and their actions."""
    lines = [__doc__.partition("\n\n`")[0], ""]
    for paper, own in PAPERS.items():
        what = import_module(f"examples.{paper}").__doc__
        lines.append(f"{paper}: {', '.join([*ACTIONS, *own])}\n    {what}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    words = [*(sys.argv[1:] if arguments is None else arguments)]
    if not words or words[0] in ("-h", "--help"):
        print(listing())
        return
    parser = argparse.ArgumentParser("python -m examples", usage="%(prog)s PAPER ACTION ...")
    paper, action = [*words, ""][:2]
    if paper not in PAPERS:
        parser.error(f"no paper {paper!r}: those here are {', '.join(PAPERS)}")
    if action in ACTIONS:
        ACTIONS[action](paper, words[2:])
    elif action in PAPERS[paper]:
        _module(paper, action).main(words[2:])
    else:
        parser.error(f"{paper} has no action {action!r}: it has {', '.join([*ACTIONS, *PAPERS[paper]])}")


def _module(paper: str, name: str) -> ModuleType:
    return import_module(f"examples.{paper}.{name}")


def _folder(paper: str) -> str:
    return f"examples/{paper.replace('.', '/')}"


def _parser(paper: str, action: str, module: ModuleType) -> argparse.ArgumentParser:
    """The options of all three: where data and runs lie, and the device."""
    parser = argparse.ArgumentParser(
        f"python -m examples {paper} {action}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _module(paper, "train").add_folders(parser)
    runs = Path("runs") / paper.replace(".", "_")
    parser.add_argument("--runs", type=Path, default=runs, help="(%(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def _grid_parser(paper: str, action: str, plan: ModuleType) -> argparse.ArgumentParser:
    parser = _parser(paper, action, plan)
    parser.add_argument("grid", help=f"a file, or a name in {_folder(paper)}/{plan.GRIDS.name}")
    parser.add_argument("--seeds", type=int, nargs="*", help="the grid's unless given")
    _add_own(parser, plan)
    return parser


def _add_own(parser: argparse.ArgumentParser, module: ModuleType) -> None:
    if hasattr(module, "add_options"):
        module.add_options(parser)


def _refuse_ranks(parser: argparse.ArgumentParser, paper: str) -> None:
    if _ranks() > 1 and paper in _ONE_PROCESS:
        parser.error("this trains in one process: start it without torchrun")


def _ranks() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


if __name__ == "__main__":
    try:
        main()
    except (FileNotFoundError, ValueError) as mistake:  # in what was asked: the message says it all
        sys.exit(f"error: {mistake}")
