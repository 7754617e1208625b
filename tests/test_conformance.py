"""check_loss: our losses hold its laws, for each law there is a loss that only breaks it, and the report tells."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from cases import CASES, CORE, DEFAULTS, NEUTRAL, Case, over
from conformance_losses import BROKEN, scaled, sound
from torch import nn

from classbalance_losses import FocalLoss
from classbalance_losses.functional import dyce_loss
from classbalance_losses.testing import LAWS, Report, check_loss

NAMES = [law.name for law in LAWS]
SLOW = ("compile", "ranks")  # seconds each; test_compile.py and test_distributed.py have them for every loss
# One row a loss of those with and without a neutral setting. With a fixed vector, classes have more than a name.
ONE_EACH = [
    *{case.loss: case for case in reversed(CORE)}.values(),
    *{c.loss: c for c in reversed(NEUTRAL)}.values(),
]


def skipped(case: Case) -> dict[str, str]:
    """The laws that a row's settings break by design."""
    reasons = dict.fromkeys(SLOW, "tested elsewhere")
    if not case.constant:
        reasons |= dict.fromkeys(
            ("gradcheck", "gradgradcheck"), "its weights move with the logits as constants"
        )
    if any(torch.is_tensor(value) for value in case.settings(4).values()):
        reasons |= {"classes": "a setting names a class", "class_weight": "it is bound already"}
    return reasons


@over(ONE_EACH)
def test_every_loss_of_the_library_holds_every_law(case: Case) -> None:
    loss = partial(case.function, **case.settings(4))
    assert check_loss(loss, neutral=case.neutral, dims=(0, 2), skip=skipped(case))


@over([case for case in ONE_EACH if case.loss != "FocalLoss" or "alpha" not in case.settings(2)])
def test_every_loss_of_one_logit_does(case: Case) -> None:
    loss = partial(case.function, task="binary", **case.settings(2))
    assert check_loss(loss, task="binary", neutral=case.neutral, dims=(0, 2), skip=skipped(case))


@over(DEFAULTS)
def test_every_module_of_the_library_does(case: Case) -> None:
    only = ("reduction", "pixel_weight", "ignored_nan", "all_ignored", "labels")
    report = check_loss(partial(case.module, **case.settings(4)), dims=(1,), only=only)
    assert [result.law for result in report if result.outcome == "holds"] == list(only)


def test_every_loss_is_among_them() -> None:
    assert {case.loss for case in ONE_EACH} == {case.loss for case in CASES}


@pytest.mark.parametrize("law", [name for name in NAMES if name != "ranks"])
def test_a_sound_loss_holds_the_law_and_a_broken_one_does_not(law: str) -> None:
    neutral = law in ("cross_entropy", "class_weight", "pixel_weight")
    assert check_loss(sound, neutral=neutral, only=(law,))[law].outcome == "holds"
    report = check_loss(BROKEN[law], neutral=law == "cross_entropy", only=(law,))
    assert not report
    assert [failure.law for failure in report.failures] == [law]
    assert report[law].expected
    assert report[law].came
    assert report[law].problem is not None


def test_every_law_has_a_loss_that_breaks_it() -> None:
    assert list(BROKEN) == NAMES


@pytest.mark.slow
def test_ranks() -> None:
    assert check_loss(dyce_loss, only=("ranks",))
    report = check_loss(BROKEN["ranks"], only=("ranks",))
    assert "averaged over the ranks" in report["ranks"].expected


@pytest.mark.parametrize(
    ("law", "pixels"),
    [("cross_entropy", 1), ("ignored_nan", 2), ("saturation", 1), ("class_weight", 2), ("all_ignored", 1)],
)
def test_the_input_shown_is_the_smallest(law: str, pixels: int) -> None:
    problem = check_loss(BROKEN[law], neutral=law == "cross_entropy", only=(law,))[law].problem
    assert problem is not None
    assert problem.target.numel() == pixels


def test_what_is_shown_is_python_that_shows_it() -> None:
    result = check_loss(scaled, neutral=True, only=("cross_entropy",))["cross_entropy"]
    shown: dict[str, object] = {"torch": torch}
    exec(str(result.problem), shown)
    assert isinstance(shown["input"], torch.Tensor)
    again = scaled(shown["input"], shown["target"], reduction=shown["reduction"])
    assert f"{again.item():.6g}" in result.came


def plain(input, target):
    return nn.functional.cross_entropy(input, target)


