"""Memory between batches: nothing that a user does to a model breaks it, and it moves when it should alone."""

from __future__ import annotations

import copy
import math
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pull_cases
import pytest
import state_worker as worker
import torch
import torch.distributed as dist
from processes import start_ranks
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

import classbalance_losses as cb
from classbalance_losses import GBWLoss, PullLoss, WeightedCrossEntropyLoss
from classbalance_losses.state import BatchSums

CLASSES = 4


def weighted(kind: Callable[..., nn.Module], **options: Any) -> Callable[..., nn.Module]:
    return lambda num_classes=None: WeightedCrossEntropyLoss(kind(num_classes=num_classes, **options))


LAZY: dict[str, Callable[..., nn.Module]] = {
    "gbw": lambda num_classes=None: GBWLoss(regularization=0.1, momentum=0.5, num_classes=num_classes),
    "pixel-frequency": weighted(cb.PixelFrequency, accumulate="running"),
    "median-frequency": weighted(cb.MedianFrequency, accumulate="running"),
    "loss-based": weighted(cb.LossBased, momentum=0.5, regularization=0.1),
    "curriculum": weighted(cb.Curriculum, every=1, momentum=0.5, start=50),
}
STATEFUL: dict[str, Callable[[], nn.Module]] = {
    **LAZY,
    **{f"{name}-fixed": lambda make=make: make(num_classes=CLASSES) for name, make in LAZY.items()},
    "pull": lambda: pull_cases.module(
        num_classes=CLASSES, momentum=0.5, objective="mse", queries_per_class=200
    ),
}
over_stateful = pytest.mark.parametrize("name", STATEFUL)
over_lazy = pytest.mark.parametrize("name", LAZY)
IMAGE = 3


class Model(nn.Module):
    """A loss before a layer: what shifts the entries of the one shifts those of the other."""

    def __init__(self, loss: nn.Module, channels: int = CLASSES) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.loss = loss
        self.net = nn.Conv2d(IMAGE, pull_cases.D if isinstance(loss, PullLoss) else channels, 1)

    def forward(self, image: Tensor, seed: int = 0) -> Tensor:
        return value(self.loss, self.net(image), seed)


def value(loss: nn.Module, output: Tensor, seed: int) -> Tensor:
    """The loss of a net's output; the seed draws the rest."""
    if isinstance(loss, PullLoss):
        others = pull_cases.batch(seed)
        return pull_cases.run(loss, {**others, "student_features": output})
    return loss(output, labels(seed)[: len(output)])  # type: ignore[no-any-return]


def labels(seed: int) -> Tensor:
    drawn = torch.rand(2, 6, 7, generator=torch.Generator().manual_seed(seed)) ** 2 * CLASSES
    return torch.where(
        drawn < 3, drawn, -100 if seed % 2 else drawn
    ).long()  # odd batches lack the last class


def image(seed: int) -> Tensor:
    return torch.randn(2, IMAGE, 6, 7, generator=torch.Generator().manual_seed(seed))


def memory(loss: nn.Module) -> dict[str, Tensor]:
    return {name: entry.clone() for name, entry in loss.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(entry, other[name]) for name, entry in one.items())


def steps(model: Model, *seeds: int) -> Tensor:
    """Train without an optimizer: the gradient of the last batch."""
    for seed in seeds:
        model.net.weight.grad = None
        model(image(seed), seed).backward()
    assert model.net.weight.grad is not None
    return model.net.weight.grad


# Copies, averages


@over_stateful
@pytest.mark.parametrize("use_buffers", [False, True])
def test_an_average_of_weights_made_before_the_first_batch(name: str, use_buffers: bool) -> None:
    model = Model(STATEFUL[name]())
    average = AveragedModel(model, use_buffers=use_buffers)
    for seed in range(3):
        steps(model, seed)
        average.update_parameters(model)
    assert torch.equal(average.module.net.weight, model.net.weight)
    assert average.module(image(3), 3).isfinite()


