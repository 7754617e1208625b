"""What one rank of test_semidavil_ranks.py does: runs of the example, and BatchNorm on its share of a batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from ranks import joined, refusal
from torch import Tensor, nn

from examples.common.distributed import (
    all_sum,
    any_rank,
    first_rank_first,
    gathered,
    join_batch_norm,
    joined_sum,
    rank,
)
from examples.semidavil.config import Config, load_config
from examples.semidavil.losses import ConsistencyLoss
from examples.semidavil.train import train

STEPS = 4
_SHARED = [
    "data.batch_size=4",
    "data.budget=2",
    "data.crop=[16, 24]",
    "data.streets=3",
    "model.train_vision=true",
    f"training.iterations={STEPS}",
    "training.eval_every=2",
    "training.window=[16, 24]",
    "training.lr=1e-4",
    "consistency.threshold=0.15",
]
RUNS = {
    "whole": ["model.dropout=0.0"],
    "pieces": ["training.accumulation=2", 'loss="WCE"', 'loss_options={weight="running"}'],
    "frozen": ["model.dropout=0.0", "model.train_vision=false", 'loss="CE"', 'model.guidance="correlation"'],
}
DROPOUT = ["model.dropout=0.5"]  # for stopping and going on: the ranks' draws differ


def config(target: str, overrides: list[str]) -> Config:
    found = load_config("smoke", [*_SHARED, *overrides])
    return replace(found, data=replace(found.data, target=target))


def norms() -> nn.Module:
    """BatchNorm with numbers of its own, and one without any."""
    torch.manual_seed(3)
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, momentum=0.3), nn.BatchNorm2d(3, affine=False, momentum=None)
    )
    nn.init.uniform_(net[1].weight)
    nn.init.uniform_(net[1].bias)
    return net.train()


def images() -> tuple[Tensor, Tensor]:
    """Three images, and what weighs their outputs in a sum."""
    torch.manual_seed(4)
    return torch.randn(3, 2, 5, 6) * 3 + 1, torch.randn(3, 3, 3, 4)


def normalized(net: nn.Module, part: slice) -> dict[str, Any]:
    """Two passes; the gradient of the second's weighted sum."""
    x, weight = images()
    net(x[part] * 0.5)
    x = x[part].clone().requires_grad_()
    y = net(x)
    (y * weight[part]).sum().backward()
    gradients = [p.grad for p in net.parameters()]
    before = {key: value.clone() for key, value in net.state_dict().items()}
    still = net.eval()(x.detach())
    return {"output": y.detach(), "input": x.grad, "gradients": gradients, "state": before, "eval": still}


def helpers() -> dict[str, Any]:
    share = torch.tensor(1.0 + rank(), requires_grad=True)
    total = joined_sum(share)
    (3 * total).backward()
    seen = []
    with first_rank_first():
        seen.append(rank())
    return {
        "joined": (total.item(), share.grad.item()),
        "sum": all_sum(torch.tensor(1 + rank())).item(),
        "any": (any_rank(rank() == 1), any_rank(False)),
        "gathered": gathered({"rank": rank()}),
        "seen": seen,
    }


def main(own: int, world: int, folder: str, target: str, port: int) -> None:
    with joined(own, world, port) as device:
        assert device == torch.device("cpu")
        torch.save(results(own, Path(folder), target), Path(folder) / f"rank{own}.pt")


def results(own: int, place: Path, target: str) -> dict[str, Any]:
    confident: list[int] = []

    def count(module: nn.Module, args: tuple[Any, ...]) -> None:
        if isinstance(module, ConsistencyLoss):
            judge = args[0] if module.confidence == "student" else args[1]
            confident.append(int((judge.detach().float().softmax(1).amax(1) >= module.threshold).sum()))

    kept = place / "kept"
    with nn.modules.module.register_module_forward_pre_hook(count):
        metrics = {
            name: train(config(target, overrides), place / name, kept, progress=False)
            for name, overrides in RUNS.items()
        }
    dropped = config(target, DROPOUT)
    train(dropped, place / "dropout", kept, progress=False)
    assert train(dropped, place / "parts", kept, stop_after=3, progress=False) == {}
    train(dropped, place / "parts", kept, progress=False)
    odd = config(target, ["data.batch_size=3"])
    refused = refusal(lambda: train(odd, place / "refused", kept, progress=False))
    part = slice(0, 2) if own == 0 else slice(2, 3)
    return {
        "metrics": metrics,
        "confident": confident,
        "norms": normalized(join_batch_norm(norms(), torch.device("cpu")), part),
        "helpers": helpers(),
        "refusal": refused,
    }
