"""Each example stands alone: it imports the library, `examples.common` and itself."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def imported(file: Path) -> set[str]:
    """The parts of `examples` that a file imports, inside functions too."""
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    modules = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    modules += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return {module.split(".")[1] for module in modules if module.startswith("examples.")}


@pytest.mark.parametrize("example", sorted(p.parent.name for p in EXAMPLES.glob("*/__init__.py")))
def test_examples_share_common_alone(example: str) -> None:
    files = sorted((EXAMPLES / example).rglob("*.py"))
    others = {str(file): imported(file) - {"common", example} for file in files}
    assert {file: names for file, names in others.items() if names} == {}
