"""A sum of losses is the sum of their values, in one pass over the logits each way."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import DEFAULTS, Case, close, over, sample
from torch import Tensor, nn

from classbalance_losses import (
    DeepSupervision,
    DiceLoss,
    DualCrossEntropyLoss,
    DualFocalLoss,
    DyCELoss,
    EntropyLoss,
    FocalLoss,
    GBWLoss,
    JaccardLoss,
    LogitAdjustedLoss,
    LossBased,
    PixelFrequency,
    SumLoss,
    WeightedCrossEntropyLoss,
    use_backend,
)
from classbalance_losses.kernels import reference
from classbalance_losses.losses import deep_supervision

HERE = sample(2, weighted=True)


def gradient(
    loss: nn.Module, input: Tensor, target: Tensor = HERE.target, **extras: Any
) -> tuple[Tensor, Tensor]:
    leaf = input.detach().clone().requires_grad_()
    value = loss(leaf, target, **extras)
    return value.detach(), torch.autograd.grad(value, leaf)[0]


def added(losses: dict[nn.Module, float], *args: Any, **extras: Any) -> list[Tensor]:
    found = [[weight * part for part in gradient(loss, *args, **extras)] for loss, weight in losses.items()]
    return [torch.stack(parts).sum(0) for parts in zip(*found, strict=True)]


@over(DEFAULTS)
@pytest.mark.parametrize("weighted", [False, True])
def test_values_and_gradients_add_up(case: Case, weighted: bool) -> None:
    own = case.module(**case.settings(4))
    others = {DiceLoss(): 0.5, DyCELoss(): 1.0, GBWLoss(regularization=0.1): 2.0}
    extras = {"pixel_weight": HERE.pixel_weight if weighted else None}
    loss = SumLoss([(1.5, own), *((weight, other) for other, weight in others.items())])
    for ours, theirs in zip(
        gradient(loss, HERE.input, **extras), added({own: 1.5, **others}, HERE.input, **extras), strict=True
    ):
        close(ours, theirs)


@pytest.mark.parametrize("task", ["binary", "multilabel"])
def test_tasks(task: str) -> None:
    logits = torch.randn(2, 1 if task == "binary" else 3, 4, 5, dtype=torch.float64)
    target = torch.rand(logits.shape) < 0.3
    parts = {
        WeightedCrossEntropyLoss(task=task): 1.0,
        DiceLoss(task=task): 1.0,
        FocalLoss(task=task, alpha=0.25): 2.0,
    }
    loss = SumLoss([(weight, part) for part, weight in parts.items()])
    for labels in (target, target.double()):
        for ours, theirs in zip(gradient(loss, logits, labels), added(parts, logits, labels), strict=True):
            close(ours, theirs)


def test_operators() -> None:
    one, two, three = DyCELoss(), DiceLoss(), FocalLoss()
    loss = 2 * (one + 0.5 * two) + three
    assert isinstance(loss, SumLoss)
    assert list(loss.losses) == [one, two, three]
    assert loss.weights == (2.0, 1.0, 1.0)
    assert (one + one).names == ["DyCELoss", "DyCELoss2"]


def _named(backend: str) -> ModuleType:
    """The backend's module; without numba the test of its loops is skipped."""
    if backend == "cpu":
        pytest.importorskip("numba", reason="numba is not installed")
    return import_module(f"{reference.__package__}.{backend}")


