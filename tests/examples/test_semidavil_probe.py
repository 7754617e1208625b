"""Scores with other captions than the run's own."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

pytest.importorskip("transformers")
pytest.importorskip("kornia")

from semidavil_toy import engine as _engine
from semidavil_toy import toy_config

from examples.semidavil import probe
from examples.semidavil.model.captions import PredictedCaptions
from examples.semidavil.train import train


def test_scores_by_caption(street_folder, tmp_path, monkeypatch, capsys):
    config = toy_config(street_folder)
    config = replace(config, training=replace(config.training, iterations=1))
    metrics = train(config, tmp_path / "run", tmp_path / "kept", progress=False)
    asked = []

    class Noted(probe.GivenCaptions):
        def __call__(self, names, predict):
            (caption,) = super().__call__(names, predict)
            asked.append((names[0], caption))
            return [caption]

    monkeypatch.setattr(probe, "GivenCaptions", Noted)
    probe.main(
        [
            str(tmp_path / "run"),
            "--target",
            str(street_folder),
            "--runs",
            str(tmp_path),
            "--out",
            str(tmp_path),
        ]
    )
    table = capsys.readouterr().out
    assert table == (tmp_path / "guidance.md").read_text()
    assert table.splitlines()[2].startswith("| its own |")
    assert table.splitlines()[2].endswith("| 100.0 |")

    (found,) = json.loads((tmp_path / "guidance.json").read_text()).values()
    assert found["its own"]["iou"] == next(iter(metrics["scores"].values()))["iou"]

    test = next(iter(_engine(config, tmp_path / "kept")[1].tests.values()))
    number = len(test.names)
    own, of_label, another, one = (
        dict(asked[i * number : (i + 1) * number]) for i in range(len(probe.KINDS))
    )
    names = list(test.names)
    assert [another[name] for name in names] == [
        own[name] for name in names[number // 2 :] + names[: number // 2]
    ]
    assert len(set(one.values())) == 1
    labels = {name: test.label(i)[None] for i, name in enumerate(names)}
    composed = PredictedCaptions(metrics["classes"], config.model.scene)
    assert of_label == {name: composed([name], lambda name=name: labels[name])[0] for name in names}


def test_a_run_without_captions(street_folder, tmp_path):
    config = toy_config(street_folder)
    config = replace(config, components=replace(config.components, guidance=False))
    with pytest.raises(ValueError, match="no captions"):
        probe.probe(*_engine(config, tmp_path))
