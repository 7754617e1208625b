"""The whole pipeline on toy data, on a CPU: adaptation and generalisation, evaluation, and resuming."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from examples.common.resumed import run_twice
from examples.common.scenes.toy import write_street_folder
from examples.common.training import one_thread
from examples.t2s_da.config import Config, load_config
from examples.t2s_da.train import train

MODES: Mapping[str, tuple[str, ...]] = {
    "adaptation": (),
    "generalization": (
        'mode="generalization"',
        "components.self_training=false",
        "components.feature_distance=false",
        'translation.engines=["fda", "adain", "weather", "cartoon"]',
        'reweighting.of="none"',
        'pull.negatives_from="source"',
    ),
}


def smoke(overrides: Sequence[str] = (), *, device: str = "cpu") -> dict[str, list[dict[str, float]]]:
    """Train in both modes on toy data, each in one go and with a stop in the middle; print scores, return the logs.

    Raises:
        RuntimeError: two runs differ, so resuming is not exact; or a loss that should be there never was.
    """
    logs = {}
    with TemporaryDirectory() as name, one_thread():
        folder = Path(name)
        target = write_street_folder(folder / "target", size=(48, 64), train=6, test=2)
        styles = write_styles(folder / "styles")
        for mode, switches in MODES.items():
            config = load_config("smoke", [*switches, *overrides])
            translation = replace(config.translation, styles=str(styles))
            config = replace(config, data=replace(config.data, target=str(target)), translation=translation)
            print(f"{mode}\n")
            logs[mode] = _twice(config, folder / mode, folder / "kept", device)
    return logs


def write_styles(folder: Path) -> Path:
    """Write three pictures of one colour each into a folder, and return it."""
    folder.mkdir(parents=True)
    for name, colour in {"dusk": (90, 60, 120), "desert": (210, 160, 90), "sea": (40, 110, 150)}.items():
        Image.new("RGB", (16, 12), colour).save(folder / f"{name}.png")
    return folder


def _twice(config: Config, folder: Path, kept: Path, device: str) -> list[dict[str, float]]:
    """A run in one go and a stopped one, compared."""
    metrics, log = run_twice(train, config, folder, kept, device=device)
    entry = next(iter(metrics["scores"].values()))
    if "ccd" in entry:
        print(f"CCD {entry['ccd']['mean']:.3f}, PDD {entry['pdd']['mean']:.3f}")
    parts = config.components
    names = ["pull"] * parts.pull + ["confident", "target"] * parts.self_training
    names += ["feature_distance"] * parts.feature_distance
    for name in names:
        if not any(row[name] > 0 for row in log):
            raise RuntimeError(f"{name} was 0 in every step: nothing of it was tried")
    return log
