"""nnU-Net's own trainer, with its own network and deep supervision, but another cross-entropy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from toy_scenes import NUM_CLASSES, falls, scenes

pytest.importorskip("nnunetv2", reason="needs nnU-Net: pip install nnunetv2 (it brings torchvision)")
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from classbalance_losses import DyCELoss, GBWLoss, WeightedCrossEntropyLoss
from classbalance_losses.adapters.nnunet import ClassBalanceTrainer, VoxelLoss

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
    image, label = scenes(4, SIZE, block=4)
    target = label.unsqueeze(1).float()
    if trainer.label_manager.ignore_label is not None:
        target[:, :, :8] = trainer.label_manager.ignore_label
    scales = [1.0, 0.5]
    return {"data": image, "target": [F.interpolate(target, scale_factor=s, mode="nearest") for s in scales]}


class Neutral(ClassBalanceTrainer):
    def build_voxel_loss(self, ignore_index: int) -> WeightedCrossEntropyLoss:
        return WeightedCrossEntropyLoss(ignore_index=ignore_index)


@pytest.mark.usefixtures("folders")
@pytest.mark.parametrize("labels", [{}, {"ignore": 3}], ids=["all labelled", "ignore label"])
def test_neutral_settings_train_as_nnunet_does(labels: dict[str, int]) -> None:
    losses = []
    for trainer_type in (Neutral, nnUNetTrainer):
        trainer = initialized(trainer_type, **labels)
        batch = step(trainer)
        losses.append([float(trainer.train_step(batch)["loss"]) for _ in range(3)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.usefixtures("folders")
def test_training_by_nnunet_lowers_the_loss() -> None:
    trainer = initialized(ClassBalanceTrainer, ignore=3)
    compound = trainer.loss.loss
    assert isinstance(compound, DC_and_CE_loss)
    assert isinstance(compound.ce.loss, DyCELoss)
    assert compound.ce.loss.ignore_index == 3
    trainer.optimizer.param_groups[0]["lr"] = 0.1
    batch = step(trainer)
    losses = [1 + float(trainer.train_step(batch)["loss"]) for _ in range(20)]  # its Dice is -1 at best
    assert falls(losses)


@pytest.mark.usefixtures("folders")
def test_regions_are_refused() -> None:
    with pytest.raises(TypeError, match="regions"):
        initialized(ClassBalanceTrainer, organ=[1, 2])


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


def test_the_state_of_the_loss_moves_in_training_alone() -> None:
    loss = VoxelLoss(GBWLoss(momentum=0.9))
    logits, label = torch.randn(2, NUM_CLASSES, 8, 8), scenes(2, (8, 8))[1]
    loss(logits, label.unsqueeze(1).float())
    assert loss.loss.class_weight.numel() == 0
    loss(logits.requires_grad_(), label)
    assert loss.loss.class_weight.shape == (NUM_CLASSES,)
