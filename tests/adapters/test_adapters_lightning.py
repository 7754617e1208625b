"""What the callback logs, under the real Trainer; and that it waits for no device between log steps."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from toy_scenes import NUM_CLASSES, falls, scenes

import classbalance_losses as cb
from classbalance_losses.adapters._recorder import ClassRecorder, Report, TermReport

pytestmark = pytest.mark.filterwarnings("ignore:The number of training batches")  # few, on purpose


def class_losses(logits: Tensor, label: Tensor) -> list[float]:
    loss = F.cross_entropy(logits, label, ignore_index=255, reduction="none")
    return [loss[label == c].mean().item() for c in range(NUM_CLASSES)]


def last(report: Report | None) -> TermReport:
    """What a loss that is no sum did in the last batch."""
    assert report is not None
    (term,) = report.terms.values()
    return term


def batches(count: int = 2) -> list[tuple[Tensor, Tensor]]:
    found = []
    for seed in range(count):
        label = scenes(2, seed=seed)[1]
        label[:, 0] = 255
        found.append((torch.randn(2, NUM_CLASSES, 16, 16), label))
    return found


def test_class_losses_are_means_over_all_batches_since_the_last_reading() -> None:
    criterion = cb.FocalLoss(ignore_index=255)
    recorder = ClassRecorder(criterion)
    assert recorder.read() is None
    data = batches()
    for logits, label in data:
        criterion(logits, target=label)
    report = recorder.read()
    assert report is not None
    joined = class_losses(*(torch.cat(part) for part in zip(*data, strict=True)))
    assert report.class_loss == pytest.approx(joined)
    assert last(report) == (None, [], None)
    assert recorder.read() is None
    criterion.eval()(*data[0])
    assert recorder.read() is None
    recorder.remove()
    criterion.train()(*data[0])
    assert recorder.read() is None


def test_a_batch_counts_once_and_a_validation_not_at_all() -> None:
    """Under a checkpoint of activations, whose recomputation is no batch; and without a call of eval()."""
    criterion = cb.DyCELoss(ignore_index=255)
    recorder = ClassRecorder(criterion)
    logits, label = batches()[0]
    checkpoint(criterion, logits.requires_grad_(), label, use_reentrant=False).backward()
    sums = recorder._totals
    with torch.no_grad():
        criterion(logits, label)
    assert sums is not None
    assert sums[1].sum() == (label != 255).sum()
    assert recorder._totals is sums


@pytest.mark.parametrize("normalize", ["paper", "unit"])
@pytest.mark.parametrize("scope", ["batch", "image"])
def test_dyces_weights_and_threshold_give_its_loss(normalize: str, scope: str) -> None:
    """Σ_H weight · loss / |H|: what was recorded is what the loss did."""
    logits, label = batches()[0]
    criterion = cb.DyCELoss(ignore_index=255, normalize=normalize, scope=scope, hard_fraction=0.3)
    recorder = ClassRecorder(criterion)
    value = criterion(logits, label)
    report = last(recorder.read())
    loss = F.cross_entropy(logits, label, ignore_index=255, reduction="none")
    terms = cb.functional.dyce_loss(
        logits, label, hard_fraction=0.3, scope=scope, ignore_index=255, reduction="none"
    )
    hard = terms > 0
    assert report.threshold == pytest.approx(loss[hard].min().item())
    weight = torch.tensor(report.class_weight)[label[hard]]
    torch.testing.assert_close((weight * loss[hard]).sum() / hard.sum(), value)


def test_weights_of_the_other_losses() -> None:
    logits, label = batches()[0]
    given = [1.0, 2.0, 5.0]
    frequency = cb.functional.pixel_frequency_weights(torch.bincount(label[label != 255]))
    gbw = cb.GBWLoss(ignore_index=255)
    for criterion, expected in (
        (cb.WeightedCrossEntropyLoss(given, ignore_index=255), given),
        (cb.FocalLoss(alpha=given, ignore_index=255), given),
        (cb.FocalLoss(alpha=0.25, ignore_index=255), []),
        (cb.WeightedCrossEntropyLoss(cb.PixelFrequency(), ignore_index=255), frequency.tolist()),
        (gbw, cb.functional.gbw_class_weights(logits, label, ignore_index=255).tolist()),
    ):
        recorder = ClassRecorder(criterion)
        criterion(logits, label)
        assert last(recorder.read()).class_weight == pytest.approx(expected)


SUM = cb.DyCELoss(ignore_index=255) + 0.5 * cb.DiceLoss(class_weight=[1.0, 2.0, 5.0], ignore_index=255)


@pytest.mark.parametrize(
    "terms",
    [
        SUM,
        SUM + cb.GBWLoss(ignore_index=255),
        SUM
        + cb.WeightedCrossEntropyLoss(cb.PixelFrequency(), ignore_index=255)
        + cb.DyCELoss(ignore_index=255),
    ],
    ids=lambda loss: " + ".join(loss.names),
)
def test_a_sum_is_recorded_as_its_terms_by_themselves(terms: cb.SumLoss) -> None:
    """The classes' losses once, and of each term its value too."""
    logits, label = batches()[0]
    weight = torch.rand(label.shape).round()
    recorder = ClassRecorder(terms)
    terms(logits, label, pixel_weight=weight)
    report = recorder.read()
    assert report is not None
    assert report.class_loss == pytest.approx(class_losses(logits, label))
    for (name, term), loss in zip(report.terms.items(), terms.losses, strict=True):
        alone = ClassRecorder(loss)
        value = loss(logits, label, pixel_weight=weight)
        expected = last(alone.read())
        assert term.value == pytest.approx(value.item()), name
        assert term.class_weight == pytest.approx(expected.class_weight)
        assert term.threshold == expected.threshold
        alone.remove()
    recorder.remove()
    terms(logits, label)
    assert recorder.read() is None


