"""Plots of the results, drawn from the result file alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from benchmarks.speed.compare import fitted_exponent, scaling
from benchmarks.speed.results import Entry, Results

_DPI = 110
_COLORS = {"ours": "C0", "torch": "black", "peer": "C1", "formula": "C3"}
_NAMES = {
    "ours": "this library",
    "torch": "torch",
    "peer": "a peer's released code",
    "formula": "a published formula",
}


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a PNG without a date or a version in it, so that equal plots are equal files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=_DPI, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)
    return path


def ratios(entries: list[Entry], title: str) -> Figure | None:
    """Bars: time over the baseline's, with the quartiles; who stands left of 1 is faster."""
    entries = [entry for entry in entries if entry.timed]
    if not entries:
        return None
    figure, axes = plt.subplots(figsize=(8, 1 + 0.24 * len(entries)))
    places = np.arange(len(entries))[::-1]
    quartiles = np.array([entry.ratio for entry in entries])
    middle = quartiles[:, 1]
    spread = np.maximum(np.stack([middle - quartiles[:, 0], quartiles[:, 2] - middle]), 0)
    colors = [_COLORS[entry.origin] for entry in entries]
    axes.barh(places, middle, xerr=spread, color=colors, height=0.7, error_kw={"elinewidth": 1, "capsize": 2})
    axes.axvline(1, color="black", linewidth=0.8, linestyle="--")
    axes.set_yticks(places, [f"{entry.task}: {entry.contender}" for entry in entries], fontsize=7)
    axes.set(xscale="log", title=title)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("forward + backward, time over the baseline's (median and quartiles)")
    axes.grid(axis="x", which="both", alpha=0.3)
    _legend(figure, entries)
    return figure


def memory(entries: list[Entry], title: str) -> Figure | None:
    """Bars: bytes kept from forward to backward, and the peak, over the logits' bytes."""
    entries = [entry for entry in entries if entry.timed and entry.leaf_bytes and entry.peak is not None]
    if not entries:
        return None
    figure, axes = plt.subplots(figsize=(8, 1 + 0.24 * len(entries)))
    places = np.arange(len(entries))[::-1]
    kept = [(entry.kept or 0) / entry.leaf_bytes for entry in entries]
    peak = [(entry.peak or 0) / entry.leaf_bytes for entry in entries]
    axes.barh(places, peak, color="lightgrey", height=0.75, label="peak, the gradient included")
    axes.barh(places, kept, color=[_COLORS[entry.origin] for entry in entries], height=0.4)
    axes.set_yticks(places, [f"{entry.task}: {entry.contender}" for entry in entries], fontsize=7)
    axes.set(title=title, xlabel="bytes over the logits' bytes: coloured kept for backward, grey peak")
    axes.grid(axis="x", alpha=0.3)
    _legend(figure, entries)
    return figure


def scaling_curves(results: Results) -> Figure | None:
    """Time against pixels and against classes, both axes logarithmic, with the fitted exponents."""
    sweeps = scaling(results)
    if not sweeps:
        return None
    figure, row = plt.subplots(1, len(sweeps), figsize=(7.5 * len(sweeps), 5), squeeze=False)
    names = list(dict.fromkeys(name for curves in sweeps.values() for name in curves))
    for axes, (sweep, curves) in zip(row[0], sweeps.items(), strict=True):
        for name, points in curves.items():
            sizes, seconds = zip(*sorted(points), strict=True)
            exponent = f", exponent {fitted_exponent(points):.2f}" if len(points) > 1 else ""
            number = names.index(name)  # 0 is the baseline
            color = "black" if number == 0 else f"C{number - 1}"
            style = "o--" if name.endswith("reference") else "o-"
            axes.loglog(
                sizes, [1000 * s for s in seconds], style, color=color, markersize=3, label=name + exponent
            )
        axes.set(xlabel=sweep, ylabel="forward + backward, ms", title=f"Time against {sweep}")
        axes.grid(which="both", alpha=0.3)
        axes.legend(fontsize=7)
    return figure


def _legend(figure: Figure, entries: list[Entry]) -> None:
    origins = [origin for origin in _COLORS if any(entry.origin == origin for entry in entries)]
    handles = [plt.Rectangle((0, 0), 1, 1, color=_COLORS[origin]) for origin in origins]
    names = [_NAMES[origin] for origin in origins]
    figure.legend(handles, names, fontsize=7, ncols=4, loc="upper center", bbox_to_anchor=(0.5, 0))
