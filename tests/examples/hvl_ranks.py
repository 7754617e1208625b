"""What one rank of test_hvl_ranks.py does: runs of the example on its share of the images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from ranks import joined, refusal

from examples.hvl.config import Config, load_config
from examples.hvl.train import train

STEPS = 3
_SHARED = [
    "data.batch_size=4",
    "data.budget=2",
    "data.crop=[32, 64]",
    f"training.iterations={STEPS}",
    "training.eval_every=0",
    "training.window=[32, 64]",
    "training.lr=1e-4",
    "consistency.cutmix=false",  # boxes come from the rank's own share
    "consistency.threshold=0.15",
]
RUNS = {
    "clip": [],
    "batch_norm": ['model.vision="efficientnet-lite0-random"', "model.object_queries=3"],
}


def config(data: str, overrides: list[str]) -> Config:
    found = load_config("smoke", [*_SHARED, *overrides])
    return replace(found, data=replace(found.data, folder=data))


def main(own: int, world: int, folder: str, data: str, port: int) -> None:
    with joined(own, world, port):
        place = Path(folder)
        kept = place / "kept"
        metrics = {
            name: train(config(data, overrides), place / name, kept, progress=False)
            for name, overrides in RUNS.items()
        }
        parts = config(data, RUNS["clip"])
        assert train(parts, place / "parts", kept, stop_after=2, progress=False) == {}
        train(parts, place / "parts", kept, progress=False)
        odd = config(data, ["data.batch_size=3"])
        refused = refusal(lambda: train(odd, place / "refused", kept, progress=False))
        torch.save({"metrics": metrics, "refusal": refused}, place / f"rank{own}.pt")
