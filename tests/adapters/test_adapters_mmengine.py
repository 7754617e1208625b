"""The losses by mmengine's registry and mmsegmentation's conventions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from toy_scenes import NUM_CLASSES, falls, scenes

import classbalance_losses as cb

pytest.importorskip("mmengine", reason="needs mmengine: pip install mmengine")
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS

from classbalance_losses.adapters.mmengine import ESTIMATORS, LOSSES, MMSegLoss
from classbalance_losses.losses._base import PixelLoss

CONFIG = """
custom_imports = dict(imports=["classbalance_losses.adapters.mmengine"])
loss = dict(type="ClassBalanceGBWLoss", regularization=2.0, loss_weight=0.5, loss_name="loss_main")
"""


def logits_and_labels(ignored: bool = True) -> tuple[Tensor, Tensor]:
    label = scenes()[1]
    if ignored:
        label[:, 0] = 255
    return torch.randn(4, NUM_CLASSES, 16, 16), label


@pytest.mark.parametrize("loss_type", LOSSES, ids=lambda loss_type: loss_type.__name__)
def test_a_built_loss_is_the_loss(loss_type: type) -> None:
    pred, label = logits_and_labels()
    options = {"prior": [3.0, 2.0, 1.0]} if loss_type is cb.LogitAdjustedLoss else {}
    built = MODELS.build({"type": f"ClassBalance{loss_type.__name__}", "loss_weight": 2.0, **options})
    assert built.loss_name == LOSSES[loss_type]
    assert built.loss_name.startswith("loss_")
    expected = loss_type(**options, ignore_index=255)(pred, label)
    assert built(pred, label, weight=None, ignore_index=255) == 2 * expected


def test_every_loss_and_estimator_is_registered() -> None:
    pixel_losses, estimators = _public(PixelLoss), _public(cb.ClassWeightEstimator)
    assert {loss_type.__name__ for loss_type in LOSSES} == pixel_losses
    assert {estimator.__name__ for estimator in ESTIMATORS} == estimators - {"ClassWeightEstimator"}
    assert all(f"ClassBalance{name}" in MODELS for name in pixel_losses)


def _public(base: type) -> set[str]:
    kinds = {name: getattr(cb, name) for name in cb.__all__}
    return {name for name, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, base)}


def test_by_a_config_file() -> None:
    config = Config.fromstring(CONFIG, ".py")
    loss = MODELS.build(config.loss)
    assert isinstance(loss.loss, cb.GBWLoss)
    assert (loss.loss.regularization, loss.loss_weight, loss.loss_name) == (2.0, 0.5, "loss_main")


def test_class_weights_from_a_config_may_be_given_or_estimated() -> None:
    pred, label = logits_and_labels(ignored=False)
    given = MODELS.build({"type": "ClassBalanceWeightedCrossEntropyLoss", "weight": [1.0, 2.0, 3.0]})
    torch.testing.assert_close(
        given(pred, label), F.cross_entropy(pred, label, weight=torch.tensor([1.0, 2.0, 3.0]))
    )
    estimator = {"type": "ClassBalancePixelFrequency", "power": 0.5}
    estimated = MODELS.build({"type": "ClassBalanceWeightedCrossEntropyLoss", "weight": estimator})
    expected = cb.WeightedCrossEntropyLoss(cb.PixelFrequency(power=0.5))(pred, label)
    assert estimated(pred, label) == expected


def test_weight_avg_factor_and_override() -> None:
    pred, label = logits_and_labels()
    weight = torch.randint(0, 2, label.shape)  # a sampler's weights may be integers
    loss = MODELS.build(
        {"type": "ClassBalanceFocalLoss", "gamma": 0.0, "ignore_index": 255, "loss_weight": 3.0}
    )
    terms = F.cross_entropy(pred, label, ignore_index=255, reduction="none")
    torch.testing.assert_close(loss(pred, label, reduction_override="none"), 3 * terms)
    torch.testing.assert_close(
        loss(pred, label, weight, reduction_override="sum"), 3 * (terms * weight).sum()
    )
    torch.testing.assert_close(loss(pred, label, weight, avg_factor=7), 3 * (terms * weight).sum() / 7)
    torch.testing.assert_close(
        loss(pred, label, avg_factor=torch.tensor(7), reduction_override="none"), 3 * terms
    )
    torch.testing.assert_close(loss(pred, label), 3 * F.cross_entropy(pred, label, ignore_index=255))
    assert loss(pred, label, avg_factor=0).isfinite()
    with pytest.raises(ValueError, match="avg_factor"):
        loss(pred, label, avg_factor=7, reduction_override="sum")


@pytest.mark.parametrize("channels", [1, NUM_CLASSES])
def test_sigmoids_of_class_indices(channels: int) -> None:
    """As mmsegmentation's binary_cross_entropy with avg_non_ignore: one channel of 0 and 1, or one a class."""
    pred, label = torch.randn(4, channels, 16, 16), scenes()[1].clamp(max=max(channels - 1, 1))
    number = torch.arange(channels).view(-1, 1, 1) if channels > 1 else torch.ones(1, 1, 1)
    hot = (label.unsqueeze(1) == number).float()
    label[:, 0] = 255
    config = {"use_sigmoid": True, "avg_non_ignore": True}
    loss = MODELS.build({"type": "ClassBalanceWeightedCrossEntropyLoss", **config})
    terms = F.binary_cross_entropy_with_logits(pred, hot, reduction="none")
    expected = terms[:, :, 1:].mean()
    torch.testing.assert_close(loss(pred, label, ignore_index=255), expected)
    weight = torch.randint(0, 2, label.shape)
    weighted = (terms * weight.unsqueeze(1))[:, :, 1:]
    torch.testing.assert_close(loss(pred, label, weight, ignore_index=255), weighted.mean())
    torch.testing.assert_close(loss(pred, label, weight, avg_factor=7, ignore_index=255), weighted.sum() / 7)
    if channels > 1:
        labels = torch.where(label.unsqueeze(1) == 255, 255, hot.long())
        torch.testing.assert_close(loss(pred, labels, ignore_index=255), expected)
        with pytest.raises(IndexError, match="255 is out of bounds for 3 classes"):
            loss(pred, label)


