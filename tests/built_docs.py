"""The built pages as readers get them: `make docs-check` builds them and runs this, in a Chromium if there is one."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from browser import Browser, installed, opened

SITE = Path(__file__).parents[1] / "docs" / "_build" / "html"
PAGES = sorted(str(page.relative_to(SITE)) for page in SITE.rglob("*.html"))
LOADED = re.compile(
    r"""<(?:script|link|img|iframe|source)\b[^>]*?\b(?:src|href)\s*=\s*["']?((?:https?:)?//[^"'> ]*)"""
)
NAME = "classbalance_losses"

FORMULAS = """[...document.querySelectorAll(".math")].filter(formula => {
    const drawn = formula.querySelector("math")
    return !drawn || drawn.getBoundingClientRect().height < 5 || /[\\\\]/.test(drawn.textContent)
}).map(formula => formula.textContent)"""
TOO_WIDE = """[...document.querySelectorAll("article *")].filter(
    part => part.getBoundingClientRect().right > innerWidth + 1 && !part.closest(".table-wrapper, pre, .math")
).map(part => part.outerHTML.slice(0, 200))"""
TEXT = """(() => {
    const text = document.querySelector("article p, article li, article dd")
    return text ? parseFloat(getComputedStyle(text).fontSize) : 99
})()"""
LINES_OF_NAME = f"""(() => {{
    const text = document.querySelector(".sidebar-brand-text").firstChild
    const range = document.createRange()
    const start = text.data.indexOf("{NAME}")
    range.setStart(text, start)
    range.setEnd(text, start + {len(NAME)})
    return range.getClientRects().length
}})()"""
FOUND = """new Promise(resolve => {
    const look = left => {
        const titles = [...document.querySelectorAll("ul.search li > a")].map(link => link.textContent)
        titles.length > 5 || !left ? resolve(titles) : setTimeout(look, 50, left - 1)
    }
    look(100)
})"""

pytestmark = pytest.mark.skipif(not PAGES, reason="the documentation is not built: make docs")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=SITE)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if installed() is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    with opened(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.mark.parametrize("page", PAGES)
def test_a_page_loads_nothing_from_elsewhere(page: str) -> None:
    assert LOADED.findall((SITE / page).read_text(encoding="utf-8")) == []


def test_what_is_loaded_from_elsewhere_is_seen() -> None:
    for tag in (
        '<script defer src="https://a.b/c.js">',
        "<img src=//a.b/c.png>",
        "<link rel='x' href='http://a.b'>",
    ):
        assert LOADED.search(tag)
    assert not LOADED.search('<script src="_static/a.js"></script> <a href="https://a.b">')


def test_formulas_are_mathml() -> None:
    text = (SITE / "losses" / "dyce.html").read_text(encoding="utf-8")
    formulas = re.findall(r'<(?:span|div) class="math">(.{5})', text)
    assert len(formulas) > 20
    assert set(formulas) == {"<math"}


@pytest.mark.parametrize("page", PAGES)
def test_a_page_opens(page: str, browser: Browser, address: str) -> None:
    browser.open(address + page, width=1280)
    assert browser.run(FORMULAS) == []
    assert browser.run(LINES_OF_NAME) == 1
    assert browser.errors() == []
    assert [url for url in browser.requested() if not url.startswith((address, "data:"))] == []


@pytest.mark.parametrize("page", PAGES)
def test_a_page_can_be_read_on_a_telephone(page: str, browser: Browser, address: str) -> None:
    browser.open(address + page, width=400)
    assert browser.run(TOO_WIDE) == []
    assert browser.run("document.documentElement.scrollWidth") <= 400
    assert browser.run(TEXT) >= 14


def test_the_search_finds_an_option(browser: Browser, address: str) -> None:
    browser.open(address + "search.html?q=ignore_index", width=1280)
    assert len(browser.run(FOUND)) > 5
    assert browser.errors() == []
