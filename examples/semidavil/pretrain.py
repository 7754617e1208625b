"""Vision-language pre-training in miniature, equation 1, where CLIP's weights cannot be had.

    python -m examples semidavil pretrain --target FOLDER
    python -m examples semidavil train camvid --target FOLDER

The image encoder starts from ImageNet's weights and learns to tell which caption belongs to which generated street;
the text encoder, MiniLM, is frozen. Captions say what a street shows and where, by its label. What it learnt is scored
on the target's test images without any training on labels: each position takes the class whose text is nearest.

RUNS/pretraining-HASH/config.json      what is run: of it `data`, `training`, and `text` and `scene` of `model`
RUNS/pretraining-HASH/log.csv          loss, share of right matches, learning rate, throughput, memory
RUNS/pretraining-HASH/scores_SET.csv   the zero-shot scores by step; at step 0 the projection is random
RUNS/pretraining-HASH/checkpoint.pt    where a run that was stopped goes on
RUNS/pretraining-HASH/metrics.json     the final scores, commit, versions, cost; it exists when the run is finished
runs/semidavil/vlp.pt                  the weights, or where --out says
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from examples.common.config import run_folder
from examples.common.logs import Logs
from examples.common.loop import carry_out
from examples.common.outcome import METRICS, read_metrics, write_outcome
from examples.common.provenance import provenance
from examples.common.scenes.task import Task, load_task, streams
from examples.common.training import CHECKPOINT, write_atomically
from examples.semidavil.config import Config, load_config
from examples.semidavil.pretraining.engine import Engine
from examples.semidavil.pretraining.zero_shot import class_captions, zero_shot
from examples.semidavil.train import add_folders, with_folders

CLIP = "openai/clip-vit-base-patch16"
RUNS = Path("runs/semidavil")
WEIGHTS = RUNS / "vlp.pt"  # where configs/camvid.toml looks for them


def pretrain(
    config: Config,
    folder: Path,
    kept: Path,
    weights: Path,
    *,
    device: str = "cpu",
    stop_after: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Carry a pre-training out in one process; see `examples.common.loop`.

    `loss`, `components` and `consistency` of the configuration say nothing here; `weights` is the file of the encoder.
    """
    if (folder / METRICS).is_file() and weights.is_file():
        return read_metrics(folder)
    recipe = config.training
    task = load_task(config.data, kept)
    found = streams(task, config.data, kept, recipe.seed, unlabelled=False, flip=config.data.flip)
    torch.manual_seed(recipe.seed)
    engine = Engine(config, task.classes, len(task.source.names), torch.device(device))
    texts = class_captions(task.classes, config.model.scene)

    def evaluate() -> dict[str, dict[str, Any]]:
        return zero_shot(engine.vision, engine.text, task, texts)

    if not (folder / CHECKPOINT).is_file():
        with Logs(folder, 0) as logs:
            for name, entry in evaluate().items():
                logs.write(f"scores_{name}", 0, entry["mean_iou"])
    outcome = carry_out(
        engine,
        {"source": found["source"]},
        folder,
        evaluate,
        device=device,
        stop_after=stop_after,
        progress=progress,
    )
    if not outcome.finished:
        return {}
    write_atomically(weights, lambda path: torch.save(engine.vision.state_dict(), path))
    _finish(engine, task, folder, outcome.entries, outcome.seconds)
    return read_metrics(folder)


def _finish(engine: Engine, task: Task, folder: Path, entries: dict[str, Any], seconds: float) -> None:
    metrics = {
        "note": engine.config.note,
        "config": engine.config.as_dict(),
        "classes": list(task.classes),
        "scores": entries,
        **provenance(engine.device, seconds, 1),
    }
    write_outcome(folder, metrics, next(iter(task.means.values())))


def clip_at_hand(name: str = CLIP) -> bool:
    """Whether CLIP's weights are on this machine, as a folder or in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415 (seconds)

    files = ("model.safetensors", "pytorch_model.bin")
    if Path(name).is_dir():
        return any((Path(name) / file).is_file() for file in files)
    return any(isinstance(try_to_load_from_cache(name, file), str) for file in files)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    given = parser().parse_args(arguments)
    if clip_at_hand(given.clip):
        print(f"CLIP's weights are here: --vision clip:{given.clip} needs no pre-training")
        return
    config = with_folders(load_config(given.config, given.set), given)
    folder = run_folder(given.runs, given.config, config.as_dict())
    metrics = pretrain(config, folder, given.runs / "kept", given.out, device=given.device)
    for name, entry in metrics["scores"].items():
        means = ", ".join(f"{key} {100 * value:.1f}" for key, value in entry["mean_iou"].items())
        print(f"zero-shot on {name}: {means}")
    print(f"{given.out}, of {folder}")


def parser() -> argparse.ArgumentParser:
    """The command line's options."""
    options = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    options.add_argument(
        "config", nargs="?", default="pretraining", help="a file, or a name in examples/semidavil/configs"
    )
    options.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="as for `train`")
    options.add_argument("--out", type=Path, default=WEIGHTS, help="the file of weights")
    options.add_argument("--device", default="cpu")
    options.add_argument(
        "--clip", default=CLIP, help="a folder or a hub name: with its weights, nothing is trained"
    )
    add_folders(options)
    options.add_argument("--runs", type=Path, default=RUNS, help="(%(default)s)")
    return options
