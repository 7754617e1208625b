"""Class counts, shares and weights of a folder of labels: ``python -m classbalance_losses.stats FOLDER``.

Reads label PNGs (grey or palette, a pixel's value being its class) and .npz files. The class names, their
number and the ignored label come from a ``dataset.json`` beside or above the labels, or from the options.
"""

from __future__ import annotations

import argparse
import json
import sys
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from classbalance_losses._validate import check_range
from classbalance_losses.state.accumulate import count_batches
from classbalance_losses.state.statistics import ClassStatistics

GREY, PALETTE = 0, 3  # colour types of the PNG format
MOST_INFERRED = 256  # classes that 8 bits can tell apart


class LabelFileError(ValueError):
    """A label file, or a folder of them, that cannot be counted."""


class Dataset(NamedTuple):
    """What a ``dataset.json`` says about the labels."""

    path: Path
    classes: list[str]
    ignore_index: int | None


class LabelFiles(Sequence[Tensor]):
    """The label maps of a list of files, read one at a time; each is a batch of one image or volume."""

    def __init__(self, paths: list[Path], key: str) -> None:
        self.paths, self.key = paths, key
        self.reading = 0

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        self.reading = index
        path = self.paths[index]
        labels = read_npz(path, self.key) if path.suffix.lower() == ".npz" else read_png(path)
        if labels.dtype.kind not in "biu":
            raise LabelFileError(f"{path}: expected integer class indices, got {labels.dtype}.")
        return torch.from_numpy(labels.astype(np.int64)).unsqueeze(0)

    def describe(self) -> str:
        """Say which files these are, to tell one checkpoint from another."""
        checksum = zlib.crc32("\n".join(map(str, self.paths)).encode())
        return f"{len(self)} label files (checksum {checksum:08x})"


def read_png(path: Path) -> np.ndarray[Any, Any]:
    """Read the class indices (H, W) of a grey or palette PNG.

    Raises:
        LabelFileError: the file is no PNG, is damaged, or has colour or alpha channels.
        ModuleNotFoundError: Pillow is not installed.
    """
    image_module = _pillow()
    with path.open("rb") as file:
        header = file.read(26)
    if len(header) < 26 or not header.startswith(b"\x89PNG\r\n\x1a\n"):
        raise LabelFileError(f"{path}: not a PNG file.")
    depth, colour = header[24], header[25]
    if colour not in (GREY, PALETTE):
        raise LabelFileError(_not_indices(path, depth))
    try:
        with image_module.open(path) as image:
            labels = np.array(image)
    except (OSError, SyntaxError, ValueError, image_module.DecompressionBombError) as error:
        raise LabelFileError(f"{path}: cannot be read: {error}") from error
    if colour == GREY and depth in (2, 4):
        labels //= 255 // (2**depth - 1)  # Pillow stretches these to 0..255
    return labels


def _not_indices(path: Path, depth: int) -> str:
    if depth == 16:
        return (
            f"{path}: a PNG with 16-bit colour or alpha channels, which Pillow cannot read faithfully "
            "(SYNTHIA's labels read as all zeros). Take the channel of class indices out with OpenCV, and "
            "save it as 8-bit grey."
        )
    return (
        f"{path}: has colour or alpha channels; expected a grey or palette PNG whose pixel values are class "
        "indices. If it is an input image, name the folder of the labels; if its colours stand for classes, "
        "convert it first."
    )


def read_npz(path: Path, key: str) -> np.ndarray[Any, Any]:
    """Read the array called ``key``, class indices of any shape.

    Raises:
        LabelFileError: the file is damaged, or has no such array.
    """
    try:
        with path.open("rb") as file, np.load(file) as archive:
            if key not in archive:
                found = ", ".join(map(repr, archive))
                raise LabelFileError(f"{path}: has no array {key!r}, only {found}. Choose one with --key.")
            labels: np.ndarray[Any, Any] = archive[key]
            return labels
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise LabelFileError(f"{path}: cannot be read: {error}") from error


def find_labels(folder: Path) -> list[Path]:
    """Return the .png and .npz files under ``folder``, sorted.

    Raises:
        LabelFileError: there is no such folder, or no such file in it.
    """
    if not folder.is_dir():
        raise LabelFileError(f"{folder}: no such folder.")
    paths = sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in (".png", ".npz") and path.is_file()
    )
    if not paths:
        raise LabelFileError(f"{folder}: holds no .png and no .npz files, at any depth.")
    return paths


def find_dataset(folder: Path) -> Dataset | None:
    """Return what the nearest ``dataset.json`` with a list of class names says, in ``folder`` or above it."""
    for parent in (folder.resolve(), *folder.resolve().parents):
        path = parent / "dataset.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        classes = content.get("classes") if isinstance(content, dict) else None
        if isinstance(classes, list) and len(classes) > 1 and all(isinstance(name, str) for name in classes):
            ignore_index = content.get("ignore_index")
            return Dataset(path, classes, ignore_index if isinstance(ignore_index, int) else None)
    return None


