"""The results of the project's README, of docs/results.md and of docs/choosing.md, from the committed result files."""

from __future__ import annotations

from pathlib import Path

from benchmarks.accuracy.collect import GridResults, read_results
from benchmarks.accuracy.summary import HOW_TO_READ, of, studies
from benchmarks.accuracy.summary import summary_table as lead_table
from benchmarks.accuracy.table import summary_table
from benchmarks.readme_block import CHOOSING_PAGE, README, RESULTS_PAGE, update

ROOT = Path(__file__).parents[2]
RESULTS = Path("benchmarks/results/camvid-small")
ON_GPU = Path("benchmarks/results/camvid-gpu")
OTHERS = {
    "benchmarks/results/cracks/study_cracks.json": "Cracks in asphalt (CrackForest), 1.5 % of the pixels, one logit",
    "benchmarks/results/acdc/study_acdc.json": "Hearts in slices of MR (ACDC), 96 % of the pixels background",
    "benchmarks/results/chaos/study_chaos.json": "Abdomens in slices of MR (CHAOS), four organs in 90 % background",
}


def study_block() -> str:
    """Every loss's lead over cross-entropy in all studies, and what these are."""
    grids = studies()
    return "\n\n".join([HOW_TO_READ, lead_table(grids), _what(grids)])


def readme_block() -> str:
    """The same of the losses that most studies have."""
    grids = studies()
    return "\n\n".join([HOW_TO_READ, lead_table(grids, at_least=len(grids) - 2), _what(grids)])


def _what(grids: list[GridResults]) -> str:
    return "\n".join(f"- `{grid.name}`: {of(grid)}" for grid in grids)


def _camvid(folder: Path) -> str:
    """CamVid's comparison, and its long runs."""
    small = [
        read_results(path) for name in ("compare", "long") if (path := folder / f"{name}.json").is_file()
    ]
    devices = " and ".join(dict.fromkeys(results.device for results in small))
    parts = [
        f"CamVid at 240×180, 11 classes, EfficientNet-Lite0, on {devices}; IoU in per cent, mean ± standard "
        "deviation over seeds. `val_alt` is the middle fifth of each training sequence; `val`, the published split, is "
        "seven seconds of one street."
    ]
    for results in small:
        parts += [f"{results.title}:", summary_table(results)]
    return "\n\n".join(parts)


def results_block(folder: Path = ROOT / RESULTS, on_gpu: Path = ROOT / ON_GPU) -> str:
    """The same, the GPU's table where there is one, one plot, and where the rest is."""
    parts = [
        _camvid(folder),
        f"![IoU gained over cross-entropy, by class](../{RESULTS.as_posix()}/plots/compare_gain_over_ce.png)",
        f"Every class, the ablations and how the runs were made: `{RESULTS.as_posix()}/README.md`.",
    ]
    path = on_gpu / "camvid_gpu.json"
    if path.is_file():
        results = read_results(path)
        page = f"every class in `{ON_GPU.as_posix()}/README.md`"
        parts += [f"{results.title}, on {results.device} ({results.tf32}); {page}:", summary_table(results)]
    for others, what in OTHERS.items():
        parts += _other(ROOT / others, what)
    return "\n\n".join(parts)


def _other(path: Path, what: str) -> list[str]:
    """The scores of another data set, each loss at its own rate."""
    if not path.is_file():
        return []
    results = read_results(path)
    page = f"curves, pictures and how to read them in `{path.parent.relative_to(ROOT).as_posix()}/README.md`"
    return [
        f"{what}, {results.recipe['training']['iterations']} steps, each loss at its own rate, on {results.device}; "
        f"{page}:",
        summary_table(results),
    ]


if __name__ == "__main__":
    update(README, "results", readme_block())
    update(RESULTS_PAGE, "results", results_block())
    update(CHOOSING_PAGE, "study", study_block())
