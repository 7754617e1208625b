"""The commands of the page on reproducing GBW name configurations, grids and keys that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("kornia")

from examples.uda_gbw.config import load_config
from examples.uda_gbw.grid import GRIDS, load_grid
from examples.uda_gbw.panoptic.config import load_config as load_panoptic

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reproducing" / "gbw.md").read_text()
README = (ROOT / "examples" / "uda_gbw" / "README.md").read_text()
MODULES = ("uda_gbw.train", "uda_gbw.grid", "uda_gbw.panoptic.train", "uda_gbw.panoptic.compare")
LOOP = re.search(r"^for grid in (.*); do$", PAGE, re.MULTILINE)


def _commands() -> list[list[str]]:
    lines = [
        line
        for line in (PAGE + README).splitlines()
        if re.match(r"\s*(python|torchrun) .*-m examples\.", line)
    ]
    return [shlex.split(line.split("-m examples.", 1)[1], comments=True) for line in lines]


def test_commands_name_what_exists():
    commands = _commands()
    assert len(commands) > 15
    for module, *words in commands:
        assert module in MODULES
        if module == "uda_gbw.grid":
            assert words[0] in ("run", "report")
            if words[1] != "$grid":
                load_grid(words[1])
        elif module == "uda_gbw.panoptic.compare":
            assert words[0] in ("run", "report")
            load_panoptic(words[1])
        elif words[0] != "--smoke":
            keys = words[words.index("--set") + 1 :] if "--set" in words else []
            (load_panoptic if "panoptic" in module else load_config)(words[0], keys)


def test_every_grid_is_run():
    """The small ones in a loop, those of the published data line by line."""
    assert LOOP is not None
    run = {words[2] for words in _commands() if words[:2] == ["uda_gbw.grid", "run"]} - {"$grid"}
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
