"""What one rank of test_t2s_ranks.py does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from ranks import joined, refusal

from examples.t2s_da.config import Config, load_config
from examples.t2s_da.train import train

STEPS = 3
_SHARED = [
    *("data.batch_size=4", "data.crop=[16, 24]", "data.streets=4", "data.rare_class_sampling=false"),
    *(f"training.iterations={STEPS}", "training.eval_every=2", "training.window=[16, 24]"),
    *("training.lr=1e-4", "training.head_lr=1e-4", "reweighting.momentum=0.5", "pull.queries_per_class=200"),
]
# With every pixel a query and no negatives nothing is drawn: two ranks are one process.
EXACT = {
    "adaptation": ["model.dropout=0.0", 'pull.objective="mse"', 'self_training.confidence="batch"'],
    "hrda": [
        *("model.dropout=0.0", 'pull.objective="mse"', 'self_training.confidence="batch"'),
        *(
            "hrda.enabled=true",
            "mic={enabled=true, block=8}",
            "data.crop=[24, 32]",
            "training.window=[24, 32]",
        ),
    ],
    "generalization": [
        *("model.dropout=0.0", 'pull.objective="mse"', 'mode="generalization"'),
        *("components.self_training=false", 'translation.engines=["weather", "cartoon"]'),
        *("components.feature_distance=false", 'reweighting.of="none"'),
    ],
}
DRAWN = ["model.dropout=0.5"]  # InfoNCE, each rank with draws of its own


def config(target: str, overrides: list[str]) -> Config:
    found = load_config("smoke", [*_SHARED, *overrides])
    return replace(found, data=replace(found.data, target=target))


def main(own: int, world: int, folder: str, target: str, port: int) -> None:
    with joined(own, world, port):
        torch.save(_results(Path(folder), target), Path(folder) / f"rank{own}.pt")


def _results(place: Path, target: str) -> dict[str, Any]:
    kept = place / "kept"
    metrics = {
        name: train(config(target, overrides), place / name, kept, progress=False)
        for name, overrides in EXACT.items()
    }
    drawn = config(target, DRAWN)
    train(drawn, place / "drawn", kept, progress=False)
    assert train(drawn, place / "parts", kept, stop_after=2, progress=False) == {}
    train(drawn, place / "parts", kept, progress=False)
    odd = config(target, ["data.batch_size=3"])
    refused = refusal(lambda: train(odd, place / "refused", kept, progress=False))
    return {"metrics": metrics, "refusal": refused}
