"""The commands of the page on reproducing SemiDAViL name configurations, grids and keys that exist."""

from __future__ import annotations

import re
import shlex
from itertools import product
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("kornia")

from examples.semidavil.config import CONFIGS, load_config
from examples.semidavil.grid import GRIDS, load_grid

PAGE = Path(__file__).parents[2] / "docs" / "reproducing" / "semidavil.md"
# What the shell's loops of the page put in place of their variables.
LOOPS = {
    "${loss}_$budget": [f"{a}_{b}" for a, b in product(("ce", "wce", "dce", "fl", "dfl"), (200, 2975))],
    "$budget": ["0", "100", "200", "500", "1000", "2975"],
    "$guidance": ["cross_attention", "correlation", "none"],
    "$grid": ["camvid_losses", "camvid_components", "camvid_guidance", "camvid_threshold"],
}


def _commands() -> list[list[str]]:
    blocks = re.findall(r"^```\{code-block\} sh\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if "-m examples." in line]
    return [shlex.split(line.split("-m ", 1)[1].split("; done")[0], comments=True) for line in lines]


def _names(word: str) -> list[str]:
    for variable, values in LOOPS.items():
        if variable in word:
            return [word.replace(variable, value) for value in values]
    return [word]


def test_commands_name_what_exists():
    commands = _commands()
    assert len(commands) > 10
    for module, *words in commands:
        if module.endswith("grid"):
            assert all(load_grid(name) for name in _names(words[1]))
            continue
        overrides = words[words.index("--set") + 1 :] if "--set" in words else []
        assert all(load_config(name, overrides) for name in _names(words[0]))


def test_every_published_configuration_and_grid_has_its_command():
    named = {name for command in _commands() for word in command for name in _names(word)}
    configs = {path.stem for path in CONFIGS.glob("*.toml")} - {
        "smoke",
        "camvid",
        "camvid_short",
        "gta5",
        "synthia",
    }
    for grid in (load_grid(name) for name in named if (GRIDS / f"{name}.toml").is_file()):
        named = named | {row.config.format(budget=budget) for row in grid.rows for budget in grid.budgets}
    assert configs <= named
    assert {path.stem for path in GRIDS.glob("*.toml")} <= named


def test_every_switch_of_the_table_is_a_key():
    """`section.key` in the page's tables, and their values where they are given."""
    config = load_config("smoke")
    keys = re.findall(r"`(data|model|consistency|training)\.(\w+)", PAGE.read_text())
    assert len(keys) > 20
    for section, key in keys:
        assert hasattr(getattr(config, section), key), f"{section}.{key}"
