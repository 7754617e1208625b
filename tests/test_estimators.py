"""Class weights that follow the batches: loops over their statistics, state, compile, ranks."""

from __future__ import annotations

import copy
import math
import socket
from pathlib import Path

import pytest
import torch
from distributed_worker import leave_group
from processes import start_ranks
from torch import Tensor, nn

from classbalance_losses import (
    Curriculum,
    EffectiveNumber,
    GBWLoss,
    ImageFrequency,
    LossBased,
    MedianFrequency,
    PixelFrequency,
    WeightedCrossEntropyLoss,
)
from classbalance_losses import functional as C
from classbalance_losses.state import BatchSums, ClassWeightEstimator

CLASSES = 5
IGNORE = 255

COUNTING = {
    "pixel": (PixelFrequency, {"power": 0.5}),
    "median": (MedianFrequency, {"power": 0.5}),
    "image": (ImageFrequency, {}),
    "effective": (EffectiveNumber, {"beta": 0.9}),
}
ESTIMATORS = {
    **{f"{name}-batch": (kind, options) for name, (kind, options) in COUNTING.items()},
    **{
        f"{name}-running": (kind, {**options, "accumulate": "running"})
        for name, (kind, options) in COUNTING.items()
    },
    "loss": (LossBased, {"regularization": 0.5}),
    "loss-momentum": (LossBased, {"momentum": 0.5}),
    "curriculum": (Curriculum, {"every": 2, "momentum": 0.5}),
    "anti-curriculum": (Curriculum, {"every": 1, "order": "hard_first"}),
}
over_estimators = pytest.mark.parametrize("name", ESTIMATORS)


def build(name: str) -> ClassWeightEstimator:
    kind, options = ESTIMATORS[name]
    return kind(**options)


