"""Draw the figures and the simulated table of the documentation into ``docs/figures``, from the library itself.

Run ``python docs/figures.py`` after a change of a formula; the results are committed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from classbalance_losses import functional

FOLDER = Path(__file__).parent / "figures"
CAMVID = FOLDER.parents[1] / "benchmarks" / "results" / "camvid-small"
NUM_CLASSES = 19


def focal_factor(probability: Tensor, gamma: float) -> Tensor:
    """F(p): the focal gradient over the cross-entropy gradient, with respect to the true class's logit."""
    gradients = []
    for g in (gamma, 0.0):
        logits = torch.stack([torch.logit(probability), torch.zeros_like(probability)], 1).requires_grad_()
        target = torch.zeros(len(probability), dtype=torch.long)
        (gradient,) = torch.autograd.grad(
            functional.focal_loss(logits, target, gamma=g, reduction="sum"), logits
        )
        gradients.append(gradient[:, 0])
    return gradients[0] / gradients[1]


def dyce_coefficient(pixels: int, total: int, omega: float) -> float:
    """A pixel's factor relative to the mean over H, for a class with ``pixels`` of ``total`` hard ones."""
    target = torch.ones(total, dtype=torch.long)
    target[:pixels] = 0
    logits = torch.zeros(total, 2, dtype=torch.float64)
    terms = functional.dyce_loss(logits, target, omega=omega, hard_fraction=1.0, reduction="none")
    plain = torch.nn.functional.cross_entropy(logits, target, reduction="none")
    return float(terms[0] / plain[0] * total ** (1 - omega))


def draw_focal() -> None:
    """F(p) against p."""
    figure, axes = plt.subplots(figsize=(6, 3.4))
    probability = torch.linspace(0.001, 0.999, 200, dtype=torch.float64)
    for gamma in (0.5, 1.0, 2.0, 5.0):
        axes.plot(probability, focal_factor(probability, gamma), label=f"γ = {gamma:g}")
    axes.axhline(1, color="grey", linewidth=0.8, label="cross-entropy (γ = 0)")
    axes.set(xlabel="probability of the true class, p", ylabel="factor on CE's gradient, F(p)")
    save(figure, "focal_factor")


def draw_dyce() -> None:
    """DyCE's factor against the class share, both on logarithmic axes."""
    figure, axes = plt.subplots(figsize=(6, 3.4))
    total = 10_000
    counts = sorted({round(total * 10 ** (-4 + k / 8)) for k in range(33)} - {0, total})
    for omega in (0.0, 0.25, 0.5, 0.75, 1.0):
        factors = [dyce_coefficient(count, total, omega) for count in counts]
        axes.loglog([count / total for count in counts], factors, label=f"ω = {omega:g}")
    axes.set(xlabel="share π of the class among the hard pixels", ylabel="factor on a pixel")
    save(figure, "dyce_coefficients")


def rare_gradient(probability: Tensor, name: str) -> Tensor:
    """Minus the gradient to the true class's logit, times all pixels, where a rare class's have that probability."""
    rare, pixels = 10, 1000
    target = torch.zeros(1, pixels, dtype=torch.int64)
    target[:, :rare] = 1
    found = []
    for p in probability:
        logits = torch.stack([torch.zeros(pixels), torch.full((pixels,), -7.0)]).double().unsqueeze(0)
        logits[0, 1, :rare] = torch.logit(p)
        leaf = logits.requires_grad_()
        loss = torch.zeros((), dtype=torch.float64)
        if "cross-entropy" in name:
            loss = loss + functional.weighted_cross_entropy_loss(leaf, target)
        if "Dice" in name:
            loss = loss + functional.dice_loss(leaf, target)
        found.append(-pixels * torch.autograd.grad(loss, leaf)[0][0, 1, 0])
    return torch.stack(found)


def draw_dice() -> None:
    """The gradient of a rare class's pixels against their probability, by cross-entropy, Dice and their sum."""
    figure, axes = plt.subplots(figsize=(6, 3.4))
    probability = torch.logspace(-4, -0.001, 100, dtype=torch.float64)
    for name, style in (("cross-entropy", "--"), ("Dice", "--"), ("cross-entropy + Dice", "-")):
        axes.loglog(probability, rare_gradient(probability, name), style, label=name)
    axes.set(
        xlabel="probability of the rare class at its pixels, p", ylabel="gradient × pixels", ylim=(1e-3, 1e2)
    )
    save(figure, "dice_gradient")


def draw_projection() -> None:
    """The class weights of five fixed norms against λ."""
    figure, axes = plt.subplots(figsize=(6, 3.4))
    norms = torch.tensor([0.05, 0.15, 0.3, 0.5, 0.8], dtype=torch.float64)
    grid = torch.logspace(-2, 1, 200, dtype=torch.float64)
    weights = [functional.solve_class_weights(norms, regularization=float(value)) for value in grid]
    for norm, line in zip(norms, torch.stack(weights, 1), strict=True):
        axes.semilogx(grid, line, label=f"g = {float(norm):g}")
    axes.set(xlabel="regularization λ", ylabel="class weight v (sum 5)")
    save(figure, "simplex_projection")


