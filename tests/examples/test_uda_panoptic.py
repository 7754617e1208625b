"""Panoptic segmentation: instances, targets, post-processing, scores, the loss, training and its table."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")
pytest.importorskip("kornia")

from torchmetrics.detection import PanopticQuality
from uda_files import checkpoint, different, losses

from examples.__main__ import main
from examples.common.scenes.batches import Steps
from examples.common.streets import CLASSES, IGNORE_INDEX, THINGS
from examples.common.training import one_thread
from examples.uda_gbw.data import streams
from examples.uda_gbw.panoptic import grid
from examples.uda_gbw.panoptic.config import Config, InstanceConfig, load_config
from examples.uda_gbw.panoptic.data import (
    SOURCE,
    TARGET,
    TEST,
    Counted,
    StreetScenes,
    load_task,
    source_classes,
)
from examples.uda_gbw.panoptic.labels import CATEGORIES, coded, decoded, uncounted, without_small
from examples.uda_gbw.panoptic.losses import instance_losses
from examples.uda_gbw.panoptic.networks import Outputs
from examples.uda_gbw.panoptic.postprocess import find_centres, nearest_centre, panoptic_map
from examples.uda_gbw.panoptic.scores import PanopticScores, perfect_outputs, score
from examples.uda_gbw.panoptic.smoke import smoke
from examples.uda_gbw.panoptic.targets import centres_of, grid_of, targets_of
from examples.uda_gbw.panoptic.train import train

SKY, ROAD, CAR, PEDESTRIAN = (CLASSES.index(name) for name in ("sky", "road", "car", "pedestrian"))
RULE = InstanceConfig(sigma=1.5, window=3, stuff_area=1)
CONFIG = load_config("smoke")
STREETS = CATEGORIES["streets"]
SIZE = (CONFIG.data.height, CONFIG.data.width)


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def streets() -> Counted:
    return Counted(StreetScenes(6, SIZE, SOURCE), CONFIG.data.min_pixels)


def scene() -> tuple[Tensor, Tensor]:
    """Sky over road; two cars that touch, a pedestrian, unlabelled pixels, and a car too small to count."""
    label = torch.full((16, 24), SKY)
    label[8:] = ROAD
    instance = torch.zeros(16, 24, dtype=torch.long)
    for number, index, rows, columns in (
        (1, CAR, slice(9, 14), slice(2, 7)),
        (2, CAR, slice(9, 14), slice(7, 12)),
        (5, PEDESTRIAN, slice(5, 13), slice(18, 20)),
    ):
        label[rows, columns], instance[rows, columns] = index, number
    label[0, :4] = IGNORE_INDEX
    label[15, 23] = CAR
    return label, instance


def code_of(label: Tensor, instance: Tensor) -> Tensor:
    return torch.from_numpy(coded(label.numpy(), instance.numpy())).long()


def entry_of(segments: Tensor, label: Tensor, instance: Tensor) -> dict[str, Any]:
    scores = PanopticScores(STREETS)
    scores.update(segments, label.clamp(max=len(CLASSES) - 1), label, instance)
    return scores.entry()


def test_offsets_lead_to_the_mean_of_the_instance(streets):
    for instance in (decoded(streets.label(0))[1], scene()[1]):
        targets = targets_of(instance[None], 2.0)
        aim = grid_of(*instance.shape, instance.device) + targets.offset[0]
        assert len(instance.unique()) > 2
        for number in instance.unique()[1:]:
            mask = instance == number
            centre = mask.nonzero().float().mean(0)
            assert torch.allclose(aim[:, mask], centre[:, None].expand(2, int(mask.sum())), atol=1e-4)
        assert not targets.offset[0][:, instance == 0].any()


def test_heat_is_one_at_the_pixel_of_a_centre_and_falls_off():
    instance = scene()[1]
    numbers, centres = centres_of(instance)
    assert numbers.tolist() == [1, 2, 5]
    assert centres.tolist() == [[11, 4], [11, 9], [8.5, 18.5]]
    heat = targets_of(instance[None], 2.0).heat[0]
    assert heat[11, 4] == heat[11, 9] == heat[8, 18] == 1
    assert int((heat == 1).sum()) == 3
    assert heat[11, 2] == pytest.approx(math.exp(-0.5))
    empty = targets_of(torch.zeros(1, 4, 5, dtype=torch.long), 2.0)
    assert not empty.heat.any()
    assert not empty.offset.any()


def test_a_code_holds_class_and_instance():
    label, instance = scene()
    code = code_of(label, instance)
    assert all(torch.equal(one, other) for one, other in zip(decoded(code), (label, instance), strict=True))
    assert int(code[0, 0]) == IGNORE_INDEX  # what crops fill up with


def test_small_things_are_no_instances_but_keep_their_class(streets):
    label = torch.tensor([[CAR, CAR, ROAD], [CAR, CAR, CAR]])
    instance = torch.tensor([[3, 3, 0], [3, 7, 7]])
    kept = without_small(code_of(label, instance), 3)
    assert torch.equal(decoded(kept)[0], label)
    assert decoded(kept)[1].tolist() == [[3, 3, 0], [3, 0, 0]]
    void = uncounted(*scene(), THINGS)
    assert void.nonzero().tolist() == [[0, 0], [0, 1], [0, 2], [0, 3], [15, 23]]
    for i in range(6):
        label, instance = decoded(streets.label(i))
        assert not (instance[~torch.isin(label, torch.tensor(THINGS))] > 0).any()
        assert all((instance == number).sum() >= CONFIG.data.min_pixels for number in instance.unique()[1:])


def test_a_step_is_a_function_of_seed_and_step(tmp_path):
    config = _small("data.rare_class_sampling=false", "data.streets=6")
    task = load_task(config.data)
    classes = source_classes(task, config.data, tmp_path)

    def steps(seed: int, start: int) -> Steps:
        return Steps(streams(task, classes, config.semantic().data, seed), seed, start, 5)

    whole, rest, others = steps(4, 0), steps(4, 3), steps(5, 0)
    for name in ("source", "target"):
        first, again = whole[4][name], rest[1][name]
        assert first.names == again.names
        assert torch.equal(first.image, again.image)
        assert first.image.shape == (2, 3, *SIZE)
        assert any(not torch.equal(whole[t][name].image, others[t][name].image) for t in range(5))
    assert whole[0]["target"].label is None
    known = task.source
    views = [(known.image(i), known.label(i)) for i in range(6)]
    views += [(image.flip(-1), label.flip(-1)) for image, label in views]
    which = []
    for t in range(3):
        source = whole[t]["source"]
        for image, label in zip(source.image, source.label, strict=True):
            (place,) = (
                k for k, (x, y) in enumerate(views) if torch.equal(x, image) and torch.equal(y, label)
            )
            which.append(place)
    assert sorted(w % 6 for w in which) == list(range(6))  # an epoch has every street once
    assert 0 < sum(w >= 6 for w in which) < 6  # and some are mirrored, labels and instances too


def test_no_street_is_in_two_sets_and_evenings_are_dark():
    day, test, target = (StreetScenes(4, SIZE, number) for number in (SOURCE, TEST, TARGET))
    sets = [[one.image(i) for i in range(4)] for one in (day, test, target)]
    assert not any(
        torch.equal(x, y) for k in range(3) for other in sets[k + 1 :] for x in sets[k] for y in other
    )
    evening = StreetScenes(4, SIZE, TARGET, evening=True)
    assert torch.equal(evening.label(0), target.label(0))
    assert (evening.image(0) <= target.image(0)).all()
    assert evening.image(0).mean() < 0.8 * target.image(0).mean()


def test_centres_are_maxima_above_the_threshold():
    heat = torch.zeros(9, 9)
    heat[2, 2], heat[2, 3], heat[6, 6], heat[0, 8], heat[8, 0] = 0.9, 0.8, 1.0, 0.1, 0.3
    rule = replace(RULE, threshold=0.2)
    assert find_centres(heat, rule).tolist() == [[6, 6], [2, 2], [8, 0]]
    assert find_centres(heat, replace(rule, window=1)).tolist() == [[6, 6], [2, 2], [2, 3], [8, 0]]
    assert find_centres(heat, replace(rule, window=9)).tolist() == [[6, 6], [8, 0]]
    assert find_centres(heat, replace(rule, most=2)).tolist() == [[6, 6], [2, 2]]
    assert find_centres(torch.zeros(9, 9), rule).shape == (0, 2)


def test_pixels_go_to_the_centre_their_offset_leads_to():
    offset = torch.zeros(2, 3, 6)
    offset[1, 0] = 5.0  # the first row points to the right
    centres = torch.tensor([[1, 0], [1, 5]])
    assert nearest_centre(offset, centres).tolist() == [[2] * 6, [1, 1, 1, 2, 2, 2], [1, 1, 1, 2, 2, 2]]
    assert not nearest_centre(offset, centres[:0]).any()


def test_segments_of_hand_made_maps():
    semantic = torch.full((4, 8), ROAD)
    semantic[1:3, :3], semantic[1:3, 5:] = CAR, PEDESTRIAN
    semantic[1, 0] = PEDESTRIAN  # outvoted: 5 of 6 pixels say car
    semantic[0, 7] = SKY
    heat = torch.zeros(4, 8)
    heat[1, 1], heat[2, 6] = 1.0, 0.7
    found = panoptic_map(semantic, heat, torch.zeros(2, 4, 8), THINGS, replace(RULE, stuff_area=2))
    assert (found[1:3, :3] == torch.tensor([CAR, 1])).all()
    assert (found[1:3, 5:] == torch.tensor([PEDESTRIAN, 2])).all()
    assert found[0, 7].tolist() == [IGNORE_INDEX, 0]  # one pixel of sky is too few
    rest = torch.ones(4, 8, dtype=torch.bool)
    rest[1:3, :3] = rest[1:3, 5:] = rest[0, 7] = False
    assert (found[rest] == torch.tensor([ROAD, 0])).all()
    without = panoptic_map(semantic, 0 * heat, torch.zeros(2, 4, 8), THINGS, RULE)
    assert (without[1:3, :3] == torch.tensor([IGNORE_INDEX, 0])).all()
    assert without[0, 7].tolist() == [SKY, 0]


def test_perfect_outputs_have_a_quality_of_one(streets):
    label, instance = scene()
    outputs = perfect_outputs(code_of(label, instance), len(CLASSES), RULE.sigma)
    segments = panoptic_map(outputs.logits[0].argmax(0), outputs.heat[0], outputs.offset[0], THINGS, RULE)
    entry = entry_of(segments, label, instance)
    assert set(entry["each"]) == {"sky", "road", "car", "pedestrian"}
    for values in (*entry["panoptic"].values(), *entry["each"].values()):
        assert list(values.values()) == pytest.approx([1, 1, 1])
    found = score(lambda _, code: perfect_outputs(code, len(CLASSES), RULE.sigma), streets, STREETS, RULE)
    assert found["mean_iou"]["mIoU11"] == 1
    assert found["panoptic"]["stuff"] == {"mPQ": 1, "mSQ": 1, "mRQ": 1}
    assert found["panoptic"]["things"]["mPQ"] > 0.9  # centres that fall on one pixel cannot be told apart


def test_outputs_of_a_small_image_are_scored_at_the_labels_size(streets):
    """Perfect outputs of half the size lose borders and thin things, and no more: offsets grow with the image."""

    def halved(_: Tensor, code: Tensor) -> Outputs:
        perfect = perfect_outputs(code, len(CLASSES), 3.0)
        return perfect.enlarged([side // 2 for side in code.shape])

    label, instance = scene()
    perfect = perfect_outputs(code_of(label, instance), len(CLASSES), 3.0)
    grown = perfect.enlarged((32, 72))
    assert grown.logits.shape == (1, len(CLASSES), 32, 72)
    assert grown.heat.shape == (1, 32, 72)
    rows, columns = grown.offset[0, :, 20:26, 9:18]  # inside the first car, whose borders are blended
    assert torch.allclose(rows, 2 * 11.0 - torch.arange(20, 26)[:, None] + 0.5, atol=1e-4)
    assert torch.allclose(columns, 3 * 4.0 - torch.arange(9, 18) + 1.0, atol=1e-4)
    found = score(halved, streets, STREETS, RULE)["panoptic"]
    assert found["all"]["mPQ"] > 0.6


def test_quality_of_errors_that_can_be_counted_by_hand():
    label, instance = scene()
    truth = torch.stack([label, instance], -1)
    merged = truth.clone()
    merged[instance == 2] = torch.tensor([CAR, 1])  # 25 of 50 pixels: an IoU of one half is not enough
    entry = entry_of(merged, label, instance)
    assert entry["each"]["car"] == {"PQ": 0, "SQ": 0, "RQ": 0}
    assert entry["panoptic"]["things"]["mPQ"] == pytest.approx(0.5)
    assert entry["panoptic"]["all"]["mPQ"] == pytest.approx(0.75)
    cut = truth.clone()
    cut[9, 2:7] = torch.tensor([ROAD, 0])  # a fifth of one of the two cars
    assert entry_of(cut, label, instance)["each"]["car"] == pytest.approx({"PQ": 0.9, "SQ": 0.9, "RQ": 1.0})
    void = truth.clone()
    void[instance == 2] = torch.tensor([IGNORE_INDEX, 0])  # a miss, though torchmetrics would forgive it
    assert entry_of(void, label, instance)["each"]["car"] == pytest.approx(
        {"PQ": 2 / 3, "SQ": 1, "RQ": 2 / 3}
    )


def test_means_are_those_of_torchmetrics(streets):
    ours, theirs = (
        PanopticScores(STREETS),
        PanopticQuality(THINGS, STREETS.stuff, return_sq_and_rq=True),
    )
    for i in range(3):
        label, instance = decoded(streets.label(i))
        truth = torch.stack([torch.where(uncounted(label, instance, THINGS), -1, label), instance], -1)
        guess = truth.roll((1, 2), (0, 1))
        guess[..., 0].clamp_(min=0)
        ours.update(guess, guess[..., 0], label, instance)
        theirs.update(guess[None], truth[None])
    assert list(ours.entry()["panoptic"]["all"].values()) == pytest.approx(theirs.compute().tolist())


def test_losses_of_centres_and_offsets():
    label, instance = scene()
    targets, code = targets_of(instance[None], RULE.sigma), code_of(label, instance)[None]

    def losses_of(heat: Tensor, offset: Tensor, code: Tensor = code) -> dict[str, float]:
        found = instance_losses(heat, offset, code, THINGS, RULE)
        return {name: float(loss) for name, loss in found.items()}

    assert losses_of(*targets) == {"centre": 0, "offset": 0}
    wrong = losses_of(targets.heat + 0.5, targets.offset + torch.tensor([1.0, 3.0])[:, None, None])
    assert wrong["centre"] == pytest.approx(RULE.centre_weight * 0.25)
    assert wrong["offset"] == pytest.approx(RULE.offset_weight * 2)
    heat = targets.heat.clone()
    heat[0, 15, 23] = heat[0, 0, 0] = 9.0  # a car too small to count, and an unlabelled pixel
    assert losses_of(heat, targets.offset)["centre"] == 0
    assert losses_of(*targets, code=torch.full_like(code, SKY))["offset"] == 0


def test_the_smoke_run_resumes_exactly(capsys):
    found = smoke(device="cpu")
    assert (
        "stopped after step 2 and resumed: the same losses, scores, weight_range" in capsys.readouterr().out
    )
    assert [*found["source_only"]["weight_range"]] == ["source"]
    assert [*found["edaps"]["weight_range"]] == ["source", "mixed"]
    for metrics in found.values():
        for ranges in metrics["weight_range"].values():
            assert max(abs(value - 1) for pair in ranges.values() for value in pair) > 1e-3
        for values in metrics["scores"]["evening"]["panoptic"].values():
            assert all(0 <= value <= 1 for value in values.values())
        assert metrics["ceiling"]["evening"]["all"]["mPQ"] > 0.9


def _small(*overrides: str) -> Config:
    small = ["data.streets=4", "data.target_streets=4", "data.test_streets=1", "training.checkpoint_every=3"]
    return load_config("smoke", [*small, *overrides])


@pytest.mark.parametrize("method", ["source_only", "edaps"])
def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path, method):
    config, kept = _small("model.dropout=0.5", f'method="{method}"'), tmp_path / "kept"
    whole = train(config, tmp_path / "whole", kept, progress=False)
    assert train(config, tmp_path / "parts", kept, stop_after=1, progress=False) == {}
    assert len(losses(tmp_path / "parts")) == 1
    parts = train(config, tmp_path / "parts", kept, progress=False)
    one, other = (checkpoint(tmp_path / name) for name in ("whole", "parts"))
    assert one["step"] == other["step"] == 4
    assert any(key.startswith("teacher.") for key in one["method"]) == (method == "edaps")
    assert different(one | {"seconds": 0}, other | {"seconds": 0}) == []
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    assert parts["scores"] == whole["scores"]
    assert train(config, tmp_path / "parts", kept, progress=False) == parts  # finished: not repeated
    (tmp_path / "parts" / "metrics.json").unlink()
    with pytest.raises(ValueError, match="another configuration"):
        train(_small(), tmp_path / "parts", kept, progress=False)


def test_the_table_of_all_rows(tmp_path, capsys):
    tiny = ['model.encoder="mit-tiny"', "model.channels=8", "data.height=32", "data.width=48"]
    tiny += ["data.streets=4", "data.target_streets=4", "data.test_streets=2", "training.iterations=1"]
    out = ["--out", str(tmp_path / "out")]
    options = ["small", "--runs", str(tmp_path / "runs"), "--seeds", "0", "--device", "cpu", "--set", *tiny]
    with pytest.raises(ValueError, match="no run is finished"):
        main(["uda_gbw.panoptic", "report", *options, *out])
    main(["uda_gbw.panoptic", "grid", *options])
    main(["uda_gbw.panoptic", "report", *options, *out])
    page = (tmp_path / "out" / "panoptic_small.md").read_text()
    assert page in capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "panoptic_small.json").read_text())
    assert [*results] == [*grid.ROWS]
    for row, runs in results.items():
        (run,) = runs
        assert (run["config"]["method"] == "edaps") == row.startswith("EDAPS")
        assert (run["config"]["weighting"]["scheme"] == "gbw") == row.endswith("GBW")
        quality = run["scores"]["evening"]["panoptic"]["all"]
        assert f"| {row} | 1 | {100 * quality['mPQ']:.1f} | {100 * quality['mSQ']:.1f} |" in page
    assert results["EDAPS, cross-entropy"][0]["weight_range"]["mixed"]["car"] == [1.0, 1.0]
    assert re.search(r"\| EDAPS, cross-entropy \| [\d.]+ \| [\d.]+ \| [\d.]+ \| 41.2 \| 72.7 \|", page)
    assert "| EDAPS, GBW | mixed |" in page
    assert all(f"## {name} of each class on evening" in page for name in ("PQ", "SQ", "RQ"))


def test_the_command_line(tmp_path, capsys, monkeypatch):
    keys = ["training.iterations=1", "data.streets=2", "data.target_streets=2", "data.test_streets=1"]
    main(["uda_gbw.panoptic", "train", "smoke", "--runs", str(tmp_path), "--device", "cpu", "--set", *keys])
    assert "mPQ" in capsys.readouterr().out
    (folder,) = Path(tmp_path).glob("smoke-*")
    assert json.loads((folder / "config.json").read_text())["weighting"]["scheme"] == "gbw"
    with pytest.raises(SystemExit):
        main(["uda_gbw.panoptic", "train"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit):
        main(["uda_gbw.panoptic", "train", "smoke"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("instance.window=4", "odd"),
        ("instance.sigma=0.0", "sigma must be positive"),
        ("data.height=8", "height must be at least 16"),
        ("model.dropout=1.0", "dropout"),
        ("training.speed=1", "unknown key"),
    ],
)
def test_bad_configurations(override, message):
    with pytest.raises(ValueError, match=message):
        load_config("smoke", [override])