@pytest.fixture(params=["reference", "cpu"])
def passes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What a backend is asked to pass over the logits for. What the reference then asks itself is of the same pass."""
    backend, calls, is_inside = _named(request.param), [], []
    for name in (
        "pixel_values",
        "pixel_sums",
        "cross_entropy_and_error",
        "values_and_overlap",
        "loss_and_form",
    ):
        function = getattr(backend, name, None)
        if function is None:
            continue

        def counted(*args: Any, function: Any = function, name: str = name, **kwargs: Any) -> Any:
            if not is_inside:
                calls.append(name)
            is_inside.append(name)
            try:
                return function(*args, **kwargs)
            finally:
                is_inside.pop()

        monkeypatch.setattr(backend, name, counted)
    with use_backend(request.param):
        yield calls


def test_one_pass(passes: list[str]) -> None:
    """Whatever the number of terms that share it."""
    estimated = WeightedCrossEntropyLoss(PixelFrequency())
    loss = DyCELoss() + DiceLoss() + FocalLoss() + GBWLoss() + JaccardLoss() + estimated
    loss(HERE.input.float(), HERE.target)
    assert passes == ["values_and_overlap"]


OF_ALL = [
    DualFocalLoss(),
    DualCrossEntropyLoss(),
    DyCELoss(label_smoothing=0.1),
    WeightedCrossEntropyLoss([1.0, 2.0, 3.0, 4.0], label_smoothing=0.1),
]
ADJUSTED = LogitAdjustedLoss([1.0, 2.0, 3.0, 40.0])


@pytest.mark.parametrize("own", OF_ALL, ids=lambda loss: type(loss).__name__)
def test_one_pass_with_a_form_of_all_probabilities(own: Any, passes: list[str]) -> None:
    """Wherever it stands."""
    (DiceLoss() + own + JaccardLoss())(HERE.input.float(), HERE.target)
    assert passes == ["values_and_overlap"]


@pytest.mark.parametrize("own", [*OF_ALL, ADJUSTED], ids=lambda loss: type(loss).__name__)
def test_one_pass_for_two_forms(own: Any, passes: list[str], request: pytest.FixtureRequest) -> None:
    """Where ℓ is asked for, too. The loops of the CPU have one form at a time."""
    number = 1 if "reference" in request.node.name else 2
    for loss in (DyCELoss() + DiceLoss() + own, DyCELoss() + own + GBWLoss()):
        passes.clear()
        loss(HERE.input.float(), HERE.target)
        assert len(passes) == number, passes


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("own", [*OF_ALL, ADJUSTED], ids=lambda loss: type(loss).__name__)
def test_a_shared_pass_is_the_same(own: Any, backend: str) -> None:
    _named(backend)
    extras = {"pixel_weight": HERE.pixel_weight.float()}
    for others in ({DiceLoss(): 0.5}, {DyCELoss(): 1.0, DiceLoss(): 0.5}, {DyCELoss(): 1.0, GBWLoss(): 1.0}):
        parts: dict[nn.Module, float] = {**others, own: 2.0}
        loss = SumLoss([(weight, part) for part, weight in parts.items()])
        with use_backend(backend):
            ours = gradient(loss, HERE.input.float(), **extras)
        with use_backend("reference"):
            theirs = added(parts, HERE.input, pixel_weight=HERE.pixel_weight)
        for got, truth in zip(ours, theirs, strict=True):
            torch.testing.assert_close(got.double(), truth, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("estimator", [PixelFrequency(), LossBased()], ids=["of pixels", "of losses"])
def test_an_estimator_takes_no_pass_of_its_own(passes: list[str], estimator: nn.Module) -> None:
    WeightedCrossEntropyLoss(estimator)(HERE.input.float(), HERE.target)
    assert passes == ["pixel_values"]


def test_terms_are_for_logging() -> None:
    loss = DyCELoss() + 0.5 * DiceLoss()
    assert loss.terms == {}
    value = loss(HERE.input.requires_grad_(), HERE.target)
    assert list(loss.terms) == ["DyCELoss", "DiceLoss"]
    assert not any(term.requires_grad for term in loss.terms.values())
    close(value, loss.terms["DyCELoss"] + 0.5 * loss.terms["DiceLoss"])


def test_what_terms_remember_is_the_sums_state() -> None:
    def make() -> SumLoss:
        counts = WeightedCrossEntropyLoss(PixelFrequency(accumulate="running", num_classes=4))
        return counts + GBWLoss(momentum=0.9, num_classes=4) + DiceLoss(class_weight=[1.0, 2.0, 3.0, 4.0])

    loss, other = make(), make()
    input = HERE.input.clone().requires_grad_()
    loss(input, HERE.target)
    other.load_state_dict(loss.state_dict())
    copied = copy.deepcopy(loss)
    expected = loss(input, HERE.target).detach()
    close(other(input, HERE.target), expected)
    close(copied(input, HERE.target), expected)


def test_learned_weights_of_terms() -> None:
    weight = nn.Parameter(torch.ones(4, dtype=torch.float64))
    loss = WeightedCrossEntropyLoss(weight, normalize="pixels") + DiceLoss()
    loss(HERE.input, HERE.target).backward()
    assert weight.grad is not None
    assert weight.grad.abs().sum() > 0


def test_adjusted_logits_are_the_terms_own() -> None:
    parts: dict[nn.Module, float] = {
        LogitAdjustedLoss([1.0, 2.0, 3.0, 4.0]): 1.0,
        DiceLoss(): 1.0,
        DyCELoss(): 1.0,
    }
    loss = SumLoss([(weight, part) for part, weight in parts.items()])
    for ours, theirs in zip(gradient(loss, HERE.input), added(parts, HERE.input), strict=True):
        close(ours, theirs)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SumLoss([]), "a term at least"),
        (lambda: SumLoss([(1.0, nn.CrossEntropyLoss())]), "CrossEntropyLoss"),  # type: ignore[list-item]
        (lambda: -1.0 * DiceLoss(), "weight of a term"),
        (
            lambda: DyCELoss(ignore_index=255) + DiceLoss(),
            r"DyCELoss\(ignore_index=255\).*DiceLoss\(ignore_index=-100\)",
        ),
        (
            lambda: DyCELoss(task="binary") + DiceLoss(),
            r"DyCELoss\(task='binary'\).*DiceLoss\(task='multiclass'\)",
        ),
        (lambda: DyCELoss(upsample="linear") + DiceLoss(), "upsample"),
        (lambda: DyCELoss(process_group="world") + DiceLoss(), "process_group"),
        (lambda: DyCELoss(reduction="none") + DiceLoss(), 'reduction="none"'),
        (lambda: GBWLoss(gradient="last_layer_weight") + DiceLoss(), "needs features="),
        (lambda: DeepSupervision(GBWLoss(gradient="last_layer_weight")), "needs features="),
    ],
)
def test_terms_agree(make: Any, words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        make()


def test_pixels_of_weight_0_are_left_out_by_mining_alone() -> None:
    """An estimator sees them, whichever term comes first."""
    parts: dict[nn.Module, float] = {
        DyCELoss(): 1.0,
        WeightedCrossEntropyLoss(LossBased()): 1.0,
        DiceLoss(): 1.0,
    }
    loss = SumLoss([(weight, part) for part, weight in parts.items()])
    extras = {"pixel_weight": torch.where(HERE.target % 2 == 0, 0, HERE.pixel_weight)}
    for ours, theirs in zip(
        gradient(loss, HERE.input, **extras), added(parts, HERE.input, **extras), strict=True
    ):
        close(ours, theirs)


def test_reductions_are_the_terms_own() -> None:
    parts: dict[nn.Module, float] = {
        FocalLoss(reduction="sum"): 1.0,
        DiceLoss(reduction="sum"): 1.0,
        DyCELoss(): 1.0,
    }
    loss = SumLoss([(weight, part) for part, weight in parts.items()])
    for ours, theirs in zip(gradient(loss, HERE.input), added(parts, HERE.input), strict=True):
        close(ours, theirs)


@pytest.mark.parametrize("upsample", [None, "linear"])
def test_deep_supervision(upsample: str | None) -> None:
    target = torch.randint(4, (2, 8, 6))
    heads = [torch.randn(2, 4, 8 // k, 6 // k, dtype=torch.float64) for k in (1, 2)]
    loss = DyCELoss(upsample=upsample) + DiceLoss(upsample=upsample)
    deep = DeepSupervision(loss, [1.0, 0.25])
    if upsample:
        expected = loss(heads[0], target) + 0.25 * loss(heads[1], target)
    else:
        small = F.interpolate(target[:, None].double(), (4, 3), mode="nearest")[:, 0].long()
        expected = loss(heads[0], target) + 0.25 * loss(heads[1], small)
    close(deep(heads, target), expected)
    close(DeepSupervision(loss)(tuple(heads), target), DeepSupervision(loss, [1.0, 0.5])(heads, target))


def test_labels_are_resized_as_torch_does() -> None:
    """At all sizes: torch finds a label's place in float32, whose rounding is not that of whole numbers."""
    for old in range(1, 50):
        target = torch.arange(old).view(1, 1, old)
        for new in range(1, 50):
            expected = F.interpolate(target.float(), new, mode="nearest").long()
            assert torch.equal(deep_supervision._nearest(target, (new,)), expected)


