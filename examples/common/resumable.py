"""What a checkpoint of an engine holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from examples.common.distributed import random_states, restore_random_states


class Resumable:
    """An engine whose state is that of its parts, its step, and the random numbers of all ranks."""

    config: Any  # with `as_dict`
    device: torch.device
    step: int

    def parts(self) -> dict[str, Any]:
        """Networks, losses, optimisers, schedulers: all that has a `state_dict` and changes with the steps."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs to go on to the same bits; all ranks must ask for it."""
        parts = {name: part.state_dict() for name, part in self.parts().items()}
        return {"config": self.config.as_dict(), "step": self.step, **parts, **random_states(self.device)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            ValueError: it belongs to another configuration.
        """
        if state["config"] != self.config.as_dict():
            raise ValueError(f"the checkpoint has another configuration, {state['config']}")
        for name, part in self.parts().items():
            part.load_state_dict(state[name])
        self.step = state["step"]
        restore_random_states(state, self.device)
