"""The real Trainer of transformers, with a tiny SegFormer."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from toy_scenes import NUM_CLASSES, falls, scenes

from classbalance_losses import (
    DeepSupervision,
    DiceLoss,
    DyCELoss,
    FocalLoss,
    GBWLoss,
    WeightedCrossEntropyLoss,
)
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
    remedy = re.search(r"ComputeLoss\(.*\)", str(caught.value))
    assert remedy is not None
    named = eval(remedy[0], {"ComputeLoss": ComputeLoss, "loss": FocalLoss()})
    assert torch.equal(named(outputs, label), expected)
    for nothing in ({"a": logits, "b": logits}, None, ()):
        with pytest.raises(TypeError, match=r"head_weights=\{name: 1.0\}"):
            compute(nothing, label)


def test_auxiliary_heads_by_name_or_place() -> None:
    """Of other sizes too, whose logits are interpolated."""
    label = scenes(2)[1]
    main, aux = torch.randn(2, NUM_CLASSES, 16, 16), torch.randn(2, NUM_CLASSES, 8, 8)
    expected = F.cross_entropy(main, label) + 0.4 * F.cross_entropy(
        F.interpolate(aux, (16, 16), mode="bilinear"), label
    )
    loss = WeightedCrossEntropyLoss(upsample="linear")
    named = ComputeLoss(loss, head_weights={"logits": 1.0, "auxiliary_logits": 0.4})
    outputs = {"logits": main, "auxiliary_logits": aux, "hidden_states": (main,)}
    for given in (outputs, SimpleNamespace(**outputs)):
        torch.testing.assert_close(named(given, label), expected)
    placed = ComputeLoss(loss, head_weights={0: 1.0, 1: 0.4})
    torch.testing.assert_close(placed((main, aux), label, label.numel()), expected)
    for lacking in ({"logits": main}, (main,), main, SimpleNamespace(logits=main)):
        with pytest.raises(TypeError, match="head_weights names the outputs"):
            named(lacking, label)
    with pytest.raises(TypeError, match="head_weights=weights"):
        ComputeLoss(DeepSupervision(loss))


def test_factors_of_outputs_are_named() -> None:
    logits, label = torch.randn(4, NUM_CLASSES, 16, 16), scenes()[1]
    loss = WeightedCrossEntropyLoss()
    for wrong in ([1.0, 0.4], {}, "logits"):
        with pytest.raises(TypeError, match="head_weights to be a mapping") as caught:
            ComputeLoss(loss, head_weights=wrong)  # type: ignore[arg-type]
    head_weights = [1.0, 0.4]
    words = re.search(r"pass (dict\(.*\)), by", str(caught.value))
    assert words is not None
    compute = ComputeLoss(loss, head_weights=eval(words[1], {"head_weights": head_weights}))
    torch.testing.assert_close(compute((logits, logits), label), 1.4 * loss(logits, label))
    with pytest.raises(TypeError, match=r"Expected logits to be a torch\.Tensor, got ndarray"):
        ComputeLoss(loss)({"logits": logits.numpy()}, label)


@pytest.mark.parametrize("length", [NUM_CLASSES, 7])
def test_tokens_have_their_classes_last(length: int) -> None:
    logits, label = torch.randn(4, length, NUM_CLASSES), torch.randint(NUM_CLASSES, (4, length))
    label[:, 2:] = -100
    weight = torch.rand(4, length)
    terms = F.cross_entropy(logits.movedim(-1, 1), label, reduction="none")
    compute, kept = ComputeLoss(WeightedCrossEntropyLoss()), label != -100
    torch.testing.assert_close(compute({"logits": logits}, label), terms[kept].mean())
    weighted = compute({"logits": logits}, label, pixel_weight=weight)
    torch.testing.assert_close(weighted, (terms * weight)[kept].mean())
    soft = logits.softmax(-1)
    expected = F.cross_entropy(logits.movedim(-1, 1), soft.movedim(-1, 1))
    torch.testing.assert_close(compute({"logits": logits}, soft), expected)
    single = ComputeLoss(WeightedCrossEntropyLoss(task="binary"))(logits[..., :1], label.clamp(max=1))
    expected = F.binary_cross_entropy_with_logits(logits[..., 0][kept], label.clamp(max=1)[kept].float())
    torch.testing.assert_close(single, expected)


def test_tokens_of_several_labels() -> None:
    logits, label, weight = torch.randn(4, 7, 3), torch.randint(2, (4, 7, 3)), torch.rand(4, 7, 3)
    of_labels = torch.tensor([[1.0, 1.0], [1.0, 2.0], [3.0, 1.0]])
    compute = ComputeLoss(FocalLoss(gamma=0.0, alpha=of_labels, task="multilabel"))
    alpha = torch.where(label == 1, torch.tensor([1.0, 2.0, 1.0]), torch.tensor([1.0, 1.0, 3.0]))
    terms = alpha * weight * F.binary_cross_entropy_with_logits(logits, label.float(), reduction="none")
    torch.testing.assert_close(compute({"logits": logits}, label, pixel_weight=weight), terms.mean())


def test_series_have_their_classes_on_axis_1() -> None:
    logits, label = torch.randn(4, NUM_CLASSES, 9), torch.randint(NUM_CLASSES, (4, 9))
    compute = ComputeLoss(WeightedCrossEntropyLoss())
    torch.testing.assert_close(compute(logits, label), F.cross_entropy(logits, label))


def test_a_sum_of_losses() -> None:
    logits, label = torch.randn(2, NUM_CLASSES, 16, 16, requires_grad=True), scenes(2)[1]
    focal, dice = FocalLoss(), DiceLoss()
    compute = ComputeLoss(focal + 0.5 * dice)
    expected = focal(logits, label) + 0.5 * dice(logits, label)
    torch.testing.assert_close(compute({"logits": logits}, label, 2 * label.numel()), expected / 2)
    assert set(compute.loss.terms) == {"FocalLoss", "DiceLoss"}
    with pytest.raises(ValueError, match='reduction="mean"'):
        ComputeLoss(focal + DiceLoss(reduction="sum"))


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
    with pytest.raises(ValueError, match='task="binary"'):
        ComputeLoss(DyCELoss())({"logits": torch.randn(1, 1, 4, 4)}, torch.zeros(1, 4, 4).long())
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


def tiny_segformer(num_labels: int = NUM_CLASSES) -> Any:
    transformers = pytest.importorskip("transformers", reason="needs transformers: pip install transformers")
    torch.manual_seed(0)
    config = transformers.SegformerConfig(
        num_labels=num_labels,
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


def trainer(folder: Path, loss: Any, num_labels: int = NUM_CLASSES, **options: Any) -> Any:
    model = tiny_segformer(num_labels)
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


def test_binary_segformer_trains_as_by_its_own_loss(tmp_path: Path) -> None:
    """Its mean is over all pixels, ours over those that are not ignored: here none is."""
    ours, theirs = (
        trainer(tmp_path, loss, num_labels=1, max_steps=3)
        for loss in (WeightedCrossEntropyLoss(task="binary", ignore_index=255, upsample="linear"), None)
    )
    for run in (ours, theirs):
        run.train_dataset.labels.clamp_(max=1)
        run.train()
    assert logged(ours) == pytest.approx(logged(theirs), rel=1e-4)


def test_binary_segformer_learns_with_dice_and_ignored_pixels(tmp_path: Path) -> None:
    options = {"task": "binary", "ignore_index": 255, "upsample": "linear"}
    run = trainer(tmp_path, DyCELoss(**options) + DiceLoss(**options), num_labels=1, max_steps=30)
    labels = run.train_dataset.labels
    labels[labels == 2] = 1
    run.train()
    assert falls(logged(run))


def test_pixel_weights_of_the_batches_by_a_trainer_of_ones_own(tmp_path: Path) -> None:
    """As the page of the adapter writes it: weights of 0 leave what is ignored out of DyCE."""
    run = trainer(tmp_path, DyCELoss(upsample="linear"), max_steps=2, remove_unused_columns=False)
    loss = run.compute_loss_func

    class WeightedTrainer(type(run)):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            self.compute_loss_func = partial(loss, pixel_weight=inputs.pop("pixel_weight"))
            return super().compute_loss(model, inputs, *args, **kwargs)

    run.__class__ = WeightedTrainer
    data = run.train_dataset
    weights = (data.labels != 255).float()
    plain = [data[index] | {"labels": data.labels[index].clamp(max=2)} for index in range(4)]
    run.train_dataset = [item | {"pixel_weight": weight} for item, weight in zip(plain, weights, strict=True)]
    run.train()
    ignoring = trainer(tmp_path, DyCELoss(upsample="linear", ignore_index=255), max_steps=2)
    ignoring.train()
    assert logged(run) == pytest.approx(logged(ignoring), rel=1e-4)


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
