"""The results block of the project's README, from the committed result files."""

from __future__ import annotations

from pathlib import Path

from benchmarks.accuracy.collect import read_results
from benchmarks.accuracy.table import summary_table
from benchmarks.readme_block import update

ROOT = Path(__file__).parents[2]
RESULTS = Path("benchmarks/results/camvid-small")


def results_block(folder: Path = ROOT / RESULTS) -> str:
    """The comparison's table, the long runs' where there are some, one plot, and where the rest is."""
    parts = []
    for name in ("compare", "long"):
        path = folder / f"{name}.json"
        if path.is_file():
            results = read_results(path)
            parts += [f"{results.title}:", summary_table(results)]
    return "\n\n".join(
        [
            "CamVid at 240×180, 11 classes, EfficientNet-Lite0, on a CPU; IoU in per cent, mean ± standard deviation "
            "over seeds. `val_alt` is the middle fifth of each training sequence; `val`, the published split, is "
            "seven seconds of one street.",
            *parts,
            f"![IoU gained over cross-entropy, by class]({RESULTS.as_posix()}/plots/compare_gain_over_ce.png)",
            f"Every class, the ablations and how the runs were made: [the full page]({RESULTS.as_posix()}/README.md).",
        ]
    )


if __name__ == "__main__":
    update("results", results_block())
