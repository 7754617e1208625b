"""What each of two processes of `examples/start/two_processes.py` does: started by test_start.py."""

from __future__ import annotations

import torch
from ranks import joined

from examples.start import two_processes


def main(own: int, world: int, folder: str, port: int) -> None:
    with joined(own, world, port):
        found = {
            name: two_processes.train(criterion, 1, own, world).state_dict()
            for name, criterion in two_processes.CRITERIA.items()
        }
    if own == 0:
        torch.save(found, f"{folder}/models.pt")
