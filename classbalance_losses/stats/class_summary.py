"""What is told of labels that are one class a pixel: counts, shares, and the weights of every scheme."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from classbalance_losses.state.statistics import ClassStatistics
from classbalance_losses.stats.page import MOST_ROWS, Clamp, cell, clamp_note, header, named, rounded, table

Weights = dict[str, list[float | None]]  # of each scheme, one a class


@dataclass(frozen=True)
class ClassSummary:
    """Counts of classes with their names, the effective number's beta, and the bounds of the weights."""

    statistics: ClassStatistics
    names: list[str]
    beta: float
    clamp: Clamp | None

    def shares(self) -> list[float]:
        """Return the share of each class in the pixels that count."""
        shares: list[float] = self.statistics.pixel_shares.tolist()
        return shares

    def weights(self) -> Weights:
        """Return every scheme's weights, in six digits; none for a class that was not seen."""
        statistics = self.statistics
        weights = {
            "pixel_frequency": statistics.weights("pixel_frequency"),
            "sqrt_pixel_frequency": statistics.weights("pixel_frequency", power=0.5),
            "median_frequency": statistics.weights("median_frequency"),
            "image_frequency": statistics.weights("image_frequency"),
            "effective_number": statistics.weights("effective_number", beta=self.beta),
            "enet": statistics.weights("enet"),
        }
        seen = (statistics.pixel_counts > 0).tolist()
        return {
            scheme: [
                rounded(number, self.clamp) if there else None
                for number, there in zip(weight.tolist(), seen, strict=True)
            ]
            for scheme, weight in weights.items()
        }

    def content(self) -> dict[str, Any]:
        """Return all of it for a program."""
        counts = {name: count.tolist() for name, count in self.statistics.state_dict().items()}
        return {
            "task": "multiclass",
            "classes": self.names,
            "ignore_index": self.statistics.ignore_index,
            **counts,
            "pixel_shares": self.shares(),
            "clamp": self.clamp,
            "weights": self.weights(),
        }

    def page(self) -> str:
        """Return the summary, the table and the lists to paste."""
        statistics, weights = self.statistics, self.weights()
        pixels, ignored = int(statistics.num_pixels), int(statistics.num_ignored)
        counts = statistics.pixel_counts.tolist()
        lines = [
            f"{int(statistics.num_images):,} label maps, {pixels:,} pixels of {statistics.num_classes} classes; "
            f"{ignored:,} pixels ({ignored / max(1, pixels + ignored):.2%}) ignored, label {statistics.ignore_index}",
            "",
            *table(header("", "class", "pixels", "share", "images", *weights), self._rows(weights), counts),
            "",
            *self._unseen_note(),
            *self._flat_note(),
            *clamp_note(self.clamp),
            *self._lists(weights),
        ]
        return "\n".join(lines)

    def _rows(self, weights: Weights) -> list[list[str]]:
        pixels, images = self.statistics.pixel_counts.tolist(), self.statistics.image_counts.tolist()
        return [
            [
                *(str(index), name, f"{pixels[index]:,}", f"{share:.3%}", f"{images[index]:,}"),
                *(cell(weight[index]) for weight in weights.values()),
            ]
            for index, (name, share) in enumerate(zip(self.names, self.shares(), strict=True))
        ]

    def _lists(self, weights: Weights) -> list[str]:
        if len(self.names) > MOST_ROWS:
            return [
                f"The lists of {len(self.names)} weights are in what --json FILE writes: "
                'torch.tensor(json.load(open(FILE))["weights"]["enet"])'
            ]
        return [
            "To paste, for WeightedCrossEntropyLoss(torch.tensor(...)):",
            *(f"{scheme} = {weight}" for scheme, weight in weights.items()),
        ]

    def _unseen_note(self) -> list[str]:
        """Say of which classes the labels tell nothing."""
        unseen = (self.statistics.pixel_counts == 0).nonzero().flatten().tolist()
        if not unseen:
            return []
        return [
            f"Not seen: {named(unseen)}. A class without pixels has no weight, None in the lists: put in 0 to leave it "
            "out, or a number of your own.",
            "",
        ]

    def _flat_note(self) -> list[str]:
        """Explain why the effective number gives every class the same weight, if it does."""
        seen = self.statistics.pixel_counts[self.statistics.pixel_counts > 0]
        # 1 - beta^n is 1 to the digits of the table from n = 5 / (1 - beta) on.
        if self.beta == 1 or len(seen) < 2 or int(seen.min()) * (1 - self.beta) < 5:
            return []
        return [
            f"effective_number is flat: every class has far more than 1/(1 - beta) = {1 / (1 - self.beta):,.0f} "
            f"pixels. For pixels, try --beta {1 - 1 / int(self.statistics.num_pixels):.10g}.",
            "",
        ]