def trimmed(statistics: ClassStatistics) -> ClassStatistics:
    """Drop the classes after the last one that occurs."""
    classes = torch.arange(statistics.num_classes, dtype=torch.int64, device="cpu")
    last = int(torch.where(statistics.pixel_counts > 0, classes, 1).max())
    small = ClassStatistics(last + 1, ignore_index=statistics.ignore_index)
    for ours, theirs in zip(small.buffers(), statistics.buffers(), strict=True):
        ours.copy_(theirs[: last + 1] if theirs.ndim else theirs)
    return small


def class_weights(statistics: ClassStatistics, beta: float) -> dict[str, list[float]]:
    """Return every scheme's weights, in six digits."""
    weights = {
        "pixel_frequency": statistics.weights("pixel_frequency"),
        "sqrt_pixel_frequency": statistics.weights("pixel_frequency", power=0.5),
        "median_frequency": statistics.weights("median_frequency"),
        "image_frequency": statistics.weights("image_frequency"),
        "effective_number": statistics.weights("effective_number", beta=beta),
    }
    return {scheme: [float(f"{number:.6g}") for number in weight] for scheme, weight in weights.items()}


def report(
    statistics: ClassStatistics, names: list[str], weights: dict[str, list[float]], beta: float
) -> str:
    """Return the summary, the table and the lists to paste."""
    pixels, ignored = int(statistics.num_pixels), int(statistics.num_ignored)
    rows = [["", "class", "pixels", "share", "images", *weights]]
    counts = zip(statistics.pixel_counts, statistics.pixel_shares, statistics.image_counts, strict=True)
    for index, (pixel_count, share, image_count) in enumerate(counts):
        numbers = [f"{int(pixel_count):,}", f"{share:.3%}", f"{int(image_count):,}"]
        rows.append([str(index), names[index], *numbers, *(f"{w[index]:.4g}" for w in weights.values())])
    lines = [
        f"{int(statistics.num_images):,} label maps, {pixels:,} pixels of {statistics.num_classes} classes; "
        f"{ignored:,} pixels ({ignored / max(1, pixels + ignored):.2%}) ignored, label {statistics.ignore_index}",
        "",
        *_aligned(rows),
        "",
        *_flat_note(weights["effective_number"], pixels, beta),
        "To paste, for WeightedCrossEntropyLoss(torch.tensor(...)):",
        *(f"{scheme} = {weight}" for scheme, weight in weights.items()),
    ]
    return "\n".join(lines)


def _flat_note(weights: list[float], pixels: int, beta: float) -> list[str]:
    """Explain why the effective number gives every class the same weight, if it does."""
    if max(weights) > 1.01 or beta == 1:
        return []
    return [
        f"effective_number is flat: every class has far more than 1/(1 - beta) = {1 / (1 - beta):,.0f} pixels. "
        f"For pixels, try --beta {1 - 1 / max(2, pixels):.10g}.",
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
    files = LabelFiles(find_labels(options.folder), options.key)
    dataset = find_dataset(options.folder)
    names, ignore_index = (dataset.classes, dataset.ignore_index) if dataset else ([], None)
    if dataset:
        print(f"Class names from {dataset.path}", file=sys.stderr)
    if options.ignore_index is not None or ignore_index is None:
        ignore_index = 255 if options.ignore_index is None else options.ignore_index
    num_classes = options.num_classes
    if num_classes is None:
        num_classes = len(names) or None
    statistics = ClassStatistics(
        MOST_INFERRED if num_classes is None else num_classes, ignore_index=ignore_index
    )
    try:
        count_batches(
            statistics, files, progress=True, checkpoint=options.checkpoint, source=files.describe()
        )
    except IndexError as error:
        raise LabelFileError(
            f"{files.paths[files.reading]}: {error} Set --num-classes or --ignore-index accordingly."
        ) from error
    if num_classes is None:
        statistics = trimmed(statistics)
        print(
            f"{statistics.num_classes} classes found; say --num-classes if there are more.", file=sys.stderr
        )
    names = [
        names[index] if index < len(names) else f"class {index}" for index in range(statistics.num_classes)
    ]
    return statistics, names


def write_json(
    path: Path, statistics: ClassStatistics, names: list[str], weights: dict[str, list[float]]
) -> None:
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


def _pillow() -> Any:
    try:
        from PIL import Image  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'Reading PNG files needs Pillow: pip install "classbalance_losses[stats]".'
        ) from error
    return Image


if __name__ == "__main__":
    sys.exit(main())
