"""What is told of labels that a pixel has or has not, one or several: shares, and the weight of the positives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from classbalance_losses.state.statistics import ClassStatistics
from classbalance_losses.stats.counting import BINARY
from classbalance_losses.stats.page import MOST_ROWS, Clamp, cell, clamp_note, header, named, rounded, table


@dataclass(frozen=True)
class LabelSummary:
    """Counts of two classes a label, without and with it, the labels' names, and the bounds of the weights."""

    task: str
    statistics: ClassStatistics
    names: list[str]
    clamp: Clamp | None

    def negative(self) -> list[int]:
        """Return the pixels without each label."""
        counts: list[int] = self.statistics.pixel_counts[::2].tolist()
        return counts

    def positive(self) -> list[int]:
        """Return the pixels with each label."""
        counts: list[int] = self.statistics.pixel_counts[1::2].tolist()
        return counts

    def shares(self) -> list[float]:
        """Return the share of the pixels with each label in those that count."""
        pairs = zip(self.negative(), self.positive(), strict=True)
        return [positive / max(1, negative + positive) for negative, positive in pairs]

    def pos_weight(self) -> list[float | None]:
        """Return negatives over positives, in six digits; none for a label that no pixel has, or every one."""
        pairs = zip(self.negative(), self.positive(), strict=True)
        return [
            rounded(negative / positive, self.clamp) if negative and positive else None
            for negative, positive in pairs
        ]

    def content(self) -> dict[str, Any]:
        """Return all of it for a program."""
        return {
            "task": self.task,
            "classes": self.names,
            "ignore_index": self.statistics.ignore_index,
            "num_images": int(self.statistics.num_images),
            "num_ignored": int(self.statistics.num_ignored),
            "negative_counts": self.negative(),
            "positive_counts": self.positive(),
            "positive_shares": self.shares(),
            "image_counts": self.statistics.image_counts[1::2].tolist(),
            "clamp": self.clamp,
            "pos_weight": self.pos_weight(),
        }

    def page(self) -> str:
        """Return the summary, the table and what to paste."""
        statistics = self.statistics
        pixels, ignored = int(statistics.num_pixels), int(statistics.num_ignored)
        of = "" if self.task == BINARY else f" of {len(self.names)} labels together"
        head = header("", "label", "negative", "share", "positive", "share", "images", "pos_weight")
        lines = [
            f"{int(statistics.num_images):,} label maps, {pixels:,} pixels{of}; "
            f"{ignored:,} pixels ({ignored / max(1, pixels + ignored):.2%}) ignored, label {statistics.ignore_index}",
            "",
            *table(head, self._rows(), self.positive()),
            "",
            *self._note(),
            *clamp_note(self.clamp),
            *self._to_paste(),
        ]
        return "\n".join(lines)

    def _rows(self) -> list[list[str]]:
        images = self.statistics.image_counts[1::2].tolist()
        columns = zip(
            self.names,
            self.negative(),
            self.positive(),
            self.shares(),
            images,
            self.pos_weight(),
            strict=True,
        )
        return [
            [
                *(str(index), name, f"{negative:,}", f"{1 - share:.3%}", f"{positive:,}", f"{share:.3%}"),
                *(f"{number:,}", cell(weight)),
            ]
            for index, (name, negative, positive, share, number, weight) in enumerate(columns)
        ]

    def _note(self) -> list[str]:
        """Say of which labels the pixels tell nothing."""
        without = [index for index, weight in enumerate(self.pos_weight()) if weight is None]
        if not without:
            return []
        return [
            f"No weight for {named(without)}: either no pixel has the label, or every one. Put in 1 for None.",
            "",
        ]

    def _to_paste(self) -> list[str]:
        weight = self.pos_weight()
        if self.task == BINARY:
            return [
                "To paste, for torch.nn.BCEWithLogitsLoss(pos_weight=torch.tensor(...)):",
                f"pos_weight = {weight[0]}",
            ]
        shown = weight if len(weight) <= MOST_ROWS else 'json.load(open(FILE))["pos_weight"], by --json FILE'
        return [
            "To paste, for torch.nn.BCEWithLogitsLoss(pos_weight=torch.tensor(...).view(-1, 1, 1)), one 1 more for "
            "volumes:",
            f"pos_weight = {shown}",
        ]
