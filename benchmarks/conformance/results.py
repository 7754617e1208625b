"""From the contenders to a result file: every law on every loss, with versions."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.conformance.contenders import GROUPS, Contender
from benchmarks.speed.contenders import Skipped
from classbalance_losses import __version__
from classbalance_losses.testing import LAWS, Result, check_loss

FOLDER = Path(__file__).parents[1] / "results" / "conformance"
FILE = "conformance.json"


def run() -> dict[str, Any]:
    """Try everybody, and say so as it goes."""
    groups = []
    for title, contenders in GROUPS.items():
        losses = []
        for contender in contenders:
            losses.append(tried(contender))
            print(f"{title}: {contender.name}: {_in_a_line(losses[-1])}", flush=True)
        groups.append({"title": title, "losses": losses})
    return {
        "versions": versions(),
        "laws": [{"name": law.name, "says": law.says} for law in LAWS],
        "groups": groups,
    }


def tried(contender: Contender) -> dict[str, Any]:
    """One contender's results, or why there are none."""
    row: dict[str, Any] = {"name": contender.name, "package": contender.package}
    try:
        loss = contender.loss()
    except Skipped as reason:
        return {**row, "skipped": str(reason)}
    report = check_loss(loss, neutral=contender.neutral, dims=contender.dims, only=contender.only)
    found = {result.law: _plain(result, contender.notes.get(result.law, "")) for result in report}
    return {**row, "dims": list(contender.dims), "results": found}


def _plain(result: Result, note: str) -> dict[str, Any]:
    """A result without its tensors."""
    plain: dict[str, Any] = {"outcome": result.outcome}
    if result.why:
        plain["why"] = result.why
    if result.problem is not None:
        plain |= {"expected": result.expected, "came": result.came}
        plain["input"] = list(result.problem.input.shape)
        plain["dtype"] = str(result.problem.input.dtype)[6:]
        plain["options"] = {k: v for k, v in result.problem.options.items() if not torch.is_tensor(v)}
    return {**plain, "note": note} if note else plain


def _in_a_line(loss: dict[str, Any]) -> str:
    if "skipped" in loss:
        return str(loss["skipped"])
    failing = [law for law, result in loss["results"].items() if result["outcome"] == "fails"]
    return f"fails {', '.join(failing)}" if failing else "no law fails"


def versions() -> dict[str, str | None]:
    """Of Python and of every package that takes part; None where it is not installed."""
    packages = {contender.package for contenders in GROUPS.values() for contender in contenders}
    others = sorted(packages - {"torch", "classbalance_losses"})
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "classbalance_losses": __version__,
        **{package: _installed(package) for package in others},
    }


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def read(folder: Path = FOLDER) -> dict[str, Any]:
    """The committed results."""
    results: dict[str, Any] = json.loads((folder / FILE).read_text(encoding="utf-8"))
    return results


def write(results: dict[str, Any], folder: Path = FOLDER) -> None:
    """Put them there."""
    text = json.dumps(results, indent=1, ensure_ascii=False, sort_keys=False)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")
