"""MONAI's targets, its deep supervision, and a run of its trainer."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from toy_scenes import NUM_CLASSES, falls, scenes

from classbalance_losses import DyCELoss, GBWLoss, WeightedCrossEntropyLoss
from classbalance_losses.adapters.monai import MonaiLoss, class_indices


def one_hot(label: Tensor) -> Tensor:
    return torch.eye(NUM_CLASSES)[label].movedim(-1, 1)


@pytest.mark.parametrize("size", [(12,), (8, 6), (4, 5, 6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.uint8, torch.int32, torch.int64])
def test_channel_and_one_hot_targets_are_the_plain_ones(size: tuple[int, ...], dtype: torch.dtype) -> None:
    label = scenes(2, size)[1]
    logits = torch.randn(2, NUM_CLASSES, *size)
    loss = DyCELoss()
    expected = loss(logits, label)
    assert MonaiLoss(loss)(logits, label.unsqueeze(1).to(dtype)) == expected
    assert MonaiLoss(loss)(logits, one_hot(label).to(dtype)) == expected


def test_two_classes_by_a_boolean_mask() -> None:
    mask = torch.rand(2, 1, 8, 8) > 0.8
    logits = torch.randn(2, 2, 8, 8)
    expected = F.cross_entropy(logits, mask[:, 0].long())
    torch.testing.assert_close(MonaiLoss(WeightedCrossEntropyLoss())(logits, mask), expected)
    both = torch.cat([~mask, mask], 1)
    torch.testing.assert_close(MonaiLoss(WeightedCrossEntropyLoss())(logits, both), expected)


def test_a_voxel_of_no_class_is_ignored() -> None:
    label = scenes(2)[1]
    target = one_hot(label)
    target[:, :, :5] = 0
    label[:, :5] = 255
    assert torch.equal(class_indices(target, NUM_CLASSES, 255), label)
    logits = torch.randn(2, NUM_CLASSES, 16, 16)
    expected = F.cross_entropy(logits, label, ignore_index=255)
    torch.testing.assert_close(
        MonaiLoss(WeightedCrossEntropyLoss(ignore_index=255))(logits, target), expected
    )


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (torch.full((2, 1, 4, 4), 0.5), "whole numbers"),
        (torch.full((2, NUM_CLASSES, 4, 4), 1 / 3), "one-hot"),
        (torch.ones(2, NUM_CLASSES, 4, 4), "one-hot"),
        (torch.zeros(2, 2, 4, 4), r"\(B, 1, \*\)"),
        (torch.zeros(2), r"\(B, 1, \*\)"),
    ],
)
def test_other_targets_are_refused(target: Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        MonaiLoss(DyCELoss())(torch.randn(2, NUM_CLASSES, 4, 4), target)


def test_heads_of_other_sizes_see_the_labels_at_full_size() -> None:
    label = scenes(2)[1].unsqueeze(1)
    heads = [torch.randn(2, NUM_CLASSES, side, side, requires_grad=True) for side in (16, 8, 4)]
    loss = GBWLoss(upsample="linear")
    full = [F.interpolate(head, (16, 16), mode="bilinear") for head in heads]
    each = [GBWLoss()(head, label[:, 0]) for head in full]
    supervised = MonaiLoss(loss)(heads, label)
    torch.testing.assert_close(supervised, each[0] + each[1] / 2 + each[2] / 4)
    supervised.backward()
    assert all(head.grad is not None and head.grad.any() for head in heads)
    weighted = MonaiLoss(loss, head_weights=(0.0, 1.0, 3.0))(tuple(heads), label)
    torch.testing.assert_close(weighted, each[1] + 3 * each[2])


def test_heads_must_fit_their_weights() -> None:
    label = torch.zeros(1, 1, 4, 4)
    for heads in ([], [torch.randn(1, 2, 4, 4)] * 3):
        with pytest.raises(ValueError, match="heads"):
            MonaiLoss(DyCELoss(), head_weights=(1.0, 0.5))(heads, label)
    with pytest.raises(ValueError, match="heads"):
        MonaiLoss(DyCELoss())([], label)
    with pytest.raises(ValueError, match='upsample="linear"'):
        MonaiLoss(DyCELoss())([torch.randn(1, 2, 2, 2)], label)


def test_inside_monais_deep_supervision() -> None:
    losses = pytest.importorskip("monai.losses", reason="needs MONAI: pip install monai")
    label = scenes(2)[1].unsqueeze(1).float()
    heads = [torch.randn(2, NUM_CLASSES, side, side) for side in (16, 8)]
    ours = losses.DeepSupervisionLoss(MonaiLoss(WeightedCrossEntropyLoss()))(heads, label)
    small = F.interpolate(label, (8, 8), mode="nearest-exact")
    each = [F.cross_entropy(head, t[:, 0].long()) for head, t in zip(heads, (label, small), strict=True)]
    torch.testing.assert_close(ours, each[0] + 0.5 * each[1])


@pytest.mark.slow
@pytest.mark.parametrize("deep", [False, True], ids=["one head", "deep supervision"])
def test_training_by_monai_lowers_the_loss(deep: bool) -> None:
    """Dictionaries, MetaTensors, MONAI's loader, network and trainer."""
    pytest.importorskip("monai", reason="needs MONAI: pip install monai")
    pytest.importorskip("ignite", reason="MONAI's trainer needs ignite: pip install pytorch-ignite")
    from monai.data import DataLoader, Dataset, MetaTensor
    from monai.engines import SupervisedTrainer
    from monai.engines.utils import IterationEvents
    from monai.networks.nets import DynUNet
    from monai.transforms import AsDiscreted, Compose, EnsureTyped

    images, labels = scenes(4, (16, 16, 16), block=4)
    items = [
        {"image": image, "label": label.unsqueeze(0)} for image, label in zip(images, labels, strict=True)
    ]
    typed = [EnsureTyped(["image", "label"], dtype=torch.float32)]
    transform = Compose(typed if deep else [*typed, AsDiscreted("label", to_onehot=NUM_CLASSES)])
    kernels, strides = [3, 3, 3], [1, 2, 2]
    torch.manual_seed(0)
    network = DynUNet(
        3, 3, NUM_CLASSES, kernels, strides, strides[1:], filters=[4, 8, 8], deep_supervision=deep
    )
    loss, seen, targets = MonaiLoss(DyCELoss()), [], []

    def loss_function(output: Tensor, target: Tensor) -> Tensor:
        targets.append(target)
        return loss(output.unbind(1) if deep else output, target)

    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=6,
        train_data_loader=DataLoader(Dataset(items, transform), batch_size=2),
        network=network,
        optimizer=torch.optim.Adam(network.parameters(), lr=0.03),
        loss_function=loss_function,
    )
    trainer.add_event_handler(
        IterationEvents.LOSS_COMPLETED, lambda engine: seen.append(engine.state.output["loss"].item())
    )
    trainer.run()
    assert isinstance(targets[0], MetaTensor)
    assert falls(seen)