def test_a_law_that_does_not_apply_says_why_and_is_not_counted() -> None:
    only = ("cross_entropy", "reduction", "ignored", "class_weight", "pixel_weight", "ranks", "shift")
    report = check_loss(plain, only=only)
    for law in only[:-1]:
        assert report[law].outcome == "not applicable"
        assert report[law].why
    assert report["shift"].outcome == "holds"
    assert report["half"].outcome == "skipped"
    assert report
    assert not check_loss(plain, only=only[:-1]), "nothing was tried, so nothing is known"


def test_the_report_reads_as_a_table() -> None:
    report = check_loss(scaled, neutral=True, only=("cross_entropy", "shift"), skip={"shift": "because"})
    lines = str(report).splitlines()
    assert lines[0] == "scaled: 1 fails, 24 skipped"
    assert [line.split()[0] for line in lines[2 : 2 + len(LAWS)]] == NAMES
    assert any(line.startswith("cross_entropy") and "FAILS" in line for line in lines)
    assert any(line.startswith("shift") and line.endswith("because") for line in lines)
    assert "  came " in str(report)
    assert str(report["cross_entropy"]) in str(report)
    assert repr(report) == str(report)
    assert [result.law for result in report] == NAMES
    with pytest.raises(KeyError, match="expected one of"):
        report["ranking"]


def test_an_error_of_the_loss_is_what_came() -> None:
    result = check_loss(BROKEN["labels"], only=("labels",))["labels"]
    assert result.came == "TypeError: expected int64"


def test_a_module_is_taken_as_it_is() -> None:
    """Its own ignore_index is the ignored label; its reduction cannot be chosen."""
    module = FocalLoss(gamma=1.0, ignore_index=7)
    report = check_loss(module, only=("ignored", "dropped", "reduction", "pixel_weight"))
    assert report
    assert report["dropped"].outcome == "holds"
    assert report["reduction"].outcome == "not applicable"
    assert report["pixel_weight"].outcome == "holds"
    assert not check_loss(nn.CrossEntropyLoss(ignore_index=3), only=("ignored_nan",))


def test_a_class_is_built_with_the_options() -> None:
    only = ("reduction", "class_weight", "ignored")
    assert check_loss(nn.CrossEntropyLoss, neutral=True, only=only)
    with pytest.raises(KeyError, match="one of"):
        check_loss(partial(FocalLoss, gamma=1.0), only=only)["gamma"]


def _any_keyword(input, target, **options):
    return sound(input, target, **options)


def test_options_may_be_said() -> None:
    report = check_loss(_any_keyword, options=("ignore_index",), only=("dropped",))
    assert report
    assert isinstance(report, Report)
    fixed = check_loss(lambda z, t: sound(z, t, ignore_index=9), ignore_index=9, only=("ignored_nan",))
    assert fixed["ignored_nan"].outcome == "holds"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_fn": _any_keyword}, "Say it"),
        ({"options": ("ignore_label",)}, "wrapper"),
        ({"only": ("speed",)}, "cross_entropy.*got speed"),
        ({"skip": "ranks"}, "collection"),
        ({"num_classes": 1}, "num_classes"),
        ({"dims": ()}, "dims"),
        ({"dims": (4,)}, "dims"),
        ({"loss_fn": lambda z, t, process_group=None: sound(z, t), "only": ("ranks",)}, "top level"),
    ],
)
def test_errors(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_loss(**{"loss_fn": sound, **options})


def test_losses_that_return_no_loss() -> None:
    assert "a float" in check_loss(lambda z, t: 1.0, only=("shift",))["shift"].came
    assert "int64" in check_loss(lambda z, t: t.sum(), only=("shift",))["shift"].came
    assert "without" in check_loss(lambda z, t: z.detach().sum(), only=("shift",))["shift"].came


def one_number_an_image(input, target, *, reduction="mean"):
    terms = sound(input, target, reduction="none").reshape(len(target), -1).mean(1)
    return terms if reduction == "none" else terms.mean()


def class_axis_kept(input, target, *, reduction="mean"):
    terms = sound(input, target, reduction="none").unsqueeze(1) * nn.functional.one_hot(target, 4).movedim(
        -1, 1
    )
    return terms if reduction == "none" else terms.mean()


@pytest.mark.parametrize("loss", [one_number_an_image, class_axis_kept])
def test_terms_of_another_shape_break_one_law_only(loss) -> None:
    """Orders are still compared, of the terms where their places are known, else of their sum."""
    only = ("reduction", "pixels", "classes", "shapes", "layout")
    report = check_loss(loss, only=only, dims=(1, 2))
    assert [failure.law for failure in report.failures] == ["reduction"]
