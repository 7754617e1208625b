"""The loss that the trainer for nnU-Net builds, and its call, with stand-ins for nnU-Net's trainer and wrapper."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from toy_scenes import NUM_CLASSES, scenes

import classbalance_losses as cb

FACTORS = (0.75, 0.25, 0.0)


class Wrapper(nn.Module):
    """Called with a list of outputs, one of targets and any others, one entry a scale."""

    def __init__(self, loss: nn.Module, weight_factors: tuple[float, ...]) -> None:
        super().__init__()
        self.loss, self.weight_factors = loss, weight_factors

    def forward(self, *args: list[Tensor]) -> Any:
        scales = zip(self.weight_factors, zip(*args, strict=True), strict=True)
        return sum(factor * self.loss(*scale) for factor, scale in scales if factor)


class Trainer:
    """What the adapter asks of a trainer."""

    def __init__(
        self, *, regions: bool = False, ignore: int | None = None, batch_dice: bool = True, ddp: bool = False
    ) -> None:
        self.label_manager = SimpleNamespace(has_regions=regions, ignore_label=ignore)
        self.configuration_manager = SimpleNamespace(batch_dice=batch_dice)
        self.is_ddp, self.device, self.deep = ddp, torch.device("cpu"), True

    def _build_loss(self) -> nn.Module:
        return Wrapper(nn.Identity(), FACTORS) if self.deep else nn.Identity()


@pytest.fixture
def adapter(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The adapter, as it is where nnU-Net is the stand-ins."""
    places = {
        "nnunetv2.training.loss.deep_supervision": {"DeepSupervisionWrapper": Wrapper},
        "nnunetv2.training.nnUNetTrainer.nnUNetTrainer": {"nnUNetTrainer": Trainer},
    }
    for name, contents in places.items():
        parts = name.split(".")
        for depth in range(1, len(parts) + 1):
            monkeypatch.setitem(sys.modules, ".".join(parts[:depth]), ModuleType(parts[depth - 1]))
        vars(sys.modules[name]).update(contents)
    spec = importlib.util.find_spec("classbalance_losses.adapters.nnunet")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def labels_and_heads(classes: int = NUM_CLASSES) -> tuple[list[Tensor], list[Tensor]]:
    """Labels (N, 1, *) as floats and logits, of three scales."""
    label = scenes(2, (16, 16))[1].unsqueeze(1).float()
    labels = [F.interpolate(label, (side, side), mode="nearest") for side in (16, 8, 4)]
    return labels, [torch.randn(2, classes, side, side, requires_grad=True) for side in (16, 8, 4)]


@pytest.mark.parametrize("batch_dice", [True, False])
def test_dice_and_ours_at_each_scale(adapter: Any, batch_dice: bool) -> None:
    loss = adapter.ClassBalanceTrainer(ignore=2, batch_dice=batch_dice)._build_loss()
    labels, heads = labels_and_heads()
    options = {"classes": "all", "include_background": False, "smooth": 0.5e-5, "per_image": not batch_dice}
    dyce, dice = cb.DyCELoss(ignore_index=2), cb.DiceLoss(ignore_index=2, **options)
    expected = sum(
        factor * (dyce(head, label[:, 0].long()) + dice(head, label[:, 0].long()))
        for factor, head, label in zip(FACTORS, heads, labels, strict=True)
    )
    value = loss(heads, labels)
    torch.testing.assert_close(value, expected)
    value.backward()
    assert [head.grad is not None for head in heads] == [True, True, False]


def test_a_loss_of_ones_own(adapter: Any) -> None:
    class Mine(adapter.ClassBalanceTrainer):
        def build_voxel_loss(self, **options: Any) -> cb.SumLoss:
            return 2 * cb.GBWLoss(**options) + cb.FocalLoss(**options)

    trainer = Mine()
    trainer.deep = False
    loss = trainer._build_loss()
    assert loss.loss.names == ["GBWLoss", "FocalLoss", "DiceLoss"]
    assert loss.loss.weights == (2.0, 1.0, 1.0)

    class Forgetful(adapter.ClassBalanceTrainer):
        def build_voxel_loss(self, **options: Any) -> cb.DyCELoss:
            return cb.DyCELoss()

    with pytest.raises(ValueError, match="Build both with the same task"):
        Forgetful(regions=True)._build_loss()


