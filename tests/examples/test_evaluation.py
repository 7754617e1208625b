"""Dataset-level IoU: against torchmetrics' own IoU, with ignored pixels and absent classes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassJaccardIndex

from examples.common.evaluation import evaluate, predicted_classes, scores_from_confusion


class Echo(nn.Module):
    """A model whose logits are the image itself."""

    def forward(self, image: Tensor) -> Tensor:
        return image


def _samples(number: int, classes: int) -> list[tuple[Tensor, Tensor]]:
    samples = [(torch.rand(classes, 6, 8), torch.randint(0, classes, (6, 8))) for _ in range(number)]
    for _, label in samples:
        label[0] = 255
    return samples


def test_iou_is_that_of_torchmetrics_over_the_whole_dataset():
    samples = _samples(7, 4)
    scores = evaluate(Echo(), samples, num_classes=4, ignore_index=255, batch_size=3)
    metric = MulticlassJaccardIndex(4, average=None, ignore_index=255)
    images, labels = (torch.stack(part) for part in zip(*samples, strict=True))
    metric.update(images.argmax(1), labels)
    torch.testing.assert_close(torch.tensor(scores.iou), metric.compute())
    assert scores.mean_iou == pytest.approx(metric.compute().mean().item())
    kept = labels != 255
    assert scores.pixel_accuracy == pytest.approx((images.argmax(1) == labels)[kept].float().mean().item())


def test_a_class_that_never_occurs_is_left_out_of_the_means():
    confusion = torch.tensor([[3, 1, 0], [0, 4, 0], [0, 0, 0]])
    scores = scores_from_confusion(confusion)
    assert scores.iou[:2] == (3 / 4, 4 / 5)
    assert math.isnan(scores.iou[2])
    assert scores.mean_iou == pytest.approx((3 / 4 + 4 / 5) / 2)
    assert scores.mean_iou_of([1, 2]) == pytest.approx(4 / 5)
    assert math.isnan(scores.mean_iou_of([2]))


def test_a_class_that_is_only_predicted_counts_as_missed():
    assert scores_from_confusion(torch.tensor([[3, 1], [0, 0]])).iou == (3 / 4, 0)


def test_one_logit_above_0_is_the_second_class():
    logits = torch.tensor([-1.0, 0.0, 0.1, 2.0]).view(1, 1, 2, 2)
    label = torch.tensor([[1, 0], [0, 1]])
    assert predicted_classes(logits).tolist() == [[[0, 0], [1, 1]]]
    scores = evaluate(Echo(), [(logits[0], label)], num_classes=2, ignore_index=255)
    assert scores.iou == (1 / 3, 1 / 3)
    assert scores.precision == scores.recall == (1 / 2, 1 / 2)


def test_precision_without_a_prediction_and_recall_without_a_label_are_not_numbers():
    scores = scores_from_confusion(torch.tensor([[6, 0], [2, 0]]))
    assert math.isnan(scores.precision[1])
    assert (scores.precision[0], scores.recall) == (3 / 4, (1, 0))
    assert math.isnan(scores_from_confusion(torch.tensor([[6, 2], [0, 0]])).recall[1])


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_restores_the_models_mode(training):
    model = Echo().train(training)
    evaluate(model, _samples(1, 2), num_classes=2, ignore_index=255)
    assert model.training is training
