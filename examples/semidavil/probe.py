"""Whether guidance listens to its captions: python -m examples semidavil probe RUN... --target CAMVID --out FOLDER.

Scores finished runs again, each image with its own caption, one made of its label, that of another image, and one
sentence for all images. `agreement` is the share of pixels whose class stays what it is with the image's own caption.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from examples.common.config import build
from examples.common.loop import restored
from examples.common.scenes import folders
from examples.common.scenes.domain import Domain
from examples.common.scenes.labels import IGNORE_INDEX
from examples.common.scenes.task import Task, load_task
from examples.common.scoring import confusion_of, rare_mean, scores_entry
from examples.common.training import write_json, write_text
from examples.semidavil.config import Config
from examples.semidavil.engine import Engine
from examples.semidavil.evaluation import predict
from examples.semidavil.model.captions import Captioner, DomainCaptions, Predict, PredictedCaptions
from examples.semidavil.model.describe import Describer

OWN = "its own"
KINDS = (OWN, "of its label", "of another image", "one for all")


class GivenCaptions:
    """Captions by name; those of images that are not among them are asked for, and kept."""

    def __init__(self, captions: dict[str, str], captioner: Captioner) -> None:
        self._captions, self._captioner = captions, captioner

    def __call__(self, names: Sequence[str], predict: Predict) -> list[str]:
        """The captions of a batch of one image."""
        if names[0] not in self._captions:
            (self._captions[names[0]],) = self._captioner(names, predict)
        return [self._captions[names[0]]]


def probe(engine: Engine, task: Task, *, progress: bool = False) -> dict[str, dict[str, Any]]:
    """Score the engine's network on the first test set with each kind of caption.

    Raises:
        ValueError: the network has no guidance by captions.
    """
    config = engine.config.model
    if engine.networks.text is None or config.guidance == "vlga":
        raise ValueError("the run has no captions: components.guidance is off, or model.guidance is 'vlga'")
    name, test = next(iter(task.tests.items()))
    engine.networks.student.eval()
    engine.networks.teacher.eval()
    domain, composed = (kind(task.classes, config.scene) for kind in (DomainCaptions, PredictedCaptions))
    own, kept, entries = dict[str, str](), dict[str, Tensor](), dict[str, dict[str, Any]]()
    for kind in KINDS:
        captions = own if kind == OWN else _captions(kind, own, test, domain, composed)
        engine.describe = Describer(engine.networks, GivenCaptions(captions, composed), domain)
        same: list[float] = []

        def guess(name: str, image: Tensor, same: list[float] = same) -> Tensor:
            logits = predict(engine, name, image)
            found = logits.argmax(0).byte()
            same.append(float((found == kept.setdefault(name, found)).float().mean()))
            return logits

        confusion = confusion_of(
            guess, test, len(task.classes), IGNORE_INDEX, engine.device, progress=progress
        )
        entry = scores_entry(confusion, task.means)
        entries[kind] = {**entry, "test": name, "rare": rare_mean(entry), "agreement": sum(same) / len(same)}
    return entries


def _captions(
    kind: str, own: Mapping[str, str], test: Domain, domain: Captioner, composed: Captioner
) -> dict[str, str]:
    """The captions of all images of a test set."""
    names = list(test.names)
    if kind == "of another image":  # half of the set away: neighbours are of one drive
        shift = len(names) // 2
        return {name: own[other] for name, other in zip(names, names[shift:] + names[:shift], strict=True)}
    if kind == "of its label":
        labels = {name: test.label(i)[None] for i, name in enumerate(names)}
        return {name: composed([name], lambda name=name: labels[name])[0] for name in names}  # type: ignore[misc]
    return dict(zip(names, domain(names, torch.empty), strict=True))


def table(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """A Markdown table of the means over the runs."""
    lines = ["| caption | mIoU | 5 rarest | agreement |", "|---|---:|---:|---:|"]
    for kind in KINDS:
        entries = [run[kind] for run in found.values()]
        columns = (
            [next(iter(entry["mean_iou"].values())) for entry in entries],
            [entry["rare"] for entry in entries],
            [entry["agreement"] for entry in entries],
        )
        lines.append(f"| {kind} | {' | '.join(f'{100 * sum(of) / len(of):.1f}' for of in columns)} |")
    return "\n".join(lines) + "\n"


def _config(folder: Path) -> Config:
    """The configuration of a run, whose file has null where TOML has []."""
    content = json.loads((folder / "config.json").read_text())
    for name, section in content.items():
        if isinstance(section, dict):
            content[name] = {key: [] if value is None else value for key, value in section.items()}
    config: Config = build(Config, content, str(folder))
    return config


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("run", nargs="+", type=Path, help="folders of finished runs, which are averaged")
    parser.add_argument("--out", type=Path, required=True, help="folder of guidance.json and guidance.md")
    parser.add_argument("--device", default="cpu")
    folders.add_folders(parser)
    parser.add_argument("--runs", type=Path, default=Path("runs/semidavil"), help="(%(default)s)")
    given = parser.parse_args(arguments)
    found = {}
    for folder in given.run:
        config = folders.with_folders(_config(folder), given)
        kept = given.runs / "kept"
        task = load_task(config.data, kept)
        engine = Engine(config, task, torch.device(given.device), kept)
        restored(engine, folder)
        found[folder.name] = probe(engine, task, progress=True)
    write_json(given.out / "guidance.json", found)
    write_text(given.out / "guidance.md", table(found))
    print(table(found), end="")
