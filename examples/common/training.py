"""One supervised training loop: seeded, resumable to the bit, stopped cleanly by Ctrl-C."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from examples.common.distributed import random_states, restore_random_states
from examples.common.evaluation import LabelledImages

CHECKPOINT = "checkpoint.pt"
LOG = "log.jsonl"
T = TypeVar("T")
Evaluate = Callable[[nn.Module], dict[str, Any]]


@dataclass(frozen=True)
class TrainingConfig:
    """The recipe: AdamW, a cosine one-cycle up to `max_lr` and down again, horizontal flips, crops."""

    iterations: int = 300
    batch_size: int = 8
    max_lr: float = 2e-3
    weight_decay: float = 0.01
    flip: bool = True
    crop: int = 0  # side of a random square of each image; 0: the whole image
    seed: int = 0
    log_every: int = 10
    eval_every: int = 0  # 0: never during training
    checkpoint_every: int = 100

    def __post_init__(self) -> None:
        for name in ("iterations", "batch_size", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name, meaning in (("eval_every", "never"), ("crop", "the whole image")):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0 (0: {meaning}), got {getattr(self, name)}")


def train(
    model: nn.Module,
    loss: nn.Module,
    data: LabelledImages,
    config: TrainingConfig,
    folder: Path,
    *,
    evaluate: Evaluate | None = None,
    progress: bool = True,
    on_step: Callable[[int], None] | None = None,
) -> list[dict[str, Any]]:
    """Train a model in place and return its log, one entry every `log_every` steps.

    `folder` gets `checkpoint.pt` and `log.jsonl`; where they exist, training goes on from there and gives the same
    weights as a run without a break. A loss with a buffer `class_weight` (GBW) has its weights logged.

    Args:
        model: images (N, channels, H, W) -> logits (N, C, H, W).
        loss: `loss(logits, labels)` -> scalar; its buffers are part of the checkpoint.
        data: items `(image, label)` of one size, on the model's device; so is the loss.
        config: the recipe.
        folder: where the checkpoint and the log live.
        evaluate: called every `eval_every` steps; what it returns is added to that step's log entry.
        progress: show a progress bar.
        on_step: called with the number of finished steps after each of them.

    Raises:
        ValueError: no data, or a checkpoint of another recipe.
        FloatingPointError: the loss is not finite.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, when the running step is finished and saved.
    """
    if not len(data):
        raise ValueError("the training set is empty")
    folder.mkdir(parents=True, exist_ok=True)
    run = _Run(model, loss, config, folder)
    run.resume()
    model.train()
    with (
        stop_request() as stop,
        tqdm(total=config.iterations, initial=run.step, disable=not progress) as bar,
    ):
        while run.step < config.iterations:
            images, labels = sample_batch(data, config, run.step)
            run.advance(images, labels)
            last = run.step == config.iterations
            scores = {}
            if evaluate and config.eval_every and run.step % config.eval_every == 0:
                scores = evaluate(model)
                model.train()
            if scores or last or run.step % config.log_every == 0:
                run.log.append(run.entry() | class_weight_entry(loss) | scores)
            bar.update()
            if math.isfinite(run.value):
                bar.set_postfix(loss=f"{run.value:.3f}", refresh=False)
            if on_step:
                on_step(run.step)
            stopping = stop.is_set()
            if last or stopping or run.step % config.checkpoint_every == 0:
                run.save()
            if stopping and not last:
                raise KeyboardInterrupt(f"stopped after step {run.step}; run again to go on from there")
    return run.log


def sample_batch(data: LabelledImages, config: TrainingConfig, step: int) -> tuple[Tensor, Tensor]:
    """The batch of a step: a function of the seed and the step alone, which is what makes a resumed run exact.

    An epoch is a permutation of the data; a batch may span two epochs.
    """
    indices = []
    for position in range(step * config.batch_size, (step + 1) * config.batch_size):
        epoch, place = divmod(position, len(data))
        indices.append(int(_permutation(len(data), config.seed, epoch)[place]))
    samples = [data[i] for i in indices]
    generator = _generator(config.seed, step, stream=1)
    if config.flip:
        coins = torch.rand(len(samples), generator=generator) < 0.5
        samples = [
            (image.flip(-1), label.flip(-1)) if coin else (image, label)
            for (image, label), coin in zip(samples, coins.tolist(), strict=True)
        ]
    if config.crop:
        samples = [_cropped(*sample, config.crop, generator) for sample in samples]
    images, labels = (torch.stack(part) for part in zip(*samples, strict=True))
    return images, labels


def _cropped(image: Tensor, label: Tensor, side: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    if side > min(label.shape):
        raise ValueError(f"crop = {side} is larger than an image of (H, W) = {tuple(label.shape)}")
    top, left = (int(torch.randint(size - side + 1, (), generator=generator)) for size in label.shape)
    window = (..., slice(top, top + side), slice(left, left + side))
    return image[window], label[window]


def class_weight_entry(loss: nn.Module) -> dict[str, Any]:
    """The weights that a loss such as GBW last gave the classes, for the log; nothing for other losses."""
    weight = getattr(loss, "class_weight", None)
    return {"class_weight": weight.tolist()} if isinstance(weight, Tensor) and weight.numel() else {}


class _Run:
    """Everything that a checkpoint holds, and the step that changes it."""

    def __init__(self, model: nn.Module, loss: nn.Module, config: TrainingConfig, folder: Path) -> None:
        self.model, self.loss, self.config, self.folder = model, loss, config, folder
        parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            parameters, lr=config.max_lr, weight_decay=config.weight_decay, fused=True
        )
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, max_lr=config.max_lr, total_steps=config.iterations + 1
        )
        self.device = parameters[0].device
        # A reading waits for the device, which then has nothing to do: with a GPU only where the number is needed.
        self.reads_every_loss = self.device.type == "cpu"
        self.step = 0
        self.rate = self.value = math.nan  # of the last step; of the last loss that was read
        self.log: list[dict[str, Any]] = []
        self._unread: dict[int, Tensor] = {}  # step -> loss

    def advance(self, images: Tensor, labels: Tensor) -> None:
        """One step of gradient descent."""
        self.rate = self.scheduler.get_last_lr()[0]
        self.optimizer.zero_grad()
        value = self.loss(self.model(images), labels)
        self._unread[self.step + 1] = value.detach()
        if self.reads_every_loss:
            self._read()
        value.backward()
        self.optimizer.step()
        self.scheduler.step()
        self.step += 1

    def entry(self) -> dict[str, Any]:
        """The last step's entry in the log."""
        self._read()
        return {"step": self.step, "loss": self.value, "lr": self.rate}

    def save(self) -> None:
        """Write the checkpoint and the log; a break in between leaves the former ones."""
        self._read()
        state = {
            "config": asdict(self.config),
            "step": self.step,
            "model": self.model.state_dict(),
            "loss": self.loss.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "log": self.log,
            **random_states(self.device),
        }
        write_atomically(self.folder / CHECKPOINT, lambda path: torch.save(state, path))
        lines = "".join(json.dumps(entry) + "\n" for entry in self.log)
        write_atomically(self.folder / LOG, lambda path: path.write_text(lines))

    def resume(self) -> None:
        """Go on from the folder's checkpoint, where there is one."""
        path = self.folder / CHECKPOINT
        if not path.exists():
            torch.manual_seed(self.config.seed)
            return
        state = torch.load(path, weights_only=True)
        if state["config"] != asdict(self.config):
            raise ValueError(
                f"{path} has another recipe, {state['config']}: choose another folder or delete it"
            )
        self.model.load_state_dict(state["model"])
        self.loss.load_state_dict(state["loss"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        restore_random_states(state, self.device)
        self.step, self.log = state["step"], state["log"]

    def _read(self) -> None:
        """Read the losses that were not read yet, and raise at the first that is not finite."""
        if self._unread:
            for step, value in zip(self._unread, torch.stack([*self._unread.values()]).tolist(), strict=True):
                if not math.isfinite(value):
                    raise FloatingPointError(
                        f"the loss is {value} at step {step}: lower max_lr or check the data"
                    )
                self.value = value
            self._unread.clear()


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` on a file beside `path`, then move it there: no reader ever sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file of text, as `write_atomically` does it."""
    write_atomically(path, lambda partial: partial.write_text(text))


def write_json(path: Path, content: object, *, indent: int | None = 1) -> None:
    """Write plain data, as `write_atomically` does it."""
    write_text(path, json.dumps(content, indent=indent) + "\n")


def in_order(steps: Dataset[T], workers: int, device: str) -> DataLoader[T]:
    """The items of a data set in their order. Its own generator: DataLoader else draws from the one of dropout."""
    return DataLoader(
        steps,
        batch_size=None,
        num_workers=workers,
        pin_memory=device.startswith("cuda"),
        generator=torch.Generator(),
    )


@contextmanager
def one_thread() -> Iterator[None]:
    """On tensors as small as those of smoke tests a second thread only waits, which on a busy machine takes minutes."""
    former = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(former)


@contextmanager
def stop_request() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets; a second one interrupts at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield stop
        return

    def request(signum: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    former = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _generator(seed: int, index: int, *, stream: int) -> torch.Generator:
    """An independent generator for each (seed, index, stream); the constants only keep them apart."""
    return torch.Generator().manual_seed((seed * 1_000_003 + index) * 2 + stream)


def _permutation(length: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(length, generator=_generator(seed, epoch, stream=0))
