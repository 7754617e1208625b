"""Tasks, workers, bounds, plots and the length of the page of the command that counts labels."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_stats import counts_of, masks, run, save_all, save_png
from test_stats_formats import save_nifti

from classbalance_losses import stats
from classbalance_losses.stats import files

MASKS = (
    np.random.default_rng(0).choice([0, 1], p=[0.9, 0.1], size=(4, 3, 6, 8)).astype(np.uint8)
)  # file, label


def written(folder: Path, capsys: pytest.CaptureFixture[str], *options: object) -> dict[str, Any]:
    """Return what a run writes for programs."""
    file = folder / "out.json"
    code, out, err = run(capsys, folder, "--json", file, *options)
    assert (code, bool(out)) == (0, True), err
    content: dict[str, Any] = json.loads(file.read_text())
    return content


def test_binary_masks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classes = masks(tmp_path, 0, 1)
    positive, number = int(classes.sum()), classes.size
    content = written(tmp_path, capsys, "--task", "binary")
    assert content["negative_counts"] == [number - positive]
    assert content["positive_counts"] == [positive]
    assert content["positive_shares"] == [positive / number]
    assert content["image_counts"] == [3]
    assert content["pos_weight"] == pytest.approx([(number - positive) / positive], rel=1e-5)
    assert (content["task"], content["num_images"], content["num_ignored"]) == ("binary", 3, 0)
    out = run(capsys, tmp_path, "--task", "binary")[1]
    assert f"pos_weight = {content['pos_weight'][0]}" in out
    assert f"{1 - positive / number:.3%}" in out
    assert f"{positive / number:.3%}" in out


def test_pos_weight_balances_the_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At logits of 0 the positives lose in sum what the negatives do."""
    target = torch.from_numpy(masks(tmp_path, 0, 1)).float()
    weight = torch.tensor(written(tmp_path, capsys, "--task", "binary")["pos_weight"])
    loss = torch.nn.BCEWithLogitsLoss(pos_weight=weight, reduction="none")(torch.zeros_like(target), target)
    torch.testing.assert_close(loss[target == 1].sum(), loss[target == 0].sum(), rtol=1e-4, atol=0)


