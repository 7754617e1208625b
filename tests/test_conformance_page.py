"""The page "how losses differ" is what its script makes of the committed results, and tells all of them."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from typing import Any

import pytest

from benchmarks.conformance.contenders import GROUPS, Contender
from benchmarks.conformance.page import PAGE, page_of
from benchmarks.conformance.results import FOLDER, read, tried
from benchmarks.speed.contenders import Skipped
from classbalance_losses.functional import focal_loss
from classbalance_losses.testing import LAWS

RESULTS = read()
LOSSES = [loss for group in RESULTS["groups"] for loss in group["losses"]]


def test_the_page_is_that_of_the_results() -> None:
    text = (FOLDER / PAGE).read_text(encoding="utf-8")
    assert text == page_of(RESULTS), "run: python -m benchmarks.conformance page"


def test_the_results_are_of_todays_contenders_and_laws() -> None:
    names = {title: [contender.name for contender in contenders] for title, contenders in GROUPS.items()}
    assert {g["title"]: [loss["name"] for loss in g["losses"]] for g in RESULTS["groups"]} == names
    assert [law["name"] for law in RESULTS["laws"]] == [law.name for law in LAWS], (
        "run: python -m benchmarks.conformance"
    )


def test_everybody_was_tried_with_a_version() -> None:
    assert all("results" in loss for loss in LOSSES)
    assert all(RESULTS["versions"][loss["package"]] for loss in LOSSES)


def test_every_law_that_fails_is_told_with_what_came() -> None:
    page = page_of(RESULTS)
    failing = [
        (x["name"], law, r) for x in LOSSES for law, r in x["results"].items() if r["outcome"] == "fails"
    ]
    assert failing
    for name, law, result in failing:
        assert f"- {name}, `{law}`: expected" in page
        assert result["came"].replace("`", "'") in page


def group(*losses: dict[str, Any]) -> dict[str, Any]:
    laws = [{"name": "shift", "says": "Shifts do not matter"}]
    return {"versions": {"torch": "2"}, "laws": laws, "groups": [{"title": "Some", "losses": list(losses)}]}


def loss(name: str, package: str, outcome: str) -> dict[str, Any]:
    result: dict[str, Any] = {"outcome": outcome}
    if outcome == "fails":
        result |= {"expected": "1", "came": "2", "input": [1, 4], "dtype": "float64", "options": {}}
    return {"name": name, "package": package, "results": {"shift": result}}


def test_a_peer_that_does_better_is_named() -> None:
    mine, theirs = loss("ours, `f`", "classbalance_losses", "fails"), loss("theirs", "torch", "holds")
    assert "- `shift` does not hold for `f`; it holds for theirs." in page_of(group(mine, theirs))
    swapped = deepcopy(mine) | {"results": theirs["results"]}, deepcopy(theirs) | {"results": mine["results"]}
    assert "does better" not in page_of(group(*swapped))


def test_an_absent_package_is_told() -> None:
    def absent() -> None:
        raise Skipped("kornia is not installed: pip install '.[bench]'")

    row = tried(Contender("theirs", "kornia", absent))
    assert "results" not in row
    page = page_of(group(loss("ours", "classbalance_losses", "holds"), row))
    assert "- theirs: not tried. kornia is not installed" in page


@pytest.mark.parametrize("law", ["shift", "saturation"])
def test_a_contender_is_tried(law: str) -> None:
    row = tried(Contender("ours", "classbalance_losses", lambda: partial(focal_loss, gamma=0.5), only=(law,)))
    assert row["results"][law] == {"outcome": "holds"}
    assert row["results"]["ranks"] == {"outcome": "skipped", "why": "not among those asked for"}
