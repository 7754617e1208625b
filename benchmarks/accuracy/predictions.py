"""Predictions beside images: what each loss's model sees."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.accuracy.data import RARE, BenchmarkData, load_data
from benchmarks.accuracy.grid import Grid
from benchmarks.accuracy.run import MODEL, is_finished
from examples.common.evaluation import predicted_classes
from examples.common.models import build_model

_IGNORED_GREY = 0.25


def predictions_figure(
    grid: Grid, runs: Path, data_folder: Path | None, *, images: int = 3, shows_data: bool = True
) -> Figure | None:
    """Image, label and every loss's prediction of the first seed, for some images of the main test set.

    The images are those with the most pixels of the five rarest classes. None where no run is finished. Without
    `shows_data` there are the predictions alone, for a page that is published without the data.
    """
    finished = [(label, c) for label, c in grid.runs() if c.seed == grid.seeds[0] and is_finished(c, runs)]
    if not finished:
        return None
    data = load_data(grid.data, data_folder, runs)
    test = next(iter(data.tests.values()))
    chosen = _richest(data, images)
    columns: list[tuple[str, list[NDArray[np.float64]]]] = []
    if shows_data:
        columns = [
            ("image", [test[i][0].permute(1, 2, 0).numpy() for i in chosen]),
            ("label", [_painted(test[i][1], data) for i in chosen]),
        ]
    for label, config in finished:
        model = build_model(data.logits, **config.model)
        model.load_state_dict(torch.load(runs / config.folder_name / MODEL, weights_only=True))
        model.eval()
        with torch.no_grad():
            predicted = predicted_classes(model(torch.stack([test[i][0] for i in chosen])))
        judged = [_judged(one, test[i][1], data) for one, i in zip(predicted, chosen, strict=True)]
        columns.append((label, [_painted(one, data) for one in judged]))
    figure, axes = plt.subplots(
        len(chosen), len(columns), figsize=(2.4 * len(columns), 2.0 * len(chosen)), squeeze=False
    )
    for column, (title, pictures) in enumerate(columns):
        axes[0][column].set_title(title, fontsize=9)
        for row, picture in enumerate(pictures):
            axes[row][column].imshow(picture)
            axes[row][column].axis("off")
    handles = [Rectangle((0, 0), 1, 1, color=color) for color in _palette(data)]
    figure.legend(handles, _names(data), loc="upper center", ncols=6, fontsize=8, bbox_to_anchor=(0.5, 0.02))
    figure.subplots_adjust(wspace=0.03, hspace=0.03, bottom=0.04)
    return figure


def _richest(data: BenchmarkData, number: int) -> list[int]:
    """The test images with the most pixels of the five rarest classes, no two of them neighbours."""
    test = next(iter(data.tests.values()))
    rare = data.pixel_counts.argsort()[: min(RARE, len(data.classes) - 1)]
    order = sorted(range(len(test)), key=lambda i: -int(torch.isin(test[i][1], rare).sum()))
    chosen: list[int] = []
    apart = max(len(test) // (2 * number), 1)
    for i in order:
        if all(abs(i - j) >= apart for j in chosen):
            chosen.append(i)
    return chosen[:number]


def _judged(predicted: Tensor, label: Tensor, data: BenchmarkData) -> Tensor:
    """A prediction (H, W); of one logit with its false alarms as a third class, and ignored where the label is."""
    if data.task != "binary":
        return predicted
    return torch.where(predicted == 1, torch.where(label == 0, 2, label), predicted)


def _painted(label: Tensor, data: BenchmarkData) -> NDArray[np.float64]:
    """A label (H, W) as an RGB picture (H, W, 3); ignored pixels are dark grey."""
    colors = _palette(data)
    palette = np.vstack([colors, [[_IGNORED_GREY] * 3]])
    index = torch.where(label == data.ignore_index, len(colors), label)
    painted: NDArray[np.float64] = palette[index.numpy()]
    return painted


def _names(data: BenchmarkData) -> tuple[str, ...]:
    return (*data.classes, "false alarm") if data.task == "binary" else data.classes


def _palette(data: BenchmarkData) -> NDArray[np.float64]:
    if data.task == "binary":
        return np.array([[0.93, 0.93, 0.93], [0.0, 0.45, 0.7], [0.84, 0.37, 0.0]])
    colors = mpl.colormaps["tab20"](np.arange(len(data.classes)) % 20)[:, :3]
    return np.asarray(colors, dtype=np.float64)
