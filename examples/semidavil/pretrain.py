"""Vision-language pre-training in miniature, equation 1, where CLIP's weights cannot be had.

    python -m examples.semidavil.pretrain camvid --target FOLDER --out vlp.pt
    python -m examples.semidavil.train camvid --target FOLDER --vision efficientnet-lite0:vlp.pt

The image encoder starts from ImageNet's weights and learns to tell which caption belongs to which generated street;
the text encoder, MiniLM, is frozen. Captions say what a street shows and where, by its label. What it learnt is scored
on the target's test images without any training on labels: each position takes the class whose text is nearest.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from examples.common.sampling import Shuffled
from examples.common.scenes.domain import Domain
from examples.common.scenes.labels import IGNORE_INDEX
from examples.common.scenes.task import Task, load_task
from examples.common.scoring import confusion_of, scores_entry
from examples.common.text import TextEncoder, build_text
from examples.common.training import write_atomically
from examples.common.vision import AlignedEfficientNet, VisionEncoder, freeze
from examples.semidavil.config import Config, load_config
from examples.semidavil.model.captions import Captioner, PredictedCaptions, class_texts
from examples.semidavil.train import add_folders, with_folders

CLIP = "openai/clip-vit-base-patch16"
_TEMPERATURE = 0.07  # where CLIP's starts; the paper names none


def contrastive_loss(image: Tensor, text: Tensor, temperature: float = _TEMPERATURE) -> Tensor:
    """Equation 1 of embeddings (N, D): cross-entropy of each image over all texts, summed over the images."""
    cosine = F.normalize(image, dim=1) @ F.normalize(text, dim=1).T
    return F.cross_entropy(
        cosine / temperature, torch.arange(len(image), device=image.device), reduction="sum"
    )


def pretrain(
    source: Domain,
    captioner: Captioner,
    text: TextEncoder,
    *,
    steps: int,
    batch_size: int,
    lr: float,
    seed: int,
) -> AlignedEfficientNet:
    """An encoder that is trained to match images of a labelled domain with captions of their labels.

    An image's embedding is the mean of the last map over its positions, so that the map lives in the texts' space.
    """
    torch.manual_seed(seed)
    vision = AlignedEfficientNet(text.channels).to(next(text.model.parameters()).device).train()
    optimizer = torch.optim.AdamW(vision.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps + 1)
    sampler = Shuffled(len(source.names), seed, 0)
    for step in range(steps):
        chosen = [sampler(step * batch_size + place) for place in range(batch_size)]
        images = torch.stack([source.image(i) for i in chosen]).to(vision.mean.device)
        labels = torch.stack([source.label(i) for i in chosen])
        captions = captioner([source.names[i] for i in chosen], lambda labels=labels: labels)  # type: ignore[misc]
        loss = contrastive_loss(vision(images)[-1].mean((2, 3)), text(captions).tokens[:, 0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % max(steps // 10, 1) == 0:
            print(f"step {step + 1}: {float(loss.detach()) / batch_size:.3f} per image", flush=True)
    freeze(vision)
    return vision


def zero_shot(vision: VisionEncoder, text: TextEncoder, task: Task) -> Mapping[str, Any]:
    """Scores on each test set of a task, where each position takes the class whose text is nearest to its feature."""
    names = F.normalize(text(class_texts(task.classes)).tokens[:, 0], dim=1)
    device = names.device

    def predict(_: str, image: Tensor) -> Tensor:
        feature = F.normalize(vision(image[None].to(device))[-1], dim=1)
        return torch.einsum("nchw,kc->nkhw", feature, names)[0]

    number = len(task.classes)
    return {
        name: scores_entry(confusion_of(predict, test, number, IGNORE_INDEX, device), task.means)
        for name, test in task.tests.items()
    }


def clip_at_hand(name: str = CLIP) -> bool:
    """Whether CLIP's weights are on this machine, as a folder or in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415 (seconds)

    files = ("model.safetensors", "pytorch_model.bin")
    if Path(name).is_dir():
        return any((Path(name) / file).is_file() for file in files)
    return any(isinstance(try_to_load_from_cache(name, file), str) for file in files)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("config", help="a file, or a name in examples/semidavil/configs")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="as in examples.semidavil.train"
    )
    parser.add_argument("--out", type=Path, required=True, help="the file of weights")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--clip", default=CLIP, help="a folder or a hub name: with its weights, nothing is trained"
    )
    add_folders(parser)
    given = parser.parse_args(arguments)
    if clip_at_hand(given.clip):
        print(f"CLIP's weights are here: --vision clip:{given.clip} needs no pre-training")
        return
    config: Config = with_folders(load_config(given.config, given.set), given)
    task = load_task(config.data, given.runs / "kept")
    text = build_text(config.model.text, config.model.max_tokens, pooled=True).to(given.device)
    freeze(text)
    recipe = {
        "steps": given.steps,
        "batch_size": given.batch_size,
        "lr": given.lr,
        "seed": config.training.seed,
    }
    captioner = PredictedCaptions(task.classes, config.model.scene)
    vision = pretrain(task.source, captioner, text, **recipe)
    write_atomically(given.out, lambda partial: torch.save(vision.state_dict(), partial))
    for name, entry in zero_shot(vision, text, task).items():
        means = ", ".join(f"{key} {100 * value:.1f}" for key, value in entry["mean_iou"].items())
        print(f"zero-shot on {name}: {means}")


if __name__ == "__main__":
    main()
