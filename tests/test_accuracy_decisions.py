"""How much of a score is where a model decides: τ chosen on training images, and what it gives on the test set."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("matplotlib", reason="the plots need the extra [plot]")

from benchmarks.accuracy import __main__ as command_line
from benchmarks.accuracy.collect import read_results
from benchmarks.accuracy.data import BenchmarkData
from benchmarks.accuracy.decisions import decisions_section, scores_by_tau
from benchmarks.accuracy.run import write_json
from examples.common.stored import StoredImages
from tests.examples.conftest import camvid_folder  # noqa: F401 (a fixture)
from tests.test_accuracy_benchmark import finished, tiny  # noqa: F401 (fixtures)


class Logits(nn.Module):
    """The images' channels are the logits."""

    def forward(self, images: Tensor) -> Tensor:
        return 10 * images


def of_prior(classes: tuple[str, ...], shares: list[float], shift: float) -> BenchmarkData:
    """Images whose first channels are logits with shift · log π in them; without it the largest is the label."""
    torch.manual_seed(0)
    prior = torch.tensor(shares)
    labels = torch.randint(len(classes), (4, 6, 6), dtype=torch.uint8)
    own = nn.functional.one_hot(labels.long(), len(classes)).movedim(-1, 1).float()
    logits = 0.5 * own + shift * prior.log().view(1, -1, 1, 1)
    if len(classes) == 2:
        logits = logits[:, 1:] - logits[:, :1]
    low = logits.amin()
    images = ((logits - (low if len(classes) > 2 else 0)) / 10 * 255).round()
    return BenchmarkData(StoredImages(images, labels), {}, classes, 255, (1000 * prior).long())


@pytest.mark.parametrize("shift", [1.0, -0.7])
def test_a_shift_by_the_prior_is_found(shift: float) -> None:
    data = of_prior(("a", "b", "c"), [0.9, 0.08, 0.02], shift)
    found = scores_by_tau(Logits(), data.train, data)
    assert max(found, key=found.__getitem__) == pytest.approx(shift, abs=0.11)
    assert found[shift] == pytest.approx(100)
    assert found[0.0] < 60


@pytest.mark.parametrize("shift", [1.0, -0.7])
def test_so_is_that_of_one_logit(shift: float) -> None:
    data = of_prior(("no", "yes"), [0.9, 0.1], shift)
    found = scores_by_tau(Logits(), data.train, data)
    assert found[shift] == pytest.approx(100)
    assert found[0.0] < 60


def test_tau_0_is_the_run_s_own_score(tiny, finished, camvid_folder, tmp_path):  # noqa: F811
    out = tmp_path / "decided"
    shared = ["--data", str(camvid_folder), "--runs", str(finished), "--out", str(out)]
    assert command_line.main(["report", str(tmp_path / "tiny.toml"), *shared]) == 0
    assert command_line.main(["decide", str(tmp_path / "tiny.toml"), *shared]) == 0
    decided = json.loads((out / "decisions" / "tiny.json").read_text())["losses"]
    results = read_results(out / "tiny.json")
    for label in tiny.labels:
        found = [run["as_it_is"] for run in decided[label]]
        assert found == pytest.approx(results.mean_iou(label, "val_alt"), abs=1e-2)
    assert command_line.main(["report", "--out", str(out)]) == 0
    assert "How much of it is where the models decide" in (out / "README.md").read_text()
    nothing = ["--runs", str(tmp_path / "nothing"), *shared[:2], *shared[4:]]
    assert command_line.main(["decide", str(tmp_path / "tiny.toml"), *nothing]) == 1


def test_leads_are_over_cross_entropy_of_the_same_seeds(tmp_path: Path) -> None:
    def runs(*scores: float) -> list[dict[str, float]]:
        return [{"seed": s, "tau": 0.2, "as_it_is": v - 5, "with_tau": v} for s, v in enumerate(scores)]

    write_json(tmp_path / "decisions" / "g.json", {"losses": {"BCE": runs(40, 42), "DyCE": runs(44, 44, 90)}})
    _, rows = decisions_section(tmp_path, "g")
    assert [cell.strip() for cell in rows.splitlines()[-1].split("|")[2:-1]] == [
        "3", "54.3 ± 26.6", "+0.2", "59.3 ± 26.6", "+3.0",
    ]  # fmt: skip
    assert decisions_section(tmp_path, "another") == []
