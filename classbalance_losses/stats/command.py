"""The command line: what it takes, in which order it does what, and what it writes."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from classbalance_losses._validate_options import LABELS_END, check_range
from classbalance_losses.stats.class_summary import ClassSummary
from classbalance_losses.stats.counting import BINARY, MULTICLASS, MULTILABEL, TASKS
from classbalance_losses.stats.folder import count_folder
from classbalance_losses.stats.label_summary import LabelSummary
from classbalance_losses.stats.plot import check_plot, plot_shares
from classbalance_losses.stats.reading import KEY

_MOST_CLASSES = 1 << 20  # for some are numbers of pixels, by mistake, and each takes memory


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m classbalance_losses.stats",
        description="Count the classes in a folder of label files, and print class weights.",
    )
    add_reading_options(parser)
    add = parser.add_argument
    add("--beta", type=float, default=0.9999, help="of effective_number (default: 0.9999)")
    add("--clamp", type=float, nargs=2, metavar=("LOW", "HIGH"), help="bounds of the weights")
    add("--json", type=Path, metavar="FILE", help="write counts, shares and weights here too")
    add("--plot", type=Path, metavar="FILE", help="draw the shares into this .png, .svg or .pdf file")
    return parser.parse_args(argv)


def add_reading_options(parser: argparse.ArgumentParser) -> None:
    """Add what `count_folder` is told: the folder, and what its labels mean."""
    add = parser.add_argument
    add("folder", type=Path, help="searched for .png, .tif, .npy, .npz, .nii and .nii.gz files at any depth")
    add(
        "--task",
        choices=TASKS,
        default=MULTICLASS,
        help="one class a pixel; 0 and 1; or several labels of 0 and 1 a pixel, arrays (L, H, W) (default: multiclass)",
    )
    add(
        "--num-classes",
        type=int,
        help="classes, or labels of --task multilabel (default: from dataset.json, or the largest label + 1)",
    )
    add("--ignore-index", type=int, help="default: from dataset.json, or 255")
    add("--object", type=int, help="label that is class 1, in masks of it and 0, such as 255")
    add(
        "--colors",
        type=Path,
        metavar="FILE",
        help="'R G B name' or '#rrggbb name' of class 0 on the first line, and so on: the labels' colours are classes",
    )
    add("--ignore-unknown", action="store_true", help="leave pixels out whose colour is not in --colors")
    add("--key", default=KEY, help="name of the array in .npz files (default: %(default)s)")
    add("--workers", type=int, default=1, metavar="N", help="files read at a time (default: 1)")
    add("--checkpoint", type=Path, metavar="FILE", help="keep the counts here; run again to go on")


def check(options: argparse.Namespace) -> None:
    """Check what can be checked before the files are read.

    Raises:
        ValueError: options have no meaning, or not together.
        OSError: there is no folder to write to.
        ModuleNotFoundError: ``--plot`` without matplotlib.
    """
    check_range("beta", options.beta, 0, 1)
    if options.clamp and not 0 <= options.clamp[0] <= options.clamp[1]:
        low, high = options.clamp
        raise ValueError(f"--clamp: expected 0 <= LOW <= HIGH, got {low:g} {high:g}.")
    check_reading(options)
    for path in filter(None, (options.json, options.plot)):
        if not path.parent.is_dir():
            raise FileNotFoundError(
                f"{path}: No such file or directory. Make the folder {path.parent} first."
            )
    if options.plot:
        check_plot(options.plot)


def check_reading(options: argparse.Namespace) -> None:
    """Check the options of `add_reading_options`.

    Raises:
        ValueError: options have no meaning, or not together.
    """
    if options.ignore_index is not None and not -LABELS_END <= options.ignore_index < LABELS_END:
        raise ValueError(f"--ignore-index: expected a number of 64 bits, got {options.ignore_index}.")
    if options.num_classes is not None and options.num_classes > _MOST_CLASSES:
        raise ValueError(f"--num-classes: expected at most {_MOST_CLASSES}, got {options.num_classes}.")
    if options.workers < 1:
        raise ValueError(f"--workers: expected at least 1, got {options.workers}.")
    for pair, reason in (
        (("colors", "object"), "The colours say which class a pixel has"),
        (("colors", "num_classes"), "The classes are the lines of the file of colours"),
    ):
        if all(getattr(options, name) is not None for name in pair):
            raise ValueError(f"{reason}: leave --{pair[1].replace('_', '-')} out.")
    if options.task == BINARY and options.num_classes is not None:
        raise ValueError("--task binary has the classes 0 and 1: leave --num-classes out.")
    if options.task == MULTILABEL and options.colors is not None:
        raise ValueError("A colour is one label a pixel: leave --task multilabel out, or --colors.")
    if options.ignore_unknown and options.colors is None:
        raise ValueError("--ignore-unknown is about colours: say --colors FILE too, or leave it out.")


def run(options: argparse.Namespace) -> None:
    """Count the folder, print the page, and write what else is asked for."""
    check(options)
    statistics, names = count_folder(options)
    clamp = tuple(options.clamp) if options.clamp else None
    summary = (
        ClassSummary(statistics, names, options.beta, clamp)
        if options.task == MULTICLASS
        else LabelSummary(options.task, statistics, names, clamp)
    )
    print(summary.page())
    if options.json:
        options.json.write_text(json.dumps(summary.content(), indent=1) + "\n", encoding="utf-8")
    if options.plot:
        title = "share of the pixels" if options.task == MULTICLASS else "share of the pixels with the label"
        plot_shares(options.plot, title, summary.names, summary.shares())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 0, 1 after an error, 130 after an interruption."""
    return guarded(run, parse(argv))


def guarded(run: Callable[[argparse.Namespace], None], options: argparse.Namespace) -> int:
    """Run a command that counts a folder, and tell what went wrong in a line."""
    try:
        run(options)
    except KeyboardInterrupt:
        kept = (
            "Run the same command again to go on." if options.checkpoint else "Nothing kept: no --checkpoint."
        )
        print(f"Interrupted. {kept}", file=sys.stderr)
        return 130
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0
