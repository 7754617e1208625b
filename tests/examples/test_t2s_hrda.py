"""HRDA's two resolutions and MIC's hidden blocks in T2S-DA, each against its formula."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("transformers")
pytest.importorskip("kornia")

from examples.common.mixing import visible_blocks
from examples.common.scenes.batches import Steps
from examples.common.scenes.task import load_task
from examples.common.scenes.toy import write_street_folder
from examples.common.windows import Box, covering_boxes, draw_box
from examples.t2s_da.build import build_student
from examples.t2s_da.config import load_config
from examples.t2s_da.engine import Engine
from examples.t2s_da.model import Segmenter
from examples.t2s_da.scene import scene_streams

SMALL = ("data.crop=[24, 32]", "data.streets=3", "mic.block=8", "pull.queries_per_class=100")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hrda")
    write_street_folder(folder / "target", size=(24, 32), train=4, test=2)
    return folder


def _first_step(place, *overrides):
    """What the first step logs."""
    config = load_config("smoke", [*SMALL, *overrides])
    config = replace(config, data=replace(config.data, target=str(place / "target")))
    task = load_task(config.data, place / "kept")
    batch = Steps(scene_streams(config, task, place / "kept"), config.training.seed, 0, 1)[0]
    engine = Engine(config, task.classes, torch.device("cpu"))
    return {name: float(value) for name, value in engine.advance(batch).items()}


def _plain(student, images):
    """What encoder, decoder and classifier say of images as they are, at their size."""
    maps = student.vision(images)
    logits = student.classifier(student.decoder(maps))
    return F.interpolate(logits, images.shape[-2:], mode="bilinear", align_corners=False)


def _student():
    config = load_config("smoke", ["hrda.enabled=true"])
    return build_student(config, 11).eval(), build_student(
        replace(config, hrda=load_config("smoke").hrda), 11
    ).eval()


def _low(student, images):
    """Logits and attention of the half-sized images, at the images' size."""
    small = F.interpolate(images, (16, 24), mode="bilinear", align_corners=False)
    maps = student.vision(small)
    found = student.classifier(student.decoder(maps)), student.attention(maps)
    low, share = (F.interpolate(x, (32, 48), mode="bilinear", align_corners=False) for x in found)
    return small, low, share.sigmoid()


@torch.no_grad()
def test_within_the_window_both_resolutions_are_fused_and_outside_it_is_the_low_one():
    student, _ = _student()
    images = torch.rand(2, 3, 32, 48)
    _, low, share = _low(student, images)
    box = Box(8, 16, 16, 24)
    look = student.look(images, box)
    high = _plain(student, images[..., 8:24, 16:40])
    torch.testing.assert_close(look.detail, high)
    wanted = low.clone()
    inside = share[..., 8:24, 16:40]
    wanted[..., 8:24, 16:40] = (1 - inside) * low[..., 8:24, 16:40] + inside * high
    torch.testing.assert_close(look.logits, wanted)
    with pytest.raises(ValueError, match="needs the window"):
        student.look(images)


@torch.no_grad()
def test_what_is_judged_is_covered_by_windows():
    student, _ = _student()
    images = torch.rand(1, 3, 32, 48)
    _, low, share = _low(student, images)
    high, count = torch.zeros_like(low), torch.zeros(32, 48)
    for top in (0, 8, 16):
        for left in (0, 12, 24):
            window = (..., slice(top, top + 16), slice(left, left + 24))
            high[window] += _plain(student, images[window])
            count[window] += 1
    wanted = (1 - share) * low + share * high / count
    torch.testing.assert_close(student.judge(images).logits, wanted)
    torch.testing.assert_close(student.predict(images), wanted)


@torch.no_grad()
def test_the_pull_loss_sees_the_low_resolution():
    student, plain = _student()
    images = torch.rand(1, 3, 32, 48)
    small, _, _ = _low(student, images)
    torch.testing.assert_close(student.embed(images), plain.embed(small))
    torch.testing.assert_close(student.embed_seen(student.judge(images).seen), plain.embed(small))


def test_boxes_cover_every_pixel_and_are_drawn_on_the_grid():
    for height, width in ((32, 48), (30, 50)):
        seen = torch.zeros(height, width)
        for box in covering_boxes(height, width):
            seen[box.place] += 1
        assert seen.min() >= 1
    drawn = {draw_box(32, 48, torch.Generator().manual_seed(seed)) for seed in range(40)}
    assert {box.top for box in drawn} == {0, 8, 16}
    assert {box.left for box in drawn} == {0, 8, 16, 24}
    assert {(box.height, box.width) for box in drawn} == {(16, 24)}


def test_blocks_are_hidden_whole_and_by_their_ratio():
    masks = visible_blocks((40, 44), 8, 0.7, range(50))
    assert masks.shape == (50, 1, 40, 44)
    assert set(masks.unique().tolist()) == {0, 1}
    whole = masks[..., :40, :40].unflatten(2, (5, 8)).unflatten(4, (5, 8))
    assert torch.equal(whole.amin((3, 5)), whole.amax((3, 5)))
    assert float(masks.mean()) == pytest.approx(0.3, abs=0.03)
    assert torch.equal(visible_blocks((40, 44), 8, 0.7, [3]), masks[3:4])
    assert visible_blocks((8, 8), 8, 0.0, [0]).all()
    assert not visible_blocks((8, 8), 8, 1.0, [0]).any()


def test_mic_adds_a_loss_and_leaves_the_others(place):
    base, found = (_first_step(place, f"mic.enabled={on}") for on in ("false", "true"))
    assert found.keys() - base.keys() == {"masked"}
    assert found["masked"] > 0
    assert all(found[name] == base[name] for name in base.keys() - {"loss"})
    assert found["loss"] == pytest.approx(base["loss"] + found["masked"], rel=1e-5)


def test_hrda_weighs_fused_and_detail_logits(place):
    """The loss is linear in the detail's share, and the pull loss is that of half-sized images."""
    shares = (0.0, 0.5, 1.0)
    steps = [_first_step(place, "hrda.enabled=true", f"hrda.detail_weight={share}") for share in shares]
    for name in ("source", "target"):
        low, middle, high = (step[name] for step in steps)
        assert middle == pytest.approx((low + high) / 2, rel=1e-5)
        assert low != high
    assert len({step["pull"] for step in steps}) == 1
    assert steps[0]["pull"] != _first_step(place)["pull"]


def test_parts_of_both_networks_start_alike():
    student, plain = (network.state_dict() for network in _student())
    assert isinstance(build_student(load_config("smoke"), 11), Segmenter)
    assert {key.split(".")[0] for key in student.keys() - plain.keys()} == {"attention"}
    assert all(torch.equal(student[key], value) for key, value in plain.items())


def test_mic_needs_a_teacher():
    with pytest.raises(ValueError, match="takes the teacher's labels"):
        load_config("smoke", ["mic.enabled=true", "components.self_training=false"])