@pytest.mark.parametrize("task", ["binary", "multilabel"])
@pytest.mark.parametrize("soft", [False, True], ids=["indices", "soft"])
def test_labels_are_recorded_absent_and_present(task: str, soft: bool) -> None:
    number = 1 if task == "binary" else 3
    logits, target = torch.randn(2, number, 8, 8), (torch.rand(2, number, 8, 8) > 0.7).long()
    loss = F.binary_cross_entropy_with_logits(logits, target.float(), reduction="none")
    expected = [
        loss[:, label][target[:, label] == sign].mean().item() for label in range(number) for sign in (0, 1)
    ]
    criterion = (
        cb.WeightedCrossEntropyLoss([1.0, 4.0], task=task)
        + cb.GBWLoss(task=task)
        + cb.DyCELoss(task=task)
        + cb.DiceLoss(task=task)
        + cb.FocalLoss(alpha=0.25, task=task)
    )
    recorder = ClassRecorder(criterion)
    criterion(logits, target.float() if soft else target)
    report = recorder.read()
    assert report is not None
    assert report.of_labels
    assert report.class_loss == pytest.approx(expected)
    weights = {name: term.class_weight for name, term in report.terms.items()}
    assert weights["WeightedCrossEntropyLoss"] == [1.0, 4.0] * number
    assert weights["FocalLoss"] == [0.75, 0.25] * number
    assert [len(weights[name]) for name in ("GBWLoss", "DyCELoss", "DiceLoss")] == [2 * number] * 2 + [0]
    hard = loss.flatten().topk(int(0.2 * loss.numel())).values
    assert report.terms["DyCELoss"].threshold == pytest.approx(hard.min().item())


def test_smoothed_losses_are_mined_as_the_loss_mines_them() -> None:
    logits, label = batches()[0]
    criterion = cb.DyCELoss(ignore_index=255, label_smoothing=0.3)
    recorder = ClassRecorder(criterion)
    criterion(logits, label)
    loss = F.cross_entropy(logits, label, ignore_index=255, reduction="none", label_smoothing=0.3)
    count = int(0.2 * (label != 255).sum())
    assert last(recorder.read()).threshold == pytest.approx(loss.flatten().topk(count).values.min().item())


