"""Train the panoptic network on generated streets, with or without GBW in its semantic loss. One process.

    python -m examples.uda_gbw.panoptic.train small --set 'weighting.scheme="gbw"'

RUNS/CONFIG-HASH/config.json     what is run
RUNS/CONFIG-HASH/log.csv         the losses of the heads, learning rate, throughput, memory
RUNS/CONFIG-HASH/weights.csv     the class weights of the semantic loss
RUNS/CONFIG-HASH/checkpoint.pt   where a run that was stopped goes on
RUNS/CONFIG-HASH/metrics.json    the final scores, commit, versions, cost; it ends the run
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from examples.common.command import parse_training, training_parser
from examples.common.config import run_folder
from examples.common.logs import Logs, read_log
from examples.common.loop import Outcome, carry_out, restored
from examples.common.outcome import METRICS, read_metrics
from examples.common.provenance import provenance
from examples.common.streets import CLASSES
from examples.common.training import in_order, write_atomically
from examples.uda_gbw.panoptic.config import Config, load_config
from examples.uda_gbw.panoptic.data import TEST, TRAIN, PanopticStreets, Steps
from examples.uda_gbw.panoptic.engine import Engine
from examples.uda_gbw.panoptic.scores import perfect_outputs, score

RUNS = Path("runs/uda_gbw_panoptic")
HELD_OUT = "streets"  # the test set's name


def train(
    config: Config, folder: Path, *, device: str = "cpu", stop_after: int = 0, progress: bool = True
) -> dict[str, Any]:
    """Carry a run out, or go on with it, and return its metrics; a finished run is not repeated.

    Args:
        config: the run.
        folder: its files.
        device: of torch.
        stop_after: stop after this step with a checkpoint, and return nothing; 0 goes on to the end.
        progress: show progress bars.

    Raises:
        ValueError: the folder has a checkpoint of another configuration.
        FloatingPointError: the loss is not finite.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, when the running step is finished and saved.
    """
    if (folder / METRICS).is_file():
        return read_metrics(folder)
    data, recipe = config.data, config.training
    streets = PanopticStreets(data.streets, data, TRAIN)
    held_out = PanopticStreets(data.test_streets, data, TEST)
    torch.manual_seed(recipe.seed)
    engine = Engine(config, streets.classes(), torch.device(device))
    seconds = restored(engine, folder)
    steps = Steps(streets, data.batch_size, recipe.seed, engine.step, recipe.iterations)
    outcome = carry_out(
        engine,
        in_order(steps, recipe.workers, device),
        folder,
        seconds,
        lambda: {HELD_OUT: engine.evaluate(held_out, progress=progress)},
        record=lambda logs: _log_weights(engine, logs),
        stop_after=stop_after,
        progress=progress,
    )
    if not outcome.finished:
        return {}
    _finish(engine, held_out, folder, outcome)
    return read_metrics(folder)


def _log_weights(engine: Engine, logs: Logs) -> None:
    recipe = engine.config.training
    if engine.step % recipe.log_every == 0 or engine.step == recipe.iterations:
        logs.write("weights", engine.step, dict(zip(CLASSES, engine.class_weights(), strict=True)))


def _finish(engine: Engine, held_out: PanopticStreets, folder: Path, outcome: Outcome) -> None:
    rule = engine.config.instance
    weights = [[row[name] for name in CLASSES] for row in read_log(folder / "weights.csv")]
    metrics = {
        "note": engine.config.note,
        "config": engine.config.as_dict(),
        "scores": outcome.entries[HELD_OUT],
        "ceiling": score(lambda sample: perfect_outputs(sample, rule.sigma), held_out, rule)["panoptic"],
        "weight_range": {
            name: [min(values), max(values)]
            for name, values in zip(CLASSES, zip(*weights, strict=True), strict=True)
        },
        **provenance(engine.device, outcome.seconds, 1),
    }
    text = json.dumps(metrics) + "\n"
    write_atomically(folder / METRICS, lambda path: path.write_text(text))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = training_parser(
        __doc__.split("\n", 1)[0],
        configs="examples/uda_gbw/panoptic/configs",
        overrides="training.seed=1 'weighting.scheme=\"gbw\"'",
        smoke="a few steps on small streets, stopped and resumed",
    )
    parser.add_argument("--runs", type=Path, default=RUNS)
    given = parse_training(parser, arguments, one_process=True)
    if given.smoke:
        from examples.uda_gbw.panoptic.smoke import smoke  # noqa: PLC0415

        smoke(given.set, device=given.device)
        return
    config = load_config(given.config, given.set)
    folder = run_folder(given.runs, Path(given.config).stem, config.as_dict())
    metrics = train(config, folder, device=given.device)
    found = {name: round(100 * value, 1) for name, value in metrics["scores"]["panoptic"]["all"].items()}
    print(f"{found}, in {folder}")


if __name__ == "__main__":
    main()
