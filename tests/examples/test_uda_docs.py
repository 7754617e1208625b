"""The commands of the page on reproducing GBW name configurations, grids and keys that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("kornia")

from examples.__main__ import ACTIONS
from examples.uda_gbw.config import load_config
from examples.uda_gbw.grid import GRIDS, load_grid
from examples.uda_gbw.panoptic.config import load_config as load_panoptic

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reproducing" / "gbw.md").read_text()
README = (ROOT / "examples" / "uda_gbw" / "README.md").read_text()
LOOP = re.search(r"^for grid in (.*); do$", PAGE, re.MULTILINE)


def _commands() -> list[list[str]]:
    lines = [
        line
        for line in (PAGE + README).splitlines()
        if re.match(r"\s*(python|torchrun) .*-m examples ", line)
    ]
    return [shlex.split(line.split("-m examples ", 1)[1], comments=True) for line in lines]


def test_commands_name_what_exists():
    commands = _commands()
    assert len(commands) > 15
    for paper, action, *words in commands:
        assert paper in ("uda_gbw", "uda_gbw.panoptic")
        assert action in ACTIONS
        if words[0] in ("$grid", "--smoke"):
            continue
        keys = words[words.index("--set") + 1 :] if "--set" in words else []
        if paper == "uda_gbw.panoptic":
            load_panoptic(words[0], keys)
        else:
            (load_config if action == "train" else load_grid)(words[0], *([keys] if keys else []))


def test_every_grid_is_run():
    """The small ones in a loop, those of the published data line by line."""
    assert LOOP is not None
    run = {words[2] for words in _commands() if words[:2] == ["uda_gbw", "grid"]} - {"$grid"}
    assert {*LOOP[1].split()} | run == {path.stem for path in GRIDS.glob("*.toml")}


def test_switches_that_the_page_names_exist():
    known = load_config("smoke").as_dict()
    named = re.findall(
        r"`(data|model|weighting|entropy|self_training|adversarial|hrda|mic|training)\.(?!py`)(\w+)",
        PAGE + README,
    )
    assert len(named) > 12
    for section, key in named:
        prefix = key.rstrip("_")
        assert any(
            name.startswith(prefix) if key.endswith("_") else name == key for name in known[section]
        ), key
