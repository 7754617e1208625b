"""The commands of the page on reproducing SemiDAViL name configurations, grids and keys that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("kornia")

from examples.__main__ import ACTIONS, PAPERS
from examples.common.config import read_toml
from examples.semidavil.config import CONFIGS, load_config
from examples.semidavil.grid import GRIDS, load_grid
from examples.semidavil.pretrain import parser

PAGE = Path(__file__).parents[2] / "docs" / "reproducing" / "semidavil.md"
LOOP = re.compile(r"^for grid in (.*); do$", re.MULTILINE)


def _commands() -> list[list[str]]:
    """The page's commands, once for each turn of the shell's loops."""
    commands = []
    for block in re.findall(r"^```\{code-block\} sh\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        loop = LOOP.search(block)
        for line in (line for line in block.splitlines() if "-m examples " in line):
            names = loop[1].split() if loop and "$grid" in line else [""]
            command = line.split("-m examples semidavil ", 1)[1]
            commands += [shlex.split(command.replace("$grid", name), comments=True) for name in names]
    return commands


def _grid_of(words: list[str]) -> tuple[str, str]:
    grid = load_grid(words[0], words[words.index("--config") + 1] if "--config" in words else None)
    return words[0], grid.config


def test_commands_name_what_exists():
    commands = _commands()
    assert len(commands) > 20
    for action, *words in commands:
        assert action in (*ACTIONS, *PAPERS["semidavil"])
        if action in ("grid", "report"):
            assert _grid_of(words)
            continue
        if action == "pretraining.report":  # it takes a run's folder
            continue
        if action == "pretrain":
            words.insert(0, parser().parse_args(words).config)
        overrides = words[words.index("--set") + 1 :] if "--set" in words else []
        assert load_config(words[0], overrides)


def test_every_grid_has_its_command_with_each_of_its_configurations():
    run = {_grid_of(words) for action, *words in _commands() if action == "grid"}
    all_of_them = {(path.stem, name) for path in GRIDS.glob("*.toml") for name in read_toml(path)["configs"]}
    assert run == all_of_them
    configs = {path.stem for path in CONFIGS.glob("*.toml")}
    assert configs - {name for _, name in run} == {"pretraining", "smoke"}


def test_the_table_of_the_published_grids_is_theirs():
    rows = re.findall(
        r"^\| (?:Table|Figure)[^|]*\| `(\w+)` \| ([^|]*) \| ([^|]*) \| (\d+)", PAGE.read_text(), re.MULTILINE
    )
    assert len(rows) == 5
    for name, configs, budgets, runs in rows:
        content = read_toml(GRIDS / f"{name}.toml")
        assert re.findall(r"\w+", configs) == content["configs"]
        assert [int(number) for number in budgets.split(", ")] == content["budgets"]
        assert int(runs) == len(content["budgets"]) * len(content["row"])


def test_every_switch_of_the_table_is_a_key():
    """`section.key` in the page's tables, and their values where they are given."""
    config = load_config("smoke")
    keys = re.findall(r"`(data|model|consistency|training)\.(\w+)", PAGE.read_text())
    assert len(keys) > 20
    for section, key in keys:
        assert hasattr(getattr(config, section), key), f"{section}.{key}"