def test_a_loss_of_ones_own_by_the_former_signature(adapter: Any) -> None:
    class Former(adapter.ClassBalanceTrainer):
        def build_voxel_loss(self, ignore_index: int) -> cb.FocalLoss:
            return cb.FocalLoss(ignore_index=ignore_index)

    trainer = Former(ignore=3)
    trainer.deep = False
    with pytest.warns(FutureWarning, match=r"build_voxel_loss\(self, \*\*options\)"):
        loss = trainer._build_loss()
    assert loss.loss.names == ["FocalLoss", "DiceLoss"]
    assert loss.loss.losses[0].ignore_index == 3


def test_ranks_are_joined(adapter: Any) -> None:
    assert adapter.ClassBalanceTrainer(ddp=True)._build_loss().loss.loss.process_group == "world"
    assert adapter.ClassBalanceTrainer()._build_loss().loss.loss.process_group is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.int16])
@pytest.mark.parametrize("ignore", [None, 3])
def test_regions_with_and_without_an_ignore_channel(
    adapter: Any, dtype: torch.dtype, ignore: int | None
) -> None:
    logits, regions = torch.randn(2, 2, 8, 8), torch.rand(2, 2, 8, 8) > 0.6
    left_out = torch.rand(2, 1, 8, 8) > 0.7
    target = regions if ignore is None else torch.cat([regions, left_out], 1)
    trainer = adapter.ClassBalanceTrainer(regions=True, ignore=ignore)
    trainer.deep = False
    value = trainer._build_loss()(logits, target.to(dtype))
    labels = regions.long() if ignore is None else torch.where(left_out, -100, regions.long())
    dice = cb.DiceLoss(task="multilabel", classes="all", smooth=0.5e-5)
    torch.testing.assert_close(value, cb.DyCELoss(task="multilabel")(logits, labels) + dice(logits, labels))


@pytest.mark.parametrize("regions", [False, True])
def test_weights_of_voxels_are_a_third_argument(adapter: Any, regions: bool) -> None:
    task = "multilabel" if regions else "multiclass"
    loss = adapter.VoxelLoss(cb.WeightedCrossEntropyLoss(task=task))
    logits, label, weight = torch.randn(2, NUM_CLASSES, 8, 8), scenes(2, (8, 8))[1], torch.rand(2, 1, 8, 8)
    if regions:
        target = F.one_hot(label, NUM_CLASSES).movedim(-1, 1)
        terms = F.binary_cross_entropy_with_logits(logits, target.float(), reduction="none")
    else:
        target = label.unsqueeze(1)
        terms = F.cross_entropy(logits, label, reduction="none").unsqueeze(1)
    expected = (terms * weight).mean()
    torch.testing.assert_close(loss(logits, target.float(), weight), expected)
    torch.testing.assert_close(loss(logits, target, weight[:, 0]), expected)
    torch.testing.assert_close(
        Wrapper(loss, (1.0,))([logits], [target], [weight]), expected, check_stride=False
    )


def test_the_state_of_the_loss_moves_in_training_alone(adapter: Any) -> None:
    loss = adapter.VoxelLoss(cb.GBWLoss(momentum=0.9))
    logits, label = torch.randn(2, NUM_CLASSES, 8, 8), scenes(2, (8, 8))[1]
    loss(logits, label.unsqueeze(1).float())
    assert loss.loss.class_weight.numel() == 0
    loss(logits.requires_grad_(), label)
    assert loss.loss.class_weight.shape == (NUM_CLASSES,)