@pytest.mark.parametrize(("value", "asked"), [(255, "0 and 255 alone"), (128, "expected 0 and 1, got 128")])
def test_binary_masks_of_another_label_are_asked_about(
    value: int, asked: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    positive = int(masks(tmp_path, 0, value).sum())
    code, _, err = run(capsys, tmp_path, "--task", "binary")
    assert (code, asked in err) == (1, True), err
    (of_object, ignored) = re.findall(r"--(?:object|ignore-index) \d+", err)
    assert written(tmp_path, capsys, "--task", "binary", *of_object.split())["positive_counts"] == [positive]
    content = written(tmp_path, capsys, "--task", "binary", *ignored.split())
    assert (content["positive_counts"], content["num_ignored"]) == ([0], positive)
    assert content["pos_weight"] == [None]
    assert "No weight for 0" in run(capsys, tmp_path, "--task", "binary", *ignored.split())[1]


def test_binary_labels_with_a_third_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classes = masks(tmp_path, 0, 1, 2)
    err = run(capsys, tmp_path, "--task", "binary")[2]
    assert "got 2. If they are classes, leave --task binary out" in err
    content = written(tmp_path, capsys, "--task", "binary", "--ignore-index", 2)
    assert content["num_ignored"] == int((classes == 2).sum())


def test_names_of_binary_masks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    masks(tmp_path, 0, 1)
    assert written(tmp_path, capsys, "--task", "binary")["classes"] == ["positive"]
    (tmp_path / "dataset.json").write_text('{"classes": ["sound", "crack"]}')
    assert written(tmp_path, capsys, "--task", "binary")["classes"] == ["crack"]
    (tmp_path / "dataset.json").write_text('{"classes": ["a", "b", "c"]}')
    assert written(tmp_path, capsys, "--task", "binary")["classes"] == ["positive"]


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.nii.gz"])
@pytest.mark.parametrize("options", [(), ("--num-classes", 3), ("--object", 7)])
def test_several_labels_a_pixel(
    name: str, options: tuple[object, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    value = 7 if "--object" in options else 1
    for number, array in enumerate(MASKS * value):
        path = tmp_path / f"{number}{name}"
        if name == "a.npy":
            np.save(path, array)
        elif name == "a.npz":
            np.savez(path, label=array)
        else:
            save_nifti(path, np.moveaxis(array, 0, -1)[:, :, None])
    content = written(tmp_path, capsys, "--task", "multilabel", *options)
    positive = MASKS.sum((0, 2, 3))
    assert content["positive_counts"] == positive.tolist()
    assert content["negative_counts"] == (4 * 48 - positive).tolist()
    assert content["image_counts"] == MASKS.any((2, 3)).sum(0).tolist()
    assert content["classes"] == ["label 0", "label 1", "label 2"]
    assert content["pos_weight"] == pytest.approx(((4 * 48 - positive) / positive).tolist(), rel=1e-5)
    out = run(capsys, tmp_path, "--task", "multilabel", *options)[1]
    assert "4 label maps, 576 pixels of 3 labels together" in out
    assert f"pos_weight = {content['pos_weight']}" in out


def test_several_labels_with_ignored_pixels_and_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    array = MASKS[0].copy()
    array[0, 0] = 255
    np.save(tmp_path / "a.npy", array)
    (tmp_path / "dataset.json").write_text('{"classes": ["roof", "wall", "door"]}')
    content = written(tmp_path, capsys, "--task", "multilabel")
    assert (content["num_ignored"], content["classes"]) == (8, ["roof", "wall", "door"])
    assert content["negative_counts"][0] + content["positive_counts"][0] == 40
    (tmp_path / "dataset.json").write_text('{"classes": ["roof", "wall"]}')
    assert "say --num-classes 3" in run(capsys, tmp_path, "--task", "multilabel")[2]
    content = written(tmp_path, capsys, "--task", "multilabel", "--num-classes", 3)
    assert content["classes"] == ["roof", "wall", "label 2"]
    (tmp_path / "dataset.json").unlink()
    np.save(tmp_path / "a.npy", np.where(MASKS[0], 255, 0).astype(np.uint8))
    assert "0 and 255 alone" in run(capsys, tmp_path, "--task", "multilabel")[2]


@pytest.mark.parametrize(
    ("name", "save", "message"),
    [
        ("b.png", lambda path: save_png(path, MASKS[0, 0]), "a .png file has one label a pixel"),
        ("b.npy", lambda path: np.save(path, MASKS[0, 0]), "leave --task multilabel out"),
        ("b.nii", lambda path: save_nifti(path, MASKS[0]), "(X, Y, Z, L)"),
        ("b.npy", lambda path: np.save(path, np.moveaxis(MASKS[0], 0, -1)), "numpy.moveaxis(array, -1, 0)"),
        ("b.npy", lambda path: np.save(path, 2 * MASKS[0]), "expected 0 and 1, got 2"),
    ],
)
def test_files_without_several_labels(
    name: str, save: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "a.npy", MASKS[0])
    save(tmp_path / name)
    code, _, err = run(capsys, tmp_path, "--task", "multilabel")
    assert (code, message in err, f"{tmp_path / name}: " in err) == (1, True, True), err


def test_clamp_bounds_every_weight(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_all(tmp_path)
    free = written(tmp_path, capsys)["weights"]
    assert any(weight > 2 for weight in free["pixel_frequency"])
    content = written(tmp_path, capsys, "--clamp", 0.5, 2)
    assert content["clamp"] == [0.5, 2]
    for scheme, weights in content["weights"].items():
        assert weights == [min(max(weight, 0.5), 2) for weight in free[scheme]]
    out = run(capsys, tmp_path, "--clamp", 0.5, 2)[1]
    assert "held to 0.5 at least and 2 at most" in out
    assert f"pixel_frequency = {content['weights']['pixel_frequency']}" in out
    masks(tmp_path / "binary", 0, 1)
    assert written(tmp_path / "binary", capsys, "--task", "binary", "--clamp", 3, 4)["pos_weight"] == [3]


def test_enet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_all(tmp_path)
    content = written(tmp_path, capsys)
    expected = [1 / math.log(1.02 + share) for share in content["pixel_shares"]]
    assert content["weights"]["enet"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("workers", [2, 9])
def test_workers_count_the_same(workers: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_all(tmp_path)
    assert run(capsys, tmp_path, "--workers", workers)[1] == run(capsys, tmp_path)[1]
    save_png(tmp_path / "3.png", np.full((2, 2), 7, np.uint8))
    assert f"{tmp_path / '3.png'}: " in run(capsys, tmp_path, "--workers", workers, "--num-classes", 3)[2]


def test_workers_go_on_from_a_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_all(tmp_path)
    kept, original, read = (
        ("--checkpoint", tmp_path / "counts.pt", "--workers", 2),
        files.LabelFiles.__getitem__,
        [],
    )

    def stop(self: stats.LabelFiles, index: int) -> Any:
        if index == 4:
            raise KeyboardInterrupt
        return original(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(stats.LabelFiles, "__getitem__", stop)
        code, _, err = run(capsys, tmp_path, *kept)
        assert (code, "Run the same command again" in err) == (130, True)
    note = lambda self, index: read.append(index) or original(self, index)  # noqa: E731
    monkeypatch.setattr(stats.LabelFiles, "__getitem__", note)
    _, out, _ = run(capsys, tmp_path, *kept)
    assert sorted(read) == [4, 5]
    assert out == run(capsys, tmp_path)[1]


def test_a_checkpoint_of_another_task_or_other_colours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "a.npy", MASKS[0, :2])
    kept = ("--checkpoint", tmp_path / "counts.pt", "--num-classes")
    assert run(capsys, tmp_path, *kept, 4)[0] == 0
    assert "several labels a pixel" in run(capsys, tmp_path, *kept, 2, "--task", "multilabel")[2]
    save_png(tmp_path / "colours" / "a.png", MASKS[0, 0])
    for lines, code in (("0 0 0\n1 1 1", 0), ("1 1 1\n0 0 0", 1)):
        (tmp_path / "colors.txt").write_text(lines)
        options = (
            tmp_path / "colours",
            "--colors",
            tmp_path / "colors.txt",
            "--checkpoint",
            tmp_path / "c.pt",
        )
        assert run(capsys, *options)[0] == code


def test_a_checkpoint_of_another_array(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "a.npz", label=[[0, 0]], fine=[[0, 1]])
    kept = ("--num-classes", 2, "--checkpoint", tmp_path / "c.pt")
    assert run(capsys, tmp_path, *kept)[0] == 0
    assert "arrays 'fine'" in run(capsys, tmp_path, *kept, "--key", "fine")[2]


@pytest.mark.parametrize("task", ["multiclass", "binary"])
def test_plot(task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is an extra")
    masks(tmp_path, 0, 1)
    number = ("--num-classes", 3) if task == "multiclass" else ()
    written(tmp_path, capsys, "--task", task, "--plot", tmp_path / "shares.svg", *number)
    drawn = (tmp_path / "shares.svg").read_text()
    share = f"{(counts := counts_of(tmp_path, capsys))[1] / sum(counts):.3%}"
    assert share in drawn  # as the comment beside the outlines of its letters
    assert ("class 2 (none)" in drawn) == (task == "multiclass")


def test_plot_without_matplotlib(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_all(tmp_path)
    code, out, err = run(capsys, tmp_path, "--plot", tmp_path / "shares.txt")
    assert (code, out, ".png" in err) == (1, "", True)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, out, err = run(capsys, tmp_path, "--plot", tmp_path / "shares.png")
    assert (code, out, 'pip install "classbalance_losses[plot]"' in err) == (1, "", True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--workers", 0), "--workers: expected at least 1"),
        (("--clamp", 2, 1), "expected 0 <= LOW <= HIGH, got 2 1"),
        (("--clamp", -1, 1), "expected 0 <= LOW"),
        (("--clamp", "nan", 1), "expected 0 <= LOW"),
        (("--colors", "c.txt", "--object", 1), "leave --object out"),
        (("--colors", "c.txt", "--num-classes", 3), "leave --num-classes out"),
        (("--colors", "c.txt", "--task", "multilabel"), "leave --task multilabel out"),
        (("--task", "binary", "--num-classes", 2), "leave --num-classes out"),
        (("--ignore-unknown",), "say --colors FILE too"),
        (("--plot", "nowhere/a.png"), "Make the folder nowhere first"),
    ],
)
def test_options_that_do_not_go_together(
    options: tuple[object, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_all(tmp_path)
    code, out, err = run(capsys, tmp_path, *options)
    assert (code, out, message in err) == (1, "", True), err


def test_a_page_stays_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of 150 classes it shows the largest and the smallest, and says where the others are."""
    sizes = np.arange(150) * 7 % 151 + 1  # all different; the class c has sizes[c] pixels
    np.save(tmp_path / "a.npy", np.repeat(np.arange(150), sizes))
    out = run(capsys, tmp_path)[1]
    lines = out.splitlines()
    assert len(lines) < 60
    assert max(map(len, lines)) < 140
    shown = [int(match[1]) for match in re.finditer(r"^ *\d+  class (\d+) ", out, re.MULTILINE)]
    order = np.argsort(-sizes)
    assert shown == [*order[:20], *order[-20:]]
    assert "… 110 more, which --json FILE has" in out
    content = written(tmp_path, capsys)
    assert len(content["weights"]["enet"]) == 150
    assert "enet = " not in out


def test_a_page_of_very_many_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(
        tmp_path / "a.npy", (np.arange(99 * 120).reshape(99, 1, 120) % 120 <= np.arange(99)[:, None, None])
    )
    out = run(capsys, tmp_path, "--task", "multilabel")[1]
    assert "… 59 more" in out
    assert 'json.load(open(FILE))["pos_weight"]' in out
    assert len(out.splitlines()) < 60
