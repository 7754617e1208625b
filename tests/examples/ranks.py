"""Starts two ranks for the tests of the examples."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from processes import start_ranks

from examples.common.distributed import process_group


def spawn_two(main: Callable[..., None], *arguments: str) -> None:
    """Run `main(rank, 2, *arguments, port)` in two processes, on a port that is free."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_ranks(main, 2, *arguments, port)


@contextmanager
def joined(own: int, world: int, port: int) -> Iterator[torch.device]:
    """One rank's process group on the CPU, with a seed and one thread of its own."""
    torch.set_num_threads(1)
    torch.manual_seed(100 + own)
    environment = {"RANK": own, "LOCAL_RANK": own, "WORLD_SIZE": world, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in environment.items()}  # as torchrun sets them
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    with process_group("cpu") as device:
        yield device


def refusal(call: Callable[[], Any]) -> str:
    """The message of the ValueError that a call raises, or nothing."""
    try:
        call()
    except ValueError as error:
        return str(error)
    return ""
