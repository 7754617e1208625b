"""The speed of the project's README and of docs/speed.md, from the committed result files."""

from __future__ import annotations

from pathlib import Path

from benchmarks.gpu import report as gpu
from benchmarks.gpu.cases import MAIN
from benchmarks.readme_block import README, SPEED_PAGE, update
from benchmarks.speed import compare
from benchmarks.speed import table as tables
from benchmarks.speed.report import describe, main_axis, main_entries
from benchmarks.speed.results import FILE, Results, read_results

ROOT = Path(__file__).parents[2]
FOLDER = Path("benchmarks/results")
NO_FILE = "No result file is committed yet: `make bench` writes one."
BESIDE = {  # groups whose ratios are told beside the main table
    "layout": "",
    "compile": ", compiled, over compiled `F.cross_entropy`",
    "binary": ", one logit a pixel, over `F.binary_cross_entropy_with_logits`",
    "overlap": "",
    "soft": ", soft labels, over `F.cross_entropy` of probabilities",
    "contention": ", beside two busy processes",
    "contention, passive": ", beside two busy processes with `OMP_WAIT_POLICY=passive`",
}
GPU_FILE = "timings.json"
SHOWN = {
    "cross-entropy": "weighted CE",
    "focal": "focal",
    "DyCE": "DyCE",
    "GBW": "GBW",
}  # tasks of the README
NO_GPU = "GPU figures are not measured yet: `make gpu` measures them, on a machine that has one."


def summary_block(root: Path = ROOT) -> str:
    """The fastest of ours, and of others at the same job, on each machine."""
    rows = []
    for _, results in _measured(root):
        jobs = {job[-1]: entries for job, entries in compare.by_job(main_entries(results)).items()}
        told = {"ours": compare.best_of_ours, "the fastest of others": compare.best_of_others}
        for whose, best_of in told.items():
            best = [best_of(jobs.get(task, [])) for task in SHOWN]
            cells = ["–" if entry is None else tables.number(entry.ratio[1]) for entry in best]
            rows.append([f"{results.machine['name']}: {whose}", *cells])
    for folder in _gpus(root):
        name, ratios = gpu.main_ratios(folder)
        rows.append([f"{name}: ours", *(ratios[loss] for loss in SHOWN.values())])
    header = [f"{MAIN}, forward + backward, × `F.cross_entropy`", *SHOWN.values()]
    return tables.table(header, rows) if rows else NO_FILE


def _measured(root: Path) -> list[tuple[Path, Results]]:
    folders = sorted(path.parent for path in (root / FOLDER).glob(f"*/{FILE}"))
    return [(folder, results) for folder in folders if (results := read_results(folder))]


def _gpus(root: Path) -> list[Path]:
    return sorted(path.parent for path in (root / FOLDER).glob(f"*/{GPU_FILE}"))


def speed_block(root: Path = ROOT) -> str:
    """A table for each machine that was measured, and what was not."""
    measured = _measured(root)
    parts = [_machine(results, folder.relative_to(root)) for folder, results in measured]
    parts += [] if measured else [NO_FILE]
    gpus = [gpu.summary(folder) for folder in _gpus(root)]
    parts += gpus or [NO_GPU]
    return "\n\n".join(parts)


def _machine(results: Results, folder: Path) -> str:
    entries = main_entries(results)
    everything = [entry for entry in results.entries() if not entry.family.startswith("scaling")]
    lost, jobs = len(list(compare.lost(everything))), len(compare.by_job(everything))
    size = main_axis(results)
    plot = f"../{folder.as_posix()}/plots/ratios_{size.replace('×', 'x')}_float32.png"
    return "\n\n".join(
        [
            f"{describe(results)}. Logits {size} in float32, forward and backward, over `F.cross_entropy` in "
            "the same run; kept: what autograd holds between the two passes, over the logits' size.",
            tables.summary_table(entries),
            *_beside(results),
            f"![time over cross-entropy's]({plot})",
            f"Over all sizes and dtypes the library loses {lost} of {jobs} jobs to somebody else; "
            f"which ones, and every number: `{folder.as_posix()}/README.md`.",
        ]
    )


def _beside(results: Results) -> list[str]:
    """The ratios of the library's fastest contender in other circumstances; nothing if none was measured."""
    rows: dict[str, dict[str, str]] = {}
    for (group, axis, dtype, task), entries in compare.by_job(results.entries()).items():
        meant = [e for e in entries if group != "compile" or "torch.compile" in e.contender]
        best = compare.best_of_ours(meant)
        if group in BESIDE and best:
            rows.setdefault(f"{axis} {dtype}{BESIDE[group]}", {})[task] = tables.number(best.ratio[1])
    tasks = list(dict.fromkeys(task for row in rows.values() for task in row))
    body = [[name, *(row.get(task, "–") for task in tasks)] for name, row in rows.items()]
    told = "In other circumstances, forward and backward over the baseline's:"
    return [told, tables.table(["logits", *tasks], body)] if body else []


if __name__ == "__main__":
    update(README, "speed", summary_block())
    update(SPEED_PAGE, "speed", speed_block())
