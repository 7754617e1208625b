"""Remedies of what takes features, masks, counts and estimators: done to the wrong input, they give what was meant."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pull_cases
import pytest
import torch
from test_remedies import DRAW, LABELS, LOGITS, MASK, SIZE, WEIGHT, C, N, apply
from torch import Tensor

import classbalance_losses as cb
from classbalance_losses import functional

D = 4
FEATURES = torch.randn(N, D, *SIZE, generator=DRAW)
TEXT = torch.randn(C, D, generator=DRAW)
REGION = MASK.bool()
COARSE = REGION[:, ::2, ::2]
SIZED = torch.nn.functional.interpolate(COARSE[:, None].float(), size=SIZE)[:, 0].bool()
MAPS: dict[str, tuple[Any, type[Exception], str, Tensor]] = {
    "(N, 1, H, W)": (REGION.unsqueeze(1), ValueError, "mask.squeeze(1)", REGION),
    "(N, H, W, 1)": (REGION.unsqueeze(-1), ValueError, "mask.squeeze(-1)", REGION),
    "(H, W)": (REGION[0], ValueError, f"mask.expand({(N, *SIZE)})", REGION[:1].expand(N, *SIZE)),
    "(N,)": (
        REGION[:, 0, 0],
        ValueError,
        f"mask.reshape(-1, 1, 1).expand({(N, *SIZE)})",
        REGION[:, :1, :1].expand(N, *SIZE),
    ),
    "coarse": (
        COARSE,
        ValueError,
        f"torch.nn.functional.interpolate(mask[:, None].float(), size={SIZE}, mode='nearest')[:, 0].bool()",
        SIZED,
    ),
    "floats": (MASK.float(), TypeError, "mask.bool()", REGION),
    "a list": (REGION.tolist(), TypeError, "torch.tensor(mask)", REGION),
    "an array": (REGION.numpy(), TypeError, "torch.as_tensor(mask)", REGION),
}


def fix(call: Callable[[Any], Tensor], name: str, wrong: Any, error: type[Exception], piece: str) -> Tensor:
    with pytest.raises(error) as caught:
        call(wrong)
    assert type(caught.value) is error
    return call(apply((piece,), str(caught.value), {name: wrong}, name)[name])


@pytest.mark.parametrize("name", MAPS)
def test_masks(name: str) -> None:
    wrong, error, piece, meant = MAPS[name]
    for call in (
        lambda mask: functional.entropy_loss(LOGITS, mask=mask),
        lambda mask: cb.MaskedConsistencyLoss()(FEATURES, FEATURES.flip(0), mask),
        lambda mask: cb.TextAlignmentLoss()(FEATURES, TEXT, LABELS, mask=mask),
    ):
        assert torch.equal(fix(call, "mask", wrong, error, piece), call(meant))


@pytest.mark.parametrize("name", ["(N, 1, H, W)", "(N, H, W, 1)", "(H, W)", "(N,)"])
def test_weights_of_an_entropy(name: str) -> None:
    piece = MAPS[name][2].replace("mask", "pixel_weight")
    index = {
        "(N, 1, H, W)": (slice(None), None),
        "(N, H, W, 1)": (..., None),
        "(H, W)": 0,
        "(N,)": (..., 0, 0),
    }[name]
    call = lambda pixel_weight: functional.entropy_loss(LOGITS, pixel_weight=pixel_weight)  # noqa: E731
    meant = {"(H, W)": WEIGHT[:1], "(N,)": WEIGHT[:, :1, :1]}.get(name, WEIGHT).expand(N, *SIZE)
    assert torch.equal(fix(call, "pixel_weight", WEIGHT[index], ValueError, piece), call(meant))


def on_another_device() -> Iterator[tuple[str, Callable[..., Tensor], dict[str, Tensor]]]:
    """Calls by keywords, all of whose tensors must be on the device of the first."""
    shares = LOGITS.softmax(1)
    yield (
        "consistency",
        cb.MaskedConsistencyLoss(),
        {"masked": FEATURES, "reference": FEATURES, "mask": REGION},
    )
    yield (
        "alignment",
        cb.TextAlignmentLoss(),
        {"features": FEATURES, "text": TEXT, "target": LABELS, "mask": REGION},
    )
    yield "topology", cb.TopologyLoss(), {"text": TEXT, "prototypes": TEXT.flip(0)}
    yield "anchors", cb.AnchorLoss(), {"projected": TEXT, "prototypes": TEXT.flip(0)}
    yield "entropy", functional.entropy_loss, {"input": LOGITS, "mask": REGION, "pixel_weight": WEIGHT}
    yield (
        "gradients",
        partial(functional.class_gradient_norms, gradient="last_layer_weight"),
        {
            "input": LOGITS,
            "target": LABELS,
            "features": FEATURES,
        },
    )
    yield (
        "confidence",
        partial(functional.class_confidence_weights, num_classes=C),
        {
            "confidence": shares.amax(1),
            "labels": LABELS,
        },
    )
    yield "pull", pull_cases.module(), pull_cases.batch()
    rows = FEATURES.movedim(1, -1).flatten(0, 2)
    yield (
        "pull of vectors",
        functional.pull_loss,
        {
            "queries": rows,
            "query_labels": LABELS.flatten(),
            "prototypes": TEXT,
            "class_weight": torch.ones(C),
            "negatives": TEXT.unsqueeze(1),
        },
    )


@pytest.mark.parametrize(
    ("call", "given"), [pytest.param(*rest, id=name) for name, *rest in on_another_device()]
)
def test_all_on_one_device(call: Callable[..., Tensor], given: dict[str, Tensor]) -> None:
    """A tensor that lies elsewhere is named, with the move; before, some results were what lay in memory by chance."""
    names = [name for name, value in given.items() if isinstance(value, Tensor)]
    away = {name: given[name].to("meta") for name in names}
    for name in names[1:]:
        wrong = {**given, **away, name: given[name]}
        with pytest.raises(
            ValueError, match=rf"Expected {name} on the device of (\w+), meta, got cpu"
        ) as caught:
            call(**wrong)
        words = re.search(r"Pass (.*)\.$", str(caught.value))
        assert words is not None
        assert eval(words[1], wrong).device.type == "meta"


def test_losses_on_features_know_shapes_without_values() -> None:
    """The meta device has no autocast to switch off."""
    away = lambda tensor: tensor.to("meta")  # noqa: E731
    for module, given in (
        (cb.EntropyLoss("gbw"), [LOGITS]),
        (cb.TextAlignmentLoss(), [FEATURES, TEXT, LABELS]),
        (cb.MaskedConsistencyLoss(), [FEATURES, FEATURES]),
        (cb.AnchorLoss(), [TEXT, TEXT]),
        (cb.TopologyLoss(), [TEXT, TEXT]),
        (cb.QueryDiversityLoss(), [TEXT.unsqueeze(0)]),
        (cb.GBWLoss(gradient="bias"), [LOGITS, LABELS]),
    ):
        assert module(*map(away, given)).shape == ()


def test_one_label_is_left_out_where_only_one_can_be() -> None:
    """A tuple was taken for no label at all, silently."""
    for call in (
        lambda ignored: functional.text_alignment_loss(FEATURES, TEXT, LABELS, ignore_index=ignored),
        lambda ignored: functional.class_prototypes(FEATURES, LABELS, C, ignore_index=ignored),
        lambda ignored: functional.sample_class_balanced(LABELS, C, ignore_index=ignored)[1],
        lambda ignored: functional.class_confidence_weights(WEIGHT, LABELS, C, ignore_index=ignored),
        lambda ignored: cb.PullLoss(num_classes=C, ignore_index=ignored),
        lambda ignored: cb.ClassStatistics(C, ignore_index=ignored),
    ):
        with pytest.raises(
            TypeError, match=r"got \(0, 255\)\. One label is left out here: pass ignore_index=255"
        ):
            call((0, 255))


def test_labels_have_the_name_of_the_argument() -> None:
    labels = torch.where(LABELS > 0, 255, 0)
    with pytest.raises(IndexError, match=r"pass \(query_labels == 255\)\.long\(\)"):
        functional.pull_loss(
            FEATURES.movedim(1, -1).flatten(0, 2), labels.flatten(), TEXT, None, torch.ones(C)
        )


def test_logits_of_functions_are_checked() -> None:
    adjust = partial(functional.adjust_logits, prior=[1.0, 2.0, 3.0])
    for call in (adjust, partial(functional.gbw_class_weights, target=LABELS)):
        assert torch.equal(
            fix(call, "input", LOGITS.numpy(), TypeError, "torch.as_tensor(input)"), call(LOGITS)
        )
        assert torch.equal(fix(call, "input", {"out": LOGITS}, TypeError, "input['out']"), call(LOGITS))
    with pytest.raises(TypeError, match=r"Pass input\.float\(\)"):  # it was rounded to integers again
        functional.adjust_logits(LOGITS.long(), [1.0, 2.0, 3.0])
    found = fix(adjust, "input", LOGITS[0, :, 0, 0], ValueError, "input.unsqueeze(0)")
    torch.testing.assert_close(found[0], adjust(LOGITS)[0, :, 0, 0])


def test_priors_of_classes_that_were_not_seen() -> None:
    for prior, meant in (([7, 0, 3], [7, 1, 3]), ([0.7, 0.0, 0.3], [0.7, 1e-6, 0.3])):
        call = lambda prior: functional.logit_adjusted_loss(LOGITS, LABELS, prior)  # noqa: E731
        piece = f"torch.as_tensor(prior).clamp(min={meant[1]})"
        assert torch.equal(fix(call, "prior", prior, ValueError, piece), call(meant))


def test_statistics_in_the_place_of_numbers() -> None:
    statistics = cb.ClassStatistics(C)
    statistics.update(LABELS)
    for name, call, piece in (
        ("prior", lambda prior: functional.logit_adjusted_loss(LOGITS, LABELS, prior), "prior.pixel_counts"),
        (
            "weight",
            lambda weight: functional.weighted_cross_entropy_loss(LOGITS, LABELS, weight),
            'weight.weights("pixel_frequency")',
        ),
    ):
        assert fix(call, name, statistics, TypeError, piece).isfinite()
    with pytest.raises(ValueError, match=r"task='multiclass', got 2 classes.*task='binary'"):
        cb.ClassStatistics(2).merge(cb.ClassStatistics(2, task="binary"))
    with pytest.raises(TypeError, match="Expected ClassStatistics"):
        statistics.merge(statistics.pixel_counts)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "batch", [LABELS.numpy(), (LOGITS, LABELS.numpy()), {"label": LABELS.numpy()}], ids=type
)
def test_labels_of_a_loader_that_are_arrays(batch: Any) -> None:
    with pytest.raises(TypeError, match="got ndarray in batch") as caught:
        cb.ClassStatistics(C).accumulate([batch])
    words = re.search(r"Wrap the loader: (.*)\.$", str(caught.value))
    assert words is not None
    counted = cb.ClassStatistics(C).accumulate(eval(words[1], {"torch": torch, "loader": [batch]}))
    assert torch.equal(counted.pixel_counts, LABELS.flatten().bincount())


def test_estimators_called_by_hand_and_what_they_return() -> None:
    for given in ((LOGITS, LABELS), (torch.tensor([1, 2, 3]),)):
        with pytest.raises(TypeError, match="An estimator is called by its loss") as caught:
            cb.MedianFrequency()(*given)
        words = re.search(r"loss: (\S*\(\S*\)\(input, target\))", str(caught.value))
        assert words is not None
        assert eval(words[1], {**vars(cb), "input": LOGITS, "target": LABELS}).isfinite()
    expected = functional.weighted_cross_entropy_loss(LOGITS, LABELS, [1.0, 2.0, 3.0])
    for kind in (list, np.array, torch.tensor):
        weight = lambda sums, kind=kind: kind([1.0, 2.0, 3.0])  # noqa: E731
        torch.testing.assert_close(functional.weighted_cross_entropy_loss(LOGITS, LABELS, weight), expected)
    with pytest.raises(TypeError, match=r"Expected weight to be a tensor, an array or a sequence.*got None"):
        functional.weighted_cross_entropy_loss(LOGITS, LABELS, lambda sums: None)  # type: ignore[arg-type, return-value]


def test_counts_below_0() -> None:
    for name in ("pixel_frequency", "median_frequency", "effective_number", "enet"):
        with pytest.raises(ValueError, match="non-negative pixel_counts"):
            getattr(functional, f"{name}_weights")([3, -1, 2])


def test_numbers_of_a_programme() -> None:
    call = partial(functional.solve_class_weights, regularization=1.0)
    piece = "torch.as_tensor(squared_norms).float()"
    assert torch.equal(fix(call, "squared_norms", [1, 2, 3], TypeError, piece), call([1.0, 2.0, 3.0]))


def test_confidences_that_are_logits() -> None:
    call = functional.unreliable_pixels
    with pytest.raises(ValueError, match="Did you pass logits") as caught:
        call(LOGITS.amax(1) * 9)
    words = re.search(r"probability, (.*)\.$", str(caught.value))
    assert words is not None
    assert torch.equal(call(eval(words[1], {"logits": LOGITS})), call(LOGITS.softmax(1).amax(1)))
