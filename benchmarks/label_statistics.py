"""Reading and counting labels against decoding alone: ``python -m benchmarks.label_statistics [--workers N]``.

Generates PNG labels of 2048x1024 and 19 classes in regions of several sizes, and goes through them in turns: decoded by
Pillow and not looked at, decoded into arrays, and counted by ``classbalance_losses.stats``. Prints labels a second, and
what part of the decoder's rate each reaches, by the clock and by processor time, which other processes disturb less:
medians over the turns.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from classbalance_losses import ClassStatistics
from classbalance_losses.stats.counting import MULTICLASS, Rules, add_counts
from classbalance_losses.stats.files import LabelFiles, counted_by

HEIGHT, WIDTH, CLASSES = 1024, 2048, 19


def generate(folder: Path, number: int) -> list[Path]:
    """Save label maps whose classes are those of the largest of as many smooth fields."""
    rng = np.random.default_rng(0)
    paths = [folder / f"{index}.png" for index in range(number)]
    for index, path in enumerate(paths):
        coarse = rng.normal(size=(CLASSES, 8 << index % 3, 16 << index % 3)).astype(np.float32)
        fields = [
            Image.fromarray(field).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC) for field in coarse
        ]
        Image.fromarray(np.argmax(fields, axis=0).astype(np.uint8)).save(path)
    return paths


def decode(path: Path) -> None:
    with Image.open(path) as image:
        image.load()


def decode_into_array(path: Path) -> None:
    with Image.open(path) as image:
        np.asarray(image)


def seconds_of(work: Callable[[], object]) -> tuple[float, float]:
    """Return the time by the clock, and the processor time of all threads."""
    clock, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - clock, time.process_time() - processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--labels", type=int, default=24)
    parser.add_argument("--turns", type=int, default=9)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.workers) as pool:
        paths = generate(Path(folder), options.labels)
        files = LabelFiles(paths, Rules(MULTICLASS, CLASSES, 255))

        def count() -> None:
            whole = ClassStatistics(CLASSES, ignore_index=255)
            with counted_by(options.workers, files) as counts:
                for part in counts:
                    add_counts(whole, part)

        works: dict[str, Callable[[], object]] = {
            "decoding": lambda: list(pool.map(decode, paths)),
            "decoding into an array": lambda: list(pool.map(decode_into_array, paths)),
            "reading and counting": count,
        }
        turns = [{name: seconds_of(work) for name, work in works.items()} for _ in range(options.turns)]
    print(f"{len(paths)} labels of {WIDTH}x{HEIGHT}, {options.workers} workers, {options.turns} turns")
    for name in works:
        rate = len(paths) / statistics.median(turn[name][0] for turn in turns)
        clock, processor = (
            statistics.median(turn["decoding"][kind] / turn[name][kind] for turn in turns) for kind in (0, 1)
        )
        print(f"{name:24} {rate:6.1f} labels/s  {clock:4.0%} of decoding, {processor:4.0%} by processor time")


if __name__ == "__main__":
    main()
