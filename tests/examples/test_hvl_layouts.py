"""HVL's readers of COCO and ADE20K, and published splits, on small files in the published layouts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from semidavil_files import write_cityscapes

pytest.importorskip("transformers")
pytest.importorskip("kornia")

from examples.common.scenes.domain import FileDomain
from examples.hvl.config import DataConfig, load_config
from examples.hvl.data import ade20k as ade
from examples.hvl.data import coco
from examples.hvl.data.task import load_task, streams
from examples.hvl.data.voc import pascal_voc

SIZE = (12, 16)


def write_image(path: Path, value: int = 90) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*SIZE, 3), value, np.uint8)).save(path)


def write_label(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(path)


def coco_mask(number: int) -> np.ndarray:
    """0 to 80, and a row of 255."""
    mask = np.random.default_rng(number).integers(0, 81, SIZE)
    mask[0], mask[1, 0], mask[1, 1] = 255, 0, 80
    return mask


def ade_ids(number: int) -> np.ndarray:
    """0, no class, to 150."""
    ids = np.random.default_rng(number).integers(0, 151, SIZE)
    ids[0, 0], ids[0, 1], ids[0, 2] = 0, 1, 150
    return ids


def write_coco(folder: Path) -> Path:
    """Three images to train on, one to score; all masks lie in one folder."""
    for i in range(4):
        split = "val2017" if i == 3 else "train2017"
        write_image(folder / split / f"{i:012d}.jpg", 10 * i)
        write_label(folder / "masks" / f"{i:012d}.png", coco_mask(i))
    return folder


def write_ade20k(folder: Path) -> Path:
    for i in range(1, 5):
        split, name = ("validation", f"ADE_val_{i:08d}") if i == 4 else ("training", f"ADE_train_{i:08d}")
        write_image(folder / "images" / split / f"{name}.jpg", 10 * i)
        write_label(folder / "annotations" / split / f"{name}.png", ade_ids(i))
    return folder


def write_split(folder: Path, labelled: list[str], unlabelled: list[str]) -> None:
    folder.mkdir(parents=True)
    (folder / "labeled.txt").write_text("\n".join(labelled))  # as published: no newline at the end
    (folder / "unlabeled.txt").write_text("\n".join(unlabelled))


def test_coco_gives_eighty_things_and_the_background(tmp_path: Path) -> None:
    folder = write_coco(tmp_path)
    assert len(coco.CLASSES) == len(set(coco.CLASSES)) == 81
    assert [coco.CLASSES[i] for i in (0, 1, 80)] == ["background", "person", "toothbrush"]
    train, val = coco.coco(folder, "train2017"), coco.coco(folder, "val2017")
    assert train.names == ("000000000000", "000000000001", "000000000002")
    assert val.names == ("000000000003",)
    for data, first in ((train, 0), (val, 3)):
        for i in range(len(data.names)):
            assert torch.equal(data.label(i), torch.from_numpy(coco_mask(first + i)))
            assert abs(float(data.image(i).mean()) - 10 * (first + i) / 255) < 0.02


def test_ade20k_counts_from_zero_and_ignores_what_has_no_class(tmp_path: Path) -> None:
    folder = write_ade20k(tmp_path)
    assert len(ade.CLASSES) == len(set(ade.CLASSES)) == 150
    assert [ade.CLASSES[i] for i in (0, 12, 149)] == ["wall", "person", "flag"]
    data = ade.ade20k(folder, "training")
    assert data.names == tuple(f"ADE_train_{i:08d}" for i in (1, 2, 3))
    for i in range(3):
        ids = ade_ids(i + 1)
        assert torch.equal(data.label(i), torch.from_numpy(np.where(ids == 0, 255, ids - 1)))
    assert data.label(0)[0, :3].tolist() == [255, 0, 149]


def test_ade20k_that_was_shifted_already_is_refused(tmp_path: Path) -> None:
    folder = write_ade20k(tmp_path)
    path = folder / "annotations" / "training" / "ADE_train_00000001.png"
    write_label(path, np.where(ade_ids(1) == 0, 255, ade_ids(1) - 1))
    with pytest.raises(ValueError, match=r"holds the label 255.*the challenge's own"):
        ade.ade20k(folder, "training").label(0)
    write_label(path, ade_ids(1))  # the remedy
    assert ade.ade20k(folder, "training").label(0)[0, :3].tolist() == [255, 0, 149]


@pytest.mark.parametrize("kind", ["coco", "ade20k"])
def test_readers_say_what_is_missing(tmp_path: Path, kind: str) -> None:
    def read() -> FileDomain:
        return coco.coco(tmp_path, "train2017") if kind == "coco" else ade.ade20k(tmp_path, "training")

    with pytest.raises(FileNotFoundError, match=r"folder not found: .*\(expected"):
        read()
    write = write_coco if kind == "coco" else write_ade20k
    first = first_label(write(tmp_path))
    first.unlink()
    with pytest.raises(FileNotFoundError, match=rf"{first.name} not found \(expected"):
        read()
    write_label(first, np.full(SIZE, 200))
    with pytest.raises(ValueError, match="200"):
        read().label(0)
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(first)
    with pytest.raises(ValueError, match="mode 'RGB'"):
        read().label(0)


def first_label(folder: Path) -> Path:
    """The label of the first training image."""
    return min([*folder.glob("masks/*.png"), *folder.glob("annotations/training/*.png")])


def _task_files(tmp_path: Path, kind: str) -> DataConfig:
    """A data set of a kind with its published split of one label, as configured."""
    pairs = {
        "coco": [f"train2017/{i:012d}.jpg masks/{i:012d}.png" for i in range(3)],
        "ade20k": [f"images/training/ADE_train_{i:08d}.jpg annotations/x.png" for i in range(1, 4)],
        "cityscapes": [
            f"leftImg8bit/train/ulm/{path.name} gtFine/train/ulm/x_gtFine_labelTrainIds.png"
            for path in sorted(write_cityscapes(tmp_path / "cityscapes").glob("leftImg8bit/train/*/*.png"))
        ],
    }[kind]
    write = {"coco": write_coco, "ade20k": write_ade20k, "cityscapes": lambda folder: folder}[kind]
    folder = write(tmp_path / kind)
    config = load_config(kind).data
    write_split(tmp_path / "lists" / config.split, pairs[1:2], pairs[2:])
    return DataConfig(
        config.kind, str(folder), str(tmp_path / "lists"), config.split, 1, batch_size=2, crop=(8, 8),
        train_split=config.train_split, test_splits=config.test_splits,
    )  # fmt: skip


@pytest.mark.parametrize(("kind", "classes"), [("coco", 81), ("ade20k", 150), ("cityscapes", 19)])
def test_a_task_by_its_published_split(tmp_path: Path, kind: str, classes: int) -> None:
    config = _task_files(tmp_path, kind)
    task = load_task(config, tmp_path)
    assert len(task.labelled.names) == 1
    assert len(task.unlabelled.names) >= 1
    assert not {*task.labelled.names} & {*task.unlabelled.names}
    assert task.means == {f"mIoU{classes}": tuple(range(classes))}
    assert list(task.tests) == list(load_config(kind).data.test_splits)
    batch = streams(task, config, 0)["labelled"].batch(0, 0)
    assert batch.image.shape == (2, 3, 8, 8)
    assert batch.label is not None
    assert int(batch.label[batch.label != 255].max()) < classes


def test_a_split_and_its_folder_belong_together(tmp_path: Path, street_folder: Path) -> None:
    config = _task_files(tmp_path, "coco")
    alone = DataConfig("coco", config.folder, "", config.split, 1, train_split="train2017")
    with pytest.raises(ValueError, match=r'--splits FOLDER, or set data\.split to ""'):
        load_task(alone, tmp_path)
    shuffled = DataConfig("coco", config.folder, budget=2, train_split="train2017", test_splits=("val2017",))
    assert len(load_task(shuffled, tmp_path).labelled.names) == 2  # the remedy
    with pytest.raises(ValueError, match=r"data\.split is empty"):
        load_task(DataConfig("camvid", str(street_folder), str(tmp_path / "lists"), budget=1), tmp_path)


def test_voc_needs_no_list_of_its_own_where_a_split_is_given(tmp_path: Path) -> None:
    """`trainaug.txt` is in no archive of VOC; the published splits name the same images."""
    folder = tmp_path / "voc"
    for i, name in enumerate("abcd"):
        write_image(folder / "JPEGImages" / f"{name}.jpg")
        write_label(folder / "SegmentationClass" / f"{name}.png", np.full(SIZE, i))
    lists = folder / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("d\n")
    pairs = {name: f"JPEGImages/{name}.jpg SegmentationClass/{name}.png" for name in "abc"}
    write_split(tmp_path / "lists" / "92", [pairs["b"]], [pairs["c"], pairs["a"]])
    config = DataConfig(
        "voc", str(folder), str(tmp_path / "lists"), "92", 1, train_split="trainaug", test_splits=("val",)
    )
    task = load_task(config, tmp_path)
    assert (task.labelled.names, task.unlabelled.names) == (("b",), ("c", "a"))
    assert (task.labelled.label(0) == 1).all()
    with pytest.raises(FileNotFoundError, match=r"trainaug\.txt"):
        pascal_voc(folder, "trainaug")