@over_stateful
@pytest.mark.parametrize("by_key", [False, True], ids=["pairs", "keys"])
def test_an_average_over_state_dicts(name: str, by_key: bool) -> None:
    """The copy is made before the first batch, and the loss stands before the layer: no entry may shift."""
    model = Model(STATEFUL[name]())
    average = copy.deepcopy(model)
    for seed in range(2):
        steps(model, seed)
        theirs = model.state_dict()
        pairs = zip(average.state_dict().values(), theirs.values(), strict=True)
        for mean, new in [(m, theirs[k]) for k, m in average.state_dict().items()] if by_key else pairs:
            mean.copy_(0.75 * mean + 0.25 * new)
    assert torch.equal(average.net.weight, model.net.weight)
    assert average(image(2), 2).isfinite()


@over_lazy
def test_copies_of_one_template_may_have_other_classes(name: str) -> None:
    template = LAZY[name]()
    one, other = Model(copy.deepcopy(template)), Model(copy.deepcopy(template), channels=CLASSES + 1)
    steps(one, 0)
    other.state_dict()
    steps(other, 0)
    late = Model(copy.deepcopy(one.loss), channels=CLASSES)
    steps(late, 1)
    assert not same(memory(late.loss), memory(one.loss))


@over_stateful
def test_reset_is_the_state_before_the_first_batch(name: str) -> None:
    model, fresh = Model(STATEFUL[name]()), Model(STATEFUL[name]())
    steps(model, 0, 1)
    part = getattr(model.loss, "weight", model.loss)
    part.reset()
    assert same(memory(model.loss), memory(fresh.loss))
    assert torch.equal(steps(model, 2), steps(fresh, 2))
    assert same(memory(model.loss), memory(fresh.loss))


# Saving and loading


@over_stateful
@pytest.mark.parametrize("twin", ["load", "deepcopy", "pickle", "inference"])
def test_training_goes_on_as_if_it_had_not_stopped(name: str, twin: str) -> None:
    model, other = Model(STATEFUL[name]()), Model(STATEFUL[name]())
    steps(model, 0, 1)
    if twin == "inference":  # its tensors can be read alone, where a parameter or buffer is written in place
        with torch.inference_mode():
            loss = STATEFUL[name]()
            loss.load_state_dict(model.loss.state_dict())
        other.loss = loss
    elif twin == "load":
        other.load_state_dict(model.state_dict())
    else:
        other = copy.deepcopy(model) if twin == "deepcopy" else pickle.loads(pickle.dumps(model))
    assert same(memory(other.loss), memory(model.loss))
    for seed in (2, 3):
        torch.testing.assert_close(steps(other, seed), steps(model, seed), rtol=0, atol=0)
    assert same(memory(other.loss), memory(model.loss))


LOADS = {
    **STATEFUL,
    "dyce": cb.DyCELoss,
    "vector": lambda: WeightedCrossEntropyLoss([1.0, 2.0, 3.0, 4.0]),
    "prior": lambda: cb.LogitAdjustedLoss([1.0, 2.0, 3.0, 4.0]),
    "sum": lambda: (
        cb.DiceLoss() + GBWLoss(momentum=0.9) + WeightedCrossEntropyLoss(cb.LossBased(momentum=0.9))
    ),
}


@pytest.mark.parametrize("saved", LOADS)
def test_any_loss_loads_into_any_other(saved: str) -> None:
    old = LOADS[saved]()
    if not isinstance(old, PullLoss):
        steps(Model(old), 0)
    for make in [
        *LOADS.values(),
        lambda: cb.FocalLoss(alpha=[1.0, 2.0, 3.0, 4.0]),
        GBWLoss,
        cb.DualFocalLoss,
    ]:
        new = nn.ModuleDict({"loss": make()})
        new.load_state_dict(nn.ModuleDict({"loss": old}).state_dict())
        if not isinstance(new["loss"], PullLoss):
            assert steps(Model(new["loss"]), 1).isfinite().all()
            cb.EntropyLoss().load_state_dict(cb.DeepSupervision(new["loss"]).state_dict())


def test_entries_that_are_not_ours_still_stop_a_load() -> None:
    for wrong in ("bias", "weight.bias"):
        with pytest.raises(RuntimeError, match=wrong):
            cb.DyCELoss().load_state_dict({wrong: torch.ones(3)})


