"""Caption a task's images with BLIP-2, once: python -m examples semidavil caption CONFIG --out captions.json."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from examples.common.scenes.task import load_task
from examples.semidavil.config import load_config
from examples.semidavil.model.blip2 import Blip2, write_captions
from examples.semidavil.train import add_folders, with_folders


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the captions of source, target and test images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="a file, or a name in examples/semidavil/configs")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="as for `train`")
    parser.add_argument("--model", default="Salesforce/blip2-opt-2.7b", help="a folder or a hub name")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file; captions in it are kept")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, default=8)
    add_folders(parser)
    parser.add_argument("--runs", type=Path, default=Path("runs/semidavil"), help="(%(default)s)")
    given = parser.parse_args(arguments)
    task = load_task(with_folders(load_config(given.config, given.set), given).data, given.runs / "kept")
    domains = [task.source, task.target, *task.tests.values()]
    captions = write_captions(
        domains, Blip2.load(given.model, given.device), given.out, batch_size=given.batch_size
    )
    print(f"{len(captions)} captions in {given.out}")
