"""The whole pipeline on toy data, on a CPU: adaptation and generalisation, evaluation, and resuming."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from examples.common.outcome import TABLES
from examples.common.resumed import Metrics, check_resumed
from examples.common.scenes.toy import write_street_folder
from examples.common.training import one_thread
from examples.t2s_da.config import Config, load_config
from examples.t2s_da.train import train

MODES: Mapping[str, tuple[str, ...]] = {
    "adaptation": (),
    "generalization": (
        'mode="generalization"',
        "components.self_training=false",
        'translation.engine="photometric"',
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
        for mode, switches in MODES.items():
            config = load_config("smoke", [*switches, *overrides])
            config = replace(config, data=replace(config.data, target=str(target)))
            print(f"{mode}\n")
            logs[mode] = _twice(config, folder / mode, folder / "kept", device)
    return logs


def _twice(config: Config, folder: Path, kept: Path, device: str) -> list[dict[str, float]]:
    """A run in one go and a stopped one, compared."""
    whole = folder / "whole"
    metrics = train(config, whole, kept, device=device, progress=False)
    print((whole / TABLES).read_text())
    entry = next(iter(metrics["scores"].values()))
    if "ccd" in entry:
        print(f"CCD {entry['ccd']['mean']:.3f}, PDD {entry['pdd']['mean']:.3f}")

    def again(place: Path, stop_after: int) -> Metrics:
        return train(config, place, kept, device=device, stop_after=stop_after, progress=False)

    log = check_resumed(again, whole, config.training.iterations)
    names = ["pull"] * config.components.pull + ["confident", "target"] * config.components.self_training
    for name in names:
        if not any(row[name] > 0 for row in log):
            raise RuntimeError(f"{name} was 0 in every step: nothing of it was tried")
    return log
