"""The commands and switches of the page on reproducing HVL exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from examples.hvl.config import CONFIGS, load_config

PAGE = Path(__file__).parents[2] / "docs" / "reproducing" / "hvl.md"


def _configurations() -> tuple[set[str], list[list[str]]]:
    """What the page's commands name, its loops carried out; and the overrides that it shows."""
    names, overrides = set(), []
    for block in re.findall(r"^```\{code-block\} sh\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        values = {"": [""]}
        for line in block.splitlines():
            if loop := re.match(r"for (\w+) in (.*); do", line):
                values = {loop[1]: loop[2].split()}
            if "-m examples.hvl.train" in line:
                words = shlex.split(line.split("examples.hvl.train", 1)[1], comments=True)
                ((variable, choices),) = values.items()
                looped = f"${variable}" in words[0]
                names |= {
                    words[0].replace(f"${variable}", c) if looped else words[0]
                    for c in (choices if looped else [""])
                }
                overrides.append(words[words.index("--set") + 1 :] if "--set" in words else [])
    return names, overrides


def test_commands_name_every_published_configuration() -> None:
    names, overrides = _configurations()
    assert names == {path.stem for path in CONFIGS.glob("*.toml")} - {"smoke", "camvid"}
    assert any(overrides)
    assert all(load_config("voc", given) for given in overrides)


def test_every_switch_of_the_table_is_a_key() -> None:
    config = load_config("smoke")
    keys = re.findall(r"`(components|weights|model|loss|consistency|training|data)\.(\w+)", PAGE.read_text())
    assert len(keys) > 20
    for section, key in keys:
        assert hasattr(getattr(config, section), key), f"{section}.{key}"
