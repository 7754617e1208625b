"""Hugging Face: SegFormer in the Trainer with its own cross-entropy, and with DyCE, which interpolates the logits."""

from __future__ import annotations

import tempfile

import torch
from torch import Tensor
from torch.nn import functional as F

try:
    import accelerate  # noqa: F401 (the Trainer needs it)
    from transformers import SegformerConfig, SegformerForSemanticSegmentation, Trainer, TrainingArguments
except ImportError as error:
    raise ImportError("The script needs Hugging Face: pip install transformers accelerate") from error

from classbalance_losses import DyCELoss
from classbalance_losses.adapters.huggingface import ComputeLoss
from examples.common.evaluation import scores_from_confusion
from examples.common.streets import CLASSES, IGNORE_INDEX
from examples.start.data import streets
from examples.start.table import print_table

C, SETS = len(CLASSES), ((48, 0), (24, 1))  # numbers and seeds of the streets to train with and to test on
LOSSES = {"SegFormer's": None, "DyCE": ComputeLoss(DyCELoss(ignore_index=IGNORE_INDEX, upsample="linear"))}
SHAPE = {"hidden_sizes": [16, 32, 48, 64], "num_attention_heads": [1, 1, 2, 2], "decoder_hidden_size": 32}


def confusion(logits: Tensor, labels: Tensor) -> Tensor:
    """What the Trainer keeps of a batch: (1, C, C). The logits have a quarter of the labels' size."""
    classes = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear").argmax(1)
    pairs = (C * labels + classes)[labels != IGNORE_INDEX]
    return pairs.bincount(minlength=C * C).view(1, C, C)


def train(loss: ComputeLoss | None, steps: int) -> tuple[float, ...]:
    """Train a small SegFormer from scratch and return each class's IoU on streets that no training saw."""
    torch.manual_seed(0)
    data = [[{"pixel_values": x, "labels": y} for x, y in streets(n, seed=seed)] for n, seed in SETS]
    model = SegformerForSemanticSegmentation(SegformerConfig(num_labels=C, **SHAPE))
    options = {"max_steps": steps, "learning_rate": 3e-3, "report_to": "none", "save_strategy": "no"}
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(folder, use_cpu=True, disable_tqdm=True, **options)
        trainer = Trainer(model, args, train_dataset=data[0], compute_loss_func=loss)
        trainer.preprocess_logits_for_metrics = confusion
        trainer.train()
        counts = torch.from_numpy(trainer.predict(data[1]).predictions).sum(0)
    return scores_from_confusion(counts).iou


def main(steps: int = 100) -> dict[str, tuple[float, ...]]:
    """Train with each loss, and print each class's IoU."""
    iou = {name: train(loss, steps) for name, loss in LOSSES.items()}
    print_table(f"IoU after {steps} steps", iou, CLASSES, streets(48, seed=0).tensors[1])
    return iou


if __name__ == "__main__":
    main()