def test_an_ignored_class_is_no_label_that_is_absent() -> None:
    """mmsegmentation's head may ignore class 0, and absent labels are 0 too."""
    pred, label = logits_and_labels(ignored=False)
    loss = MODELS.build({"type": "ClassBalanceWeightedCrossEntropyLoss", "use_sigmoid": True})
    hot = F.one_hot(label, NUM_CLASSES).movedim(-1, 1).float()
    terms = F.binary_cross_entropy_with_logits(pred, hot, reduction="none").movedim(1, -1)
    torch.testing.assert_close(loss(pred, label, ignore_index=0), terms[label != 0].mean())
    both = MODELS.build(
        {"type": "ClassBalanceWeightedCrossEntropyLoss", "use_sigmoid": True, "ignore_index": (0, 2)}
    )
    torch.testing.assert_close(both(pred, label), terms[label == 1].mean())


def test_what_a_config_may_not_say() -> None:
    with pytest.raises(ValueError, match="avg_non_ignore=True"):
        MODELS.build({"type": "ClassBalanceDyCELoss", "avg_non_ignore": False})
    with pytest.raises(TypeError, match="loss_decode, a list"):
        MMSegLoss(cb.DyCELoss() + cb.DiceLoss())
    pred, label = logits_and_labels(ignored=False)
    with pytest.raises(ValueError, match="Expected weight with one number for each pixel"):
        MODELS.build({"type": "ClassBalanceDyCELoss"})(pred, label, torch.ones(3, 16, 16))


def test_options_of_a_call_do_not_stay_even_after_an_error() -> None:
    pred, label = logits_and_labels()
    loss = MODELS.build({"type": "ClassBalanceDyCELoss"})
    loss(pred, label, ignore_index=255, reduction_override="none")
    with pytest.raises(ValueError, match="reduction"):
        loss(pred, label, ignore_index=255, reduction_override="median")
    assert (loss.loss.ignore_index, loss.loss.reduction) == (-100, "mean")


class Segmentor(BaseModel):
    """A head as mmsegmentation's: the losses by name, those named loss_* are added up."""

    def __init__(self, losses: list[dict[str, object]]) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, NUM_CLASSES, 1)
        self.losses = nn.ModuleList(MODELS.build(loss) for loss in losses)

    def forward(self, inputs: Tensor, labels: Tensor, mode: str = "loss") -> dict[str, Tensor]:
        logits = self.head(inputs)
        return {loss.loss_name: loss(logits, labels, weight=None, ignore_index=255) for loss in self.losses}


def test_training_by_mmengine_lowers_the_loss() -> None:
    image, label = scenes()
    label[:, 0] = 255
    model = Segmentor(
        [
            {"type": "ClassBalanceDyCELoss", "loss_weight": 0.5},
            {"type": "ClassBalanceGBWLoss", "momentum": 0.9},
            {"type": "ClassBalanceDiceLoss", "use_sigmoid": True},
        ]
    )
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=2.0))
    logs = [model.train_step({"inputs": image, "labels": label}, wrapper) for _ in range(15)]
    assert set(logs[0]) == {"loss", "loss_dyce", "loss_gbw", "loss_dice"}
    assert falls([log["loss"].item() for log in logs])
    assert model.state_dict()["losses.1.loss.class_weight"].shape == (NUM_CLASSES,)


def test_weights_and_labels_that_are_no_tensors_are_named() -> None:
    pred, label = logits_and_labels(ignored=False)
    for task in ("multiclass", "multilabel"):
        loss = MMSegLoss(cb.FocalLoss(task=task))
        with pytest.raises(TypeError, match=r"Expected label to be a torch\.Tensor, got ndarray"):
            loss(pred, label.numpy())
        with pytest.raises(TypeError, match=r"Expected weight to be a torch\.Tensor, got list"):
            loss(pred, label, weight=[1.0, 2.0, 3.0])
