"""One training step with every public loss, by the package that is installed; torch alone is asked for besides.

Run by `wheel.py` in an environment that has nothing else, outside of the repository.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import resources
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

import classbalance_losses as cb

CLASSES, SIZE, DEPTH = 4, (6, 5), 8


def of_logits(make: Callable[[], nn.Module]) -> Callable[[Tensor], Tensor]:
    """Return what calls a loss on features, taken as logits, and labels."""
    labels = torch.randint(CLASSES, (2, *SIZE))
    return lambda features: make()(features[:, :CLASSES], labels)


def pull(features: Tensor) -> Tensor:
    labels = torch.randint(CLASSES, (2, *SIZE))
    return cb.PullLoss(num_classes=CLASSES)(
        features,
        labels,
        source_features=torch.randn(features.shape),
        source_labels=labels,
        target_features=torch.randn(features.shape),
        target_probabilities=torch.randn(2, CLASSES, *SIZE).softmax(1),
    )


def masked(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return features to compare with, and a mask."""
    return torch.randn(features.shape), torch.rand(2, *SIZE) < 0.5


def aligned() -> tuple[Tensor, Tensor]:
    """Return an embedding for each class, and labels."""
    return torch.randn(CLASSES, DEPTH), torch.randint(CLASSES, (2, *SIZE))


def vectors(features: Tensor) -> Tensor:
    """Return an embedding for each class."""
    return features.flatten(2).mean(0).T[:CLASSES]


OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "EntropyLoss": cb.EntropyLoss(),
    "PullLoss": pull,
    "QueryDiversityLoss": lambda x: cb.QueryDiversityLoss()(x.flatten(2).movedim(1, 2)),
    "TopologyLoss": lambda x: cb.TopologyLoss()(vectors(x), torch.randn(CLASSES, DEPTH)),
    "AnchorLoss": lambda x: cb.AnchorLoss()(vectors(x), torch.randn(CLASSES, DEPTH)),
    "PromptLoss": lambda x: cb.PromptLoss()(vectors(x), vectors(x), torch.randn(CLASSES, DEPTH)),
    "MaskedConsistencyLoss": lambda x: cb.MaskedConsistencyLoss()(x, *masked(x)),
    "TextAlignmentLoss": lambda x: cb.TextAlignmentLoss()(x, *aligned()),
    "VisionLanguageLoss": lambda x: cb.VisionLanguageLoss()(x, masked(x)[0], *aligned(), masked(x)[1]),
    "SumLoss": of_logits(lambda: cb.DyCELoss() + 0.5 * cb.DiceLoss()),
    "LogitAdjustedLoss": of_logits(lambda: cb.LogitAdjustedLoss(torch.arange(1, CLASSES + 1))),
}


def step(loss: Callable[[Tensor], Tensor]) -> None:
    """Take one, and see that it goes somewhere."""
    torch.manual_seed(0)
    network = nn.Conv2d(3, DEPTH, 3, padding=1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    before = network.weight.detach().clone()
    value = loss(network(torch.randn(2, 3, *SIZE)))
    value.backward()
    optimizer.step()
    moved = network.weight.detach() - before
    if not (value.isfinite() and moved.isfinite().all() and moved.any()):
        raise SystemExit(
            f"Expected a step, got the loss {value.item()} and a change of at most {moved.abs().max()}."
        )


def main() -> None:
    if not Path(cb.__file__).is_relative_to(sys.prefix):
        raise SystemExit(f"Expected the installed package, in {sys.prefix}, got {cb.__file__}.")
    names = [name for name in cb.__all__ if name.endswith("Loss")]
    for name in names:
        step(OTHERS[name] if name in OTHERS else of_logits(getattr(cb, name)))
    if not set(OTHERS) <= set(names):
        raise SystemExit(f"Expected public losses, got {set(OTHERS) - set(names)}.")
    if not resources.files(cb).joinpath("py.typed").is_file():
        raise SystemExit("Expected py.typed beside the package.")
    if version("classbalance_losses") != cb.__version__:
        raise SystemExit(f"Expected version {cb.__version__}, got {version('classbalance_losses')}.")
    print(f"{len(names)} losses took a step with {cb.__file__}")


if __name__ == "__main__":
    main()