def test_a_process_group_reaches_every_term() -> None:
    deep = DeepSupervision(DyCELoss() + DiceLoss())
    deep.process_group = "world"
    assert [term.process_group for term in deep.loss.losses] == ["world", "world"]


def test_terms_come_in_pairs_of_any_iterable() -> None:
    parts = [FocalLoss(), DiceLoss()]
    expected = FocalLoss() + 0.5 * DiceLoss()
    made = SumLoss(zip((np.float32(1), 0.5), parts, strict=True))  # type: ignore[arg-type]
    assert torch.equal(made(HERE.input, HERE.target), expected(HERE.input, HERE.target))
    for wrong in (DiceLoss(), parts, [(DiceLoss(), 1.0)], {1.0: DiceLoss()}, [1.0, DiceLoss()]):
        with pytest.raises(TypeError, match="pairs of a weight and a loss") as caught:
            SumLoss(wrong)  # type: ignore[arg-type]
        loss, other = parts
        for words in re.search(r"Pass (.*), or write (.*)\.", str(caught.value)).groups():  # type: ignore[union-attr]
            again = eval(words, {"SumLoss": SumLoss, "loss": loss, "other": other})
            assert torch.equal(again(HERE.input, HERE.target), expected(HERE.input, HERE.target))
    with pytest.raises(TypeError, match=r"Write them out: 0\.5 \* inner \+ other"):
        SumLoss([(0.5, expected)])  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"got EntropyLoss\. Add others up by their values.*other\(input\)"):
        DiceLoss() + EntropyLoss()
    with pytest.raises(TypeError, match=r"weight of a term to be a number, got Tensor. Pass its item\(\)"):
        torch.tensor(0.5) * DiceLoss()


