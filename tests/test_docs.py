"""The Python of README.md and of the docs runs, and every loss has a page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import classbalance_losses

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)

NEEDS = {  # pages about frameworks that need not be installed
    "adapters/mmengine.md": ["mmengine"],
    "adapters/monai.md": ["monai"],
    "docs/how_losses_differ.md": ["monai"],
    "adapters/nnunet.md": ["nnunetv2"],
    "adapters/huggingface.md": ["transformers", "accelerate"],
    "adapters/lightning.md": ["lightning"],
}


def python_of(page: Path) -> str:
    """Join the page's ```python blocks, keeping the line numbers of the page for tracebacks."""
    text = page.read_text(encoding="utf-8")
    lines = [""] * len(text.splitlines())
    for block in BLOCK.finditer(text):
        first = text.count("\n", 0, block.start(1))
        code = block.group(1).splitlines()
        lines[first : first + len(code)] = code
    return "\n".join(lines)


RUNNABLE = [page for page in PAGES if BLOCK.search(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_of_the_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in NEEDS.get("/".join(page.parts[-2:]), []):
        pytest.importorskip(package, reason=f"the page needs {package}: pip install {package}")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    exec(compile(python_of(page), str(page), "exec"), {"__name__": page.stem})


def test_readme_and_quickstart_have_code() -> None:
    assert {ROOT / "README.md", ROOT / "docs" / "quickstart.md"} <= set(RUNNABLE)


@pytest.mark.parametrize("name", [name for name in classbalance_losses.__all__ if name.endswith("Loss")])
def test_every_loss_has_a_page_and_a_line_in_the_readme(name: str) -> None:
    assert name in (ROOT / "README.md").read_text(encoding="utf-8")
    pages = (ROOT / "docs" / "losses").glob("*.md")
    assert any(f"`{name}`" in page.read_text(encoding="utf-8") for page in pages)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_links_into_the_repository_exist(name: str) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / name).read_text(encoding="utf-8"))
    files = [link for link in links if "://" not in link]
    assert files
    assert [link for link in files if not (ROOT / link).exists()] == []


def test_versions_that_the_pages_name_are_those_that_are_tested() -> None:
    """In the table of the frameworks, and above the pairs of libraries that the tests call."""
    tested = dict(re.findall(r"^([\w-]+)==([\d.]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    index = (ROOT / "docs" / "adapters" / "index.md").read_text(encoding="utf-8")
    frameworks = index.partition("tested with")[2].partition("\n\n")[0]
    migrating = (ROOT / "docs" / "migrating.md").read_text(encoding="utf-8")
    libraries = re.findall(r"^## (MONAI|kornia)\n\nVersion ([\d.]+\d)", migrating, re.MULTILINE)
    named = (
        re.findall(r"\b(mmengine|MONAI|ignite|transformers|accelerate|Lightning) ([\d.]+\d)", frameworks)
        + libraries
    )
    assert len(named) == 8
    for name, version in named:
        assert tested[{"ignite": "pytorch-ignite"}.get(name, name.lower())] == version, name