def test_recording_with_upsampling_and_without_a_valid_pixel() -> None:
    label = scenes(2)[1]
    logits = torch.randn(2, NUM_CLASSES, 8, 8)
    criterion = cb.DyCELoss(ignore_index=255, upsample="linear")
    recorder = ClassRecorder(criterion)
    criterion(logits, label)
    report = recorder.read()
    assert report is not None
    assert report.class_loss == pytest.approx(
        class_losses(F.interpolate(logits, (16, 16), mode="bilinear"), label), rel=1e-4
    )
    criterion(logits, torch.full_like(label, 255))
    empty = recorder.read()
    assert empty is not None
    assert all(math.isnan(value) for value in empty.class_loss)
    assert last(empty) == (None, [0.0] * NUM_CLASSES, float("inf"))


ALL = [
    cb.DyCELoss(),
    cb.DyCELoss(scope="image", normalize="unit"),
    cb.GBWLoss(momentum=0.9),
    cb.WeightedCrossEntropyLoss(cb.LossBased()),
    cb.FocalLoss(alpha=[1.0, 2.0, 3.0]),
    cb.DualFocalLoss(),
    cb.DyCELoss() + cb.GBWLoss() + cb.TverskyLoss(class_weight=[1.0, 2.0, 3.0]),
]


@pytest.mark.parametrize("criterion", ALL, ids=repr)
def test_recording_does_not_wait_for_the_device(
    criterion: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    from test_no_sync import NoSync

    for name, module in list(sys.modules.items()):  # values are looked at on the CPU alone
        if name.startswith("classbalance_losses") and hasattr(module, "can_read_values"):
            monkeypatch.setattr(module, "can_read_values", lambda tensor: False)
    recorder = ClassRecorder(criterion)
    logits, label = torch.randn(2, NUM_CLASSES, 8, 8, requires_grad=True), scenes(2, (8, 8))[1]
    with NoSync():
        for _ in range(2):
            criterion(logits, label).backward()
    report = recorder.read()
    recorder.remove()
    assert report is not None
    assert report.class_loss == pytest.approx(class_losses(logits, label))


class Toy:
    """Builds the LightningModule, where Lightning is installed."""

    def __new__(
        cls,
        criterion: nn.Module,
        heads: Callable[[Tensor], Any] = lambda logits: logits,
        labels: Callable[[Tensor], Tensor] = lambda label: label,
    ) -> Any:
        lightning = pytest.importorskip("lightning.pytorch", reason="needs Lightning: pip install lightning")

        class Module(lightning.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.head = nn.Conv2d(3, NUM_CLASSES, 1)
                self.criterion = criterion
                self.seen: list[float] = []

            def training_step(self, batch: list[Tensor], index: int) -> Tensor:
                loss: Tensor = self.criterion(heads(self.head(batch[0])), labels(batch[1]))
                self.seen.append(loss.item())
                self.log_dict(getattr(self.criterion, "terms", {}))
                return loss

            def validation_step(self, batch: list[Tensor], index: int) -> None:
                self.criterion(heads(self.head(batch[0])), labels(batch[1] * 0))

            def configure_optimizers(self) -> torch.optim.Optimizer:
                return torch.optim.SGD(self.parameters(), lr=2.0)

        torch.manual_seed(0)
        return Module()


class Log:
    """A logger that keeps what it is given."""

    def __new__(cls) -> Any:
        from lightning.pytorch.loggers.logger import DummyLogger

        class Keeping(DummyLogger):
            def __init__(self) -> None:
                super().__init__()
                self.entries: dict[int, dict[str, float]] = {}

            def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:  # type: ignore[override]
                if any("/" in name for name in metrics):
                    assert step is not None
                    assert step not in self.entries
                    self.entries[step] = metrics

        return Keeping()


def fit(module: Any, folder: Path, names: tuple[str, ...] | None = None, **options: Any) -> Any:
    from lightning.pytorch import Trainer

    from classbalance_losses.adapters.lightning import ClassBalanceLogger

    images, labels = scenes(4)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), batch_size=2)
    log = Log()
    trainer = Trainer(
        callbacks=[ClassBalanceLogger(names)],
        logger=log,
        default_root_dir=folder,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, loader, loader)
    return log


