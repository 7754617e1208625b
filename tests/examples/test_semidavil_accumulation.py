"""A step in pieces: what equals the step in one go, what does not, and which images each rank and piece get."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")
pytest.importorskip("kornia")

from examples.common.config import run_folder
from examples.common.scenes.batches import Images, Share, Steps
from examples.common.scenes.task import load_task, streams
from examples.common.scenes.toy import write_street_folder
from examples.semidavil.config import Config, load_config
from examples.semidavil.engine import Engine

_OVERRIDES = (
    "data.batch_size=4",
    "data.budget=2",
    "data.crop=[16, 24]",
    "data.streets=3",
    "model.dropout=0.0",
    'consistency.normalize="pixels"',
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pieces")
    write_street_folder(folder / "target", size=(24, 32), train=4, test=1)
    return folder


def _config(place: Path, *overrides: str) -> Config:
    config = load_config("smoke", [*_OVERRIDES, *overrides])
    return replace(config, data=replace(config.data, target=str(place / "target")))


def _steps(config: Config, place: Path, share: Share) -> Steps:
    task = load_task(config.data, place / "kept")
    found = streams(task, config.data, place / "kept", 0, unlabelled=config.components.consistency)
    return Steps(found, 0, 2, 3, share)


def _without_norms(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, nn.Identity())
        else:
            _without_norms(child)


def _step(config: Config, place: Path, pieces: int) -> tuple[dict[str, float], list[torch.Tensor], Engine]:
    """A step on images of which the pieces have unequal numbers of labelled pixels: the first has none."""
    config = replace(config, training=replace(config.training, accumulation=pieces))
    kept = place / "kept"
    engine = Engine(config, load_task(config.data, kept), torch.device("cpu"), kept)
    _without_norms(engine.networks.student)
    _without_norms(engine.networks.teacher)
    batch = _steps(config, place, Share())[0]
    for images in batch.values():
        if images.label is not None:
            images.label[0] = 255
            images.label[1, :9] = 255
    values = {name: float(value) for name, value in engine.advance(batch).items()}
    return values, [p.grad for p in engine.networks.student.parameters() if p.grad is not None], engine


@pytest.mark.parametrize("loss", ["CE", "FL", "DCE", "DFL"])
@pytest.mark.parametrize("pieces", [2, 4])
def test_means_over_pixels_are_those_of_the_whole_step(place, loss, pieces):
    config = _config(place, f'loss="{loss}"')
    whole, gradients, _ = _step(config, place, 1)
    values, ours, engine = _step(config, place, pieces)
    assert values == pytest.approx(whole, rel=1e-5)
    assert values["consistency"] > 0
    assert list(values) == list(whole)
    torch.testing.assert_close(ours, gradients, rtol=1e-4, atol=1e-6)
    assert (engine.step, int(engine.networks.teacher.n_averaged)) == (1, 2)


@pytest.mark.parametrize("overrides", [('loss="DyCE"',), ('loss="WCE"', 'loss_options={weight="running"}')])
def test_what_a_loss_counts_is_of_the_piece(place, overrides):
    """The docstring of Engine says so: the supervised loss changes, that of equation 4 does not."""
    config = _config(place, *overrides)
    whole, values = (_step(config, place, pieces)[0] for pieces in (1, 2))
    assert values["supervised"] != pytest.approx(whole["supervised"], rel=1e-3)
    assert values["consistency"] == pytest.approx(whole["consistency"], rel=1e-5)


def test_the_divisor_of_confident_pixels_is_of_the_piece(place):
    release = ['consistency.normalize="confident"', 'consistency.confidence="teacher"']
    config = _config(place, 'loss="CE"', *release)
    whole, values = (_step(config, place, pieces)[0] for pieces in (1, 4))
    assert values["confident"] == pytest.approx(whole["confident"])
    assert values["consistency"] != pytest.approx(whole["consistency"], rel=1e-4)


def test_ranks_and_pieces_share_a_step_among_them(place):
    config = _config(place)
    whole = _steps(config, place, Share())[0]
    for ranks, pieces in ((2, 1), (1, 2), (2, 2), (4, 1)):
        parts = [_steps(config, place, Share(rank, ranks, pieces))[0] for rank in range(ranks)]
        for name, images in whole.items():
            length = len(images.image) // (ranks * pieces)
            cut = [
                part[name][piece * length : (piece + 1) * length] for piece in range(pieces) for part in parts
            ]
            joined = Images(
                torch.cat([x.image for x in cut]),
                None,
                tuple(n for x in cut for n in x.names),
                tuple(p for x in cut for p in x.positions),
            )
            assert torch.equal(joined.image, images.image)
            assert (joined.names, joined.positions) == (images.names, images.positions)
            assert images.positions == (8, 9, 10, 11)
            assert all((x.label is None) == (images.label is None) for x in cut)
    with pytest.raises(ValueError, match=r"multiple of 2 ranks x training\.accumulation = 4, got 12"):
        Share(0, 2, 4).places(12)


def test_every_key_decides_the_folder_and_is_checked(place):
    folder = run_folder(place, "smoke", load_config("smoke").as_dict())
    for key in ("model.dropout=0.2", "training.accumulation=2", "data.flip=true", "consistency.strength=0.5"):
        assert run_folder(place, "smoke", load_config("smoke", [key]).as_dict()) != folder
    for key in ("model.dropout=1.0", "training.accumulation=0"):
        with pytest.raises(ValueError, match=key.split(".")[1].split("=")[0]):
            load_config("smoke", [key])
