"""What two ranks do with losses that remember, for ``test_running_state``."""

from __future__ import annotations

import warnings
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from distributed_worker import leave_group
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import classbalance_losses as cb

CLASSES = 4
MAKE: dict[str, Any] = {
    "gbw": lambda **options: cb.GBWLoss(regularization=0.1, momentum=0.5, **options),
    "curriculum": lambda num_classes=None, **options: cb.WeightedCrossEntropyLoss(
        cb.Curriculum(every=1, momentum=0.5, num_classes=num_classes), **options
    ),
    "pixel-frequency": lambda num_classes=None, **options: cb.WeightedCrossEntropyLoss(
        cb.PixelFrequency(accumulate="running", num_classes=num_classes), **options
    ),
}
WAYS: dict[str, dict[str, Any]] = {
    "lazy": {},
    "fixed": {"num_classes": CLASSES},
    "joined": {"process_group": "world"},
}


class Model(nn.Module):
    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net, self.loss = nn.Conv2d(3, CLASSES, 1), loss

    def forward(self, image: Tensor, target: Tensor) -> Tensor:
        return self.loss(self.net(image), target)  # type: ignore[no-any-return]


def batch(seed: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, 4, 4, generator=draw), torch.randint(CLASSES, (2, 4, 4), generator=draw)


def checkpoint_of(name: str) -> dict[str, Tensor]:
    """A state dict of a model that has been trained for two batches."""
    model = Model(MAKE[name](num_classes=CLASSES))
    for seed in (10, 11):
        model(*batch(seed))
    return model.state_dict()


def train(name: str, way: str, rank: int) -> dict[str, Any]:
    """Rank 0 alone reads the checkpoint. A validation on rank 0 alone is between two steps."""
    model = Model(MAKE[name](**WAYS[way]))
    if rank == 0:
        model.load_state_dict(checkpoint_of(name))
    parallel = DistributedDataParallel(model)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        parallel(*batch(rank)).backward()
        if rank == 0:
            with torch.no_grad():
                model(*batch(5))
        checkpoint(parallel, *batch(2 + rank), use_reentrant=False).backward()
    return {
        "memory": {key: entry.clone() for key, entry in model.loss.state_dict().items()},
        "gradient": model.net.weight.grad,
        "said": [str(warning.message) for warning in said],
    }


def main(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    results = {(name, way): train(name, way, rank) for name in MAKE for way in WAYS}
    torch.save(results, f"{folder}/{rank}.pt")
    leave_group()
