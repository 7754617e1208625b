"""The accuracy benchmark: grids, runs, results, tables and plots, at a size that takes seconds."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib", reason="the plots need the extra [plot]")

from benchmarks.accuracy import __main__ as command_line
from benchmarks.accuracy import plots, pool
from benchmarks.accuracy.collect import GridResults, collect, read_results
from benchmarks.accuracy.cost import cost_path, measure_cost
from benchmarks.accuracy.data import load_data
from benchmarks.accuracy.grid import GRIDS, Grid, RunConfig, load_grid
from benchmarks.accuracy.losses import build_loss
from benchmarks.accuracy.predictions import predictions_figure
from benchmarks.accuracy.report import write_report
from benchmarks.accuracy.run import METRICS, execute, is_finished, write_json
from benchmarks.accuracy.table import class_table, summary_table
from classbalance_losses import DyCELoss
from examples.common.figures import save_figure
from examples.common.streets import Streets
from tests.examples.conftest import camvid_folder  # noqa: F401 (a fixture)

STUDY = load_grid("study_camvid")

TINY = """
title = "Tiny"
seeds = [0, 1]

[data]
kind = "camvid"
name = "tiny"
train = "train_alt"
tests = ["val_alt", "val"]

[model]
encoder = "unet"

[training]
iterations = 4
batch_size = 2
log_every = 1
eval_every = 2

[[loss]]
label = "CE"
name = "CrossEntropyLoss"

[[loss]]
label = "WCE"
name = "WeightedCrossEntropyLoss"
kwargs = { weight = "pixel_frequency" }

