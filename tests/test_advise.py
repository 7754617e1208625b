"""The command that says what to start from: the first rule that applies, and numbers that the result files have."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from test_stats import save_png

pytest.importorskip("matplotlib", reason="the studies' code draws")

from benchmarks.accuracy.collect import read_results
from benchmarks.accuracy.decisions import decisions_section
from benchmarks.accuracy.study import baseline_of, paired_difference, study_table
from classbalance_losses import advise
from classbalance_losses.advise import RULES, Labels, advice

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"


def lead(grid: str, label: str) -> str:
    """A loss's lead over cross-entropy, as a sentence has it."""
    results = read_results(RESULTS / f"{grid}.json")
    return f"{paired_difference(results, label, str(baseline_of(results)))[0]:.1f}"


def after(label: str) -> str:
    """Its lead on cracks where each loss's models decide by a number of their own."""
    _, rows = decisions_section(RESULTS / "cracks", "study_cracks")
    (row,) = (row for row in rows.splitlines() if row.split("|")[1].strip() == label)
    return row.split("|")[-2].strip().removeprefix("+")


@pytest.mark.parametrize(
    ("task", "shares", "rule"),
    [
        ("binary", [0.015], 0),
        ("binary", [0.3], 3),
        ("binary", [0.0001], 4),
        ("multiclass", [0.97, 0.02, 0.01], 1),
        ("multiclass", [0.7, 0.29, 0.01], 2),
        ("multiclass", [0.9, 0.1, 0.0], 3),  # what never occurs is not rare
        ("multiclass", [0.99, 0.0099, 0.0001], 4),
        ("multiclass", [0.8, 0.17, 0.03], 4),
        ("multilabel", [0.01, 0.2], 4),
        ("multiclass", [0.0, 0.0], 4),
    ],
)
def test_the_first_rule_that_applies(task: str, shares: list[float], rule: int) -> None:
    labels = Labels(task, {f"class {k}": share for k, share in enumerate(shares)})
    page = advice(labels)
    assert RULES[rule].start in page
    assert page.count("start from") == 1
    assert ("never seen" in page) == (0.0 in shares)


def test_the_numbers_are_those_of_the_results() -> None:
    said = RULES[0].measured
    assert f"IoU {lead('cracks/study_cracks', 'DyCE')} points over cross-entropy after 200 steps" in said
    assert f"{lead('cracks/study_cracks', 'DyCE + Dice')} with DiceLoss" in said
    assert f"by frequency lost {lead('cracks/study_cracks', 'weighted BCE').removeprefix('-')}" in said
    decided = [after(name) for name in ("DyCE", "DyCE + Dice", "weighted BCE")]
    assert f"for each run: {decided[0]}, {decided[1]}, and {decided[2].removeprefix('-')} lost" in said
    table = study_table(read_results(RESULTS / "cracks/study_cracks.json"))
    shares = {row.split("|")[1].strip(): float(row.split("|")[5]) for row in table.splitlines()[2:]}
    assert f"{shares['DyCE']:.1f} times the object, or {shares['DyCE + Dice']:.1f} with" in RULES[0].watch
    said = RULES[1].measured
    assert f"the structures {lead('acdc/study_acdc', 'MONAI DiceCE')} points over" in said
    assert f"DyCELoss {lead('acdc/study_acdc', 'DyCE')}," in said
    assert f"by frequency lost {lead('acdc/study_acdc', 'WCE').removeprefix('-')}" in said
    assert f"organs of abdomens {lead('chaos/study_chaos', 'MONAI DiceCE')}," in said
    assert f"DyCELoss lost {lead('chaos/study_chaos', 'DyCE').removeprefix('-')}" in said
    rates = read_results(RESULTS / "acdc/study_acdc.json").rate_scores["CE"]
    assert f"gained {rates['0.008'] - rates['0.002']:.1f} points from 0.002 to 0.008" in RULES[1].watch
    said = RULES[2].measured
    assert f"{lead('camvid-small/compare', 'DyCE')} points over cross-entropy after 300 steps" in said
    assert f"{lead('camvid-small/long', 'DyCE')} after 1500" in said
    own = [lead("camvid-small/study_camvid", name) for name in ("DyCE", "DyCE + Dice", "WCE, root")]
    assert f"DyCELoss {own[0]}, with DiceLoss {own[1]}, weights by the root {own[2]}" in said


def test_frequent_classes_gain_nothing() -> None:
    """What is said of classes with 5 % of the pixels and more, by every loss of the three grids."""
    gains = []
    for name in ("compare", "long", "study_camvid"):
        results = read_results(RESULTS / f"camvid-small/{name}.json")
        base = np.array(results.class_iou("CE", results.tests[0]))
        frequent = np.array(results.shares) >= 0.05
        gains += [
            (np.array(results.class_iou(of, results.tests[0])) - base)[frequent] for of in results.labels
        ]
    most, least = (float(f) for f in re.findall(r"\d+\.?\d*", RULES[3].measured))
    assert np.max(gains) == pytest.approx(most, abs=0.05)
    assert np.min(gains) == pytest.approx(-least, abs=0.05)


def test_every_page_that_is_named_is_there() -> None:
    for rule in RULES:
        assert (ROOT / rule.where).is_file()


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mask = np.zeros((40, 50), np.uint8)
    mask[:4, :10] = 1  # 2 %
    save_png(tmp_path / "0.png", mask)
    assert advise.main([str(tmp_path), "--ignore-index", "255"]) == 0
    out = capsys.readouterr().out
    assert "2.00%" in out
    assert RULES[0].start in out
    save_png(tmp_path / "0.png", 1 - mask)
    for task in ("multiclass", "binary"):
        assert advise.main([str(tmp_path), "--task", task]) == 0
        assert " 2.00%" in capsys.readouterr().out  # the smaller of the two
    assert advise.main([str(tmp_path / "none")]) == 1
    assert "Error" in capsys.readouterr().err
    assert advise.main([str(tmp_path), "--workers", "0"]) == 1
