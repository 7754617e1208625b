"""The real Trainer of transformers, with a tiny SegFormer."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from toy_scenes import NUM_CLASSES, falls, scenes

from classbalance_losses import DyCELoss, FocalLoss, GBWLoss, WeightedCrossEntropyLoss
from classbalance_losses.adapters.huggingface import ComputeLoss


def test_the_parts_of_a_step_add_up_to_the_loss_of_the_joined_batch() -> None:
    """Where ignored pixels are -100: two batches of unequal valid pixels."""
    logits, label = torch.randn(4, NUM_CLASSES, 16, 16), scenes()[1]
    label[0, :9] = -100
    loss = FocalLoss(gamma=2.0)
    compute = ComputeLoss(loss)
    items = (label != -100).sum()
    parts = [compute({"logits": logits[i : i + 2]}, label[i : i + 2], items) for i in (0, 2)]
    torch.testing.assert_close(sum(parts), loss(logits, label))
    ints = [compute((logits[i : i + 2],), label[i : i + 2], int(items)) for i in (0, 2)]
    torch.testing.assert_close(ints, parts)


def test_pixels_that_the_trainer_counts_but_the_loss_ignores_do_not_shrink_it() -> None:
    """255 is in num_items_in_batch: dividing a sum by it would halve the loss here."""
    logits, label = torch.randn(2, NUM_CLASSES, 16, 16), scenes(2)[1]
    label[:, :8] = 255
    compute = ComputeLoss(WeightedCrossEntropyLoss(ignore_index=255))
    items = (label != -100).sum()
    expected = F.cross_entropy(logits, label, ignore_index=255)
    torch.testing.assert_close(compute({"logits": logits}, label, items), expected)
    torch.testing.assert_close(compute({"logits": logits}, label), expected)


def test_nothing_to_count_gives_zero_in_the_graph() -> None:
    logits = torch.randn(1, NUM_CLASSES, 4, 4, requires_grad=True)
    label = torch.full((1, 4, 4), -100)
    for items in (0, torch.tensor(0)):
        loss = ComputeLoss(DyCELoss())({"logits": logits}, label, items)
        assert loss == 0
        assert loss.requires_grad


def test_logits_wherever_they_are() -> None:
    logits, label = torch.randn(2, NUM_CLASSES, 16, 16), scenes(2)[1]
    compute = ComputeLoss(FocalLoss())
    expected = compute({"logits": logits}, label)
    for outputs in (logits, (logits, logits * 2), [logits], SimpleNamespace(logits=logits)):
        assert torch.equal(compute(outputs, label), expected)
    outputs = {"loss": None, "scores": logits}
    with pytest.raises(TypeError, match=r"'loss', 'scores'") as caught:
        compute(outputs, label)
    remedy = re.search(r"passes (\{.*\})", str(caught.value))
    assert remedy is not None
    assert torch.equal(compute(eval(remedy[1], {"outputs": outputs}), label), expected)
    for nothing in ({"a": logits, "b": logits}, None, ()):
        with pytest.raises(TypeError, match=r"outputs\[name\]"):
            compute(nothing, label)


def test_state_moves_in_training_alone() -> None:
    logits, label = torch.randn(2, NUM_CLASSES, 16, 16, requires_grad=True), scenes(2)[1]
    loss = GBWLoss(momentum=0.9)
    compute = ComputeLoss(loss)
    with torch.no_grad():
        compute({"logits": logits.detach()}, label)
    assert loss.class_weight.numel() == 0
    compute({"logits": logits}, label)
    assert loss.class_weight.shape == (NUM_CLASSES,)


def test_wrong_use_is_refused() -> None:
    with pytest.raises(ValueError, match='reduction="mean"'):
        ComputeLoss(DyCELoss(reduction="sum"))
    with pytest.raises(ValueError, match="labels"):
        ComputeLoss(DyCELoss())({"logits": torch.randn(1, 2, 4, 4)}, None)
    with pytest.raises(ValueError, match='upsample="linear"'):
        ComputeLoss(DyCELoss())({"logits": torch.randn(1, 2, 4, 4)}, torch.zeros(1, 16, 16).long())


class Scenes(torch.utils.data.Dataset[dict[str, Tensor]]):
    def __init__(self, count: int) -> None:
        self.images, self.labels = scenes(count, (32, 32), block=8)
        self.labels[:, :3] = 255
        self.labels[0, :20] = 255  # unequal numbers of valid pixels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"pixel_values": self.images[index], "labels": self.labels[index]}


def tiny_segformer() -> Any:
    transformers = pytest.importorskip("transformers", reason="needs transformers: pip install transformers")
    torch.manual_seed(0)
    config = transformers.SegformerConfig(
        num_labels=NUM_CLASSES,
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[2, 1],
        hidden_sizes=[8, 16],
        patch_sizes=[7, 3],
        strides=[4, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
        decoder_hidden_size=16,
        hidden_dropout_prob=0.0,
        classifier_dropout_prob=0.0,
        drop_path_rate=0.0,
    )
    return transformers.SegformerForSemanticSegmentation(config)


def trainer(folder: Path, loss: Any, **options: Any) -> Any:
    model = tiny_segformer()
    pytest.importorskip("accelerate", reason="the Trainer needs accelerate: pip install accelerate")
    from transformers import Trainer, TrainingArguments

    arguments = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "learning_rate": 0.02,
        "lr_scheduler_type": "constant",
        **options,
    }
    data = Scenes(4)
    return Trainer(
        model=model,
        args=TrainingArguments(**arguments),
        train_dataset=data,
        eval_dataset=data,
        compute_loss_func=None if loss is None else ComputeLoss(loss),
    )


def logged(run: Any, name: str = "loss") -> list[float]:
    return [entry[name] for entry in run.state.log_history if name in entry]


def test_training_by_the_trainer_lowers_the_loss(tmp_path: Path) -> None:
    run = trainer(tmp_path, DyCELoss(ignore_index=255, upsample="linear"), max_steps=12)
    run.train()
    assert falls(logged(run))
    assert run.evaluate()["eval_loss"] < logged(run)[0]


def test_neutral_settings_train_as_the_models_own_loss_does(tmp_path: Path) -> None:
    """SegFormer's own: bilinear upsampling to the labels, then cross-entropy without 255."""
    ours = trainer(tmp_path, WeightedCrossEntropyLoss(ignore_index=255, upsample="linear"), max_steps=3)
    theirs = trainer(tmp_path, None, max_steps=3)
    ours.train()
    theirs.train()
    assert logged(ours) == pytest.approx(logged(theirs), rel=1e-4)