def class_iou(results: dict[str, Any], label: str) -> list[float]:
    """The IoU of each class on the held-out fifth of the training sequences, mean over seeds, in per cent."""
    scores = [run["scores"]["val_alt"]["iou"] for run in results["runs"] if run["label"] == label]
    return [100 * sum(column) / len(column) for column in zip(*scores, strict=True)]


def draw_rare_classes() -> None:
    """What the loss changes: each class's IoU with cross-entropy and with DyCE, the rarest class on top."""
    figure, both = plt.subplots(1, 2, figsize=(8.4, 3.6), sharey=True)
    for axes, name in zip(both, ("compare", "long"), strict=True):
        results = json.loads((CAMVID / f"{name}.json").read_text())
        draw_classes(axes, results)
        axes.set(
            title=f"{results['recipe']['training']['iterations']} steps", xlabel="IoU, %", xlim=(-2, 100)
        )
    save(figure, "rare_classes")


def draw_classes(axes: Axes, results: dict[str, Any]) -> None:
    """A line for each class, from cross-entropy's point to DyCE's."""
    shares = results["train_pixel_share"]
    order = sorted(range(len(shares)), key=lambda c: -shares[c])
    before, after = (class_iou(results, label) for label in ("CE", "DyCE"))
    for row, c in enumerate(order):
        axes.plot([before[c], after[c]], [row, row], color="#0060a0", linewidth=2, zorder=1)
    axes.scatter(
        [before[c] for c in order], range(len(order)), color="#909090", label="cross-entropy", zorder=2
    )
    axes.scatter([after[c] for c in order], range(len(order)), color="#0060a0", label="DyCE", zorder=2)
    names = [results["classes"][c].replace("_", " ") for c in order]
    axes.set_yticks(
        range(len(order)), [f"{n}, {100 * shares[c]:.2g} %" for n, c in zip(names, order, strict=True)]
    )
    axes.spines[["top", "right"]].set_visible(False)


def simulated_batch(num_pixels: int) -> tuple[Tensor, Tensor]:
    """Logits and labels of 19 classes: geometric shares from 37 % to 0.1 %, rarer ones predicted worse."""
    generator = torch.Generator().manual_seed(0)
    share = torch.logspace(0, -2.57, NUM_CLASSES, dtype=torch.float64)
    counts = (share / share.sum() * num_pixels).round().long()
    target = torch.repeat_interleave(torch.arange(NUM_CLASSES), counts)
    margin = torch.linspace(6.0, 2.0, NUM_CLASSES)  # mean lead of the true class's logit
    logits = torch.randn(len(target), NUM_CLASSES, generator=generator) * 1.5
    logits[torch.arange(len(target)), target] += margin[target]
    return logits, target


def write_scale_table() -> None:
    """The range of GBW's weights for each reading of the gradient, size of batch and λ."""
    lambdas = (0.01, 0.1, 1.0, 10.0)
    lines = [
        "| `gradient=` | valid pixels | g, smallest to largest | "
        + " | ".join(f"λ = {x:g}" for x in lambdas)
        + " |",
        "|---" * (3 + len(lambdas)) + "|",
    ]
    for gradient in ("pixel_mean", "bias", "loss", "class_logits", "official"):
        for num_pixels in (2**15, 2**19):
            logits, target = simulated_batch(num_pixels)
            norms = functional.class_gradient_norms(logits, target, gradient=gradient)
            cells = [f"`{gradient}`", f"{len(target):,}", f"{norms.min():.1e} to {norms.max():.1e}"]
            for value in lambdas:
                weight = functional.solve_class_weights(norms.double(), regularization=value)
                zeros = int((weight == 0).sum())
                cells.append(
                    f"{weight.min():.3f} to {weight.max():.3f}" + (f" ({zeros} zeros)" if zeros else "")
                )
            lines.append("| " + " | ".join(cells) + " |")
    (FOLDER / "gbw_scale.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def save(figure: Figure, name: str) -> None:
    """Write one figure as SVG, the same bytes every time."""
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.axes[0].spines[["top", "right"]].set_visible(False)
    figure.savefig(FOLDER / f"{name}.svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    """Draw everything."""
    mpl.rcParams["svg.hashsalt"] = "classbalance_losses"
    mpl.rcParams["svg.fonttype"] = "none"
    FOLDER.mkdir(exist_ok=True)
    draw_focal()
    draw_dyce()
    draw_dice()
    draw_projection()
    draw_rare_classes()
    write_scale_table()


if __name__ == "__main__":
    main()