def test_training_by_lightning_lowers_the_loss_and_logs_each_class(tmp_path: Path) -> None:
    module = Toy(cb.DyCELoss())
    log = fit(module, tmp_path, ("sky", "road", "pole"), max_epochs=10, log_every_n_steps=5)
    assert falls(module.seen)
    assert sorted(log.entries) == [5, 10, 15, 20]
    kinds = {f"criterion/{kind}/{name}" for kind in ("loss", "weight") for name in ("sky", "road", "pole")}
    assert all(set(entry) == kinds | {"criterion/threshold"} for entry in log.entries.values())
    assert log.entries[20]["criterion/loss/sky"] < log.entries[5]["criterion/loss/sky"]


def test_a_sums_terms_are_logged(tmp_path: Path) -> None:
    """Here inside deep supervision, whose loss has a name of its own."""
    criterion = cb.DeepSupervision(cb.DyCELoss() + cb.DiceLoss(class_weight=[1.0, 2.0, 3.0]), [1.0])
    module = Toy(criterion, lambda logits: [logits])
    log = fit(module, tmp_path, max_epochs=1, log_every_n_steps=2)
    kinds = {f"criterion.loss/loss/{c}" for c in range(NUM_CLASSES)}
    for term in ("DyCELoss", "DiceLoss"):
        kinds |= {f"criterion.loss/{term}/weight/{c}" for c in range(NUM_CLASSES)} | {
            f"criterion.loss/{term}"
        }
    assert set(log.entries[2]) == kinds | {"criterion.loss/DyCELoss/threshold"}
    total = sum(log.entries[2][f"criterion.loss/{term}"] for term in ("DyCELoss", "DiceLoss"))
    assert total == pytest.approx(module.seen[-1])


def test_labels_are_logged_by_their_names(tmp_path: Path) -> None:
    criterion = cb.WeightedCrossEntropyLoss(task="multilabel") + cb.DiceLoss(task="multilabel")
    module = Toy(criterion, labels=lambda label: torch.eye(NUM_CLASSES)[label].movedim(-1, 1).long())
    names = ("sky", "road", "pole")
    log = fit(module, tmp_path, names, max_epochs=1, log_every_n_steps=2)
    signs = {f"criterion/loss/{name}/{sign}" for name in names for sign in ("absent", "present")}
    assert set(log.entries[2]) == signs | {"criterion/WeightedCrossEntropyLoss", "criterion/DiceLoss"}
    assert set(module.trainer.callback_metrics) == {"WeightedCrossEntropyLoss", "DiceLoss"}  # by log_dict
    with pytest.raises(ValueError, match="Expected 3 class_names, one a label of criterion, got 1"):
        fit(module, tmp_path, ("sky",), max_epochs=1, log_every_n_steps=1)


def test_steps_are_the_optimizers_and_hooks_go_away(tmp_path: Path) -> None:
    module = Toy(cb.GBWLoss())
    log = fit(module, tmp_path, max_epochs=4, log_every_n_steps=2, accumulate_grad_batches=2)
    assert sorted(log.entries) == [2, 4]
    assert sum(log.entries[4][f"criterion/weight/{c}"] for c in range(NUM_CLASSES)) == pytest.approx(
        NUM_CLASSES
    )
    assert not module.criterion._forward_hooks


def test_no_log_steps_without_an_interval(tmp_path: Path) -> None:
    assert fit(Toy(cb.DyCELoss()), tmp_path, max_epochs=1, log_every_n_steps=0).entries == {}


def test_wrong_use_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="as a submodule"):
        fit(Toy(nn.CrossEntropyLoss()), tmp_path, max_epochs=1)
    with pytest.raises(ValueError, match="class_names"):
        fit(Toy(cb.DyCELoss()), tmp_path, ("sky",), max_epochs=1, log_every_n_steps=1)