def batch(
    seed: int, shape: tuple[int, ...] = (3, 4, 4), dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """A loss and labels a pixel; class 4 is rare, class 3 absent, some pixels are ignored."""
    random = torch.Generator().manual_seed(seed)
    shares = torch.tensor([0.5, 0.25, 0.12, 0.0, 0.03, 0.1])
    target = torch.multinomial(shares, math.prod(shape), True, generator=random)
    target = torch.where(target == 5, IGNORE, target).view(shape)
    return torch.rand(shape, generator=random, dtype=dtype) + 0.1 * target, target


def estimate(estimator: ClassWeightEstimator, loss: Tensor, target: Tensor) -> Tensor:
    return estimator(sums_of(loss, target))


def sums_of(
    loss: Tensor, target: Tensor, num_classes: int = CLASSES, process_group: str | None = None
) -> BatchSums:
    return BatchSums.of_maps(loss, target, target != IGNORE, num_classes, process_group)


def counted(*targets: Tensor) -> dict[str, Tensor]:
    """Count by looping over the images."""
    count = {name: torch.zeros(CLASSES, dtype=torch.float64) for name in ("pixels", "images", "image_pixels")}
    for image in torch.cat(targets):
        for c in range(CLASSES):
            if bool((image == c).any()):
                count["pixels"][c] += (image == c).sum()
                count["images"][c] += 1
                count["image_pixels"][c] += (image != IGNORE).sum()
    return count


def expected_weights(name: str, *targets: Tensor) -> Tensor:
    count = counted(*targets)
    if name == "pixel":
        return C.pixel_frequency_weights(count["pixels"], power=0.5)
    if name == "median":
        return C.median_frequency_weights(count["pixels"], count["image_pixels"], power=0.5)
    if name == "image":
        return C.image_frequency_weights(count["images"], sum(len(target) for target in targets))
    return C.effective_number_weights(count["pixels"], beta=0.9)


@pytest.mark.parametrize("name", COUNTING)
@pytest.mark.parametrize("shape", [(7,), (3, 4, 4), (2, 2, 3, 4)])
def test_counts_of_a_batch_and_of_all_batches(name: str, shape: tuple[int, ...]) -> None:
    kind, options = COUNTING[name]
    by_batch, running = kind(**options), kind(**options, accumulate="running")
    seen = []
    for seed in range(3):
        loss, target = batch(seed, shape)
        seen.append(target)
        torch.testing.assert_close(estimate(by_batch, loss, target), expected_weights(name, target))
        torch.testing.assert_close(estimate(running, loss, target), expected_weights(name, *seen))
    assert not by_batch.state_dict()


def class_means(loss: Tensor, target: Tensor) -> Tensor:
    means = [loss[target == c].mean() for c in range(CLASSES)]  # nan for an absent class
    return torch.stack(means)


def test_loss_based_weights_of_a_batch() -> None:
    loss, target = batch(0)
    expected = C.loss_based_weights(class_means(loss, target).nan_to_num(0.0), regularization=0.5)
    torch.testing.assert_close(estimate(build("loss"), loss, target), expected)


def test_loss_based_momentum_leaves_classes_the_batch_lacks() -> None:
    estimator, average = LossBased(momentum=0.75), torch.full((CLASSES,), math.nan)
    for seed in range(4):
        loss, target = batch(seed, (1, 3, 3))
        means = class_means(loss, target)
        for c in range(CLASSES):
            if not means[c].isnan():
                average[c] = means[c] if average[c].isnan() else 0.75 * average[c] + 0.25 * means[c]
        weight = estimate(estimator, loss.float(), target)
        torch.testing.assert_close(weight, C.loss_based_weights(average.nan_to_num(0.0)))
    torch.testing.assert_close(estimator.class_loss, average.nan_to_num(0.0))
    assert torch.equal(estimator.seen > 0, ~average.isnan())


def test_an_overflow_does_not_poison_the_average() -> None:
    estimator = LossBased(momentum=0.5)
    loss, target = batch(0)
    estimate(estimator, loss, target)
    before = estimator.class_loss.clone()
    weight = estimate(estimator, torch.where(target == 1, math.inf, loss), target)
    assert estimator.class_loss[1] == before[1]
    assert bool(torch.isfinite(weight).all())


def test_curriculum_admits_classes_from_the_easiest_on() -> None:
    estimator = Curriculum(start=20, increment=40, every=2)
    loss, target = torch.tensor([[0.3, 0.1, 0.5, 0.2, 0.9, 0.9]]), torch.tensor([[2, 1, 0, 3, 4, IGNORE]])
    active = [estimate(estimator, loss, target).tolist() for _ in range(6)]
    first, second, third = [0, 1, 0, 0, 0], [0, 1, 1, 1, 0], [1, 1, 1, 1, 1]
    assert active == [first, first, second, second, third, third]
    estimator.eval()
    assert estimate(estimator, loss, target).tolist() == third
    assert estimator.step == 6


def test_curriculum_starts_with_one_class_at_least_and_never_with_an_absent_one() -> None:
    loss, target = torch.tensor([[1.0, 2.0]]), torch.tensor([[4, 2]])
    assert estimate(Curriculum(start=1), loss, target).tolist() == [0, 0, 0, 0, 1]
    assert estimate(Curriculum(start=100), loss, target).tolist() == [0, 0, 1, 0, 1]


@over_estimators
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_are_constants_of_the_loss_dtype(name: str, dtype: torch.dtype) -> None:
    estimator = build(name)
    loss, target = batch(0, dtype=dtype)
    for _ in range(2):
        weight = estimate(estimator, loss.requires_grad_(), target)
        assert weight.shape == (CLASSES,)
        assert weight.dtype == dtype
        assert not weight.requires_grad
        assert bool(torch.isfinite(weight).all())


@over_estimators
@pytest.mark.parametrize("shape", [(3, 4, 4), (0, 4, 4)])
def test_nothing_to_count(name: str, shape: tuple[int, ...]) -> None:
    target = torch.full(shape, IGNORE)
    loss = WeightedCrossEntropyLoss(build(name), ignore_index=IGNORE)
    logits = torch.randn(shape[0], CLASSES, *shape[1:], requires_grad=True)
    for _ in range(2):
        value = loss(logits, target)
        value.backward()
        assert value == 0
    assert not logits.grad.any()


@over_estimators
def test_evaluation_changes_no_state(name: str) -> None:
    estimator = build(name)
    estimator.eval()
    estimate(estimator, *batch(0))
    fresh = {key: value.clone() for key, value in build(name).state_dict().items()}
    assert_same_state(estimator.state_dict(), fresh)
    estimator.train()
    estimate(estimator, *batch(1))
    before = copy.deepcopy(estimator.state_dict())
    estimator.eval()
    first = estimate(estimator, *batch(2))
    assert_same_state(estimator.state_dict(), before)
    torch.testing.assert_close(estimate(estimator, *batch(2)), first)


def assert_same_state(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for key, value in actual.items():
        torch.testing.assert_close(value, expected[key], equal_nan=True)


@over_estimators
def test_state_goes_on_in_a_fresh_module(name: str, tmp_path: Path) -> None:
    def criterion() -> nn.Module:
        return WeightedCrossEntropyLoss(build(name), ignore_index=IGNORE)

    one, other = criterion(), criterion()
    for seed in range(2):
        one.weight(sums_of(*batch(seed)))
    torch.save(one.state_dict(), tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for seed in range(2, 4):
        logits, target = torch.randn(3, CLASSES, 4, 4), batch(seed)[1]
        assert one(logits, target) == other(logits, target)
    assert_same_state(one.state_dict(), other.state_dict())
    one.load_state_dict(criterion().state_dict())  # back to before the first batch
    copy.deepcopy(one).load_state_dict(other.state_dict())
    assert_same_state(one.state_dict(), criterion().state_dict())


def test_another_number_of_classes_is_an_error() -> None:
    loss, target = batch(0)
    for fresh in (PixelFrequency(accumulate="running"), LossBased(momentum=0.5)):
        estimator = copy.deepcopy(fresh)
        estimate(estimator, loss, target)
        with pytest.raises(ValueError, match="followed 5 classes, the batch has 7"):
            estimator(sums_of(loss, target, 7))
        larger = copy.deepcopy(fresh)
        larger(sums_of(loss, target, 7))
        with pytest.raises(RuntimeError, match="size mismatch"):
            larger.load_state_dict(estimator.state_dict())


@over_estimators
def test_compiles_in_one_graph(name: str) -> None:
    torch._dynamo.reset()
    eager = WeightedCrossEntropyLoss(build(name), ignore_index=IGNORE)
    compiled = torch.compile(copy.deepcopy(eager), fullgraph=True, backend="eager")
    for seed in range(3):
        logits, target = torch.randn(3, CLASSES, 4, 4), batch(seed)[1]
        torch.testing.assert_close(compiled(logits, target), eager(logits, target))


@pytest.mark.parametrize("name", [name for name in ESTIMATORS if name.endswith("batch") or name == "loss"])
def test_batch_estimators_work_under_vmap_and_grad(name: str) -> None:
    estimator = build(name)
    logits, target = torch.randn(2, 3, CLASSES, 4), torch.stack([batch(seed, (3, 4))[1] for seed in range(2)])

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        return C.weighted_cross_entropy_loss(logits, target, estimator, ignore_index=IGNORE)

    gradient = torch.func.vmap(torch.func.grad(loss))(logits, target)
    for one, labels, expected in zip(logits, target, gradient, strict=True):
        torch.testing.assert_close(torch.func.grad(loss)(one, labels), expected)


def test_loss_based_weighting_is_gbw_on_losses() -> None:
    logits, target = torch.randn(3, CLASSES, 4, 4, dtype=torch.float64), batch(0)[1]
    lbw = WeightedCrossEntropyLoss(LossBased(regularization=0.3), normalize="pixels", ignore_index=IGNORE)
    gbw = GBWLoss(gradient="loss", regularization=0.3, ignore_index=IGNORE)
    torch.testing.assert_close(lbw(logits, target), gbw(logits, target))


def test_curriculum_averages_over_the_pixels_of_active_classes() -> None:
    logits, target = torch.randn(3, CLASSES, 4, 4), batch(0)[1]
    criterion = WeightedCrossEntropyLoss(Curriculum(start=40), ignore_index=IGNORE)
    value = criterion(logits, target)
    pixel = torch.nn.functional.cross_entropy(logits, target, ignore_index=IGNORE, reduction="none")
    easiest = class_means(pixel, target).nan_to_num(math.inf).argsort()[:2]
    torch.testing.assert_close(value, pixel[torch.isin(target, easiest)].mean())


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: PixelFrequency(accumulate="epoch"), ValueError),
        (lambda: PixelFrequency(power=-1), ValueError),
        (lambda: MedianFrequency(power=-1), ValueError),
        (lambda: ImageFrequency(accumulate=True), ValueError),
        (lambda: EffectiveNumber(beta=2), ValueError),
        (lambda: LossBased(regularization=0), ValueError),
        (lambda: LossBased(momentum=1.5), ValueError),
        (lambda: Curriculum(start=0), ValueError),
        (lambda: Curriculum(increment=101), ValueError),
        (lambda: Curriculum(every=0), ValueError),
        (lambda: Curriculum(order="random"), ValueError),
        (lambda: Curriculum(every="epoch"), TypeError),
    ],
)
def test_options_are_checked(make, error: type[Exception]) -> None:
    with pytest.raises(error, match="Expected"):
        make()


