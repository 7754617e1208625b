"""The paper's Figures 4a and 6b of a comparison: recall and confusions; the spread of the weights against the gain."""

from __future__ import annotations

from statistics import mean

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples.uda_gbw.gains import Comparison

_SIDES = ("without", "with")


def recall_and_confusion(compared: Comparison, test: str) -> Figure:
    """Figure 4a: the recall of each class on both sides, and by how many points each confusion grows.

    Rows of the matrix are labels, columns predictions, the rarest class first. Green is for the better: a larger share
    on the diagonal, a smaller one beside it.
    """
    order = compared.order(test)
    names = [compared.classes[c].replace("_", " ") for c in order]
    side = 1.6 + 0.36 * len(order)
    figure, (bars, matrix) = plt.subplots(1, 2, figsize=(4.4 + side, side), width_ratios=(4, side))
    for number, label in enumerate(_SIDES):
        values = [
            100 * mean(pair[number]["scores"][test]["recall"][c] for pair in compared.pairs) for c in order
        ]
        places = [place + (number - 0.5) * 0.4 for place in range(len(order))]
        bars.barh(places, values, 0.36, color=f"C{number}", label=label)
    bars.set_yticks(range(len(order)), names)
    bars.invert_yaxis()
    bars.set(xlabel="recall, %")
    bars.grid(axis="x", alpha=0.3)
    bars.legend(fontsize=8)
    _draw_change(matrix, compared.confusion(test), names)
    figure.suptitle(_title(compared, test), fontsize=10)
    figure.tight_layout()
    return figure


def _draw_change(panel: Axes, change: list[list[float]], names: list[str]) -> None:
    points = [[100 * value for value in row] for row in change]
    better = [[v if r == c else -v for c, v in enumerate(row)] for r, row in enumerate(points)]
    limit = max(abs(value) for row in better for value in row) or 1.0
    panel.imshow(better, cmap="RdYlGn", vmin=-limit, vmax=limit)
    for r, row in enumerate(points):
        for c, value in enumerate(row):
            if abs(value) >= 0.05:
                weight = "bold" if r == c else "normal"
                panel.text(c, r, f"{value:+.1f}", ha="center", va="center", fontsize=6, fontweight=weight)
    panel.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    panel.set_yticks(range(len(names)), names, fontsize=7)
    panel.set(xlabel="predicted", ylabel="label")
    panel.set_title("change of each label's share, points", fontsize=9)


def spread_against_gain(compared: Comparison, test: str) -> Figure:
    """Figure 6b: each class's gain in IoU over the standard deviation of its weight in training, a panel a loss."""
    gains, spreads = compared.gains(test, "iou"), compared.spreads()
    figure, axes = plt.subplots(
        1, len(spreads), figsize=(1 + 4 * len(spreads), 3.6), sharey=True, squeeze=False
    )
    for panel, (loss, values) in zip(axes[0], spreads.items(), strict=True):
        for c, gain in gains.items():
            panel.plot([values[c]], [100 * gain], "o", color="C0", markersize=4)
            panel.annotate(
                compared.classes[c].replace("_", " "),
                (values[c], 100 * gain),
                xytext=(3, 3),
                textcoords="offset points",
                fontsize=6,
            )
        panel.axhline(0, color="black", linewidth=0.6)
        panel.set_title(f"loss of {loss.replace('_', ', ')}", fontsize=9)
        panel.set(xlabel="standard deviation of the class weight")
        panel.grid(alpha=0.3)
    axes[0, 0].set_ylabel("gain in IoU, points")
    figure.suptitle(_title(compared, test), fontsize=10)
    return figure


def _title(compared: Comparison, test: str) -> str:
    seeds = ", ".join(str(before["seed"]) for before, _ in compared.pairs)
    return f"{compared.title}, {test}, seeds {seeds}"