[[loss]]
label = "GBW"
name = "GBWLoss"
kwargs = { regularization = 0.5 }
"""


@pytest.fixture
def tiny(tmp_path: Path, camvid_folder: Path) -> Grid:  # noqa: F811
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return command_line.for_folder(load_grid(path), camvid_folder)


@pytest.fixture
def finished(tiny: Grid, tmp_path: Path, camvid_folder: Path) -> Path:  # noqa: F811
    for _, config in tiny.runs():
        execute(config, tmp_path / "runs", camvid_folder)
    return tmp_path / "runs"


@pytest.mark.parametrize("spec", STUDY.losses, ids=STUDY.labels)
def test_every_contender_of_many_classes_leaves_out_what_is_ignored(spec, tiny, camvid_folder, tmp_path):  # noqa: F811
    if "." in spec["name"]:
        pytest.importorskip(spec["name"].split(".")[0])
    data = load_data(tiny.data, camvid_folder, tmp_path)
    data = replace(data, pixel_counts=torch.arange(1, 1 + len(data.classes)))
    loss = build_loss(spec, data)
    target = torch.randint(len(data.classes), (2, 8, 8))
    target[:, :3] = data.ignore_index
    values = []
    for left_out in (0.0, 7.0):
        logits = torch.randn(2, len(data.classes), 8, 8, generator=torch.Generator().manual_seed(1))
        logits[:, 0, :3] = left_out
        value = loss(logits.requires_grad_(), target)
        (gradient,) = torch.autograd.grad(value, logits)
        assert (gradient[:, :, :3] == 0).all()
        assert (gradient[:, :, 3:] != 0).any()
        values.append(value.item())
    assert values[0] == values[1] > 0


@pytest.mark.parametrize("name", ["monai.DiceCELoss", "kornia.LovaszSoftmaxLoss"])
def test_a_peer_of_whole_images_has_its_own_value(name, tiny, camvid_folder, tmp_path):  # noqa: F811
    package = pytest.importorskip(f"{name.split('.')[0]}.losses")
    kwargs = {"softmax": True, "to_onehot_y": True} if "monai" in name else {}
    data = load_data(tiny.data, camvid_folder, tmp_path)
    logits, target = torch.randn(2, len(data.classes), 8, 8), torch.randint(len(data.classes), (2, 8, 8))
    own = getattr(package, name.split(".")[1])(**kwargs)(logits, target.unsqueeze(1) if kwargs else target)
    torch.testing.assert_close(build_loss({"name": name, "kwargs": kwargs}, data)(logits, target), own)


def test_the_page_says_what_a_step_costs(tiny, finished, camvid_folder, tmp_path):  # noqa: F811
    out = tmp_path / "out"
    collect(tiny, finished, out)
    cost = measure_cost(tiny, camvid_folder, tmp_path, rounds=1)
    images = 4 * math.prod(cost["batch"])
    assert all(of["ms"] > 0 and of["peak"] > of["kept"] > images / 2**20 for of in cost["losses"].values())
    write_json(cost_path(out, tiny.name), cost)
    page = write_report(out).read_text()
    assert f"on images {tuple(cost['batch'])}" in page
    assert f" {cost['losses']['GBW']['ms'] / cost['losses']['CE']['ms']:.2f} |" in page
    assert "recall, rarest 2" in page  # of three classes


def _fake_results(path: Path, name: str, losses: dict[str, dict], iterations: int = 300) -> None:
    """A result file as `collect` writes it, with made-up scores."""
    classes = ["road", "car", "pole", "sign", "person", "bike", "ghost"]
    runs = []
    for position, (label, loss) in enumerate(losses.items()):
        for seed in (0, 1, 2):
            iou = [0.9 - 0.1 * c + 0.01 * position + 0.001 * seed for c in range(6)] + [None]
            scores = {"mean_iou": 0.65 + 0.01 * position + 0.001 * seed, "iou": iou, "pixel_accuracy": 0.9}
            log = [
                {"step": step, "loss": 1.0} | scores | ({"class_weight": [1.0] * 7} if "GBW" in label else {})
                for step in (iterations // 2, iterations)
            ]
            runs.append(
                {
                    "label": label,
                    "loss": loss,
                    "seed": seed,
                    "scores": {"val_alt": scores, "val": scores},
                    "log": log,
                }
            )
    recipe = {
        "data": {"kind": "camvid", "name": "fake", "train": "train_alt"},
        "model": {"encoder": "unet"},
        "training": {
            "iterations": iterations, "batch_size": 8, "max_lr": 2e-3, "weight_decay": 0.01, "flip": True
        },
    }  # fmt: skip
    content = {
        "grid": name,
        "title": name.title(),
        "recipe": recipe,
        "classes": classes,
        "train_pixel_share": [0.6, 0.3, 0.05, 0.03, 0.015, 0.005, 0.0],
        "runs": runs,
    }
    path.mkdir(parents=True, exist_ok=True)
    (path / f"{name}.json").write_text(json.dumps(content))


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    losses = {
        "CE": {"name": "CrossEntropyLoss", "kwargs": {}},
        "GBW": {"name": "GBWLoss", "kwargs": {"regularization": 1.0}},
        "DyCE": {"name": "DyCELoss", "kwargs": {"omega": 0.5}},
    }
    _fake_results(folder, "compare", losses)
    _fake_results(folder, "long", losses, iterations=1500)
    omegas = {
        f"ω={o}": {"name": "DyCELoss", "kwargs": {"omega": o, "hard_fraction": 0.2}} for o in (0.5, 0.0, 1.0)
    }
    _fake_results(folder, "ablation_omega", omegas)
    return folder


def _fake(results: Path, name: str = "compare") -> GridResults:
    return read_results(results / f"{name}.json")


@pytest.mark.parametrize("name", sorted(path.stem for path in GRIDS.glob("*.toml")))
def test_every_committed_grid_builds_its_losses(name, tmp_path):
    grid = load_grid(name)
    tiny = {"kind": "streets", "size": [16, 16], "train": 1, "test": 1}
    data = load_data(tiny, None, tmp_path)
    data = replace(data, pixel_counts=data.pixel_counts.clamp(min=1))  # so small a street lacks some classes
    labels = data.train[0][1][None]
    if grid.data["name"] == "cracks":
        data = replace(data, classes=("asphalt", "crack"), pixel_counts=torch.tensor([98, 2]))
        labels = torch.where(labels == data.ignore_index, labels, labels % 2)
    for _, config in grid.runs():
        loss = build_loss(config.loss, data)
        logits = torch.randn(1, data.logits, 16, 16, requires_grad=True)
        loss(logits, labels).backward()
        assert logits.grad.isfinite().all()
    assert list(tmp_path.glob("streets-*.npz"))


def test_grids_share_the_runs_that_they_have_in_common():
    keys = {
        name: {config.key for _, config in load_grid(name).runs()} for name in ("compare", "ablation_omega")
    }
    assert len(keys["compare"] & keys["ablation_omega"]) == 2 * 3  # ω = 0.5 and ω = 1, three seeds
    config = load_grid("compare").runs()[0][1]
    assert replace(config, seed=9).key != config.key
    assert RunConfig(**json.loads(json.dumps(config.as_dict()))).key == config.key


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('title = "Tiny"', "", "lacks the key 'title'"),
        ("iterations = 4", "steps = 4", r"does not know \['steps'\]"),
        ('label = "WCE"', 'label = "CE"', "same label"),
    ],
)
def test_a_broken_grid_is_told(tmp_path, old, new, message):
    path = tmp_path / "broken.toml"
    path.write_text(TINY.replace(old, new))
    with pytest.raises(ValueError, match=message):
        load_grid(path)


def test_an_unknown_grid_lists_the_known_ones():
    with pytest.raises(FileNotFoundError, match="ablation_omega, camvid_gpu, compare, compare_binary, demo"):
        load_grid("nonsense")


def test_a_folder_without_split_lists_uses_train_and_val(camvid_folder):  # noqa: F811
    grid = load_grid("compare")
    assert command_line.for_folder(grid, camvid_folder).data["tests"] == ["val_alt", "val"]
    for path in (camvid_folder / "splits").iterdir():
        path.unlink()
    data = command_line.for_folder(grid, camvid_folder).data
    assert (data["name"], data["train"], data["tests"]) == ("tiny-camvid", "train", ["val"])
    with pytest.raises(ValueError, match="needs --data FOLDER"):
        command_line.for_folder(grid, None)


def test_runs_leave_their_configuration_log_scores_and_weights(tiny, finished, camvid_folder):  # noqa: F811
    _, config = tiny.runs()[0]
    folder = finished / config.folder_name
    metrics = json.loads((folder / METRICS).read_text())
    assert {path.name for path in folder.iterdir()} == {"config.json", "log.jsonl", METRICS, "model.pt"}
    assert json.loads((folder / "config.json").read_text()) == config.as_dict()
    assert set(metrics["scores"]) == {"val_alt", "val"}
    assert set(metrics["versions"]) == {"python", "torch", "numpy", "classbalance_losses"}
    assert set(metrics["device"]) == {"type", "name"}
    assert sum(metrics["train_pixel_share"]) == pytest.approx(1)
    written = (folder / METRICS).stat().st_mtime_ns
    execute(config, finished, camvid_folder)
    assert (folder / METRICS).stat().st_mtime_ns == written  # finished: not run again


def test_results_of_real_runs_make_tables_and_a_page(tiny, finished, tmp_path, camvid_folder):  # noqa: F811
    out = tmp_path / "out"
    path = collect(tiny, finished, out)
    results = read_results(path)
    assert results.labels == ["CE", "WCE", "GBW"]
    assert results.seeds_of("GBW") == [0, 1]
    assert all(0 <= value <= 100 for value in results.mean_iou("CE", "val_alt"))
    assert [e["step"] for e in next(results.of("GBW")).log if "mean_iou" in e] == [2, 4]
    assert all(sum(e["class_weight"]) == pytest.approx(3, abs=1e-4) for e in next(results.of("GBW")).log)
    figure = predictions_figure(tiny, finished, camvid_folder, images=1)
    save_figure(figure, out / "plots" / "tiny_predictions.png")
    page = write_report(out).read_text()
    assert "tiny_predictions.png" in page
    assert collect(replace(tiny, seeds=(7,)), finished, out) is None
    before = path.read_text()
    assert collect(tiny, tmp_path / "no-runs-here", out) == path
    assert path.read_text() == before  # runs of another machine stay
    assert predictions_figure(replace(tiny, seeds=(7,)), finished, camvid_folder) is None


def test_processes_side_by_side_and_a_failure_among_them(tiny, tmp_path, camvid_folder):  # noqa: F811
    good = tiny.runs()[0][1]
    bad = replace(good, loss={"name": "NoSuchLoss", "kwargs": {}})
    with pytest.raises(pool.RunError, match=r"(?s)NoSuchLoss.*failed.*has no loss 'NoSuchLoss'"):
        pool.run_all([good, bad, good], tmp_path / "runs", camvid_folder, jobs=2, progress=False)
    assert is_finished(good, tmp_path / "runs")
    assert not is_finished(bad, tmp_path / "runs")
    pool.run_all([good], tmp_path / "runs", camvid_folder, progress=False)


def test_the_command_line_runs_and_reports(tiny, finished, tmp_path, camvid_folder, capsys):  # noqa: F811
    grid, out = str(tmp_path / "tiny.toml"), tmp_path / "out"
    shared = ["--data", str(camvid_folder), "--runs", str(finished)]
    assert command_line.main(["run", grid, *shared, "--jobs", "1"]) == 0  # all finished: nothing to do
    assert command_line.main(["report", grid, *shared, "--seeds", "0", "--out", str(out)]) == 0
    assert read_results(out / "tiny.json").seeds_of("CE") == [0]
    assert command_line.main(["report", "--out", str(out)]) == 0
    assert "README.md" in capsys.readouterr().out
    assert command_line.main(["compare", "--data", str(tmp_path / "nothing"), "--runs", str(finished)]) == 1
    assert "dataset folder not found" in capsys.readouterr().err
    assert command_line.main(["report", "--out", str(tmp_path / "empty")]) == 1
    with pytest.raises(SystemExit):
        command_line.main(["run", grid, "--jobs", "0"])


def test_compare_prints_the_table_and_says_where_the_plots_are(
    tiny,
    finished,
    tmp_path,
    camvid_folder,  # noqa: F811
    capsys,
    monkeypatch,
):
    monkeypatch.setattr(command_line, "load_grid", lambda *_: tiny)
    arguments = ["compare", "--data", str(camvid_folder), "--runs", str(finished)]
    assert command_line.main(arguments) == 0
    printed = capsys.readouterr().out
    report = tmp_path / "reports" / "tiny-tiny-camvid"
    assert "| WCE  |     2 |" in printed
    assert str(report / "README.md") in printed
    assert (report / "plots" / "tiny_predictions.png").is_file()


def test_the_table_gives_mean_and_spread(results):
    table = summary_table(_fake(results))
    lines = table.splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split("|")[1:4] == [" loss ", " seeds ", " mIoU, val_alt "]
    # CE: 65.0, 65.1, 65.2; its rarest five with pixels: 40 to 80 but for 0.1 a seed
    assert re.match(r"\| CE   \|     3 \|    65.1 ± 0.1 \|\s+60.1 ± 0.1 \|", lines[2])


def test_the_class_table_starts_with_the_rarest_and_marks_absent_classes(results):
    header, _, first, *_ = class_table(_fake(results)).splitlines()
    assert header.split("|")[2:4] == [" ghost (0 %) ", " bike (0.5 %) "]
    assert first.split("|")[2].strip() == "–"
    assert math.isnan(_fake(results).class_iou("CE", "val")[6])
    assert [_fake(results).classes[c] for c in _fake(results).rare] == [
        "bike",
        "person",
        "sign",
        "pole",
        "car",
    ]


def test_the_page_shows_every_plot_and_the_notes(results):
    (results / "NOTES.md").write_text("Mind the step.\n")
    page = write_report(results).read_text()
    names = sorted(path.name for path in (results / "plots").iterdir())
    assert names == [
        "ablation_omega_ablation.png",
        "compare_class_weights.png",
        "compare_gain_over_ce.png",
        "compare_iou_against_frequency.png",
        "learning_curves.png",
        "long_class_weights.png",
        "long_gain_over_ce.png",
        "long_iou_against_frequency.png",
    ]
    assert all(f"plots/{name}" in page for name in names)
    assert "Mind the step." in page
    assert page.index("## Compare") < page.index("## Long") < page.index("## Ablation_Omega")


def test_an_ablation_is_a_grid_of_one_loss_and_one_number(results):
    assert plots.varied_keyword(_fake(results, "ablation_omega")) == "omega"
    assert plots.varied_keyword(_fake(results)) is None
    assert plots.ablation(_fake(results)) is None


def test_plots_without_their_data_are_left_out(results):
    bare = _fake(results)
    bare = replace(bare, runs=tuple(replace(run, log=()) for run in bare.runs))
    assert plots.class_weights_over_time(bare) is None
    assert plots.learning_curves([bare]) is None


def test_losses_come_from_the_public_api_alone(tmp_path):
    data = load_data({"kind": "streets", "size": [16, 16], "train": 1, "test": 1}, None, tmp_path)
    loss = build_loss({"name": "DyCELoss", "kwargs": {"omega": 0.25}}, data)
    assert isinstance(loss, DyCELoss)
    with pytest.raises(ValueError, match="no loss 'Dice'"):
        build_loss({"name": "Dice", "kwargs": {}}, data)
    with pytest.raises(ValueError, match="'acdc', 'streets'"):
        load_data({"kind": "cityscapes"}, None, tmp_path)
    with pytest.raises(ValueError, match="needs --data"):
        load_data({"kind": "camvid"}, None, tmp_path)


def test_streets_to_camvid_is_tested_on_the_folder(tmp_path, camvid_folder):  # noqa: F811
    grid = command_line.for_folder(load_grid("transfer"), camvid_folder)
    assert grid.data["name"] == "streets-to-tiny-camvid"
    tiny = grid.data | {"size": [16, 16], "train": 1, "test": 1}
    with pytest.raises(ValueError, match="expected the classes of streets"):
        load_data(tiny, camvid_folder, tmp_path)
    description = json.loads((camvid_folder / "dataset.json").read_text())
    (camvid_folder / "dataset.json").write_text(json.dumps(description | {"classes": Streets.classes}))
    data = load_data(tiny, camvid_folder, tmp_path)
    assert list(data.tests) == ["val_alt", "val", "streets"]
    assert data.classes == Streets.classes