@over_lazy
@pytest.mark.parametrize("fixed", [False, True])
def test_another_number_of_classes_names_remedies_that_work(name: str, fixed: bool) -> None:
    old, channels = Model(LAZY[name]()), CLASSES + 1
    steps(old, 0)
    new = Model(LAZY[name](num_classes=channels) if fixed else LAZY[name](), channels)
    steps(new, 0)
    saved = old.loss.state_dict()
    part = getattr(new.loss, "weight", new.loss)
    with pytest.raises(
        RuntimeError,
        match=f"size mismatch.*followed 4 classes.*delete.*{'num_classes=4' if fixed else 'reset'}",
    ):
        new.loss.load_state_dict(saved)
    new.loss.load_state_dict({key: entry for key, entry in saved.items() if key not in memory(old.loss)})
    steps(new, 1)
    if fixed:
        LAZY[name](num_classes=CLASSES).load_state_dict(saved)
        remedy = "num_classes=5"
    else:
        part.reset()
        new.loss.load_state_dict(saved)
        with pytest.raises(ValueError, match=r"followed 4 classes, the batch has 5.*reset\(\)"):
            new(image(0))
        part.reset()
        steps(new, 0)
        return
    with pytest.raises(ValueError, match=remedy):
        Model(LAZY[name](num_classes=CLASSES), channels)(image(0))


FORMER = {
    "gbw": {"class_weight": torch.tensor([0.5, 1.5, 0.0, 2.0])},
    "pixel-frequency": {"weight.counts": torch.tensor([[3, 0, 7, 1]])},
    "loss-based": {"weight.class_loss": torch.tensor([0.5, math.nan, 1.0, 2.0])},
    "curriculum": {
        "weight.class_loss": torch.tensor([0.5, math.nan, 1.0, 2.0]),
        "weight.step": torch.tensor(7),
    },
}


@pytest.mark.parametrize("name", FORMER)
@pytest.mark.parametrize("fixed", [False, True])
def test_a_checkpoint_from_before(name: str, fixed: bool) -> None:
    """Without a count, and with NaN for what had not been seen; before the first batch the entries were empty."""
    loss = LAZY[name](num_classes=CLASSES if fixed else None)
    loss.load_state_dict(FORMER[name])
    now = memory(loss)
    for key, entry in FORMER[name].items():
        assert torch.equal(now[key], entry.nan_to_num(0.0))
    for key in now:
        if key.endswith("seen"):
            assert now[key].tolist() in (1, [1, 0, 1, 1])
    empty = {key: entry[..., :0].flatten() if entry.ndim else entry for key, entry in FORMER[name].items()}
    loss.load_state_dict(empty)
    assert not any(entry.any() for key, entry in memory(loss).items() if not key.endswith("class_weight"))
    assert steps(Model(loss), 0).isfinite().all()


def test_a_running_weight_that_had_become_nan_is_begun_anew() -> None:
    loss = GBWLoss(momentum=0.9)
    loss.load_state_dict({"class_weight": torch.full((CLASSES,), math.nan)})
    assert loss.seen == 0
    assert steps(Model(loss), 0).isfinite().all()


def test_a_part_of_a_state_dict_leaves_the_memory_alone() -> None:
    model = Model(LAZY["gbw"]())
    steps(model, 0)
    before = memory(model.loss)
    model.load_state_dict(dict(model.named_parameters()), strict=False)
    assert same(memory(model.loss), before)


VECTORS: list[tuple[Any, str]] = [
    (WeightedCrossEntropyLoss, "weight"),
    (cb.FocalLoss, "alpha"),
    (cb.DiceLoss, "class_weight"),
    (cb.EntropyLoss, "weight"),
]


