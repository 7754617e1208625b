"""Class counts, shares and weights of a folder of labels: ``python -m classbalance_losses.stats FOLDER``.

Reads label PNGs (grey or palette, a pixel's value being its class) and .npz files. The class names, their
number and the ignored label come from a ``dataset.json`` beside or above the labels, or from the options.
Masks of two labels, 0 and 255, are asked about: ``--object 255`` counts 255 as class 1, ``--ignore-index 255``
leaves it out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from classbalance_losses._label_files import LabelFileError, LabelFiles, find_dataset, find_labels
from classbalance_losses._validate import check_range
from classbalance_losses.state.accumulate import count_batches
from classbalance_losses.state.statistics import ClassStatistics

MOST_INFERRED = 256  # classes that 8 bits can tell apart
MOST_NAMED = 20  # classes in a sentence

Weights = dict[str, list[float | None]]  # of each scheme, one a class


def trimmed(statistics: ClassStatistics) -> ClassStatistics:
    """Drop the classes after the last one that occurs."""
    classes = torch.arange(statistics.num_classes, dtype=torch.int64, device="cpu")
    last = int(torch.where(statistics.pixel_counts > 0, classes, 1).max())
    small = ClassStatistics(last + 1, ignore_index=statistics.ignore_index)
    for ours, theirs in zip(small.buffers(), statistics.buffers(), strict=True):
        ours.copy_(theirs[: last + 1] if theirs.ndim else theirs)
    return small


def class_weights(statistics: ClassStatistics, beta: float) -> Weights:
    """Return every scheme's weights, in six digits; none for a class that was not seen."""
    weights = {
        "pixel_frequency": statistics.weights("pixel_frequency"),
        "sqrt_pixel_frequency": statistics.weights("pixel_frequency", power=0.5),
        "median_frequency": statistics.weights("median_frequency"),
        "image_frequency": statistics.weights("image_frequency"),
        "effective_number": statistics.weights("effective_number", beta=beta),
    }
    seen = (statistics.pixel_counts > 0).tolist()
    return {
        scheme: [
            float(f"{number:.6g}") if there else None for number, there in zip(weight, seen, strict=True)
        ]
        for scheme, weight in weights.items()
    }


def report(statistics: ClassStatistics, names: list[str], weights: Weights, beta: float) -> str:
    """Return the summary, the table and the lists to paste."""
    pixels, ignored = int(statistics.num_pixels), int(statistics.num_ignored)
    rows = [["", "class", "pixels", "share", "images", *weights]]
    counts = zip(statistics.pixel_counts, statistics.pixel_shares, statistics.image_counts, strict=True)
    for index, (pixel_count, share, image_count) in enumerate(counts):
        numbers = [f"{int(pixel_count):,}", f"{share:.3%}", f"{int(image_count):,}"]
        rows.append([str(index), names[index], *numbers, *(_cell(w[index]) for w in weights.values())])
    lines = [
        f"{int(statistics.num_images):,} label maps, {pixels:,} pixels of {statistics.num_classes} classes; "
        f"{ignored:,} pixels ({ignored / max(1, pixels + ignored):.2%}) ignored, label {statistics.ignore_index}",
        "",
        *_aligned(rows),
        "",
        *_unseen_note(statistics),
        *_flat_note(statistics, beta),
        "To paste, for WeightedCrossEntropyLoss(torch.tensor(...)):",
        *(f"{scheme} = {weight}" for scheme, weight in weights.items()),
    ]
    return "\n".join(lines)


def _cell(weight: float | None) -> str:
    return "-" if weight is None else f"{weight:.4g}"


def _unseen_note(statistics: ClassStatistics) -> list[str]:
    """Say of which classes the labels tell nothing."""
    unseen = (statistics.pixel_counts == 0).nonzero().flatten().tolist()
    if not unseen:
        return []
    shown = [*map(str, unseen[:MOST_NAMED]), *(["…"] if len(unseen) > MOST_NAMED else [])]
    return [
        f"Not seen: {', '.join(shown)}. A class without pixels has no weight, None below: put in 0 to leave it out, "
        "or a number of your own.",
        "",
    ]


def _flat_note(statistics: ClassStatistics, beta: float) -> list[str]:
    """Explain why the effective number gives every class the same weight, if it does."""
    seen = statistics.pixel_counts[statistics.pixel_counts > 0]
    # 1 - beta^n is 1 to the digits of the table from n = 5 / (1 - beta) on.
    if beta == 1 or len(seen) < 2 or int(seen.min()) * (1 - beta) < 5:
        return []
    return [
        f"effective_number is flat: every class has far more than 1/(1 - beta) = {1 / (1 - beta):,.0f} pixels. "
        f"For pixels, try --beta {1 - 1 / int(statistics.num_pixels):.10g}.",
        "",
    ]


