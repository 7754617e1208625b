"""The page of a finished pre-training: zero-shot scores by step, the loss, the IoU of each class.

    python -m examples semidavil pretraining.report runs/semidavil/pretraining-HASH --out benchmarks/results/semidavil

It writes `OUT/pretraining.json`, `OUT/pretraining.md` and a plot; it needs no data set.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from examples.common.figures import save_figure
from examples.common.logs import read_log
from examples.common.markdown import markdown_table
from examples.common.outcome import read_metrics
from examples.common.scoring import by_rarity
from examples.common.training import write_json, write_text

NAME = "pretraining"


def write_report(folder: Path, out: Path) -> str:
    """Write a run's page, its data and its plot; return the page."""
    results = collect(folder)
    page = report(results)
    write_json(out / f"{NAME}.json", results)
    save_figure(curves(results), out / "plots" / f"{NAME}.png")
    page += f"\n![loss and zero-shot scores by step](plots/{NAME}.png)\n"
    write_text(out / f"{NAME}.md", page)
    return page


def collect(folder: Path) -> dict[str, Any]:
    """A run's metrics, its `log`, and the rows of each test set's scores, as plain data."""
    metrics = read_metrics(folder)
    tests = {name: read_log(folder / f"scores_{name}.csv") for name in metrics["scores"]}
    return {**metrics, "log": read_log(folder / "log.csv"), "by_step": tests}


def report(results: Mapping[str, Any]) -> str:
    """The page in Markdown, without its plot."""
    lines = [
        "# Vision-language pre-training in miniature, zero-shot",
        "",
        results["note"],
        "",
        _recipe(results),
    ]
    for test, rows in results["by_step"].items():
        lines += ["", f"## {test}, by step", "", _reading(results), "", *_by_step(results["log"], rows)]
        lines += ["", f"## IoU of each class on {test}, at the end", "", *_classes(results, test)]
    return "\n".join(lines) + "\n"


def curves(results: Mapping[str, Any]) -> Figure:
    """Two panels against the steps: the loss of an image, and the zero-shot mean IoU of each test set."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), squeeze=False)
    steps = [row["step"] for row in results["log"]]
    axes[0, 0].plot(steps, [row["loss"] for row in results["log"]])
    axes[0, 0].set(xlabel="step", ylabel="equation 1, of an image")
    for test, rows in results["by_step"].items():
        (main, *_) = results["scores"][test]["mean_iou"]
        values = [100 * row[main] for row in rows]
        axes[0, 1].plot([row["step"] for row in rows], values, "o-", label=f"{main} on {test}")
    axes[0, 1].set(xlabel="step", ylabel="zero-shot mean IoU, %")
    axes[0, 1].legend(fontsize=8)
    for panel in axes[0]:
        panel.grid(alpha=0.3)
    return figure


def _recipe(results: Mapping[str, Any]) -> str:
    config = results["config"]
    data, training = config["data"], config["training"]
    size = "whole images" if data["crop"] is None else f"crops of {data['crop'][0]}×{data['crop'][1]}"
    minutes = f"{results['seconds'] / 60:.0f} minutes of training"
    return (
        f"{training['iterations']} steps of {data['batch_size']} images, {size} of {data['streets']} generated "
        f"streets; seed {training['seed']}; {minutes}. Device: {results['device']}; "
        f"threads: {results['threads']}; commit: {results['commit']}."
    )


def _reading(results: Mapping[str, Any]) -> str:
    return (
        f"Mean IoU in percent, without any training on labels of the target. At step 0 the encoder has ImageNet's "
        f"weights and its projection to the texts is random. Loss and share of right matches are those of the steps "
        f"since the row before, means over the logged ones; guessing gives log N and 1/N, "
        f"N = {results['config']['data']['batch_size']}."
    )


def _by_step(log: Sequence[Mapping[str, float]], rows: Sequence[Mapping[str, float]]) -> list[str]:
    names = [key for key in rows[0] if key != "step"]
    cells, before = [], 0.0
    for row in rows:
        part = [entry for entry in log if before < entry["step"] <= row["step"]]
        logged = [_mean(part, "loss", 1, 2), _mean(part, "matched", 100, 0)]
        cells.append([f"{row['step']:.0f}", *(f"{100 * row[name]:.1f}" for name in names), *logged])
        before = row["step"]
    return markdown_table(["step", *names, "loss", "matched, %"], cells)


def _mean(rows: Sequence[Mapping[str, float]], key: str, factor: float, digits: int) -> str:
    return f"{factor * sum(row[key] for row in rows) / len(rows):.{digits}f}" if rows else "–"


def _classes(results: Mapping[str, Any], test: str) -> list[str]:
    entry = results["scores"][test]
    order = by_rarity(entry["pixels"])
    heads = [results["classes"][c].replace("_", " ") for c in order]
    return markdown_table(heads, [[f"{100 * entry['iou'][c]:.1f}" for c in order]])


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="the folder of a finished run")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/semidavil"))
    given = parser.parse_args(arguments)
    print(write_report(given.run, given.out))
