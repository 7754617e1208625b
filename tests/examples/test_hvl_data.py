"""HVL's data: Pascal VOC's and Cityscapes' layouts, published splits, streams, hidden pixels and pasted boxes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from semidavil_files import write_cityscapes

pytest.importorskip("transformers")
pytest.importorskip("kornia")

from examples.common.scenes.batches import Steps
from examples.hvl.config import DataConfig, load_config
from examples.hvl.data.splits import read_names, read_split
from examples.hvl.data.task import load_task, streams
from examples.hvl.data.views import boxes, hide, labels_at_size, pasted
from examples.hvl.data.voc import CLASSES, pascal_voc

SIZE = (12, 16)


def write_voc(folder: Path, names: tuple[str, ...] = ("a", "b", "c", "d"), mode: str = "P") -> Path:
    """Palette labels whose palette has nothing to do with their indices."""
    for i, name in enumerate(names):
        label = np.random.default_rng(i).integers(0, 21, SIZE, dtype=np.uint8)
        label[0] = 255
        (folder / "JPEGImages").mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((*SIZE, 3), 10 * i, np.uint8)).save(folder / "JPEGImages" / f"{name}.jpg")
        file = Image.fromarray(label).convert("P") if mode == "P" else Image.fromarray(label)
        if mode == "P":
            file.putpalette(np.random.default_rng(7).integers(0, 256, 768, dtype=np.uint8).tobytes())
        (folder / "SegmentationClass").mkdir(exist_ok=True)
        file.save(folder / "SegmentationClass" / f"{name}.png")
    lists = folder / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "trainaug.txt").write_text("".join(f"{name}\n" for name in names[:-1]))
    (lists / "val.txt").write_text(f"{names[-1]}\n")
    return folder


def expected(index: int) -> torch.Tensor:
    label = np.random.default_rng(index).integers(0, 21, SIZE, dtype=np.uint8)
    label[0] = 255
    return torch.from_numpy(label.astype(np.int64))


@pytest.mark.parametrize("mode", ["P", "L"])
def test_voc_gives_palette_indices(tmp_path: Path, mode: str) -> None:
    data = pascal_voc(write_voc(tmp_path, mode=mode), "trainaug")
    assert data.names == ("a", "b", "c")
    assert len(CLASSES) == 21
    for i in range(3):
        assert torch.equal(data.label(i), expected(i))
        assert data.image(i).shape == (3, *SIZE)
        assert abs(float(data.image(i).mean()) - 10 * i / 255) < 0.02


def test_voc_prefers_the_augmented_labels(tmp_path: Path) -> None:
    folder = write_voc(tmp_path)
    (folder / "SegmentationClassAug").mkdir()
    for name in "abc":
        Image.fromarray(np.full(SIZE, 3, np.uint8)).save(folder / "SegmentationClassAug" / f"{name}.png")
    assert (pascal_voc(folder, "trainaug").label(0) == 3).all()


def test_voc_says_what_is_missing(tmp_path: Path) -> None:
    folder = write_voc(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"test\.txt.*ImageSets"):
        pascal_voc(folder, "test")
    (folder / "SegmentationClass" / "b.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"b\.png.*SegmentationClass"):
        pascal_voc(folder, "trainaug")
    Image.fromarray(np.full(SIZE, 30, np.uint8)).save(folder / "SegmentationClass" / "b.png")
    with pytest.raises(ValueError, match="30"):
        pascal_voc(folder, "trainaug").label(1)
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(folder / "SegmentationClass" / "b.png")
    with pytest.raises(ValueError, match="mode 'RGB'"):
        pascal_voc(folder, "trainaug").label(1)


def test_lists_in_every_published_form(tmp_path: Path) -> None:
    path = tmp_path / "labeled.txt"
    path.write_text(
        "JPEGImages/2007_000032.jpg SegmentationClass/2007_000032.png\n\n2007_000039\n"
        "leftImg8bit/train/ulm/ulm_000001_000019_leftImg8bit.png gtFine/train/ulm/x.png\n"
    )
    assert read_names(path) == ("2007_000032", "2007_000039", "ulm_000001_000019")
    path.write_text("a\na\n")
    with pytest.raises(ValueError, match="different images"):
        read_names(path)
    with pytest.raises(FileNotFoundError, match=r"none\.txt"):
        read_names(tmp_path / "none.txt")


def test_a_split_belongs_to_its_data(tmp_path: Path) -> None:
    (tmp_path / "labeled.txt").write_text("b\n")
    assert read_split(tmp_path, ("a", "b", "c"), 1) == (("b",), ("a", "c"))
    (tmp_path / "unlabeled.txt").write_text("c\n")
    assert read_split(tmp_path, ("a", "b", "c"), 1) == (("b",), ("c",))
    with pytest.raises(ValueError, match=r"labels 1 images and data\.budget is 2"):
        read_split(tmp_path, ("a", "b", "c"), 2)
    with pytest.raises(ValueError, match="does not have"):
        read_split(tmp_path, ("b",), 1)
    (tmp_path / "unlabeled.txt").write_text("c\nb\n")
    with pytest.raises(ValueError, match="as labelled and as unlabelled"):
        read_split(tmp_path, ("a", "b", "c"), 1)


def test_a_task_of_each_kind(tmp_path: Path, street_folder: Path) -> None:
    (tmp_path / "split").mkdir()
    (tmp_path / "split" / "labeled.txt").write_text("JPEGImages/b.jpg SegmentationClass/b.png\n")
    voc = DataConfig(
        "voc", str(write_voc(tmp_path / "voc")), str(tmp_path), "split", 1, train_split="trainaug",
        test_splits=("val",), crop=(8, 8), batch_size=2,
    )  # fmt: skip
    task = load_task(voc, tmp_path)
    assert (task.labelled.names, task.unlabelled.names) == (("b",), ("a", "c"))
    assert task.means == {"mIoU21": tuple(range(21))}

    folder = str(write_cityscapes(tmp_path / "cityscapes"))
    streets = DataConfig("cityscapes", folder, budget=1, size=SIZE, train_split="train", test_splits=("val",))
    task = load_task(streets, tmp_path)
    assert len(task.labelled.names) == 1
    assert len(task.unlabelled.names) == 3
    assert not {*task.labelled.names} & {*task.unlabelled.names}
    assert load_task(streets, tmp_path).labelled.names == task.labelled.names

    task = load_task(DataConfig("camvid", str(street_folder), budget=4), tmp_path)
    assert set(task.unlabelled.names) == set(task.labelled.names)  # all are labelled


def test_the_unlabelled_stream_reads_no_label(street_folder: Path, tmp_path: Path) -> None:
    config = load_config("smoke", ["data.budget=2"])
    data = DataConfig("camvid", str(street_folder), budget=2, batch_size=2, crop=config.data.crop)
    task = load_task(data, tmp_path)

    def refuse(index: int) -> torch.Tensor:
        raise AssertionError(f"label {index} was read")

    task.unlabelled.label = refuse  # type: ignore[method-assign]
    steps = Steps(streams(task, data, 0), 0, 0, 3)
    for step in range(3):
        batch = steps[step]
        assert batch["unlabelled"].label is None
        assert batch["labelled"].label is not None
        assert torch.equal(batch["labelled"].image, steps[step]["labelled"].image)
        assert set(batch["unlabelled"].names) <= set(task.unlabelled.names)


def test_hidden_pixels_say_nothing_and_the_others_stay() -> None:
    images = torch.rand(2, 3, 8, 8)
    hidden = torch.rand(2, 8, 8) < 0.4
    shown = hide(images, hidden)
    keep = ~hidden[:, None].expand_as(images)
    assert torch.equal(shown[keep], images[keep])
    for image, mask, whole in zip(shown, hidden, images, strict=True):
        torch.testing.assert_close(image[:, mask].std(1, unbiased=False), torch.zeros(3), atol=1e-6, rtol=0)
        torch.testing.assert_close(image[:, mask][:, 0], whole.mean((1, 2)))


def test_labels_at_a_feature_maps_size() -> None:
    label = torch.tensor([[[0, 255], [7, 3]]]).repeat_interleave(4, 1).repeat_interleave(4, 2)
    assert torch.equal(labels_at_size(label, (2, 2)), torch.tensor([[[0, 255], [7, 3]]]))


def test_boxes_cover_what_they_should_and_paste_image_and_target_alike() -> None:
    inside = boxes((40, 60), list(range(50)))
    share = inside.float().mean((1, 2))
    assert share.min() > 0.08
    assert share.max() < 0.52
    assert share.std() > 0.05
    rows, columns = inside.any(2).sum(1), inside.any(1).sum(1)
    assert torch.equal(rows * columns, inside.sum((1, 2)))  # rectangles
    images, labels = torch.rand(3, 3, 40, 60), torch.randint(0, 5, (3, 40, 60))
    mixed, target = pasted(images, inside[:3]), pasted(labels, inside[:3])
    for i in range(3):
        other = (i + 1) % 3
        assert torch.equal(mixed[i][:, inside[i]], images[other][:, inside[i]])
        assert torch.equal(mixed[i][:, ~inside[i]], images[i][:, ~inside[i]])
        assert torch.equal(target[i][inside[i]], labels[other][inside[i]])
