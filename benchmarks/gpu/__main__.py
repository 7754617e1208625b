"""`python -m benchmarks.gpu first|second --out FOLDER`: steps with a time limit each, written as they end.

They need no .git, no pip and no network: a Python that has torch and Triton for CUDA, and pytest. What a step found
is in FOLDER/STEP.json, and what it printed in FOLDER/STEP.log; `steps.json` has every step's exit code and seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu import targets
from benchmarks.gpu.plan import PLANS, Step
from benchmarks.speed.machine import ROOT


def carry_out(plan: tuple[Step, ...], words: dict[str, str], out: Path) -> int:
    """Run the steps one after the other, each in a process of its own; the first one decides whether to go on."""
    out.mkdir(parents=True, exist_ok=True)
    done: list[dict[str, Any]] = []
    for step in plan:
        if words["device"] not in step.devices:
            continue
        started = time.monotonic()
        with (out / f"{step.name}.log").open("w") as log:
            code = _run(step, words, log)
        done.append({"step": step.name, "code": code, "seconds": round(time.monotonic() - started, 1)})
        (out / "steps.json").write_text(json.dumps(done, indent=1) + "\n")
        print(f"{step.name}: exit {code}, {done[-1]['seconds']} s", flush=True)
        if code and step.needed:
            break
    return max((abs(entry["code"]) for entry in done), default=0)


def _run(step: Step, words: dict[str, str], log: Any) -> int:
    command = [word for part in step.command if (word := part.format(**words))]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "KINETO_LOG_LEVEL": "99"}
    try:
        return subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            timeout=step.limit,
            check=False,
        ).returncode
    except subprocess.TimeoutExpired:
        log.write(f"\nstopped after {step.limit} s\n")
        return 124
    except OSError as error:  # a tool that is not installed
        log.write(f"{error}\n")
        return 127


def one_step(name: str, out: Path, device: str, *, quick: bool) -> None:
    """The process of a step of our own: write its file again after each part."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.json"
    for found in _findings(name, device, quick=quick):
        path.write_text(json.dumps(found, indent=1) + "\n")


def _findings(name: str, device: str, *, quick: bool) -> Iterator[Any]:
    # Imported here, so that a tool that watches the steps of `targets` sees nothing of the others.
    from benchmarks.gpu.answers import answers  # noqa: PLC0415
    from benchmarks.gpu.large import large  # noqa: PLC0415
    from benchmarks.gpu.machine import look  # noqa: PLC0415
    from benchmarks.gpu.timings import timings  # noqa: PLC0415

    def machine(device: str, *, quick: bool) -> Iterator[Any]:
        found = look(device, quick=quick)
        yield found
        if found["triton"].startswith("error"):
            raise SystemExit(f"Triton cannot run here: {found['triton']}")

    steps: dict[str, Callable[..., Iterator[Any]]] = {
        "machine": machine,
        "answers": answers,
        "timings": timings,
        "large": large,
    }
    yield from steps[name](device, quick=quick)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    main = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    main.add_argument("action", choices=(*PLANS, "step", "small", "large-target"))
    main.add_argument("name", nargs="?", help="of a step")
    main.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu")
    main.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    main.add_argument("--data", type=Path, default=ROOT / "data", help="CamVid's folder, for the trainings")
    main.add_argument("--quick", action="store_true", help="tiny sizes: shows that all works")
    return main


def main() -> int:
    """Run a plan, one step, or what a tool watches."""
    options = parser().parse_args()
    options.out = options.out.resolve()
    if options.action in PLANS:
        words = {"python": sys.executable, "device": options.device, "quick": "--quick" * options.quick}
        places = {"out": str(options.out), "data": str(options.data.resolve())}
        return carry_out(PLANS[options.action], words | places, options.out)
    if options.action == "step":
        one_step(options.name, options.out, options.device, quick=options.quick)
    else:
        targets.steps(targets.SMALL if options.action == "small" else targets.LARGE, options.device)
    return 0


if __name__ == "__main__":
    sys.exit(main())
