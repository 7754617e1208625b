"""The paper's numbers that are at hand, in the words of `published.toml`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from examples.common.config import read_toml

_FILE = Path(__file__).with_name("published.toml")
NOT_AT_HAND = "not at hand"


@dataclass(frozen=True)
class Published:
    """`numbers` is {"Table 6, CE": {labels: mIoU in percent}}; `notes` has a sentence for each row, and for others.

    `kind` is the data, as in `data.kind` of a configuration, and `setting` says the same in words.
    """

    kind: str
    setting: str
    numbers: Mapping[str, Mapping[int, float]]
    notes: Mapping[str, str]

    def cells(self, row: str | None, labels: list[int]) -> list[str]:
        """A row's cells for these numbers of labels; what is not known says so."""
        known = self.numbers.get(row or "", {})
        return [f"{known[n]:.1f}" if n in known else NOT_AT_HAND for n in labels]

    def labels(self, rows: Mapping[str, str]) -> list[int]:
        """The numbers of labels for which any of these rows has a number."""
        return sorted({n for row in rows.values() for n in self.numbers.get(row, {})})


def read_published(path: Path = _FILE) -> Published:
    """The file's content.

    Raises:
        ValueError: a row has not as many numbers as label counts.
    """
    content = read_toml(path)
    numbers, notes = {}, {}
    for entry in content["number"]:
        name = f"{entry['table']}, {entry['row']}"
        if len(entry["labels"]) != len(entry["mean_iou"]):
            raise ValueError(f"{path}: {name} must have as many mean_iou as labels")
        numbers[name] = dict(zip(entry["labels"], entry["mean_iou"], strict=True))
        notes[name] = entry["note"]
    for entry in content["average"]:
        values = ", ".join(f"{value:.2f}" for value in entry["averages"])
        notes[f"{entry['table']}, {entry['row']}"] = f"the printed IoUs average {values}. {entry['note']}"
    return Published(content["kind"], content["setting"], numbers, notes)
