"""Pictures of results: how they are written, and the bars that grids share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from examples.common.scoring import RARE, rare_mean
from examples.common.training import write_atomically


def save_figure(figure: Figure, path: Path) -> None:
    """A PNG without a date or a version in it, so that equal plots are equal files."""
    write_atomically(
        path,
        lambda partial: figure.savefig(
            partial, dpi=110, bbox_inches="tight", format="png", metadata={"Software": None}
        ),
    )
    plt.close(figure)


def score_bars(
    rows: Mapping[str, Mapping[str, Sequence[Any]]],
    names: Mapping[str, str],
    test: str,
    main: str,
    title: str,
) -> Figure:
    """Two panels, mean IoU and that of the rarest classes: a bar a row and column of a table, a dot a seed.

    Args:
        rows: {row: {column: [run]}}.
        names: of the columns, in the legend.
        test: the set that is scored.
        main: the name of its mean IoU.
        title: of the figure.
    """
    panels: list[tuple[str, Callable[[Any], float]]] = [
        (f"{main}, %", lambda run: 100 * run["scores"][test]["mean_iou"][main]),
        (f"mean IoU of the {RARE} rarest classes, %", lambda run: 100 * rare_mean(run["scores"][test])),
    ]
    height = 0.8 / len(names)
    size = (11, 1.3 + 0.32 * len(rows) * len(names))
    figure, axes = plt.subplots(1, 2, figsize=size, sharey=True, squeeze=False)
    for panel, (label, score) in zip(axes[0], panels, strict=True):
        for number, (column, name) in enumerate(names.items()):
            for place, row in enumerate(rows.values()):
                if values := [score(run) for run in row[column]]:
                    y = place + (number - (len(names) - 1) / 2) * height
                    panel.barh(y, mean(values), height * 0.9, color=f"C{number}", alpha=0.45)
                    panel.plot(values, [y] * len(values), "o", color=f"C{number}", markersize=4)
            panel.barh([0], [0], color=f"C{number}", alpha=0.45, label=name)
        panel.set(xlabel=label)
        panel.grid(axis="x", alpha=0.3)
    axes[0, 0].set_yticks(range(len(rows)), list(rows))
    axes[0, 0].invert_yaxis()
    handles = axes[0, 1].get_legend_handles_labels()
    figure.legend(*handles, fontsize=8, ncols=len(names), loc="upper center", bbox_to_anchor=(0.5, 0))
    figure.suptitle(f"{title}, {test}: bars are means, dots seeds")
    return figure
