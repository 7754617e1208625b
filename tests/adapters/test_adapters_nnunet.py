"""nnU-Net's own trainer, with its own network and deep supervision, but another cross-entropy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from toy_scenes import falls, scenes

pytest.importorskip("nnunetv2", reason="needs nnU-Net: pip install nnunetv2 (it brings torchvision)")
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from classbalance_losses import DiceLoss, DyCELoss, WeightedCrossEntropyLoss
from classbalance_losses.adapters.nnunet import ClassBalanceTrainer

SIZE = (32, 32)
ARCHITECTURE = {
    "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "arch_kwargs": {
        "n_stages": 3,
        "features_per_stage": [4, 8, 8],
        "conv_op": "torch.nn.modules.conv.Conv2d",
        "kernel_sizes": [[3, 3]] * 3,
        "strides": [[1, 1], [2, 2], [2, 2]],
        "n_conv_per_stage": [1, 1, 1],
        "n_conv_per_stage_decoder": [1, 1],
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    },
    "_kw_requires_import": ["conv_op", "norm_op", "nonlin"],
}
PLANS = {
    "dataset_name": "Dataset001_Toy",
    "plans_name": "nnUNetPlans",
    "image_reader_writer": "NaturalImage2DIO",
    "configurations": {
        "2d": {
            "data_identifier": "nnUNetPlans_2d",
            "batch_size": 4,
            "patch_size": list(SIZE),
            "batch_dice": True,
            "architecture": ARCHITECTURE,
        }
    },
}


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    data = tmp_path / "preprocessed" / "Dataset001_Toy" / "nnUNetPlans_2d"
    data.mkdir(parents=True)
    (data / "case.npz").touch()  # nnU-Net tells the kind of data set by the files' endings
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    return tmp_path


def initialized(trainer_type: Any, **labels: Any) -> Any:
    names = {"background": 0, "organ": 1, "vessel": 2} | labels
    dataset = {"channel_names": {"0": "red", "1": "green", "2": "blue"}, "labels": names}
    if any(isinstance(value, list) for value in names.values()):
        dataset["regions_class_order"] = [1, 2]
    torch.manual_seed(0)
    trainer = trainer_type({**PLANS, "continue_training": False}, "2d", 0, dataset, torch.device("cpu"))
    trainer.initialize()
    return trainer


def step(trainer: Any) -> dict[str, Any]:
    """A batch as nnU-Net's loader and transforms make it: labels (N, 1, *), or regions and what is left out."""
    image, label = scenes(4, SIZE, block=4)
    ignore = trainer.label_manager.ignore_label
    left_out = torch.zeros_like(label, dtype=torch.bool)
    left_out[:, :8] = ignore is not None
    if trainer.label_manager.has_regions:
        regions = [label > 0, label == 2, *([] if ignore is None else [left_out])]
        target = torch.stack(regions, 1).float()
    else:
        target = torch.where(left_out, ignore or 0, label).unsqueeze(1).float()
    scales = [1.0, 0.5]
    return {"data": image, "target": [F.interpolate(target, scale_factor=s, mode="nearest") for s in scales]}


class Neutral(ClassBalanceTrainer):
    def build_voxel_loss(self, **options: Any) -> WeightedCrossEntropyLoss:
        return WeightedCrossEntropyLoss(**options)


REGIONS = {"organ": [1, 2], "vessel": 2}
LABELS = {"labels": {}, "ignore": {"ignore": 3}, "regions": REGIONS}


@pytest.mark.usefixtures("folders")
@pytest.mark.parametrize("batch_dice", [True, False], ids=["batch", "image"])
@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_neutral_settings_train_as_nnunet_does(
    labels: dict[str, Any], batch_dice: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cross-entropy and our Dice of one pass, and nnU-Net's own two: 1 apart, for its Dice is -1 at best."""
    monkeypatch.setitem(PLANS["configurations"]["2d"], "batch_dice", batch_dice)
    losses = []
    for trainer_type in (Neutral, nnUNetTrainer):
        trainer = initialized(trainer_type, **labels)
        batch = step(trainer)
        losses.append([float(trainer.train_step(batch)["loss"]) for _ in range(3)])
    assert [loss - 1 for loss in losses[0]] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.usefixtures("folders")
@pytest.mark.parametrize("labels", [{"ignore": 3}, REGIONS, {**REGIONS, "ignore": 3}], ids=str)
def test_training_by_nnunet_lowers_the_loss(labels: dict[str, Any]) -> None:
    trainer = initialized(ClassBalanceTrainer, **labels)
    dyce, dice = trainer.loss.loss.loss.losses
    assert isinstance(dyce, DyCELoss)
    assert isinstance(dice, DiceLoss)
    trainer.optimizer.param_groups[0]["lr"] = 0.1
    batch = step(trainer)
    losses = [float(trainer.train_step(batch)["loss"]) for _ in range(20)]
    assert falls(losses)
    trainer.validation_step(step(trainer))


@pytest.mark.usefixtures("folders")
def test_without_deep_supervision() -> None:
    class Flat(ClassBalanceTrainer):
        def initialize(self) -> None:
            self.enable_deep_supervision = False
            super().initialize()

    trainer = initialized(Flat)
    batch = step(trainer)
    batch["target"] = batch["target"][0]
    losses = [float(trainer.train_step(batch)["loss"]) for _ in range(3)]
    assert losses[-1] < losses[0]


def test_nnunet_finds_a_trainer_in_a_folder_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(
        "timm", reason="nnU-Net imports all its trainers when it looks for one: pip install timm"
    )
    (tmp_path / "my_trainers.py").write_text(
        "from classbalance_losses.adapters.nnunet import ClassBalanceTrainer\n"
        "class nnUNetTrainerMine(ClassBalanceTrainer):\n    pass\n"
    )
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path))
    assert issubclass(recursive_find_trainer_class_by_name("nnUNetTrainerMine"), ClassBalanceTrainer)