@pytest.mark.parametrize(("make", "attribute"), [*VECTORS, (cb.LogitAdjustedLoss, "prior")])
@pytest.mark.parametrize("saved", [[1.0, 2.0, 3.0], nn.Parameter(torch.tensor(0.5))], ids=["three", "one"])
def test_numbers_of_other_classes_name_a_remedy_that_works(make: Any, attribute: str, saved: Any) -> None:
    if make is not cb.FocalLoss and isinstance(saved, Tensor):
        saved = [0.5, 0.5, 0.5, 0.5]  # focal's alone may be one number
    state_dict = make(**{attribute: saved}).state_dict()
    for own in ([1.0, 2.0], *([nn.Parameter(torch.tensor(0.1))] if make is cb.FocalLoss else [])):
        if torch.as_tensor(own).shape == state_dict[attribute].shape:
            continue
        loss = make(**{attribute: own})
        with pytest.raises(RuntimeError, match="size mismatch") as caught:
            loss.load_state_dict(state_dict)
        words = re.search(r"set (.*) before loading", str(caught.value))
        assert words is not None
        exec(words[1], {"loss": loss, "state_dict": state_dict})
        loss.load_state_dict(state_dict)
        assert torch.equal(torch.as_tensor(getattr(loss, attribute)), state_dict[attribute])


@pytest.mark.parametrize(
    "weight", [torch.tensor([1.0, 2.0, 3.0]), [1, 2, 3], (1.0, 2.0, 3.0), torch.tensor([1, 2, 3]).numpy()]
)
def test_weights_assigned_later_are_saved(weight: Any) -> None:
    for make, attribute in VECTORS:
        given, later, loaded = make(**{attribute: weight}), make(), make()
        setattr(later, attribute, weight)
        assert same(later.state_dict(), given.state_dict())
        loaded.load_state_dict(later.state_dict())
        assert same(loaded.state_dict(), given.state_dict())
        for wrong in ([1.0, -1.0, 2.0], torch.ones(1, 2), [1.0, math.nan]):
            with pytest.raises(ValueError, match=f"Expected .*{attribute}"):
                setattr(later, attribute, wrong)
        setattr(later, attribute, None)
        assert not later.state_dict()


def test_weights_of_every_kind_take_each_others_place() -> None:
    loss = WeightedCrossEntropyLoss()
    kinds = [nn.Parameter(torch.ones(3)), [1, 2, 3], cb.PixelFrequency(), None, lambda *a: torch.ones(3)]
    logits, target = torch.randn(2, 3, 5), torch.randint(3, (2, 5))
    for one in kinds:
        for other in kinds:
            for weight in (one, other):
                loss.weight = weight
                assert loss(logits, target).isfinite()
    loss.weight = kinds[0]
    assert next(iter(loss.parameters())) is kinds[0]
    assert "weight" in loss.state_dict()


# When it moves


@over_stateful
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_batch_that_is_not_finite_does_not_move_it(name: str, wrong: float) -> None:
    model = Model(STATEFUL[name]())
    for first in (True, False):
        if not first:
            steps(model, 0)
        before = memory(model.loss)
        bad = image(1)
        bad[0, :, 2, 3] = wrong
        model(bad, 1)
        after = memory(model.loss)
        assert all(torch.equal(entry, before[key]) for key, entry in after.items() if key in before)
        assert first or after.keys() == before.keys()
    assert steps(model, 2).isfinite().all()


@over_stateful
@pytest.mark.parametrize("mode", ["no_grad", "inference_mode", "eval"])
def test_validation_moves_nothing(name: str, mode: str) -> None:
    """Before the first batch and later, and without a call of eval()."""
    model = Model(STATEFUL[name]())
    for trained in (False, True):
        if trained:
            steps(model, 0)
        before = memory(model.loss)
        model.loss.train(mode != "eval")
        with torch.inference_mode() if mode == "inference_mode" else torch.set_grad_enabled(mode == "eval"):
            assert model(image(1), 1).isfinite()
        model.loss.train()
        assert same(memory(model.loss), before)
    steps(model, 2)


@over_stateful
def test_torch_func_moves_nothing_and_works(name: str) -> None:
    model = Model(STATEFUL[name]())
    for trained in (False, True):
        if trained:
            steps(model, 0)
        before = memory(model.loss)
        output = model.net(image(1)).detach()
        torch.func.grad(lambda x: value(model.loss, x, 1))(output)
        if name != "pull":  # which draws numbers for the whole batch
            each = torch.func.vmap(torch.func.grad(lambda x, y: model.loss(x.unsqueeze(0), y.unsqueeze(0))))
            batched = each(output, labels(1))
            alone = torch.stack(
                [torch.func.grad(model.loss)(output[i : i + 1], labels(1)[i : i + 1])[0] for i in (0, 1)]
            )
            torch.testing.assert_close(batched, alone)
        assert same(memory(model.loss), before)


