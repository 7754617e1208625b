"""HVL's step, its exact resuming, its switches, the grid and the command line."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("transformers")
pytest.importorskip("kornia")

from examples.__main__ import main
from examples.common.config import run_folder
from examples.common.outcome import METRICS
from examples.common.published import read_published
from examples.common.scenes.batches import Steps
from examples.hvl.config import CONFIGS, Config, load_config
from examples.hvl.data.task import load_task, streams
from examples.hvl.engine import Engine
from examples.hvl.evaluation import predict
from examples.hvl.grid import GRIDS, PUBLISHED, load_grid
from examples.hvl.pictures import query_colours, winners, write_claims
from examples.hvl.smoke import smoke
from examples.hvl.train import train

CAMVID = Path(__file__).parents[3] / "shared" / "data" / "camvid-small"
OPTIONAL = ("encoder", "consistency", "entropy", "diversity", "topology", "anchor", "align", "mask")
SMALL = ["data.budget=2", "data.crop=[16, 24]", "training.window=[16, 24]", "model.decoder_layers=1"]


@pytest.fixture
def config(street_folder: Path) -> Config:
    config = load_config("smoke", SMALL)
    return replace(config, data=replace(config.data, folder=str(street_folder)))


def _engine(config: Config, folder: Path) -> tuple[Engine, Steps]:
    task = load_task(config.data, folder)
    torch.manual_seed(config.training.seed)
    engine = Engine(config, task, torch.device("cpu"))
    return engine, Steps(streams(task, config.data, 0), 0, 0, 10)


def _with(config: Config, *overrides: str) -> Config:
    changed = load_config("smoke", [*SMALL, *overrides])
    return replace(changed, data=config.data)


def test_smoke_runs_resumes_exactly_and_has_every_loss(capsys) -> None:
    log = smoke()
    assert {"segmentation", "confident", *OPTIONAL} <= log[0].keys()
    assert all(row[name] > 0 for row in log for name in ("topology", "entropy", "encoder", "mask", "align"))
    assert "the same losses, scores" in capsys.readouterr().out


def test_a_step_is_a_function_of_seed_and_step(config: Config, tmp_path: Path) -> None:
    values = []
    for noise in range(2):
        engine, steps = _engine(config, tmp_path)
        torch.manual_seed(100 + noise)  # whatever was drawn before
        values.append(engine.advance(steps[0]))
    assert values[0].keys() == values[1].keys()
    assert all(torch.equal(values[0][name], values[1][name]) for name in values[0])


def test_losses_fall_on_one_batch(config: Config, tmp_path: Path) -> None:
    """The same batch again and again: what is learnt is learnt by every loss that can be."""
    config = _with(config, "training.iterations=40", "training.lr=2e-3", "weights.consistency=0.0")
    engine, steps = _engine(config, tmp_path)
    batch = steps[0]
    log = [{name: float(value) for name, value in engine.advance(batch).items()} for _ in range(12)]
    for name in ("loss", "segmentation", "encoder", "diversity", "anchor"):
        assert log[-1][name] < log[0][name], name


@pytest.mark.parametrize("name", OPTIONAL)
def test_a_weight_of_zero_switches_a_loss_off(config: Config, tmp_path: Path, name: str) -> None:
    engine, steps = _engine(_with(config, f"weights.{name}=0.0"), tmp_path)
    values = engine.advance(steps[0])
    assert name not in values
    others = {*OPTIONAL} - {name}
    assert others <= values.keys()
    total = values["segmentation"] + sum(
        getattr(engine.config.weights, other) * values[other] for other in others
    )
    torch.testing.assert_close(values["loss"], total)


def test_the_mask_loss_trains_the_encoder_and_the_reference_stays(config: Config, tmp_path: Path) -> None:
    engine, steps = _engine(config, tmp_path)
    before = [p.clone() for p in engine.frozen.vision.parameters()]
    encoder = [p.clone() for p in engine.network.vision.parameters()]
    for step in range(2):
        engine.advance(steps[step])
    assert all(map(torch.equal, before, engine.frozen.vision.parameters()))
    moved = [not torch.equal(a, b) for a, b in zip(encoder, engine.network.vision.parameters(), strict=True)]
    assert any(moved)
    rates = [group["lr"] for group in engine.optimizer.param_groups]
    assert rates[1] == pytest.approx(0.1 * rates[0])
    kept = engine.state_dict()["network"]
    assert not any("frozen" in name or "token_embedding" in name for name in kept)


def test_a_checkpoint_of_another_configuration_is_refused(config: Config, tmp_path: Path) -> None:
    state = _engine(config, tmp_path)[0].state_dict()
    other = _engine(_with(config, "training.seed=1"), tmp_path)[0]
    with pytest.raises(ValueError, match="another configuration"):
        other.load_state_dict(state)


def test_places_do_not_decide_a_runs_folder(config: Config, tmp_path: Path) -> None:
    moved = replace(config, data=replace(config.data, folder="elsewhere"))
    assert config.as_dict() == moved.as_dict()
    split = replace(config, data=replace(config.data, splits="lists", split="92"))
    again = replace(config, data=replace(config.data, splits="others", split="92"))
    assert split.as_dict() == again.as_dict() != config.as_dict()


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_configuration_is_well_formed(path: Path) -> None:
    assert load_config(path.stem).note


@pytest.mark.parametrize("data", ["camvid", "voc"])
def test_each_row_of_table_3_adds_one_part(data: str) -> None:
    grid_of_table_3 = load_grid(f"{data}_components")
    rows = ["random object queries", "+ HTQG", "+ PTRM", "+ Q(0)", "+ DQTD"]
    assert list(grid_of_table_3.rows)[:5] == rows == list(read_published(PUBLISHED)["table3"].rows)
    parts = [vars(grid_of_table_3.run(label, 0).components) for label in rows]
    assert [p["text_queries"] for p in parts] == ["none", *["hierarchical"] * 4]
    assert [p["refinement"] for p in parts] == [False, False, True, True, True]
    assert [p["object_queries"] for p in parts] == [True, False, False, True, True]
    assert [p["joint"] for p in parts[3:]] == [False, True]


@pytest.mark.parametrize("data", ["camvid", "voc"])
def test_each_row_of_table_4_leaves_one_regulariser_out(data: str) -> None:
    grid_of_table_4 = load_grid(f"{data}_losses")
    off = {}
    for label in grid_of_table_4.rows:
        weights = vars(grid_of_table_4.run(label, 0).weights)
        off[label] = {name for name, value in weights.items() if not value}
    bare = off.pop("L_seg and consistency alone", None)
    assert off == {
        "without L_prompt": {"topology", "anchor"},
        "without L_mask": {"mask"},
        "without L_align": {"align"},
        "all losses": set(),
    }
    assert list(off) == list(read_published(PUBLISHED)["table4"].rows)
    assert bare is None or bare == {"diversity", "topology", "anchor", "mask", "align"}


@pytest.mark.parametrize(
    "overrides",
    [
        ('consistency.prediction="final"', 'loss.align_text="prompted"', 'model.inference="sum"'),
        ('model.vision="vit-tiny"',),
        ('components.text_queries="none"', "components.refinement=false"),
        ('components.text_queries="plain"', 'model.presence="softmax"'),
        ("model.train_vision=false", "consistency.cutmix=false"),
    ],
)
def test_switches_train_and_predict(config: Config, tmp_path: Path, overrides: tuple[str, ...]) -> None:
    engine, steps = _engine(_with(config, *overrides), tmp_path)
    values = engine.advance(steps[0])
    assert all(value.isfinite() for value in values.values())
    queries = engine.config.components.text_queries
    assert ("topology" in values) == ("anchor" in values) == (queries != "none")
    assert ("diversity" in values) == (queries == "hierarchical")
    engine.network.eval()
    scores = predict(engine, steps[0]["labelled"].image[0], engine.text())
    assert scores.shape == (11, 16, 24)


def test_labels_decide_the_presence_of_classes_in_labelled_images(config: Config, tmp_path: Path) -> None:
    engine, steps = _engine(config, tmp_path)
    given = []
    engine.network.register_forward_pre_hook(lambda module, args: given.append(args[2]))
    batch = steps[0]
    engine.advance(batch)
    labels = batch["labelled"].label
    for image, row in zip(labels, given[0], strict=False):
        assert {*torch.unique(image).tolist()} - {255} == {*row.nonzero().flatten().tolist()}
        assert {*row.tolist()} <= {0.0, 1.0}
    unlabelled = given[0][len(labels) :]
    assert ((unlabelled > 0) & (unlabelled < 1)).all()


def test_aligning_text_is_fixed_unless_asked(config: Config, tmp_path: Path) -> None:
    """L_align alone moves prompts where it is aligned with the prompted text."""
    alone = [
        f"weights.{name}=0.0" for name in (*OPTIONAL, "mask_bce", "mask_dice", "classes") if name != "align"
    ]
    moved = {}
    for kind in ("fixed", "prompted"):
        engine, steps = _engine(_with(config, *alone, f'loss.align_text="{kind}"'), tmp_path)
        engine.advance(steps[0])
        moved[kind] = bool(
            engine.network.text.prompt.grad is not None and engine.network.text.prompt.grad.any()
        )
    assert moved == {"fixed": False, "prompted": True}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.width=48", "multiple of 32"),
        ('model.template="a photo"', "place {}"),
        ('components.text_queries="none"', "needs text queries"),
        ('model.inference="mean"', "largest"),
        ("weights.anchor=-1.0", "anchor"),
        ("weights.prompt=1.0", "unknown key"),
    ],
)
def test_refusals(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config("smoke", [override])


# Pictures


def test_pictures_show_which_query_claims_each_pixel(config: Config, tmp_path: Path) -> None:
    engine, _ = _engine(config, tmp_path)
    task = load_task(config.data, tmp_path)
    write_claims(engine, task.tests["val_alt"], task.classes, tmp_path, "val_alt", number=1)
    picture = np.asarray(Image.open(tmp_path / "queries_val_alt.png"))
    assert picture.shape == (24, 4 * 32 + 3 * 4, 3)  # photo, label, prediction, queries, with gaps
    with torch.no_grad():
        prediction = engine.predict(task.tests["val_alt"].image(0)[None], engine.text())
    winner = winners(prediction, (24, 32))[0]
    colours = query_colours(11, prediction.text_queries, prediction.masks[-1].shape[1])
    assert len(np.unique(colours, axis=0)) == len(colours)
    assert np.array_equal(picture[:, -32:], colours[winner])
    classes = prediction.classes[-1][0, :, :-1].argmax(-1)[winner]  # as the queries name them
    scores = prediction.scores((24, 32), "largest")[0].argmax(0)
    assert (classes == scores).float().mean() > 0.95  # borders are interpolated in another order


# The grid


def test_a_grid_runs_and_reports(street_folder: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    content = (
        'title = "Two rows"\nconfig = "smoke"\nseeds = [0, 1]\npublished = ["table4"]\n'
        '[[row]]\nlabel = "all losses"\nset = ["data.budget=2"]\n'
        '[[row]]\nlabel = "without"\nset = ["weights.anchor=0.0"]\n'
    )
    path = tmp_path / "two.toml"
    path.write_text(content)
    runs, out = tmp_path / "runs", tmp_path / "out"
    places = ["--runs", str(runs)]
    main(["hvl", "report", str(path), *places, "--out", str(out)])
    assert "No run is finished." in capsys.readouterr().out

    entry = {"mean_iou": {"mIoU2": 0.5}, "iou": [0.75, 0.25], "pixel_accuracy": 0.9, "pixels": [90, 10]}
    cost = {"labelled": 2, "steps": 4, "seconds": 3600.0, "device": "a CPU", "threads": 1, "commit": "0123"}

    def finished(config: Config, folder: Path, kept: Path, **options: object) -> None:
        assert config.data.folder == str(street_folder)
        folder.mkdir(parents=True)
        metrics = {"classes": ["road", "sign_symbol"], "scores": {"val_alt": entry}, **cost}
        (folder / METRICS).write_text(json.dumps(metrics))

    monkeypatch.setattr("examples.hvl.train.train", finished)
    options = ["--data", str(street_folder), "--device", "cpu", *places]
    main(["hvl", "grid", str(path), "--rows", "0", *options])
    main(["hvl", "grid", str(path), "--rows", "1", "--seeds", "1", *options])
    main(["hvl", "report", str(path), *places, "--out", str(out)])
    page = capsys.readouterr().out
    assert "| all losses | 50.0 ± 0.0 / 50.0 ± 0.0 (2) |" in page
    assert "| all losses | 50.0 ± 0.0 | 87.1 |" in page
    assert "| without L_mask | – | 85.2 |" in page
    assert "| without | 50.0 / 50.0 (1†) |" in page
    assert "| without (1†) | 25.0 | 75.0 |" in page  # the rarest class first
    assert "sign symbol (10 %)" in page
    assert "3.00 hours" in page
    assert json.loads((out / "two.json").read_text())["rows"]["without"][0]["seed"] == 1
    assert (out / "two.md").read_text() in page


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (
            'config = "smoke"\nseeds = [0]\n[[row]]\nlabel = "a"\nset = []\n',
            ValueError,
            "lacks the key 'title'",
        ),
        (
            'title = "t"\nconfig = "smoke"\nseeds = [0]\n[[row]]\nlabel = "a"\nset = ["weights.all=0"]\n',
            ValueError,
            "unknown key",
        ),
        (None, FileNotFoundError, "camvid_losses"),
    ],
)
def test_bad_grids(tmp_path: Path, text: str | None, error: type[Exception], message: str) -> None:
    path = tmp_path / "bad.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(error, match=message):
        load_grid("nothing" if text is None else str(path))


# The command line


def test_the_command_trains_once(street_folder: Path, tmp_path: Path, capsys) -> None:
    overrides = [*SMALL, "training.iterations=1", "weights.consistency=0.0"]
    options = ["--data", str(street_folder), "--runs", str(tmp_path), "--device", "cpu"]
    main(["hvl", "train", "smoke", *options, "--set", *overrides])
    folder = run_folder(tmp_path, "smoke", load_config("smoke", overrides).as_dict())
    metrics = json.loads((folder / METRICS).read_text())
    assert metrics["labelled"] == 2
    assert metrics["image_size"] == [16, 24]
    assert "mIoU11" in capsys.readouterr().out
    stamp = os.stat(folder / METRICS).st_mtime_ns
    main(["hvl", "train", "smoke", *options, "--set", *overrides])
    assert os.stat(folder / METRICS).st_mtime_ns == stamp


def test_the_command_wants_a_name(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["hvl", "train"])
    assert "--smoke" in capsys.readouterr().err


@pytest.mark.skipif(not CAMVID.is_dir(), reason=f"no real data at {CAMVID}")
def test_real_camvid_has_thirty_labels(tmp_path: Path) -> None:
    config = load_config("camvid")
    task = load_task(replace(config.data, folder=str(CAMVID)), tmp_path)
    assert len(task.labelled.names) == 30
    assert len(task.unlabelled.names) == 264
    assert list(task.tests) == ["val_alt"]


def test_published_tables_are_those_of_the_grids_and_agree() -> None:
    published = read_published(PUBLISHED)
    for path in GRIDS.glob("*.toml"):
        found = load_grid(path.stem)
        assert {*found.published} <= {*published}
        assert {*published[found.published[0]].rows} <= {*found.rows}
    mean = sum(map(float, published["table2"].rows["Ours"])) / 21
    assert round(mean, 1) == 87.2  # Tables 1, 3 and 4 print 87.1 for it
    assert published["table3"].cell("+ DQTD", "92 labels") == published["table4"].cell("all losses", "mIoU")


def test_grids_name_configurations_that_exist() -> None:
    for path in GRIDS.glob("*.toml"):
        assert (CONFIGS / f"{load_grid(path.stem).config}.toml").is_file()


def test_a_finished_run_is_not_repeated(config: Config, tmp_path: Path) -> None:
    (tmp_path / METRICS).write_text('{"scores": {}}')
    assert train(config, tmp_path, tmp_path) == {"scores": {}}
