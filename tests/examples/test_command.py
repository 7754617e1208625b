"""The command of all papers; what each does is tested with the paper."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from examples.__main__ import ACTIONS, PAPERS, main

ROOT = Path(__file__).parents[2]
ALL = [path for place in ("docs", "examples", "benchmarks") for path in (ROOT / place).rglob("*.md")]
PAGES = [path for path in (*ROOT.glob("*.md"), *ALL) if "-m examples" in path.read_text(encoding="utf-8")]


def test_without_words_it_lists_papers_and_actions(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    printed = capsys.readouterr().out
    for paper, own in PAPERS.items():
        assert f"{paper}: {', '.join([*ACTIONS, *own])}\n" in printed


def test_every_paper_of_the_folder_is_listed() -> None:
    folders = {path.parent.name for path in (ROOT / "examples").glob("*/train.py")}
    assert folders == {paper for paper in PAPERS if "." not in paper}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["unet"], "no paper 'unet': those here are hvl, semidavil"),
        (["hvl"], "hvl has no action '': it has train, grid, report"),
        (["hvl", "probe"], "hvl has no action 'probe'"),
    ],
)
def test_wrong_words(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(words)
    assert message in capsys.readouterr().err


def test_a_mistake_is_told_in_a_line() -> None:
    command = [sys.executable, "-m", "examples", "semidavil", "train", "nothing"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: no configuration")
    assert "Traceback" not in done.stderr


def test_papers_of_one_process_refuse_torchrun(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("monai")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for words in (["train", "smoke"], ["grid", "acdc_methods"]):
        with pytest.raises(SystemExit):
            main(["synapse_ssl", *words])
        assert "in one process" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["hvl", "train", "--smoke"])
    assert "--smoke is for one process" in capsys.readouterr().err


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_of_the_pages_exist(path: Path) -> None:
    """Of the changelog too: what a reader copies has to be a paper and an action."""
    text = path.read_text(encoding="utf-8")
    for paper, action in re.findall(r"-m examples(?: |\n)([\w.]+)\s+([\w.]+)", text):
        if paper != "PAPER":
            assert action in (*ACTIONS, *PAPERS[paper])
    for module in re.findall(r"-m (examples\.[\w.]+)", text):
        assert hasattr(import_module(module), "main")


def test_pages_are_found() -> None:
    assert {"README.md", "semidavil.md", "gbw.md", "t2s_da.md", "hvl.md", "synapse.md"} <= {
        path.name for path in PAGES
    }
