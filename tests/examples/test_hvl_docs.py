"""The commands and switches of the page on reproducing HVL exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from examples.hvl.config import CONFIGS, load_config
from examples.hvl.grid import GRIDS
from examples.hvl.schedule import with_steps

PAGE = Path(__file__).parents[2] / "docs" / "reproducing" / "hvl.md"


def _configurations() -> tuple[set[str], list[list[str]]]:
    """What the page's commands name, its loops carried out; and the overrides that it shows."""
    names, overrides = set(), []
    for block in re.findall(r"^```\{code-block\} sh\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        values = {"": [""]}
        for line in block.splitlines():
            if loop := re.match(r"for (\w+) in (.*); do", line):
                values = {loop[1]: loop[2].split()}
            if "-m examples hvl train" in line:
                words = shlex.split(line.split("-m examples hvl train", 1)[1], comments=True)
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
    untold = {"smoke", "camvid", "voc_1464"}  # the last is a grid's
    assert names == {path.stem for path in CONFIGS.glob("*.toml")} - untold
    assert any(overrides)
    assert all(load_config("voc", given) for given in overrides)


def test_commands_name_every_published_grid() -> None:
    """Those of the paper's data; what is run on CamVid is told with its results."""
    text = PAGE.read_text()
    for path in {*GRIDS.glob("*.toml")} - {*GRIDS.glob("camvid*.toml")}:
        assert re.search(rf"hvl grid .*\b{path.stem}\b", text), path
    assert all((GRIDS / f"{name}.toml").is_file() for name in re.findall(r"hvl grid (\w+)", text))


def test_steps_of_the_page_are_those_of_the_epochs() -> None:
    """The published splits have the rest of a data set as unlabelled."""
    images = {"voc": 10_582, "coco": 118_287, "ade20k": 20_210, "cityscapes": 2_975}
    rows = {}
    for name in ("epochs", "steps with the fewest labels"):
        (line,) = re.findall(rf"^\| {name} \|(.*)\|$", PAGE.read_text(), re.MULTILINE)
        rows[name] = [int(cell.replace(" ", "")) for cell in line.split("|")]
    for i, (name, number) in enumerate(images.items()):
        config = load_config(name)
        steps = with_steps(config, number - config.data.budget).training.iterations
        assert (config.training.epochs, steps) == tuple(row[i] for row in rows.values())


def test_every_switch_of_the_table_is_a_key() -> None:
    config = load_config("smoke")
    keys = re.findall(r"`(components|weights|model|loss|consistency|training|data)\.(\w+)", PAGE.read_text())
    assert len(keys) > 20
    for section, key in keys:
        assert hasattr(getattr(config, section), key), f"{section}.{key}"
