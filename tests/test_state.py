"""State is saved and restored in mid-training, copied, pickled, moved."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from cases import CORE, Case, Sample, over, sample
from torch import Tensor, nn

import classbalance_losses as cb
from classbalance_losses import FocalLoss, GBWLoss, WeightedCrossEntropyLoss

FACTORIES = {
    "gbw": lambda: GBWLoss(regularization=0.1),
    "gbw-momentum": lambda: GBWLoss(regularization=0.1, momentum=0.9),
    "wce": lambda: WeightedCrossEntropyLoss(torch.tensor([0.5, 1.0, 2.0, 4.0])),
    "wce-pixel-frequency": lambda: WeightedCrossEntropyLoss(cb.PixelFrequency(accumulate="running")),
    "wce-loss-based": lambda: WeightedCrossEntropyLoss(cb.LossBased(momentum=0.9)),
    "focal": lambda: FocalLoss(alpha=[0.5, 1.0, 2.0, 4.0]),
}


class Training:
    """A network that learns, with its loss: enough to see whether a resumed run is the same run."""

    def __init__(self, loss: nn.Module) -> None:
        torch.manual_seed(1)
        self.net, self.loss = nn.Conv1d(3, 4, 1), loss
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.5)

    def step(self, seed: int) -> float:
        draw = torch.Generator().manual_seed(seed)
        image, target = torch.randn(2, 3, 12, generator=draw), torch.randint(-1, 4, (2, 12), generator=draw)
        value: Tensor = self.loss(self.net(image), target.masked_fill(target < 0, -100))
        self.optimizer.zero_grad()
        value.backward()
        self.optimizer.step()
        return value.item()

    def state_dict(self) -> dict[str, object]:
        return {
            "net": self.net.state_dict(),
            "loss": self.loss.state_dict(),
            "opt": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, dict[str, object]]) -> None:
        self.net.load_state_dict(state["net"])
        self.loss.load_state_dict(state["loss"])
        self.optimizer.load_state_dict(state["opt"])


@pytest.mark.parametrize("name", FACTORIES)
def test_resumed_training_is_the_same_training(name: str) -> None:
    """Into a fresh module, whose buffers may still be empty, by way of a file."""
    first = Training(FACTORIES[name]())
    for seed in range(4):
        first.step(seed)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = Training(FACTORIES[name]())
    second.load_state_dict(torch.load(file, weights_only=True))
    assert [first.step(seed) for seed in range(4, 8)] == [second.step(seed) for seed in range(4, 8)]
    for key, value in first.loss.state_dict().items():
        assert torch.equal(value, second.loss.state_dict()[key]), key


@pytest.mark.parametrize("name", FACTORIES)
@pytest.mark.parametrize(
    "twin", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_copies_are_equal_and_independent(name: str, twin: object) -> None:
    original = Training(FACTORIES[name]())
    original.step(0)
    before = {k: v.clone() for k, v in original.loss.state_dict().items()}
    other = Training(twin(original.loss))  # type: ignore[operator]
    other.net.load_state_dict(original.net.state_dict())
    for key, value in other.loss.state_dict().items():
        assert torch.equal(value, before[key])
    assert other.step(1) == original.step(1)
    after = {k: v.clone() for k, v in original.loss.state_dict().items()}
    other.step(2)
    assert all(torch.equal(original.loss.state_dict()[k], v) for k, v in after.items())


@over(CORE)
def test_every_loss_survives_a_copy(case: Case) -> None:
    here = sample(2, weighted=True)
    module = case.build(here)
    expected = case.by_module(here, module)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(case.by_module(here, twin), expected)
        assert repr(twin) == repr(module)
    fresh = case.build(here)
    fresh.load_state_dict(module.state_dict())
    assert torch.equal(case.by_module(here, fresh), expected)


@over(CORE)
def test_losses_have_no_parameters_and_an_informative_repr(case: Case) -> None:
    module = case.build(sample(2))
    assert not list(module.parameters())
    for name, value in case.settings(4).items():
        if isinstance(value, (float, str)):
            assert f"{name.removesuffix('_to')}" in repr(module).replace("apply_to", "apply")
            assert repr(value) in repr(module)


def weights(loss: GBWLoss, s: Sample) -> Tensor:
    loss(s.input, s.target)
    return loss.class_weight


def test_gbw_class_weight_is_that_of_the_last_batch() -> None:
    loss, a, b = GBWLoss(regularization=0.1), sample(2), sample(2, seed=1)
    assert loss.class_weight.shape == (0,)
    for s in (a, b, a):
        expected = cb.functional.gbw_class_weights(s.input, s.target, regularization=0.1)
        torch.testing.assert_close(weights(loss, s), expected.float())
    assert not loss.class_weight.requires_grad


def test_gbw_momentum_blends_the_weights() -> None:
    loss = GBWLoss(regularization=0.1, momentum=0.75)
    batches = [sample(2, seed=seed) for seed in range(4)]
    expected = None
    for s in batches:
        own = cb.functional.gbw_class_weights(s.input, s.target, regularization=0.1)
        expected = own if expected is None else 0.75 * expected + 0.25 * own
        torch.testing.assert_close(weights(loss, s), expected.float())
    torch.testing.assert_close(loss.class_weight.sum(), torch.tensor(4.0))


def test_gbw_in_evaluation_stores_nothing() -> None:
    loss, a, b = GBWLoss(regularization=0.1, momentum=0.5), sample(2), sample(2, seed=1)
    before = weights(loss, a).clone()
    loss.eval()
    assert torch.equal(weights(loss, b), before)


def test_gbw_with_momentum_refuses_another_number_of_classes() -> None:
    loss = GBWLoss(momentum=0.9)
    loss(torch.randn(3, 5), torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match=r"followed 5 classes, the batch has 4.*reset\(\)"):
        loss(torch.randn(3, 4), torch.tensor([0, 1, 2]))
    loss.reset()
    loss(torch.randn(3, 4), torch.tensor([0, 1, 2]))
    assert loss.class_weight.shape == (4,)


def test_gbw_without_momentum_has_no_number_of_classes() -> None:
    loss = GBWLoss()
    for classes in (5, 4):
        loss(torch.randn(3, classes), torch.tensor([0, 1, 2]))
        assert loss.class_weight.shape == (classes,)
    assert not loss.state_dict()
    assert not list(loss.buffers())


def test_earlier_losses_can_still_be_differentiated() -> None:
    """Storing new weights does not touch what an earlier graph needs: two heads share one loss."""
    loss, a, b = GBWLoss(regularization=0.1).double(), sample(2).leaf(), sample(2, seed=1).leaf()
    first, second = loss(a.input, a.target), loss(b.input, b.target)
    (first + second).backward()
    for s in (a, b):
        alone = cb.functional.gbw_loss(s.input, s.target, regularization=0.1)
        assert s.input.grad is not None
        torch.testing.assert_close(s.input.grad, torch.autograd.grad(alone, s.input)[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_cast_model_carries_its_loss_along(dtype: torch.dtype) -> None:
    for factory in FACTORIES.values():
        training = Training(factory())
        training.net.to(dtype)
        training.loss.to(dtype)
        image, target = torch.randn(2, 3, 12, dtype=dtype), torch.randint(4, (2, 12))
        for _ in range(2):
            value = training.loss(training.net(image), target)
            assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            assert torch.isfinite(value)


def test_sequential_state_dict_has_the_losss_keys() -> None:
    model = nn.ModuleDict(
        {"loss": WeightedCrossEntropyLoss(torch.ones(3)), "gbw": GBWLoss(momentum=0.9, num_classes=3)}
    )
    assert set(model.state_dict()) == {"loss.weight", "gbw.class_weight", "gbw.seen"}
