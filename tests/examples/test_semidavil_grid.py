"""Logs, shipped configurations, grids, the command line, the smoke run."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("kornia")


from examples.__main__ import main
from examples.common.config import read_toml, run_folder
from examples.common.logs import Logs, read_log
from examples.semidavil.config import CONFIGS, load_config
from examples.semidavil.grid import GRIDS, load_grid


def test_logs_drop_the_rows_that_will_come_again(tmp_path):
    with Logs(tmp_path, 0) as logs:
        for step in (1, 2, 3):
            logs.write("log", step, {"loss": step / 2})
    with Logs(tmp_path, 2) as logs:
        logs.write("log", 3, {"loss": 7.0})
    assert read_log(tmp_path / "log.csv") == [
        {"step": 1, "loss": 0.5},
        {"step": 2, "loss": 1.0},
        {"step": 3, "loss": 7.0},
    ]


def test_shipped_configurations_are_valid_and_say_what_they_are():
    paths = sorted(CONFIGS.glob("*.toml"))
    assert paths
    configs = {path.stem: load_config(path) for path in paths}
    assert all(config.note for config in configs.values())
    assert len({json.dumps(config.as_dict()) for config in configs.values()}) == len(configs)


def test_grids_name_valid_runs_that_differ():
    for path in sorted(GRIDS.glob("*.toml")):
        for config in read_toml(path)["configs"]:
            found = load_grid(path.stem, config)
            for budget, seed in product(found.budgets, found.seeds):
                runs = [found.folder(Path(), row, budget, seed) for row in found.rows]
                assert len(set(runs)) == len(runs)
            assert len({row.label for row in found.rows}) == len(found.rows)
    with pytest.raises(FileNotFoundError, match="those here are budgets, camvid_components"):
        load_grid("nonesuch")


def test_a_grid_from_runs_to_its_table(street_folder, tmp_path, capsys):
    path = tmp_path / "tiny.toml"
    path.write_text(
        'title = "Tiny"\nconfigs = ["smoke"]\nbudgets = [1, 2]\nseeds = [0, 1]\n'
        '[[row]]\nlabel = "CE"\nset = [\'loss="CE"\', "training.iterations=1", "training.eval_every=0"]\n'
    )
    folders = [
        "--target",
        str(street_folder),
        "--runs",
        str(tmp_path / "runs"),
    ]
    out = ["--out", str(tmp_path / "out")]
    main(["semidavil", "report", str(path), *folders, *out])
    assert "No run is finished" in capsys.readouterr().out
    main(["semidavil", "grid", str(path), "--budgets", "2", "--device", "cpu", *folders])
    main(["semidavil", "grid", str(path), "--budgets", "1", "--seeds", "1", "--device", "cpu", *folders])
    main(["semidavil", "report", str(path), *folders, *out])
    text = (tmp_path / "out" / "tiny.md").read_text()
    assert "## val_alt, mIoU11\n\n|  | 1 labels | 2 labels |\n| --- | --- | --- |\n| CE | " in text
    assert text.count("± ") == 4  # the caption's, two of the cell with two seeds, one beside its classes
    assert "(1†) | " in text
    assert "(2) |\n" in text
    assert (
        "Runs: 3, of 1 steps; batch 2 of each stream, pieces a step: 1; size of the training images" in text
    )
    assert "32×48; seeds 0, 1; " in text
    assert "## Confident pixels" in text
    rows = json.loads((tmp_path / "out" / "tiny.json").read_text())["rows"]
    run = rows["CE"]["2"][0]
    assert 0 <= run["confident"] <= 1
    assert run["curves"]["confident"] == [[1, run["confident"]]]
    assert run["curves"]["val_alt"] == [[1, run["scores"]["val_alt"]["mean_iou"]["mIoU11"]]]
    assert "By how much of training was done:" in text
    assert [run["seed"] for run in rows["CE"]["2"]] == [0, 1]
    assert len(rows["CE"]["2"][0]["scores"]["val_alt"]["iou"]) == 11
    assert {"commit", "versions", "seconds", "device", "threads", "ranks"} <= rows["CE"]["2"][0].keys()
    assert (tmp_path / "out" / "plots" / "tiny_scores_val_alt.png").is_file()
    assert "![scores of each row on val_alt](plots/tiny_scores_val_alt.png)" in text


def test_the_command_line(street_folder, tmp_path, capsys):
    overrides = ["data.budget=2", "data.streets=2", "training.iterations=1", "training.eval_every=0"]
    main(
        [
            "semidavil",
            "train",
            "smoke",
            "--target",
            str(street_folder),
            "--runs",
            str(tmp_path),
            "--device",
            "cpu",
            "--vision",
            "clip-tiny",
            "--text",
            "clip-tiny",
            "--set",
            *overrides,
        ]
    )
    assert "| mIoU11 | sky |" in capsys.readouterr().out
    folder = run_folder(tmp_path, "smoke", load_config("smoke", overrides).as_dict())
    assert json.loads((folder / "config.json").read_text())["data"]["budget"] == 2
    words = ["semidavil", "train", "smoke", "--target", str(street_folder), "--runs", str(tmp_path)]
    with pytest.raises(ValueError, match="vision must be one of clip:PATH-OR-HUB-NAME"):
        main([*words, "--vision", "resnet"])
    with pytest.raises(SystemExit):
        main(["semidavil", "train"])


def test_the_smoke_run(capsys):
    main(["semidavil", "train", "--smoke", "--device", "cpu"])
    assert "stopped after step 3 and resumed: the same losses, scores" in capsys.readouterr().out
