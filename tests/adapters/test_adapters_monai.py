"""MONAI's targets, its deep supervision, and a run of its trainer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from toy_scenes import NUM_CLASSES, falls, scenes

from classbalance_losses import (
    DeepSupervision,
    DiceLoss,
    DyCELoss,
    EntropyLoss,
    GBWLoss,
    WeightedCrossEntropyLoss,
)
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
        (torch.ones(2, NUM_CLASSES, 4, 4), 'task="multilabel"'),
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
    with pytest.raises(ValueError, match="Expected 2 outputs"):
        MonaiLoss(DyCELoss(), head_weights=(1.0, 0.5))([torch.randn(1, 2, 4, 4)] * 3, label)
    for nothing in ([], {}):
        with pytest.raises(ValueError, match="a head at least"):
            MonaiLoss(DyCELoss())(nothing, label)


def test_without_upsampling_labels_are_shrunk_to_the_heads() -> None:
    label = scenes(2)[1].unsqueeze(1).float()
    heads = [torch.randn(2, NUM_CLASSES, side, side) for side in (16, 8)]
    small = F.interpolate(label, (8, 8), mode="nearest")
    each = [F.cross_entropy(head, t[:, 0].long()) for head, t in zip(heads, (label, small), strict=True)]
    torch.testing.assert_close(MonaiLoss(WeightedCrossEntropyLoss())(heads, label), each[0] + 0.5 * each[1])


def test_heads_of_a_dict_count_by_their_names() -> None:
    label = scenes(2)[1].unsqueeze(1)
    outputs = {name: torch.randn(2, NUM_CLASSES, 16, 16) for name in ("out", "aux", "other")}
    ce, aux = (F.cross_entropy(outputs[name], label[:, 0]) for name in ("out", "aux"))
    loss = MonaiLoss(WeightedCrossEntropyLoss(), head_weights={"out": 1.0, "aux": 0.4})
    torch.testing.assert_close(loss(outputs, label), ce + 0.4 * aux)
    torch.testing.assert_close(loss(outputs["out"], label), ce)  # as a network in evaluation returns it
    with pytest.raises(TypeError, match="'aux'") as caught:
        loss({"out": outputs["out"]}, label)
    assert "['out']" in str(caught.value)
    with pytest.raises(TypeError, match=r"head_weights=\{'out': 1.0\}"):
        MonaiLoss(WeightedCrossEntropyLoss())(outputs, label)
    with pytest.raises(TypeError, match=r"DeepSupervision.*head_weights=weights"):
        MonaiLoss(DeepSupervision(DyCELoss(), [1.0, 0.4]))


@pytest.mark.parametrize("shape", [(2, 1, 16, 16), (1, 1, 16, 16), (2, 16, 16)])
@pytest.mark.parametrize("encoded", [lambda label: label.unsqueeze(1), one_hot], ids=["indices", "one-hot"])
def test_a_mask_leaves_voxels_out(shape: tuple[int, ...], encoded: Callable[[Tensor], Tensor]) -> None:
    label, mask = scenes(2)[1], torch.rand(shape) > 0.5
    logits = torch.randn(2, NUM_CLASSES, 16, 16)
    kept = mask.reshape(-1, 16, 16).expand(2, 16, 16)
    expected = F.cross_entropy(logits, torch.where(kept, label, -100))
    target = encoded(label).to(torch.uint8)  # a uint8 is never -100
    loss = MonaiLoss(WeightedCrossEntropyLoss())
    torch.testing.assert_close(loss(logits, target, mask), expected)
    torch.testing.assert_close(loss(logits, target, mask.float()), expected)
    weight = torch.rand(shape)
    terms = F.cross_entropy(logits, label, reduction="none") * weight.reshape(-1, 16, 16)
    torch.testing.assert_close(loss(logits, target, pixel_weight=weight), terms.mean())
    with pytest.raises(ValueError, match="Expected mask with one number for each pixel"):
        loss(logits, target, mask[..., :8])


def test_one_logit_and_many_labels() -> None:
    """Of 0 and 1 in any dtype, where a mask leaves them out in all channels."""
    for task, labels in (("binary", 1), ("multilabel", 3)):
        logits, target = torch.randn(2, labels, 8, 8), torch.rand(2, labels, 8, 8) > 0.7
        mask = torch.rand(2, 1, 8, 8) > 0.5
        terms = F.binary_cross_entropy_with_logits(logits, target.float(), reduction="none")
        loss = MonaiLoss(WeightedCrossEntropyLoss(task=task))
        weight = torch.rand(2, 1, 8, 8)
        for given in (target, target.float(), target.to(torch.uint8)):
            torch.testing.assert_close(loss(logits, given), terms.mean())
            torch.testing.assert_close(loss(logits, given, mask), terms[mask.expand_as(terms)].mean())
            torch.testing.assert_close(loss(logits, given, pixel_weight=weight), (terms * weight).mean())
        with pytest.raises(ValueError, match="soft_label=True"):
            loss(logits, torch.full_like(logits, 0.5))


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_soft_labels_where_they_are_asked_for(task: str) -> None:
    logits, target = torch.randn(2, NUM_CLASSES, 8, 8), torch.rand(2, NUM_CLASSES, 8, 8).softmax(1)
    mask, weight = torch.rand(2, 1, 8, 8) > 0.5, torch.rand(2, 1, 8, 8)
    if task == "multiclass":
        terms = F.cross_entropy(logits, target, reduction="none").unsqueeze(1)
    else:
        terms = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    loss = MonaiLoss(WeightedCrossEntropyLoss(task=task), soft_label=True)
    torch.testing.assert_close(loss(logits, target), terms.mean())
    torch.testing.assert_close(loss(logits, target, mask), terms[mask.expand_as(terms)].mean())
    torch.testing.assert_close(loss(logits, target, pixel_weight=weight), (terms * weight).mean())


def test_a_sum_of_losses_in_one_call() -> None:
    label = scenes(2)[1].unsqueeze(1)
    logits = torch.randn(2, NUM_CLASSES, 16, 16)
    terms = (DyCELoss(ignore_index=2), DiceLoss(ignore_index=2))
    loss = MonaiLoss(terms[0] + 0.5 * terms[1])
    expected = terms[0](logits, label[:, 0]) + 0.5 * terms[1](logits, label[:, 0])
    torch.testing.assert_close(loss(logits, label), expected)
    mask = torch.rand(2, 1, 16, 16) > 0.5
    left = torch.where(mask, label, 2)[:, 0]
    torch.testing.assert_close(
        loss(logits, label, mask), terms[0](logits, left) + 0.5 * terms[1](logits, left)
    )


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


def test_what_is_no_tensor_or_lacks_an_axis_is_named() -> None:
    label = scenes(2)[1]
    logits, loss = torch.randn(2, NUM_CLASSES, 16, 16), MonaiLoss(DyCELoss())
    target, mask = label.unsqueeze(1), torch.ones(2, 1, 16, 16)
    for wrong, name in (
        ((logits.numpy(), target), "input"),
        ((logits, target.numpy()), "target"),
        ((logits, target, mask.numpy()), "mask"),
    ):
        with pytest.raises(
            TypeError, match=rf"Expected {name} to be a torch.Tensor.*torch.as_tensor\({name}\)"
        ):
            loss(*wrong)
    with pytest.raises(ValueError, match=r"Pass target\.unsqueeze\(1\)"):
        loss(logits, label)
    with pytest.raises(ValueError, match=r"For one of each image pass pixel_weight\.reshape\(-1, 1, 1\)"):
        loss(logits, target, pixel_weight=torch.ones(2))
    assert loss(logits, target, pixel_weight=torch.ones(2).reshape(-1, 1, 1)) == loss(logits, target)
    for other, words in (
        (DyCELoss, r"Pass an instance: DyCELoss\(\)"),
        (EntropyLoss(), r"got EntropyLoss\(.*\)\.$"),
    ):
        with pytest.raises(TypeError, match=words):
            MonaiLoss(other)  # type: ignore[arg-type]