def _aligned(rows: list[list[str]]) -> list[str]:
    """Align the columns, the second (names) to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if column == 1 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def count_folder(options: argparse.Namespace) -> tuple[ClassStatistics, list[str]]:
    """Count the labels under a folder; return the counts and the names of the classes."""
    paths, dataset = find_labels(options.folder), find_dataset(options.folder)
    names = dataset.classes if dataset else []
    if dataset:
        print(f"Class names from {dataset.path}", file=sys.stderr)
    stated = options.ignore_index
    if stated is None and dataset:
        stated = dataset.ignore_index
    ignore_index = _ignored_label(stated, options.object)
    files = LabelFiles(paths, options.key, options.object, ignore_index)
    num_classes = options.num_classes
    if num_classes is None:
        num_classes = len(names) or (None if options.object is None else 2)
    statistics = ClassStatistics(
        MOST_INFERRED if num_classes is None else num_classes, ignore_index=ignore_index
    )
    try:
        count_batches(
            statistics, files, progress=True, checkpoint=options.checkpoint, source=files.describe()
        )
    except IndexError as error:
        raise LabelFileError(
            f"{files.paths[files.reading]}: {error} Set --num-classes or --ignore-index accordingly, or --object to "
            "the object's label in masks of two labels."
        ) from error
    _ask_about_two_labels(statistics, assumed=stated is None, inferred=num_classes is None)
    if num_classes is None:
        statistics = trimmed(statistics)
        print(
            f"{statistics.num_classes} classes found; say --num-classes if there are more.", file=sys.stderr
        )
    names = [
        names[index] if index < len(names) else f"class {index}" for index in range(statistics.num_classes)
    ]
    return statistics, names


def _ignored_label(stated: int | None, object_label: int | None) -> int:
    if stated is None:
        return 255 if object_label != 255 else -100
    if stated == object_label:
        raise LabelFileError(f"--object and --ignore-index are both {stated}. Leave one out.")
    return stated


def _ask_about_two_labels(statistics: ClassStatistics, *, assumed: bool, inferred: bool) -> None:
    """Refuse masks of 0 and another label, where nobody has said whether that is an object.

    ``assumed``: nobody has said what is ignored; ``inferred``: nobody has said how many classes there are.
    """
    seen = statistics.pixel_counts.nonzero().flatten().tolist()
    label = statistics.ignore_index
    if assumed and seen in ([], [0]) and int(statistics.num_ignored):
        raise LabelFileError(
            f"The labels are {'0 and ' if seen else ''}{label} alone: is {label} the object, or to be left out? "
            f"If it is the object, say --object {label}; if it is to be left out, --ignore-index {label}."
        )
    if inferred and len(seen) == 2 and seen[0] == 0 and seen[1] > 1:
        raise LabelFileError(
            f"The labels are 0 and {seen[1]} alone: is {seen[1]} the object, or one of several classes? If it is the "
            f"object, say --object {seen[1]}; if it is one of several classes, --num-classes {seen[1] + 1}, or more."
        )


def write_json(path: Path, statistics: ClassStatistics, names: list[str], weights: Weights) -> None:
    """Write counts, shares and weights."""
    counts = {name: count.tolist() for name, count in statistics.state_dict().items()}
    shares = statistics.pixel_shares.tolist()
    content = {"classes": names, "ignore_index": statistics.ignore_index, **counts, "pixel_shares": shares}
    path.write_text(json.dumps({**content, "weights": weights}, indent=1) + "\n", encoding="utf-8")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m classbalance_losses.stats",
        description="Count the classes in a folder of label PNGs or .npz files, and print class weights.",
    )
    parser.add_argument("folder", type=Path, help="searched for .png and .npz files at any depth")
    parser.add_argument(
        "--num-classes", type=int, help="default: from dataset.json, or the largest label + 1"
    )
    parser.add_argument("--ignore-index", type=int, help="default: from dataset.json, or 255")
    parser.add_argument("--object", type=int, help="label that is class 1, in masks of it and 0, such as 255")
    parser.add_argument("--key", default="label", help="name of the array in .npz files (default: label)")
    parser.add_argument("--beta", type=float, default=0.9999, help="of effective_number (default: 0.9999)")
    parser.add_argument("--checkpoint", type=Path, help="keep the counts here; run again to go on")
    parser.add_argument("--json", type=Path, help="write counts, shares and weights here too")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 0, 1 after an error, 130 after an interruption."""
    options = parse(argv)
    try:
        check_range("beta", options.beta, 0, 1)
        statistics, names = count_folder(options)
        weights = class_weights(statistics, options.beta)
        print(report(statistics, names, weights, options.beta))
        if options.json:
            write_json(options.json, statistics, names, weights)
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


if __name__ == "__main__":
    sys.exit(main())
