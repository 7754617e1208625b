"""The command line: `python -m benchmarks.accuracy {demo,compare,run,report,cost,decide,summary}`."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.accuracy.collect import collect, known_scores, read_results
from benchmarks.accuracy.cost import write_cost
from benchmarks.accuracy.data import load_data
from benchmarks.accuracy.decisions import write_decisions
from benchmarks.accuracy.grid import Grid, RunConfig, load_grid
from benchmarks.accuracy.pool import RunError, run_all
from benchmarks.accuracy.predictions import predictions_figure
from benchmarks.accuracy.report import write_report
from benchmarks.accuracy.search import rate_grids, tuned, tuning_runs, with_own_rates
from benchmarks.accuracy.summary import RESULTS, STUDIES, write_summary
from benchmarks.accuracy.table import summary_table
from examples.common.camvid import read_description
from examples.common.figures import save_figure

_RUNS = Path("runs/accuracy")
_SIDE_BY_SIDE = 10  # losses whose predictions a picture can show


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the process's exit status."""
    options = _parser().parse_args(arguments)
    try:
        options.command(options)
    except (FileNotFoundError, ValueError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def for_folder(grid: Grid, folder: Path | None) -> Grid:
    """A grid set to one folder: its name, its train and val where it lacks the grid's split lists.

    Raises:
        ValueError: such a grid and no folder.
    """
    if grid.data["kind"] == "streets":
        return grid
    if folder is None:
        raise ValueError(f"grid {grid.name} needs --data FOLDER, a folder in the layout of its kind")
    name = folder.resolve().name
    if grid.data["kind"] == "streets-to-camvid":
        return dataclasses.replace(grid, data=grid.data | {"name": f"streets-to-{name}"})
    data = grid.data | {"name": name}
    if folder.is_dir() and not (folder / "splits" / f"{data['train']}.txt").is_file():
        data |= {"train": "train", "tests": ["val"]}
    return dataclasses.replace(grid, data=data)


def _demo(options: argparse.Namespace) -> None:
    _run_and_show("demo", options)


def _compare(options: argparse.Namespace) -> None:
    classes, _ = read_description(options.data)
    _run_and_show("compare_binary" if len(classes) == 2 else "compare", options)


def _run(options: argparse.Namespace) -> None:
    _run_grids(_grids(options), options)


def _report(options: argparse.Namespace) -> None:
    for whole in _grids(options):
        grid = _with_own(whole, options)
        path = collect(grid, options.runs, options.out)
        if path is None:
            print(f"no run of {grid.name} is finished", file=sys.stderr)
        elif read_results(path).is_binary and grid.origin is None and len(grid.labels) <= _SIDE_BY_SIDE:
            # The data stay where they are; what the models made of them can be published.
            figure = predictions_figure(grid, options.runs, options.data, shows_data=False)
            if figure is not None:
                save_figure(figure, options.out / "plots" / f"{grid.name}_predictions.png")
    print(f"tables and plots: {write_report(options.out)}")


def _with_own(grid: Grid, options: argparse.Namespace) -> Grid:
    """The grid of the losses whose searches are finished, each with its own rate and numbers."""
    rates, settings = known_scores(grid, options.out)
    return tuned(with_own_rates(grid, options.runs, rates), options.runs, settings)


def _cost(options: argparse.Namespace) -> None:
    for grid in _grids(options):
        print(f"costs: {write_cost(grid, options.data, options.runs, options.out)}")


def _decide(options: argparse.Namespace) -> None:
    for whole in _grids(options):
        grid = _with_own(whole, options)
        print(f"decisions: {write_decisions(grid, options.runs, options.data, options.out)}")


def _summary(options: argparse.Namespace) -> None:
    paths = options.results or [path for name in STUDIES if (path := RESULTS / f"{name}.json").is_file()]
    print(f"the summary: {write_summary(paths, options.out.absolute())}")


def _run_and_show(name: str, options: argparse.Namespace) -> None:
    """Run one grid, print its table, write its page, plots and pictures."""
    grid = for_folder(load_grid(name, options.device), options.data)
    _run_grids([grid], options)
    out = options.out or options.runs.parent / "reports" / f"{grid.name}-{grid.data['name']}"
    path = collect(grid, options.runs, out)
    figure = predictions_figure(grid, options.runs, options.data)
    if path is None or figure is None:
        raise FileNotFoundError(f"no finished run of {grid.name} in {options.runs}")
    save_figure(figure, out / "plots" / f"{grid.name}_predictions.png")
    print(summary_table(read_results(path)))
    print(f"\nmore tables, and the plots: {write_report(out)}")


def _run_grids(grids: Sequence[Grid], options: argparse.Namespace) -> None:
    """Read each data set once before any process starts, so that a broken folder is told at once; then run.

    Raises:
        ValueError: a GPU is asked for and there is none.
    """
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no CUDA device")
    checked: list[dict[str, Any]] = []
    for grid in grids:
        if grid.data not in checked:
            load_data(grid.data, options.data, options.runs)
            checked.append(grid.data)
    known = [known_scores(grid, options.out) if options.out else ({}, {}) for grid in grids]
    pairs = [(grid, rates) for grid, (rates, _) in zip(grids, known, strict=True)]

    def carry_out(configs: Iterable[RunConfig]) -> None:
        run_all(list(configs), options.runs, options.data, jobs=options.jobs)

    searched = [of_rate for pair in pairs for of_rate in rate_grids(*pair).values()]
    carry_out(config for grid in searched for _, config in grid.runs())
    grids = [with_own_rates(grid, options.runs, rates) for grid, rates in pairs]
    settings = [of for _, of in known]
    tried = [run for grid, of in zip(grids, settings, strict=True) for run in tuning_runs(grid, of)]
    carry_out(config for *_, config in tried)
    own = [tuned(grid, options.runs, of) for grid, of in zip(grids, settings, strict=True)]
    carry_out(config for grid in own for _, config in grid.runs())


def _grids(options: argparse.Namespace) -> list[Grid]:
    grids = [for_folder(load_grid(name, options.device), options.data) for name in options.grids]
    if options.seeds is None:
        return grids
    return [dataclasses.replace(grid, seeds=tuple(options.seeds)) for grid in grids]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")

    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--runs", type=Path, default=_RUNS, help="folder of the runs (%(default)s)")
    shared.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="where the runs compute (%(default)s)"
    )
    jobs = argparse.ArgumentParser(add_help=False)
    jobs.add_argument(
        "--jobs", type=_positive, default=2, help="runs side by side, a thread each (%(default)s)"
    )

    demo = commands.add_parser("demo", parents=[shared, jobs], help="five losses on streets, in minutes")
    demo.add_argument("--out", type=Path, help="folder of the report")
    demo.set_defaults(command=_demo, data=None)

    compare = commands.add_parser("compare", parents=[shared, jobs], help="all losses on a real folder")
    compare.add_argument("--data", type=Path, required=True, help="folder in CamVid's layout")
    compare.add_argument("--out", type=Path, help="folder of the report")
    compare.set_defaults(command=_compare)

    selection = argparse.ArgumentParser(add_help=False)
    selection.add_argument("--data", type=Path, help="folder of the data, for grids that need one")
    selection.add_argument("--seeds", type=int, nargs="+", help="only these seeds (the grid's own)")

    run = commands.add_parser(
        "run", parents=[shared, jobs, selection], help="carry out the runs of some grids"
    )
    run.add_argument("grids", nargs="+", help="names of grids, or paths of TOML files")
    run.add_argument("--out", type=Path, help="folder of results, whose searches are not made again")
    run.set_defaults(command=_run)

    report = commands.add_parser(
        "report", parents=[shared, selection], help="results, tables and plots of some grids"
    )
    report.add_argument("grids", nargs="*", help="grids to collect first; without any, redraw what OUT holds")
    report.add_argument("--out", type=Path, required=True, help="folder of the results and the report")
    report.set_defaults(command=_report)

    cost = commands.add_parser(
        "cost",
        parents=[shared, selection],
        help="time and memory of a step with each loss, beside nothing else",
    )
    cost.add_argument("grids", nargs="+", help="names of grids, or paths of TOML files")
    cost.add_argument("--out", type=Path, required=True, help="folder of the results")
    cost.set_defaults(command=_cost)

    decide = commands.add_parser(
        "decide", parents=[shared, selection], help="how much of a score is where the models decide"
    )
    decide.add_argument("grids", nargs="+", help="names of grids, or paths of TOML files")
    decide.add_argument("--out", type=Path, required=True, help="folder of the results")
    decide.set_defaults(command=_decide)

    summary = commands.add_parser("summary", help="which loss wins where, from result files")
    summary.add_argument(
        "results", type=Path, nargs="*", help="result files (those of the committed studies)"
    )
    summary.add_argument("--out", type=Path, default=RESULTS / "study", help="folder of the page")
    summary.set_defaults(command=_summary)
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


if __name__ == "__main__":
    sys.exit(main())
