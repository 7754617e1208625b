"""What one rank of test_t2s_ranks.py does."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from examples.common.distributed import process_group
from examples.t2s_da.config import Config, load_config
from examples.t2s_da.train import train

STEPS = 3
_SHARED = [
    *("data.batch_size=4", "data.crop=[16, 24]", "data.streets=4", "data.rare_class_sampling=false"),
    *(f"training.iterations={STEPS}", "training.eval_every=2", "training.window=[16, 24]"),
    *("training.lr=1e-4", "training.head_lr=1e-4", "pull.momentum=0.5", "pull.queries_per_class=200"),
]
# With every pixel a query and no negatives nothing is drawn: two ranks are one process.
EXACT = {
    "adaptation": ["model.dropout=0.0", 'pull.objective="mse"', 'self_training.confidence="batch"'],
    "generalization": [
        *("model.dropout=0.0", 'pull.objective="mse"', 'mode="generalization"'),
        *("components.self_training=false", 'translation.engine="photometric"'),
    ],
}
DRAWN = ["model.dropout=0.5"]  # InfoNCE, each rank with draws of its own


def config(target: str, overrides: list[str]) -> Config:
    found = load_config("smoke", [*_SHARED, *overrides])
    return replace(found, data=replace(found.data, target=target))


def main(own: int, world: int, folder: str, target: str, port: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(100 + own)
    environment = {"RANK": own, "LOCAL_RANK": own, "WORLD_SIZE": world, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in environment.items()}  # as torchrun sets them
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    with process_group("cpu"):
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
    refusal = ""
    try:
        train(config(target, ["data.batch_size=3"]), place / "refused", kept, progress=False)
    except ValueError as error:
        refusal = str(error)
    return {"metrics": metrics, "refusal": refusal}
