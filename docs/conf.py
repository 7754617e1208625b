"""Sphinx configuration: MyST pages, API pages from the docstrings, built with warnings as errors."""

from __future__ import annotations

import re
from importlib.metadata import distribution
from typing import TYPE_CHECKING, Any

from docutils import nodes
from math_core import LatexToMathML

import classbalance_losses

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.writers.html5 import HTML5Translator

project = "classbalance_losses"
author = "The classbalance_losses authors"
copyright = f"2026, {author}"
release = version = classbalance_losses.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "figures"]
default_role = "code"
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3

napoleon_numpy_docstring = False
autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_mock_imports = ["lightning", "mmengine", "nnunetv2"]  # the adapters' pages need none of them
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"

html_theme = "furo"
html_title = f"classbalance_losses {release}"
_FONT = distribution("ziamath").locate_file("ziamath/fonts/STIXTwoMath-Regular.ttf")  # all that is used of it
html_static_path = ["_static", str(_FONT)]
html_css_files = ["pages.css"]
html_favicon = "_static/icon.svg"
html_math_renderer = "mathml"

_MATHML = LatexToMathML()
_LITERAL = re.compile(r"(``.+?``|`.+?`)")


def escape_line(line: str) -> str:
    """Escape the marks that mathematics uses and reStructuredText would read: |H|, (N, C, *)."""
    parts = _LITERAL.split(line)
    parts[::2] = [re.sub(r"(?<!\\)([|*])", r"\\\1", part) for part in parts[::2]]
    return "".join(parts)


def escape_docstring(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Escape the prose of a docstring; leave directives with their blocks, doctests and bullets alone."""
    block_indent = None
    for number, line in enumerate(lines):
        text = line.lstrip()
        indent = len(line) - len(text)
        if block_indent is not None and text and indent <= block_indent:
            block_indent = None
        if text.startswith(".. "):
            block_indent = indent
        if block_indent is None and not text.startswith((">>>", "... ", "* ")):
            lines[number] = escape_line(line)


def draw_formula(page: HTML5Translator, node: nodes.math | nodes.math_block) -> None:
    """Write a formula as MathML, which browsers draw by themselves: no script, and nothing from a network."""
    is_block = isinstance(node, nodes.math_block)
    tag = "div" if is_block else "span"
    page.body.append(page.starttag(node, tag, "", CLASS="math"))
    page.body.append(_MATHML.convert_with_local_state(node.astext(), displaystyle=is_block))
    page.body.append(f"</{tag}>")
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    app.add_html_math_renderer("mathml", (draw_formula, None), (draw_formula, None))
    app.connect(
        "autodoc-process-docstring", escape_docstring, priority=400
    )  # before napoleon adds its own marks
