"""Every family on toy data with GBW, in a minute on a CPU: adaptation, class weights, evaluation, resume."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from examples.common.logs import read_log
from examples.common.resumed import Metrics, check_resumed
from examples.common.scenes.toy import write_street_folder
from examples.common.training import one_thread
from examples.uda_gbw.config import load_config
from examples.uda_gbw.train import train

RUNS: Mapping[str, Sequence[str]] = {
    "source only": ['method="source_only"'],
    "entropy": ['method="entropy"'],
    "ADVENT": ['method="advent"'],
    "AdaptSegNet": ['method="adaptsegnet"', "adversarial.feature_level=true"],
    "DACS": ['method="dacs"'],
    "DAFormer": ['method="daformer"', 'model.decoder="context"', "data.rare_class_sampling=true"],
    "DAFormer + HRDA + MIC": [
        'method="daformer"',
        'model.decoder="context"',
        "data.rare_class_sampling=true",
        "hrda.enabled=true",
        "mic.enabled=true",
    ],
}


def smoke(overrides: Sequence[str] = (), *, device: str = "cpu") -> dict[str, dict[str, Any]]:
    """Train each family for a few steps, the last one once more with a stop; print scores, return all metrics.

    Raises:
        RuntimeError: the stopped run differs, so resuming is not exact; or GBW left all weights at 1.
    """
    found = {}
    with TemporaryDirectory() as name, one_thread():
        folder = Path(name)
        target = str(write_street_folder(folder / "target", size=(48, 64), train=6, test=2))
        for number, (label, family) in enumerate(RUNS.items()):
            config = load_config("smoke", [*family, *overrides])
            config = replace(config, data=replace(config.data, target=target))
            place = folder / str(number)
            metrics = found[label] = train(config, place, folder / "kept", device=device, progress=False)
            log, weights = read_log(place / "log.csv"), metrics["class_weights"]
            if config.weighting.scheme == "gbw" and not _moved(weights):
                raise RuntimeError(f"{label}: GBW left every class weight at 1: {weights}")
            score = next(iter(metrics["scores"]["val_alt"]["mean_iou"].values()))
            print(
                f"{label}: loss {log[0]['loss']:.3f} to {log[-1]['loss']:.3f}, mean IoU {100 * score:.1f} %"
            )

        def again(place: Path, stop_after: int) -> Metrics:
            return train(config, place, folder / "kept", device=device, stop_after=stop_after, progress=False)

        check_resumed(again, place, config.training.iterations, same=("scores", "class_weights"))
    return found


def _moved(weights: Mapping[str, Any]) -> bool:
    return all(any(abs(v - 1) > 1e-3 for row in one["weights"] for v in row) for one in weights.values())
