"""Panoptic segmentation: instances, targets, post-processing, scores, the loss, training and its table."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")
pytest.importorskip("kornia")

from torchmetrics.detection import PanopticQuality
from uda_files import checkpoint, losses

from examples.common.streets import CLASSES, IGNORE_INDEX, THINGS
from examples.common.training import one_thread
from examples.uda_gbw.config import WeightingConfig
from examples.uda_gbw.data import Classes
from examples.uda_gbw.panoptic import compare
from examples.uda_gbw.panoptic.config import Config, InstanceConfig, load_config
from examples.uda_gbw.panoptic.data import (
    TEST,
    TRAIN,
    Batch,
    PanopticStreets,
    Steps,
    uncounted,
    without_small,
)
from examples.uda_gbw.panoptic.losses import PanopticLoss
from examples.uda_gbw.panoptic.networks import Outputs
from examples.uda_gbw.panoptic.postprocess import find_centres, nearest_centre, panoptic_map
from examples.uda_gbw.panoptic.scores import STUFF, PanopticScores, perfect_outputs, score
from examples.uda_gbw.panoptic.smoke import smoke
from examples.uda_gbw.panoptic.targets import centres_of, grid_of, targets_of
from examples.uda_gbw.panoptic.train import main, train

SKY, ROAD, CAR, PEDESTRIAN = (CLASSES.index(name) for name in ("sky", "road", "car", "pedestrian"))
RULE = InstanceConfig(sigma=1.5, window=3, stuff_area=1)
CONFIG = load_config("smoke")


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def streets() -> PanopticStreets:
    return PanopticStreets(6, CONFIG.data, TRAIN)


def scene() -> tuple[Tensor, Tensor, Tensor]:
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
    return torch.zeros(3, 16, 24), label, instance


def entry_of(segments: Tensor, label: Tensor, instance: Tensor) -> dict[str, Any]:
    scores = PanopticScores()
    scores.update(segments, label.clamp(max=len(CLASSES) - 1), label, instance)
    return scores.entry()


def test_offsets_lead_to_the_mean_of_the_instance(streets):
    for instance in (streets[0][2], scene()[2]):
        targets = targets_of(instance[None], 2.0)
        aim = grid_of(*instance.shape, instance.device) + targets.offset[0]
        assert len(instance.unique()) > 2
        for number in instance.unique()[1:]:
            mask = instance == number
            centre = mask.nonzero().float().mean(0)
            assert torch.allclose(aim[:, mask], centre[:, None].expand(2, int(mask.sum())), atol=1e-4)
        assert not targets.offset[0][:, instance == 0].any()


def test_heat_is_one_at_the_pixel_of_a_centre_and_falls_off():
    instance = scene()[2]
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


def test_small_things_are_no_instances_but_keep_their_class(streets):
    instance = torch.tensor([[3, 3, 0], [3, 7, 7]])
    assert without_small(instance, 3).tolist() == [[3, 3, 0], [3, 0, 0]]
    _, label, instance = scene()
    assert uncounted(label, instance).nonzero().tolist() == [[0, 0], [0, 1], [0, 2], [0, 3], [15, 23]]
    for i in range(len(streets)):
        _, label, instance = streets[i]
        assert not (instance[~torch.isin(label, torch.tensor(THINGS))] > 0).any()
        assert all((instance == number).sum() >= CONFIG.data.min_pixels for number in instance.unique()[1:])


def test_a_step_is_a_function_of_seed_and_step(streets):
    whole, rest = Steps(streets, 2, 4, 0, 5), Steps(streets, 2, 4, 3, 5)
    assert (len(whole), len(rest)) == (5, 2)
    first, again = whole[4]["source"], rest[1]["source"]
    for name in ("image", "label", "instance"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert first.image.shape == (2, 3, 48, 64)
    others = Steps(streets, 2, 5, 0, 5)
    assert any(not torch.equal(whole[t]["source"].image, others[t]["source"].image) for t in range(5))
    seen = torch.stack([whole[t]["source"].image[j] for t in range(3) for j in range(2)])
    both = torch.stack([image for i in range(6) for image in (streets[i][0], streets[i][0].flip(-1))])
    which = [int((both == image).flatten(1).all(1).nonzero()[0]) for image in seen]
    assert sorted(w // 2 for w in which) == list(range(6))  # an epoch has every street once
    assert 0 < sum(w % 2 for w in which) < 6  # and some are mirrored


def test_test_streets_are_not_those_of_training(streets):
    held_out = PanopticStreets(6, CONFIG.data, TEST)
    assert all(not torch.equal(streets[i][0], held_out[j][0]) for i in range(6) for j in range(6))


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
    _, label, instance = sample = scene()
    outputs = perfect_outputs(sample, RULE.sigma)
    segments = panoptic_map(outputs.logits[0].argmax(0), outputs.heat[0], outputs.offset[0], THINGS, RULE)
    entry = entry_of(segments, label, instance)
    assert set(entry["each"]) == {"sky", "road", "car", "pedestrian"}
    for values in (*entry["panoptic"].values(), *entry["each"].values()):
        assert list(values.values()) == pytest.approx([1, 1, 1])
    found = score(lambda one: perfect_outputs(one, RULE.sigma), streets, RULE)
    assert found["mean_iou"]["mIoU11"] == 1
    assert found["panoptic"]["stuff"] == {"mPQ": 1, "mSQ": 1, "mRQ": 1}
    assert found["panoptic"]["things"]["mPQ"] > 0.9  # centres that fall on one pixel cannot be told apart


def test_quality_of_errors_that_can_be_counted_by_hand():
    _, label, instance = scene()
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
    torch.manual_seed(0)
    ours, theirs = PanopticScores(), PanopticQuality(THINGS, STUFF, return_sq_and_rq=True)
    for i in range(3):
        _, label, instance = streets[i]
        truth = torch.stack([torch.where(uncounted(label, instance), -1, label), instance], -1)
        guess = truth.roll((1, 2), (0, 1))
        guess[..., 0].clamp_(min=0)
        ours.update(guess, guess[..., 0], label, instance)
        theirs.update(guess[None], truth[None])
    assert list(ours.entry()["panoptic"]["all"].values()) == pytest.approx(theirs.compute().tolist())


def _gradients(
    weighting: WeightingConfig, batch: Batch, outputs: Outputs
) -> tuple[dict[str, Tensor], Outputs]:
    counts = torch.bincount(batch.label[batch.label != IGNORE_INDEX], minlength=len(CLASSES))
    leaves = Outputs(*(x.clone().requires_grad_() for x in outputs))
    loss = PanopticLoss(weighting, Classes(CLASSES, counts[None]), RULE)
    values = loss(leaves, batch)
    values["loss"].backward()
    detached = {name: value.detach() for name, value in values.items()}
    return detached, Outputs(*(x.grad for x in leaves))


@pytest.mark.parametrize("scheme", ["gbw", "pixel_frequency"])
def test_class_weights_are_in_the_semantic_loss_alone(scheme):
    torch.manual_seed(1)
    image, label, instance = scene()
    batch = Batch(image[None], label[None], instance[None])
    outputs = Outputs(
        3 * torch.randn(1, len(CLASSES), 16, 24), torch.rand(1, 16, 24), torch.randn(1, 2, 16, 24)
    )
    plain, without = _gradients(WeightingConfig(), batch, outputs)
    weighted, with_weights = _gradients(WeightingConfig(scheme=scheme, regularization=0.5), batch, outputs)
    expected = torch.nn.functional.cross_entropy(outputs.logits, label[None], ignore_index=IGNORE_INDEX)
    assert plain["semantic"] == pytest.approx(float(expected), rel=1e-5)
    assert weighted["semantic"] != pytest.approx(float(expected), rel=1e-2)
    assert not torch.allclose(without.logits, with_weights.logits)
    for name in ("heat", "offset"):
        assert torch.equal(getattr(without, name), getattr(with_weights, name))
        assert getattr(without, name).any()
    assert plain["centre"] == weighted["centre"]
    assert plain["offset"] == weighted["offset"]


def test_losses_of_centres_and_offsets():
    image, label, instance = scene()
    batch = Batch(image[None], label[None], instance[None])
    targets = targets_of(batch.instance, RULE.sigma)
    loss = PanopticLoss(WeightingConfig(), Classes(CLASSES, torch.ones(1, 11)), RULE)
    logits = torch.zeros(1, len(CLASSES), 16, 24)
    right = loss(Outputs(logits, *targets), batch)
    assert right["centre"] == right["offset"] == 0
    wrong = loss(
        Outputs(logits, targets.heat + 0.5, targets.offset + torch.tensor([1.0, 3.0])[:, None, None]), batch
    )
    assert wrong["centre"] == pytest.approx(0.25)
    assert wrong["offset"] == pytest.approx(2.0)
    total = math.log(11) + RULE.centre_weight * 0.25 + RULE.offset_weight * 2
    assert wrong["loss"] == pytest.approx(total, rel=1e-5)
    heat = targets.heat.clone()
    heat[0, 15, 23] = heat[0, 0, 0] = 9.0  # a car too small to count, and an unlabelled pixel
    assert loss(Outputs(logits, heat, targets.offset), batch)["centre"] == 0
    nothing = Batch(batch.image, torch.full_like(batch.label, SKY), torch.zeros_like(batch.instance))
    assert loss(Outputs(logits, *targets), nothing)["offset"] == 0


def test_the_smoke_run_resumes_exactly(capsys):
    metrics = smoke(device="cpu")
    assert (
        "stopped after step 2 and resumed: the same losses, scores, weight_range" in capsys.readouterr().out
    )
    assert max(abs(value - 1) for pair in metrics["weight_range"].values() for value in pair) > 1e-3
    for values in metrics["scores"]["panoptic"].values():
        assert all(0 <= value <= 1 for value in values.values())
    assert metrics["ceiling"]["all"]["mPQ"] > 0.9


def _small(*overrides: str) -> Config:
    return load_config(
        "smoke", ["data.streets=4", "data.test_streets=1", "training.checkpoint_every=3", *overrides]
    )


def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path):
    config = _small("model.dropout=0.5")
    whole = train(config, tmp_path / "whole", progress=False)
    assert train(config, tmp_path / "parts", stop_after=1, progress=False) == {}
    assert len(losses(tmp_path / "parts")) == 1
    parts = train(config, tmp_path / "parts", progress=False)
    one, other = (checkpoint(tmp_path / name) for name in ("whole", "parts"))
    assert one["step"] == other["step"] == 4
    for part in ("network", "criterion"):
        assert all(torch.equal(one[part][key], other[part][key]) for key in one[part])
    moments = [state["optimizer"]["state"] for state in (one, other)]
    assert all(
        torch.equal(moments[0][p][key], moments[1][p][key]) for p in moments[0] for key in moments[0][p]
    )
    assert torch.equal(one["random_state"], other["random_state"])
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    assert parts["scores"] == whole["scores"]
    assert train(config, tmp_path / "parts", progress=False) == parts  # finished: not repeated
    (tmp_path / "parts" / "metrics.json").unlink()
    with pytest.raises(ValueError, match="another configuration"):
        train(_small(), tmp_path / "parts", progress=False)


def test_the_table_of_both_variants(tmp_path, capsys):
    tiny = [
        'model.encoder="mit-tiny"',
        "model.channels=8",
        "data.height=32",
        "data.width=48",
        "data.streets=4",
    ]
    tiny += ["data.test_streets=2", "data.batch_size=2", "training.iterations=1"]
    options = [
        "--runs",
        str(tmp_path / "runs"),
        "--out",
        str(tmp_path / "out"),
        "--seeds",
        "0",
        "--set",
        *tiny,
    ]
    with pytest.raises(ValueError, match="no run is finished"):
        compare.main(["report", *options])
    compare.main(["run", "--device", "cpu", *options])
    compare.main(["report", *options])
    page = (tmp_path / "out" / "panoptic.md").read_text()
    assert page in capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "panoptic.json").read_text())
    for variant, scheme in compare.VARIANTS.items():
        (run,) = results[variant]
        assert run["config"]["weighting"]["scheme"] == scheme
        assert f"| {variant} | 1 | {100 * run['scores']['panoptic']['all']['mPQ']:.1f} |" in page
    assert set(results["cross-entropy"][0]["weight_range"]["car"]) == {1.0}
    assert "CamVid has no instance labels" in page


def test_the_command_line(tmp_path, capsys, monkeypatch):
    keys = ["training.iterations=1", "data.streets=2", "data.test_streets=1"]
    main(["smoke", "--runs", str(tmp_path), "--device", "cpu", "--set", *keys])
    assert "mPQ" in capsys.readouterr().out
    (folder,) = Path(tmp_path).iterdir()
    assert json.loads((folder / "config.json").read_text())["weighting"]["scheme"] == "gbw"
    with pytest.raises(SystemExit):
        main([])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit):
        main(["smoke"])


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