def test_deep_supervision_takes_what_is_meant_or_says_what_to_do() -> None:
    target, heads = torch.randint(4, (2, 8, 6)), [torch.randn(2, 4, 8, 6), torch.randn(2, 4, 4, 3)]
    loss = DiceLoss() + FocalLoss()
    expected = DeepSupervision(loss, [1.0, 0.25])(heads, target)
    for weights in (np.array([1.0, 0.25]), torch.tensor([1.0, 0.25]), (1, 0.25)):
        assert torch.equal(DeepSupervision(loss, weights)(heads, target), expected)
    for weights in ([], {0: 1.0, 1: 0.25}, 1.0, "ab"):
        with pytest.raises(TypeError, match="one for each output"):
            DeepSupervision(loss, weights)  # type: ignore[arg-type]
    deep = DeepSupervision(loss, [1.0, 0.25])
    named, made = {"out": heads[0], "aux": heads[1]}, (head for head in heads)
    for wrong in (named, made):
        with pytest.raises(TypeError, match="list of outputs") as caught:
            deep(wrong, target)
        words = re.search(r"Pass (list\(.*?\)+)", str(caught.value))
        assert words is not None
        assert torch.equal(deep(eval(words[1], {"input": wrong}), target), expected)
    for other in (nn.CrossEntropyLoss(), DiceLoss, EntropyLoss(), deep):
        with pytest.raises(TypeError, match="a loss of this package"):
            DeepSupervision(other)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match='reduction="none"'):
        DeepSupervision(DiceLoss(reduction="none"))
    for wrong in (target.numpy(), target[:, 0, 0], target.unsqueeze(1), target[:, :0], {"labels": target}):
        with pytest.raises((TypeError, ValueError), match="Expected target"):
            deep(heads, wrong)
    with pytest.raises(ValueError, match="For a weight of each image"):
        deep(heads, target, pixel_weight=torch.ones(2))
    with pytest.raises(TypeError, match=r"Expected input to be a torch\.Tensor"):
        deep([heads[0], None], target)


def test_deep_supervision_says_what_it_takes() -> None:
    target = torch.randint(4, (2, 8, 6))
    logits = torch.randn(2, 4, 8, 6)
    with pytest.raises(TypeError, match=r"\[input\]"):
        DeepSupervision(DiceLoss())(logits, target)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"1 outputs.*got 2"):
        DeepSupervision(DiceLoss(), [1.0])([logits, logits], target)
