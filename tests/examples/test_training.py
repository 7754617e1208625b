"""The training loop: it learns, a stopped run goes on to the same bits, nothing is left half-written."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from classbalance_losses import DyCELoss, GBWLoss
from examples.common import training
from examples.common.training import CHECKPOINT, LOG, TrainingConfig, sample_batch, train, write_atomically

CONFIG = TrainingConfig(iterations=8, batch_size=3, max_lr=1e-2, log_every=1, checkpoint_every=3, seed=5)


def _data(length: int = 7) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(length, 3, 8, 10, generator=generator)
    return [(image, (image.sum(0) * 1.2).long().clamp(max=2)) for image in images]


def _model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(0.2), nn.Conv2d(8, 3, 1)
    )


def _train(folder, config=CONFIG, loss=None, **options):
    model = _model()
    loss = GBWLoss(momentum=0.9) if loss is None else loss
    log = train(model, loss, _data(), config, folder, progress=False, **options)
    return model, loss, log


def _assert_equal_states(a: nn.Module, b: nn.Module) -> None:
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_the_loss_goes_down(tmp_path):
    config = replace(CONFIG, iterations=60, max_lr=5e-2, log_every=1)
    _, _, log = _train(tmp_path, config, nn.CrossEntropyLoss())
    assert sum(e["loss"] for e in log[-5:]) < 0.8 * sum(e["loss"] for e in log[:5])
    assert [e["step"] for e in log] == list(range(1, 61))
    assert max(e["lr"] for e in log) == pytest.approx(5e-2, rel=1e-2)
    assert log[-1]["lr"] < 1e-3


@pytest.mark.parametrize("stop_after", [1, 4, 6, 8])
def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path, stop_after):
    def interrupt(step: int) -> None:
        if step == stop_after:
            raise RuntimeError("power cut")

    model, loss, log = _train(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="power cut"):
        _train(tmp_path / "parts", on_step=interrupt)
    resumed, resumed_loss, resumed_log = _train(tmp_path / "parts")
    assert resumed_log == log
    _assert_equal_states(resumed, model)
    _assert_equal_states(resumed_loss, loss)
    assert loss.class_weight.shape == (3,)
    written = [json.loads(line) for line in (tmp_path / "parts" / LOG).read_text().splitlines()]
    assert written == log


def test_ctrl_c_finishes_the_step_saves_it_and_the_next_call_goes_on(tmp_path):
    steps = []

    def press(step: int) -> None:
        steps.append(step)
        if len(steps) == 1:
            os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 1"):
        _train(tmp_path / "parts", on_step=press)
    assert signal.getsignal(signal.SIGINT) is handler
    assert torch.load(tmp_path / "parts" / CHECKPOINT, weights_only=True)["step"] == 1
    resumed, _, log = _train(tmp_path / "parts", on_step=press)
    assert steps == list(range(1, 9))
    model, _, whole = _train(tmp_path / "whole")
    assert log == whole
    _assert_equal_states(resumed, model)


def test_a_second_ctrl_c_interrupts_at_once(tmp_path):
    class Impatient(nn.Module):
        def forward(self, input: Tensor, target: Tensor) -> Tensor:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            return input.mean()

    with pytest.raises(KeyboardInterrupt):
        _train(tmp_path, loss=Impatient())
    assert not (tmp_path / CHECKPOINT).exists()


def test_seeds_decide_the_order_and_the_flips():
    data = _data()
    first = sample_batch(data, CONFIG, step=4)
    again = sample_batch(data, CONFIG, step=4)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    other = sample_batch(data, replace(CONFIG, seed=6), step=4)
    assert not torch.equal(first[0], other[0])


def test_an_epoch_sees_every_image_once():
    data = [(torch.full((1, 1, 2), float(i)), torch.zeros(1, 2, dtype=torch.long)) for i in range(6)]
    seen = torch.cat([sample_batch(data, CONFIG, step)[0][:, 0, 0, 0] for step in range(4)]).tolist()
    assert sorted(seen[:6]) == sorted(seen[6:]) == list(range(6))
    assert seen[:6] != seen[6:]


def test_flips_turn_image_and_label_together():
    image = torch.arange(4.0).view(1, 1, 4)
    data = [(image, image[0].long())] * 4
    images, labels = sample_batch(data, replace(CONFIG, batch_size=64), step=0)
    assert torch.equal(images[:, 0].long(), labels)
    assert 10 < sum(int(label[0, 0] == 3) for label in labels) < 54
    images, _ = sample_batch(data, replace(CONFIG, batch_size=64, flip=False), step=0)
    assert (images == image).all()


def test_crops_are_windows_of_image_and_label_together():
    image = torch.arange(80.0).view(1, 8, 10)
    config = replace(CONFIG, batch_size=64, crop=6, flip=False)
    images, labels = sample_batch([(image, image[0].long())], config, step=0)
    assert torch.equal(images[:, 0].long(), labels)
    assert (labels - labels[:, :1, :1] == image[0, :6, :6].long()).all()
    assert {divmod(int(corner), 10) for corner in labels[:, 0, 0]} == {
        (top, left) for top in range(3) for left in range(5)
    }


def test_scores_during_training_go_to_the_log(tmp_path):
    config = replace(CONFIG, eval_every=4, log_every=100)
    model, _, log = _train(
        tmp_path, config, DyCELoss(), evaluate=lambda m: {"score": float(not m.eval().training)}
    )
    assert [(e["step"], e.get("score")) for e in log] == [(4, 1.0), (8, 1.0)]
    assert model.training


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match="training set is empty"):
        train(_model(), nn.CrossEntropyLoss(), [], CONFIG, tmp_path)
    with pytest.raises(ValueError, match="iterations must be at least 1"):
        TrainingConfig(iterations=0)
    with pytest.raises(ValueError, match="eval_every must be at least 0"):
        TrainingConfig(eval_every=-1)
    with pytest.raises(ValueError, match=r"crop must be at least 0 \(0: the whole image\)"):
        TrainingConfig(crop=-1)
    with pytest.raises(ValueError, match=r"crop = 9 is larger than an image of \(H, W\) = \(8, 10\)"):
        _train(tmp_path, replace(CONFIG, crop=9))
    _train(tmp_path)
    with pytest.raises(ValueError, match="has another recipe"):
        _train(tmp_path, replace(CONFIG, max_lr=1.0))


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    class Broken(nn.Module):
        def forward(self, input: Tensor, target: Tensor) -> Tensor:
            return input.sum() * torch.nan

    with pytest.raises(FloatingPointError, match="nan at step 1: lower max_lr"):
        _train(tmp_path, loss=Broken())


@pytest.fixture
def reads_rarely(monkeypatch):
    """Training as on a GPU: losses are read only where they are logged or saved."""

    class Run(training._Run):
        def __init__(self, *args) -> None:
            super().__init__(*args)
            self.reads_every_loss = False

    monkeypatch.setattr(training, "_Run", Run)


def test_losses_that_are_read_later_are_the_same(tmp_path, request):
    config = replace(CONFIG, log_every=3)
    model, _, log = _train(tmp_path / "at-once", config)
    request.getfixturevalue("reads_rarely")
    other, _, other_log = _train(tmp_path / "later", config)
    assert log == other_log
    _assert_equal_states(model, other)


def test_a_loss_that_is_not_finite_is_told_with_its_step_before_anything_is_saved(tmp_path, reads_rarely):
    class BrokenOnce(nn.Module):
        calls = 0

        def forward(self, input: Tensor, target: Tensor) -> Tensor:
            self.calls += 1
            return input.mean() * (torch.inf if self.calls == 2 else 1.0)

    with pytest.raises(FloatingPointError, match="at step 2: lower max_lr"):
        _train(tmp_path, replace(CONFIG, log_every=100), loss=BrokenOnce())
    assert not (tmp_path / CHECKPOINT).exists()


def test_a_failed_write_leaves_the_former_file(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, lambda partial: partial.write_text("old"))

    def fail(partial):
        partial.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