def test_representation_shows_the_options() -> None:
    assert repr(EffectiveNumber(beta=0.5)) == "EffectiveNumber(accumulate='batch', beta=0.5)"


def _rank(rank: int, port: int, folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    weights = {}
    for name in ESTIMATORS:
        estimator = build(name)
        for step in range(3):
            loss, target = shard(step, rank)
            weights[name] = estimator(sums_of(loss, target, process_group="world"))
    torch.save(weights, f"{folder}/{rank}.pt")
    leave_group()


def shard(step: int, rank: int) -> tuple[Tensor, Tensor]:
    """Ranks differ in size, and rank 1 has everything ignored at the first step."""
    loss, target = batch(10 * step + rank, (2 + rank, 4, 4))
    return loss, torch.full_like(target, IGNORE) if (step, rank) == (0, 1) else target


def test_two_ranks_are_one_process_on_the_joined_batch(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_ranks(_rank, port, str(tmp_path))
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for name in ESTIMATORS:
        estimator = build(name)
        for step in range(3):
            (loss, target), (more, labels) = shard(step, 0), shard(step, 1)
            expected = estimate(estimator, torch.cat([loss, more]), torch.cat([target, labels]))
        for weights in ranks:
            torch.testing.assert_close(weights[name], expected, rtol=1e-6, atol=0)  # averages are float32


def test_an_estimator_of_ones_own() -> None:
    class Fixed(ClassWeightEstimator):
        def forward(self, sums: BatchSums) -> Tensor:
            return 1 / sums.number().clamp(min=1) + sums.number_and_loss()[1]

    logits, target = torch.randn(3, CLASSES, 4, 4), batch(0)[1]
    loss = torch.nn.functional.cross_entropy(logits, target, ignore_index=IGNORE, reduction="none")
    own = [(loss[target == c].sum(), (target == c).sum().clamp(min=1)) for c in range(CLASSES)]
    weight = torch.stack([total + 1 / count for total, count in own])
    for estimator in (Fixed(), Fixed().forward):
        value = WeightedCrossEntropyLoss(estimator, ignore_index=IGNORE)(logits, target)
        torch.testing.assert_close(
            value, torch.nn.functional.cross_entropy(logits, target, weight, ignore_index=IGNORE)
        )
    with pytest.raises(NotImplementedError):
        estimate(ClassWeightEstimator(), *batch(0))


def test_estimators_of_maps_work_and_say_that_they_are_the_former_ones() -> None:
    class OfMaps(ClassWeightEstimator):
        def forward(self, pixel_loss, target, keep, num_classes, process_group=None) -> Tensor:
            assert pixel_loss.shape == target.shape == keep.shape
            return PixelFrequency()(pixel_loss, target, keep, num_classes, process_group)

    logits, target = torch.randn(3, CLASSES, 4, 4), batch(0)[1]
    expected = WeightedCrossEntropyLoss(PixelFrequency(), ignore_index=IGNORE)(logits, target)
    for estimator in (OfMaps(), OfMaps().forward):
        with (
            pytest.warns(FutureWarning, match="An estimator of maps, .* forward\\(sums\\)"),
            pytest.warns(FutureWarning, match="Calling an estimator with maps .* forward\\(sums\\)"),
        ):
            value = WeightedCrossEntropyLoss(estimator, ignore_index=IGNORE)(logits, target)
        assert torch.equal(value, expected)
