"""The module ``PullLoss``: the whole step against its equations, its state, and several ranks."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from distributed_worker import leave_group
from processes import start_ranks
from pull_cases import IGNORED, OBJECTIVES, C, D, Step, batch, module, no_value_checks, run, step  # noqa: F401
from test_no_sync import NoSync
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from classbalance_losses import PullLoss
from classbalance_losses.functional import class_confidence_weights, pull_loss


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("pair_reduction", ["mean", "sum"])
def test_with_every_pixel_drawn_the_step_is_its_equations(objective: str, pair_reduction: str) -> None:
    # Enough queries and negatives for all pixels: nothing is left to chance but the order.
    data = batch()
    loss = module(
        objective=objective, pair_reduction=pair_reduction, momentum=0, absent="max", unreliable_fraction=1.0,
        queries_per_class=84, negatives=168,
    )  # fmt: skip

    def rows(name: str) -> Tensor:
        return data[name].movedim(1, -1).reshape(-1, D)

    labels = data["source_labels"].flatten()
    confidence, pseudo = data["target_probabilities"].max(1)
    keys = torch.stack([rows("source_features")[labels == c].mean(0) for c in range(C)])
    pool = torch.cat([rows("source_features"), rows("target_features")])
    names = torch.cat([labels, pseudo.flatten()])
    mask = (names != torch.arange(C).unsqueeze(1)) & (names != IGNORED)
    weight = class_confidence_weights(confidence, pseudo, C)
    expected = pull_loss(
        rows("student_features"), labels, keys, pool.expand(C, -1, -1), weight,
        objective=objective, pair_reduction=pair_reduction, negative_mask=mask, ignore_index=IGNORED,
    )  # fmt: skip
    torch.testing.assert_close(run(loss, data), expected)
    torch.testing.assert_close(loss.class_weight, weight)


def test_gradient_goes_to_the_student_alone_and_nan_pixels_are_inert() -> None:
    data = batch()
    ignored = (data["student_labels"] == IGNORED).unsqueeze(1)
    for name in ("student_features", "source_features"):
        data[name] = data[name].masked_fill(ignored, torch.nan)
    for name in ("student_features", "source_features", "target_features", "target_probabilities"):
        data[name].requires_grad_()
    value = run(module(), data)
    value.backward()
    gradient = data["student_features"].grad
    assert value.isfinite()
    assert gradient is not None
    assert gradient.isfinite().all()
    assert gradient.any()
    assert not gradient[ignored.expand_as(gradient)].any()
    assert all(
        data[name].grad is None for name in ("source_features", "target_features", "target_probabilities")
    )


def certain(classes: list[int], confidence: float) -> Tensor:
    """Probabilities (1, C, P) whose P pixels are pseudo-labelled with ``classes`` at one confidence."""
    out = torch.full((1, C, len(classes)), (1 - confidence) / (C - 1))
    for pixel, c in enumerate(classes):
        out[0, c, pixel] = confidence
    return out


def at(probabilities: Tensor) -> dict[str, Tensor]:
    pixels = probabilities.shape[2]
    return {**batch(), "target_features": torch.randn(1, D, pixels), "target_probabilities": probabilities}


@pytest.mark.parametrize("absent", ["carry", "max", "exclude"])
def test_confidence_is_a_running_mean(absent: str) -> None:
    loss = module(momentum=0.75, absent=absent, power=1)
    torch.testing.assert_close(loss.class_weight, torch.full((C,), 0.25))
    run(loss, at(certain([0, 1, 1], 0.8)))
    torch.testing.assert_close(loss.class_confidence, torch.tensor([0.2, 0.2, 0.0, 0.0]))
    run(loss, at(certain([0, 2], 0.6)))
    second = 0.75 * 0.2 if absent == "max" else 0.2
    torch.testing.assert_close(loss.class_confidence, torch.tensor([0.3, second, 0.15, 0.0]))
    doubt = torch.tensor([0.7, 1 - second, 0.85, 1.0])
    if absent == "exclude":
        doubt = doubt * torch.tensor([1.0, 0.0, 1.0, 0.0])
    torch.testing.assert_close(loss.class_weight, doubt / doubt.sum())


def test_without_momentum_it_is_the_batch() -> None:
    for absent in ("max", "exclude"):
        loss = module(momentum=0, absent=absent)
        for probabilities in (certain([0, 1, 1], 0.9), certain([2, 3], 0.6)):
            run(loss, at(probabilities))
            confidence, pseudo = probabilities.max(1)
            torch.testing.assert_close(
                loss.class_weight, class_confidence_weights(confidence, pseudo, C, absent=absent)
            )


def test_evaluation_uses_the_last_weights_and_changes_nothing() -> None:
    loss = module()
    run(loss, batch())
    before = copy.deepcopy(loss.state_dict())
    loss.eval()
    value = run(loss, batch(1))
    for name, buffer in loss.state_dict().items():
        assert torch.equal(buffer, before[name])
    with torch.no_grad():
        loss.class_weight.mul_(2)
    torch.testing.assert_close(run(loss, batch(1)), 2 * value)


def test_state_survives_saving_in_mid_training() -> None:
    first = module()
    for seed in range(3):
        run(first, batch(seed))
    second = module()
    second.load_state_dict(first.state_dict())
    assert set(first.state_dict()) == {"class_confidence", "class_weight", "seen"}
    for seed in range(3, 6):
        torch.testing.assert_close(run(first, batch(seed)), run(second, batch(seed)), rtol=0, atol=0)


def test_two_steps_before_the_first_backward() -> None:
    # The buffers are written over by the second step; the first one's graph must not mind.
    loss, data = module(), batch()
    student = data.pop("student_features").requires_grad_()
    total = sum(run(loss, {"student_features": student, **data}, seed) for seed in range(2))
    total.backward()  # type: ignore[union-attr]
    assert student.grad is not None


def test_absent_classes_and_small_maps() -> None:
    data = batch(classes=2)
    assert run(module(), data).isfinite()
    nothing = {**data, "student_labels": torch.full((2, 6, 7), IGNORED)}
    assert run(module(), nothing).item() == 0
    empty = {k: v[:0] for k, v in data.items()}
    assert run(module(), empty).item() == 0
    # Source and target need not have the student's size.
    other = {**data, **{k: batch(3)[k][:1, ..., :3] for k in ("target_features", "target_probabilities")}}
    assert run(module(), other).isfinite()


def test_module_compiles_and_computes_in_float32_under_autocast() -> None:
    data = batch()
    half = {k: v.bfloat16() if v.is_floating_point() and "prob" not in k else v for k, v in data.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert run(module(), half).dtype == torch.float32
    loss = module(queries_per_class=84, negatives=168)
    compiled = torch.compile(copy.deepcopy(loss), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(**data), run(loss, data))
    torch.testing.assert_close(compiled.class_weight, loss.class_weight)


@pytest.mark.usefixtures("no_value_checks")
def test_nothing_waits_for_the_device() -> None:
    data = batch()
    data["student_features"].requires_grad_()
    with NoSync():
        run(module(), data).backward()
    assert data["student_features"].grad is not None


def test_no_value_is_read() -> None:
    made = batch()
    with FakeTensorMode() as fake:
        assert module()(**{name: fake.from_tensor(part) for name, part in made.items()}).shape == ()


def test_repr_shows_the_settings() -> None:
    assert "temperature=0.2, power=0.5, unreliable_fraction=0.5, queries_per_class=128" in repr(
        PullLoss(num_classes=19)
    )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_classes": 1}, ValueError, "num_classes"),
        ({"objective": "l2"}, ValueError, "objective"),
        ({"power": -0.5}, ValueError, "power"),
        ({"unreliable_fraction": 1.1}, ValueError, "unreliable_fraction"),
        ({"queries_per_class": 0}, ValueError, "queries_per_class"),
        ({"negatives": 5}, ValueError, "even negatives"),
        ({"momentum": 1.5}, ValueError, "momentum"),
        ({"absent": "keep"}, ValueError, "'carry', 'max', 'exclude'"),
    ],
)
def test_module_option_errors(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        module(**options)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"student_labels": torch.zeros(2, 12, 14).long()}, ValueError, r"interpolate\(student_labels"),
        ({"source_labels": torch.zeros(2, 1, 6, 7).long()}, ValueError, r"source_labels.squeeze\(1\)"),
        ({"target_probabilities": torch.randn(2, C, 6, 7) * 9}, ValueError, "softmax"),
        ({"target_probabilities": torch.rand(2, C, 3, 7)}, ValueError, r"interpolate\(target_probabilities"),
        ({"target_probabilities": torch.rand(2, C + 1, 6, 7)}, ValueError, "one channel for each of the 4"),
        ({"target_features": torch.zeros(2, D, 6, 7).long()}, TypeError, "target_features"),
        ({"target_features": torch.zeros(2, D + 1, 6, 7)}, ValueError, "same number of channels"),
        ({"source_features": torch.zeros(2, D + 1, 6, 7)}, ValueError, "same number of channels"),
        ({"source_labels": torch.full((2, 6, 7), -1)}, IndexError, "ignore_index=-1"),
    ],
)
def test_module_input_errors(changes: dict[str, Tensor], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run(module(), {**batch(), **changes})


# Ranks


def ranks_of(data: dict[str, Tensor], rank: int) -> dict[str, Tensor]:
    return {k: v[rank : rank + 1] for k, v in data.items()}


def _shares() -> Iterator[tuple[str, Step]]:
    torch.manual_seed(4)
    s = step(masks=True)
    yield "uneven", s
    yield "one empty", replace(s, labels=torch.where(torch.arange(17) < 5, s.labels, IGNORED))


def _slice(s: Step, rank: int) -> Step:
    part = slice(0, 5) if rank == 0 else slice(5, None)
    mask = None if s.query_mask is None else s.query_mask[part]
    return replace(s, queries=s.queries[part], labels=s.labels[part], query_mask=mask)


def _rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    out: dict[str, Any] = {}
    for name, whole in _shares():
        s = _slice(whole, rank)
        out[name] = s(process_group="world"), s.gradient(process_group="world")
    loss = module(process_group="world", queries_per_class=84, negatives=168, objective="mse")
    out["module"] = run(loss, ranks_of(batch(), rank)), loss.class_confidence
    torch.save(out, f"{folder}/{rank}.pt")
    leave_group()


def test_two_ranks_equal_one_process(tmp_path: Path) -> None:
    start_ranks(_rank, str(tmp_path))
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for name, whole in _shares():
        for rank in ranks:
            torch.testing.assert_close(rank[name][0], whole())
        gradient = torch.cat([rank[name][1] for rank in ranks]) / 2  # DistributedDataParallel's mean
        torch.testing.assert_close(gradient, whole.gradient())
    loss = module(queries_per_class=84, negatives=168, objective="mse")
    value = run(loss, batch())
    for rank in ranks:
        torch.testing.assert_close(rank["module"], (value, loss.class_confidence))