def test_accumulated_batches_give_the_gradient_of_one(tmp_path: Path) -> None:
    """Four batches of one image, of unequal valid pixels, and one of four: the same optimizer step."""
    steps = []
    for options in ({}, {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}):
        loss = FocalLoss(gamma=2.0, upsample="linear")
        run = trainer(tmp_path, loss, max_steps=1, optim="sgd", max_grad_norm=0.0, **options)
        labels = run.train_dataset.labels
        labels[labels == 255] = -100
        run.model.eval()
        run.model.train = lambda mode=True, model=run.model: (
            model
        )  # batch norm would tell one batch from four
        bias = run.model.decode_head.classifier.bias
        before = bias.detach().clone()
        run.train()
        steps.append(bias.detach() - before)
    torch.testing.assert_close(steps[1], steps[0], rtol=1e-4, atol=1e-7)
    assert steps[0].abs().max() > 1e-4


def test_two_ranks_of_the_trainer_take_the_step_of_one_process(tmp_path: Path) -> None:
    """Under torchrun, with unequal numbers of labels, whether the loss joins the ranks or the Trainer alone does."""
    tiny_segformer()  # skips where transformers is not installed
    pytest.importorskip("accelerate", reason="the Trainer needs accelerate: pip install accelerate")
    worker = Path(__file__).with_name("huggingface_ranks.py")
    paths = [str(worker.parent), str(worker.parents[2]), os.environ.get("PYTHONPATH", "")]
    subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node=2",
            worker,
            tmp_path,
        ],
        check=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
    )
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for name, alone in importlib.import_module("huggingface_ranks").steps(str(tmp_path), batch=4).items():
        assert alone.abs().max() > 1e-4
        for rank in ranks:
            torch.testing.assert_close(rank[name], alone, rtol=1e-4, atol=1e-7)
