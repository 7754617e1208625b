"""What one rank of test_uda_training.py does."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import torch

from examples.common.distributed import process_group
from examples.uda_gbw.config import Config, load_config
from examples.uda_gbw.train import train

STEPS = 3
_SHARED = [f"training.iterations={STEPS}", "model.dropout=0.0", "training.lr=1e-4"]
RUNS = {
    "adversarial": ['method="adaptsegnet"', "adversarial.feature_level=true"],
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
    torch.set_num_threads(1)
    environment = {"RANK": own, "LOCAL_RANK": own, "WORLD_SIZE": world, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in environment.items()}  # as torchrun sets them
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    place, refusal = Path(folder), ""
    with process_group("cpu"):
        for name, overrides in RUNS.items():
            train(config(target, overrides), place / name, place / "kept", progress=False)
        odd = config(target, ["data.batch_size=3"])
        try:
            train(odd, place / "refused", place / "kept", progress=False)
        except ValueError as error:
            refusal = str(error)
    torch.save({"refusal": refusal}, place / f"rank{own}.pt")
