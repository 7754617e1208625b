"""What the scripts print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from classbalance_losses import ClassStatistics


def print_table(
    title: str,
    columns: Mapping[str, Sequence[float]],
    classes: Sequence[str],
    labels: Tensor,
    *,
    rare: int = 5,
) -> None:
    """Print a score of every class in per cent, the largest class first, and its means over all and the rarest.

    Args:
        title: what the score is.
        columns: for each loss, the scores of the classes in [0, 1].
        classes: the names.
        labels: of the training set, (N, *), with 255 for unlabelled: the classes' shares are of these.
        rare: how many classes the last row is the mean of.
    """
    statistics = ClassStatistics(len(classes), ignore_index=255)
    statistics.update(labels)
    shares = statistics.pixel_shares.tolist()
    order = sorted(range(len(classes)), key=lambda c: -shares[c])
    rows = [(f"{classes[c]} ({shares[c]:.2%})", [c]) for c in order]
    rows += [("mean", order), (f"mean of the {rare} rarest", order[-rare:])]
    width = max(len(name) for name, _ in rows)
    print(f"{title:{width}}" + "".join(f"{name:>14}" for name in columns))
    for name, chosen in rows:
        means = (sum(scores[c] for c in chosen) / len(chosen) for scores in columns.values())
        print(f"{name:{width}}" + "".join(f"{mean:14.1%}" for mean in means))
