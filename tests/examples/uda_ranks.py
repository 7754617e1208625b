"""What one rank of test_uda_training.py does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from ranks import joined, refusal

from examples.uda_gbw.config import Config, load_config
from examples.uda_gbw.train import train

STEPS = 3
_SHARED = [f"training.iterations={STEPS}", "model.dropout=0.0", "training.lr=1e-4"]
RUNS = {
    "adversarial": ['method="adaptsegnet"', "adversarial.feature_level=true"],
    "entropy": ['method="entropy"', 'weighting.apply="class"', "entropy.regularization=0.01"],
    "mixing": [
        'method="daformer"',
        'model.decoder="context"',
        "hrda.enabled=true",
        "mic.enabled=true",
        "self_training.strength=0.1",
    ],
}


def config(target: str, overrides: list[str]) -> Config:
    found = load_config("smoke", [*_SHARED, *overrides])
    return replace(found, data=replace(found.data, target=target))


def main(own: int, world: int, folder: str, target: str, port: int) -> None:
    place = Path(folder)
    with joined(own, world, port):
        for name, overrides in RUNS.items():
            train(config(target, overrides), place / name, place / "kept", progress=False)
        odd = config(target, ["data.batch_size=3"])
        refused = refusal(lambda: train(odd, place / "refused", place / "kept", progress=False))
    torch.save({"refusal": refused}, place / f"rank{own}.pt")
