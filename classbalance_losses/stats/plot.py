"""A plot of the shares, by matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

ROW = 0.25  # inches


def check_plot(path: Path) -> None:
    """Check that the plot can be drawn, before the files are counted.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        ValueError: it writes no such files.
    """
    known = _figure(1).canvas.get_supported_filetypes()
    if path.suffix[1:].lower() not in known:
        raise ValueError(f"{path}: expected a file for --plot that ends in .{', .'.join(sorted(known))}.")


def plot_shares(path: Path, title: str, names: list[str], shares: list[float]) -> None:
    """Draw a point a class on a logarithmic axis, where a share of 0 has no place."""
    figure = _figure(len(names))
    axes = figure.add_subplot()
    rows = range(len(names))
    seen = [(share, row) for row, share in enumerate(shares) if share > 0]
    axes.set_xscale("log")
    axes.plot([share for share, _ in seen], [row for _, row in seen], "o")
    for share, row in seen:
        axes.annotate(
            f"{share:.3%}", (share, row), (6, 0), textcoords="offset points", va="center", fontsize=8
        )
    axes.set_yticks(list(rows), [name if shares[row] else f"{name} (none)" for row, name in enumerate(names)])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.margins(x=0.15)
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel(title)
    figure.savefig(path)


def _figure(rows: int) -> Any:
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            '--plot needs matplotlib: pip install "classbalance_losses[plot]".'
        ) from error
    return Figure(figsize=(7, 1 + ROW * rows), layout="constrained")