@pytest.mark.parametrize("name", LAZY)
def test_an_exported_program_keeps_no_memory(name: str) -> None:
    loss = LAZY[name]()
    logits, target = Model(loss).net(image(0)).detach(), labels(0)
    for trained in (False, True) if name == "gbw" else (False,):
        if trained:
            loss(logits, target)
        before = memory(loss)
        program = torch.export.export(loss, (logits, target)).module()
        assert same(memory(loss), before)
        assert program(logits, target) == program(logits, target)


def test_an_exported_program_runs_without_the_library() -> None:
    """In a process that has not used the loops: numba cannot be imported while ``torch.export`` replaces functions."""
    lines = (
        "import sys, torch, classbalance_losses as c",
        "x, y = torch.randn(1, 4, 200, 200), torch.randint(4, (1, 200, 200))",
        "loss = c.DyCELoss() + c.DiceLoss()",
        "program = torch.export.export(loss, (x, y))",
        "assert 'classbalance' not in program.graph_module.code and 'numba' not in sys.modules",
        "torch.testing.assert_close(program.module()(x, y), loss(x, y))",
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", "\n".join(lines)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]


COUNTS = [1e6, 5e4, 1e2]  # two of which float16 cannot hold


@pytest.mark.parametrize(
    "loss",
    [
        cb.LogitAdjustedLoss(COUNTS),
        WeightedCrossEntropyLoss([1e-9, 1e-8, 1e-9]),
        cb.FocalLoss(alpha=torch.tensor(COUNTS)),
        cb.DiceLoss(class_weight=COUNTS),
    ],
    ids=lambda loss: type(loss).__name__,
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_cast_leaves_given_numbers_as_they_are(loss: nn.Module, dtype: torch.dtype) -> None:
    logits, target = torch.randn(2, 3, 4, 4).to(dtype), torch.randint(3, (2, 4, 4))
    cast = copy.deepcopy(loss).to(dtype)
    assert torch.equal(cast(logits, target), loss(logits, target))
    assert [numbers.dtype for numbers in cast.buffers()] == [numbers.dtype for numbers in loss.buffers()]


def test_a_number_assigned_to_a_copy_is_its_own() -> None:
    loss = cb.FocalLoss(alpha=torch.ones(3))
    other = copy.copy(loss)
    other.alpha = 0.25
    assert torch.equal(loss.alpha, torch.ones(3))
    assert "alpha" in loss.state_dict()
    assert "alpha" not in other.state_dict()


@over_stateful
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_a_cast_leaves_it_as_it_is(name: str, dtype: torch.dtype) -> None:
    model = Model(STATEFUL[name]())
    steps(model, 0)
    before = memory(model.loss)
    model.loss.to(dtype)
    model.loss.to("cpu", dtype)
    assert same(memory(model.loss), before)
    assert {entry.dtype for entry in memory(model.loss).values()} <= {torch.float32, torch.int64}


@pytest.mark.parametrize("name", ["gbw", "pixel-frequency", "loss-based", "curriculum", "pull"])
def test_a_thousand_steps_of_a_module_in_half_precision(name: str) -> None:
    """By the part of a loss that remembers: the rest has no part in it, and would take its time."""
    whole, half = STATEFUL[name](), STATEFUL[name]().bfloat16()
    draw = torch.Generator().manual_seed(0)
    for _ in range(1000):
        drawn = torch.rand(2, 12, generator=draw)
        follow(whole, drawn)
        follow(half, drawn)
    assert same(memory(whole), memory(half))


def follow(loss: Any, drawn: Tensor) -> None:
    """Show a batch to a loss, as its forward does."""
    classes = (drawn * CLASSES).long()
    if isinstance(loss, GBWLoss):
        loss._blended(drawn[0, :CLASSES], drawn.sum(), 0.9, None)
    elif isinstance(loss, PullLoss):
        for recalled, values in loss._class_weight(drawn, classes)[1]:
            loss._keep(recalled, **values)
    else:
        loss.weight(BatchSums.of_maps(drawn, classes, drawn < 0.9, CLASSES))


# Checkpoints of activations


def plain(function: Callable[..., Tensor], *args: Any) -> Tensor:
    return function(*args)


def again(function: Callable[..., Tensor], *args: Any) -> Tensor:
    return checkpoint(function, *args, use_reentrant=False)  # type: ignore[no-any-return]


def reentrant(function: Callable[..., Tensor], *args: Any) -> Tensor:
    return checkpoint(function, *args, use_reentrant=True)  # type: ignore[no-any-return]


def trained(
    name: str, how: Callable[..., Tensor], calls: list[list[int]], *, late: bool
) -> tuple[Tensor, Model]:
    """A step for each list of batches: their losses are added, or (late) differentiated one by one, in their order."""
    model = Model(STATEFUL[name]())
    for seeds in calls:
        losses = [how(model, image(seed).requires_grad_(), seed) for seed in seeds]
        for loss in losses if late else [sum(losses)]:
            loss.backward()
    assert model.net.weight.grad is not None
    return model.net.weight.grad, model


@over_stateful
@pytest.mark.parametrize("late", [False, True])
def test_a_recomputation_takes_the_weights_of_its_call(name: str, late: bool) -> None:
    """Several calls before a backward pass, the same batch among them."""
    calls = [[0], [1, 2, 3], [4, 4, 5]]
    expected, one = trained(name, plain, calls, late=late)
    gradient, other = trained(name, again, calls, late=late)
    torch.testing.assert_close(gradient, expected)
    assert same(memory(one.loss), memory(other.loss))


@over_stateful
def test_a_reentrant_checkpoint_moves_it_in_the_second_pass(name: str) -> None:
    """One a backward pass, with a call beside it that is not checkpointed."""
    expected, one = trained(name, plain, [[0], [1], [2]], late=False)
    gradient, other = trained(name, reentrant, [[0], [1], [2]], late=False)
    torch.testing.assert_close(gradient, expected)
    assert same(memory(one.loss), memory(other.loss))
    kept = other(image(3), 3)
    (kept + reentrant(other, image(4).requires_grad_(), 4)).backward()
    steps(one, 3, 4)
    assert same(memory(one.loss), memory(other.loss))


def test_what_a_call_kept_is_freed_with_its_graph() -> None:
    from classbalance_losses import _recompute

    model = Model(LAZY["gbw"]())
    before = len(_recompute._alive)
    kept = [model(image(seed), seed) for seed in range(3)]
    assert len(_recompute._alive) == before + 3
    del kept
    assert len(_recompute._alive) == before


# Process groups


@pytest.fixture
def _alone() -> Any:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def collectives(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A line for each all-reduce."""
    run: list[str] = []
    one = dist.all_reduce
    monkeypatch.setattr(dist, "all_reduce", lambda *args, **kwargs: (run.append("sum"), one(*args, **kwargs)))
    return run


def grouped(name: str, group: Any) -> nn.Module:
    if name == "dyce":
        return cb.DyCELoss(process_group=group)
    loss = STATEFUL[name]()
    loss.process_group = group
    return loss


@pytest.mark.usefixtures("_alone")
@pytest.mark.parametrize("name", [*LAZY, "pull", "dyce"])
@pytest.mark.parametrize("kind", ["world", "object", "new"])
def test_collectives_run_in_training_alone_and_once_a_call(
    name: str, kind: str, collectives: list[str]
) -> None:
    group = {"world": "world", "object": dist.group.WORLD, "new": dist.new_group([0])}[kind]
    model = Model(grouped(name, group))
    loss = again(model, image(0).requires_grad_(), 0)
    assert collectives
    collectives.clear()
    loss.backward()
    with torch.no_grad():
        model(image(1), 1)
    model.loss.eval()
    model(image(1), 1)
    assert not collectives
    average = AveragedModel(model)
    average.update_parameters(model)
    twin = pickle.loads(pickle.dumps(model.loss))
    for copied in (copy.deepcopy(model.loss), average.module.loss, twin):
        assert copied.process_group == model.loss.process_group
    assert repr(twin) == repr(model.loss)


@pytest.mark.usefixtures("_alone")
def test_the_functional_form_always_reduces(collectives: list[str]) -> None:
    with torch.no_grad():
        cb.functional.dyce_loss(torch.randn(2, 3, 5), torch.randint(3, (2, 5)), process_group="world")
    assert collectives


@pytest.mark.usefixtures("_alone")
def test_a_group_that_is_elsewhere_says_what_to_do() -> None:
    from classbalance_losses._distributed import HeldGroup, _found

    loss = cb.DyCELoss(process_group=dist.new_group([0]))
    logits, target = torch.randn(2, 3, 5), torch.randint(3, (2, 5))
    loss._group = _found("another process's", (0,))  # the world of this process
    assert loss.process_group is dist.group.WORLD
    loss._group = _found("another process's", (0, 2))
    assert isinstance(loss._group, HeldGroup)
    loss.eval()
    loss(logits, target)
    loss.train()
    with pytest.raises(RuntimeError, match=r"loss.process_group = torch.distributed.new_group\(\[0, 2\]\)"):
        loss(logits, target)
    loss.process_group = dist.new_group([0])
    loss(logits, target)


def test_two_ranks_agree_or_say_what_to_do(tmp_path: Path) -> None:
    """Rank 0 alone has loaded a checkpoint, and validates alone; a step is checkpointed."""
    start_ranks(worker.main, str(tmp_path))
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for (name, way), result in one.items():
        twin = other[name, way]
        assert torch.equal(result["gradient"], twin["gradient"])
        if way == "lazy":  # each has its own
            assert any("num_classes=" in said for said in twin["said"])
        else:
            assert not result["said"]
            assert not twin["said"]
        if way == "joined":
            assert same(result["memory"], twin["memory"])
            alone = joined(name)
            torch.testing.assert_close(result["memory"], memory(alone.loss))
            torch.testing.assert_close(result["gradient"], alone.net.weight.grad)


def joined(name: str) -> worker.Model:
    """One process on the batches of both ranks, from the checkpoint on."""
    model = worker.Model(worker.MAKE[name]())
    model.load_state_dict(worker.checkpoint_of(name))
    for seed in (0, 2):
        parts = [worker.batch(seed + rank) for rank in (0, 1)]
        model(*(torch.cat(both) for both in zip(*parts, strict=True))).backward()
    return model


@over_stateful
def test_copies_of_copies_keep_nothing_of_those_before(name: str) -> None:
    """As in a search that goes on with the best of each generation."""
    model = Model(STATEFUL[name]())
    for _ in range(400):
        model = copy.deepcopy(model)
    saved = pickle.dumps(model)
    model(torch.randn(2, IMAGE, 6, 7))
    assert len(pickle.dumps(model)) < len(saved) + 10_000
    assert model.state_dict().keys() >= Model(STATEFUL[name]()).state_dict().keys()


@over_stateful
def test_a_model_on_meta_takes_a_checkpoint_by_assignment(name: str) -> None:
    image = torch.randn(2, IMAGE, 6, 7)
    trained, there = Model(STATEFUL[name]()), Model(STATEFUL[name]()).to("meta")
    trained(image).backward()
    there.load_state_dict(trained.state_dict(), assign=True)
    assert all(value.device.type == "cpu" for value in there.state_dict().values())
    assert torch.equal(there(image), trained(image))


@pytest.mark.parametrize("name", [name for name in STATEFUL if name not in LAZY])
def test_memory_of_a_model_that_was_built_on_meta_begins_anew(name: str) -> None:
    """By the recipe of FSDP: to_empty(), and reset_parameters() of each module that has it."""
    with torch.device("meta"):
        model = Model(STATEFUL[name]())
    model.to_empty(device="cpu")
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    for key, value in STATEFUL[name]().state_dict().items():
        assert torch.equal(model.loss.state_dict()[key], value), key
