"""The step, the schedule, exact resuming, what a full disk leaves, selection on validation, and the command line."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("monai")
pytest.importorskip("nibabel")

from examples.__main__ import main
from examples.common.config import run_folder
from examples.common.logs import read_log
from examples.common.training import CHECKPOINT
from examples.synapse_ssl import train as train_module
from examples.synapse_ssl.config import CONFIGS, Config, load_config
from examples.synapse_ssl.data.batches import Steps
from examples.synapse_ssl.data.task import Stored, Task
from examples.synapse_ssl.engine import Engine, class_counts
from examples.synapse_ssl.methods import METHODS
from examples.synapse_ssl.results import table
from examples.synapse_ssl.train import train

SIZE = (4, 32, 32)
COSTS = ("images_per_second", "peak_memory_mib")


def toy_config(method: str = "ua_mt", *overrides: str) -> Config:
    """Six steps of a tiny network with dropout, so that random states matter."""
    return load_config(
        "smoke",
        [
            f'method="{method}"',
            f"data.patch={list(SIZE)}",
            f"data.size={list(SIZE)}",
            "data.batch_size=1",
            f'model.network="{"diff_vnet" if method == "a_and_d" else "dyn_unet"}"',
            f"model.features={[4, 8, 8, 8, 8] if method in ('urpc', 'a_and_d') else [4, 8, 8]}",
            "model.dropout=0.2",
            "training.checkpoint_every=4",
            "training.validate_every=2",
            *overrides,
        ],
    )


def _cases(prefix: str, number: int) -> Stored:
    label = torch.zeros(SIZE, dtype=torch.uint8)
    label[:, 4:14], label[1:3, 18:28, 6:20] = 1, 2

    def image(index: int):
        draws = torch.Generator().manual_seed(index)
        return (label[None].float() / 2 + 0.1 * torch.randn((1, *SIZE), generator=draws)).clamp(0, 1)

    return Stored([f"{prefix}{i}" for i in range(number)], image, lambda index: label.roll(index, dims=1))


def _no_label(index: int):
    raise AssertionError("an unlabelled volume's label was read")


@pytest.fixture
def task() -> Task:
    images = _cases("u", 3)
    unlabelled = Stored(images.names, images.image, _no_label)
    return Task(("background", "bar", "blob"), _cases("l", 2), unlabelled, _cases("v", 1), _cases("t", 2))


def _log(folder: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k not in COSTS} for row in read_log(folder / "log.csv")]


@pytest.mark.parametrize("method", METHODS)
def test_a_stopped_run_goes_on_to_the_same_bits(task, tmp_path, method):
    config = toy_config(method)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    metrics = train(config, whole, tmp_path, progress=False, task=task)
    assert train(config, parts, tmp_path, progress=False, task=task, stop_after=3) == {}
    torch.manual_seed(99)  # whatever happened in between
    again = train(config, parts, tmp_path, progress=False, task=task)
    assert _log(whole) == _log(parts)
    assert [row["step"] for row in _log(parts)] == [1, 2, 3, 4, 5, 6]
    assert metrics["scores"] == again["scores"]
    one, other = (torch.load(folder / CHECKPOINT, weights_only=True) for folder in (whole, parts))
    for part in ("method", "optimizer", "scheduler", "random_state"):
        assert _equal(one[part], other[part]), part
    assert _equal(one["best"], other["best"])
    assert train(config, parts, Path("nowhere"), progress=False) == again  # finished: not repeated


def _equal(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_equal, one, other))
    return one == other


def test_what_a_run_leaves(task, tmp_path):
    config = toy_config()
    metrics = train(config, tmp_path / "run", tmp_path, progress=False, task=task)
    assert metrics == json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == config.as_dict()
    assert metrics["labelled"] == ["l0", "l1"]
    assert sum(metrics["class_share"]) == pytest.approx(1, abs=1e-5)
    assert metrics["seconds"] > 0
    assert metrics["commit"]
    assert set(metrics["versions"]) == {"python", "torch", "monai", "classbalance_losses"}
    assert len(metrics["scores"]["dsc_per_class"]) == 2
    assert [row["step"] for row in read_log(tmp_path / "run" / "validation.csv")] == [4, 6]
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))
    lines = table(metrics).splitlines()
    assert lines[:2] == ["|  | mean | bar | blob |", "| --- | ---: | ---: | ---: |"]
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| DSC", "| recall", "| ASD"]
    assert lines[3].split(" | ")[1] == f"{metrics['scores']['recall']:.1f}"
    log = read_log(tmp_path / "run" / "log.csv")
    assert {"loss", "supervised", "unsupervised", "weight", "sure", "lr", *COSTS} < set(log[0])


def test_the_best_on_validation_is_tested(task, tmp_path, monkeypatch):
    """Scores that are made up for validation: the second of three is the best."""
    given, tested = iter([10.0, 30.0, 20.0]), {}
    real = train_module.evaluate

    def evaluate(predict, cases, classes, **options):
        scores = real(predict, cases, classes, **options)
        if cases is task.validation:
            return scores | {"dsc": next(given)}
        tested["scores"], tested["logits"] = scores, predict(task.test.image(0)[None])
        return scores

    monkeypatch.setattr(train_module, "evaluate", evaluate)
    config = toy_config("cps", "training.validate_every=1")
    metrics = train(config, tmp_path / "run", tmp_path, progress=False, task=task)
    assert (metrics["tested_step"], metrics["validation_dsc"]) == (4, 30.0)
    state = torch.load(tmp_path / "run" / CHECKPOINT, weights_only=True)
    assert state["best"]["step"] == 4
    assert not _equal(state["best"]["weights"], state["method"])  # the last weights are there as well
    engine = Engine(config, class_counts(task), torch.device("cpu"))
    engine.method.load_state_dict(state["best"]["weights"])
    assert torch.equal(engine.predict(task.test.image(0)[None]), tested["logits"])


def test_without_validation_the_last_weights_are_tested(task, tmp_path):
    config = toy_config("supervised", "training.validate_every=0")
    metrics = train(config, tmp_path / "run", tmp_path, progress=False, task=task)
    assert (metrics["tested_step"], metrics["validation_dsc"]) == (6, None)
    assert not (tmp_path / "run" / "validation.csv").exists()


def test_a_run_that_ended_before_its_test_is_tested(task, tmp_path, monkeypatch):
    """Everything is trained, the machine dies during the test: the next start has no step left to train."""
    config, folder = toy_config("supervised"), tmp_path / "run"
    metrics = train(config, folder, tmp_path, progress=False, task=task)
    (folder / "metrics.json").unlink()
    assert train(config, folder, tmp_path, progress=False, task=task)["scores"] == metrics["scores"]


def test_a_full_disk_leaves_the_former_checkpoint(task, tmp_path, monkeypatch):
    config, folder = toy_config("supervised", "training.checkpoint_every=2"), tmp_path / "run"
    train(config, folder, tmp_path, progress=False, task=task, stop_after=2)
    before = (folder / CHECKPOINT).read_bytes()
    write = Path.write_bytes

    def fill(path, content):
        write(path, bytes(content)[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", fill)
    with pytest.raises(
        OSError, match=r"checkpoint of step 4 could not be .*No space left.*one before it is"
    ) as e:
        train(config, folder, tmp_path, progress=False, task=task)
    assert e.value.errno == errno.ENOSPC
    assert (folder / CHECKPOINT).read_bytes() == before
    assert not list(folder.glob(".*partial"))
    monkeypatch.undo()
    metrics = train(config, folder, tmp_path, progress=False, task=task)
    whole = train(config, tmp_path / "whole", tmp_path, progress=False, task=task)
    assert metrics["scores"] == whole["scores"]


def test_ctrl_c_saves_and_the_run_goes_on(task, tmp_path, monkeypatch):
    config, folder = toy_config("supervised"), tmp_path / "run"
    advance = Engine.advance

    def interrupted(engine, batch):
        values = advance(engine, batch)
        if engine.step == 3:
            os.kill(os.getpid(), 2)
        return values

    monkeypatch.setattr(Engine, "advance", interrupted)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 3; run again"):
        train(config, folder, tmp_path, progress=False, task=task)
    monkeypatch.undo()
    assert torch.load(folder / CHECKPOINT, weights_only=True)["step"] == 3
    metrics = train(config, folder, tmp_path, progress=False, task=task)
    assert metrics["scores"] == train(config, tmp_path / "w", tmp_path, progress=False, task=task)["scores"]


def test_the_rate_falls_with_the_epochs(task):
    engine = Engine(toy_config("supervised", "training.epochs=4"), class_counts(task), torch.device("cpu"))
    rates = []
    for _ in range(8):
        rates.append(engine.scheduler.get_last_lr()[0])
        engine.optimizer.step()
        engine.scheduler.step()
    assert rates == pytest.approx([0.01 * (1 - epoch / 4) ** 0.9 for epoch in (0, 0, 1, 1, 2, 2, 3, 3)])
    group = engine.optimizer.param_groups[0]
    assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.9, True, 3e-5)


def test_a_step_is_an_sgd_step_on_the_loss(task):
    config = toy_config("cps", "model.dropout=0.0")
    batch = Steps(task, config.data, 0, 0, 1)[0]
    torch.manual_seed(0)
    engine = Engine(config, class_counts(task), torch.device("cpu"))
    parameter = engine.method.first.output_block.conv.conv.weight
    value, _ = engine.method.train().loss(batch, 0)
    (gradient,) = torch.autograd.grad(value, parameter)
    before = parameter.detach().clone()
    values = engine.advance(batch)
    torch.testing.assert_close(values["loss"], value.detach())
    direction = gradient + 3e-5 * before
    torch.testing.assert_close(parameter.detach(), before - 0.01 * 1.9 * direction)  # Nesterov's first step
    assert engine.step == 1


def test_mixed_precision_trains_and_resumes(task, tmp_path):
    config = toy_config("ua_mt", 'training.amp="bfloat16"')
    whole = train(config, tmp_path / "whole", tmp_path, progress=False, task=task)
    train(config, tmp_path / "parts", tmp_path, progress=False, task=task, stop_after=2)
    parts = train(config, tmp_path / "parts", tmp_path, progress=False, task=task)
    assert whole["scores"] == parts["scores"]
    assert _log(tmp_path / "whole") == _log(tmp_path / "parts")


def test_refusals(task, tmp_path):
    empty = replace(task, labelled=Stored([], _no_label, _no_label))
    with pytest.raises(ValueError, match=r"no volume is labelled: raise data\.budget"):
        train(toy_config(), tmp_path / "run", tmp_path, progress=False, task=empty)
    train(toy_config(), tmp_path / "run", tmp_path, progress=False, task=task, stop_after=1)
    with pytest.raises(ValueError, match="another configuration"):
        train(toy_config("cps"), tmp_path / "run", tmp_path, progress=False, task=task)
    checkpoint = tmp_path / "run" / CHECKPOINT
    for length in (checkpoint.stat().st_size // 2, 0):
        checkpoint.write_bytes(checkpoint.read_bytes()[:length])
        with pytest.raises(ValueError, match=r"checkpoint\.pt cannot be read.*delete it to start over"):
            train(toy_config(), tmp_path / "run", tmp_path, progress=False, task=task)
    config = toy_config("supervised", "training.lr=1e30")
    with pytest.raises(FloatingPointError, match=r"at step \d: lower training\.lr"):
        train(config, tmp_path / "other", tmp_path, progress=False, task=task)


def test_shipped_configurations_are_valid_and_say_what_they_are():
    configs = {path.stem: load_config(path) for path in sorted(CONFIGS.glob("*.toml"))}
    assert all(config.note for config in configs.values())
    assert len({json.dumps(config.as_dict()) for config in configs.values()}) == len(configs)
    for method in METHODS:
        plain, dyce = configs[f"btcv_{method}"], configs[f"btcv_{method}_dyce"]
        assert plain.method == dyce.method == method
        assert replace(plain, supervised=replace(plain.supervised, pixel="DyCE"), note=dyce.note) == dyce
        assert plain.training.iterations == 2400


def test_the_folders_place_does_not_change_a_run(tmp_path):
    one, other = toy_config(), toy_config("ua_mt", 'data.folder="elsewhere"')
    assert run_folder(tmp_path, "x", one.as_dict()) == run_folder(tmp_path, "x", other.as_dict())
    assert run_folder(tmp_path, "x", one.as_dict()) != run_folder(tmp_path, "x", toy_config("cps").as_dict())


def test_the_command_line(tmp_path, capsys):
    overrides = ["training.epochs=1", "training.steps_per_epoch=1", 'method="supervised"']
    main(["synapse_ssl", "train", "smoke", "--runs", str(tmp_path), "--device", "cpu", "--set", *overrides])
    folder = run_folder(tmp_path, "smoke", load_config("smoke", overrides).as_dict())
    assert f"in {folder}" in capsys.readouterr().out
    assert json.loads((folder / "metrics.json").read_text())["data"] == "organs"
    with pytest.raises(SystemExit):
        main(["synapse_ssl", "train"])


def test_the_smoke_run(capsys):
    main(
        [
            "synapse_ssl",
            "train",
            "--smoke",
            "--device",
            "cpu",
            "--set",
            "data.cases=[2, 1, 1]",
            "training.epochs=2",
        ]
    )
    printed = capsys.readouterr().out
    assert printed.count("resumed: the same losses, scores") == 2
    assert printed.count("| DSC |") == 2
