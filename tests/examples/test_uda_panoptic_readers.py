"""SYNTHIA's and Cityscapes' instances, read back from tiny folders in their layouts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("transformers")
pytest.importorskip("kornia")

from panoptic_files import NAMES, NOTHING, THINGS, TRUCK, draw, write_cityscapes, write_synthia
from png16 import write_png16

from examples.common.scenes.augment import random_crop_flip
from examples.common.scenes.domain import Domain
from examples.common.scenes.labels import CLASSES
from examples.uda_gbw.panoptic.config import load_config
from examples.uda_gbw.panoptic.data import load_task, source_classes
from examples.uda_gbw.panoptic.labels import CATEGORIES, decoded
from examples.uda_gbw.panoptic.layouts import cityscapes, read_cityscapes, read_synthia, synthia

SIZE = (32, 48)


def _check(domain: Domain, things: tuple) -> None:
    """The first image of a folder: classes among the 16, and each thing with a number apart from all others."""
    label, _, which = draw(SIZE, things)
    found, instance = decoded(domain.label(0))
    lost = [NOTHING, CLASSES.index("truck")]
    expected = [255 if c in lost else NAMES.index(CLASSES[c]) for c in label.flatten()]
    assert found.flatten().tolist() == expected
    truck = label == CLASSES.index("truck")
    which = torch.from_numpy(np.where(truck, 0, which))
    assert torch.equal(instance > 0, which > 0)
    pairs = {*zip(which.flatten().tolist(), instance.flatten().tolist(), strict=True)}
    numbers = {number for _, number in pairs}
    assert len(pairs) == len(numbers) == 5  # four things and none
    assert numbers == set(range(5))


def test_synthias_instances(tmp_path):
    domain = synthia(write_synthia(tmp_path, 2, SIZE), None)
    assert domain.names == ("0000000", "0000001")
    _check(domain, THINGS)
    assert domain.image(0).shape == (3, *SIZE)
    assert not torch.equal(domain.label(0), domain.label(1))


def test_cityscapes_instances(tmp_path):
    domain = cityscapes(write_cityscapes(tmp_path, 2, SIZE), "val", None)
    assert domain.names == ("ulm_000000_000019",)
    _check(domain, (*THINGS, TRUCK))
    assert cityscapes(tmp_path, "train", None).names == ("ulm_000000_000019", "ulm_000001_000019")


def test_instances_survive_resizing_and_crops(tmp_path):
    """Codes are never blended, and what a crop adds is unlabelled."""
    write_cityscapes(tmp_path, 1, SIZE)
    whole = cityscapes(tmp_path, "val", None).label(0)
    small = cityscapes(tmp_path, "val", (16, 24)).label(0)
    assert small.shape == (16, 24)
    assert set(small.unique().tolist()) <= set(whole.unique().tolist())
    assert cityscapes(tmp_path, "val", (16, 24), resize_labels=False).label(0).shape == SIZE
    image, crop = random_crop_flip(torch.zeros(3, *SIZE), whole, (40, 40), torch.Generator().manual_seed(0))
    assert image.shape == (3, 40, 40)
    label, instance = decoded(crop)
    assert (label[32:] == 255).all()
    assert not instance[32:].any()
    assert set(crop.unique().tolist()) <= set(whole.unique().tolist())


def test_things_are_the_six_that_both_have():
    categories = CATEGORIES["synthia-cityscapes"]
    assert len(categories.names) == 16
    assert [NAMES[c] for c in categories.things] == [
        "person",
        "rider",
        "car",
        "bus",
        "motorcycle",
        "bicycle",
    ]
    assert {*categories.things} | {*categories.stuff} == {*range(16)}
    assert {*categories.known} <= {*NAMES}


def test_an_image_of_nothing_but_things(tmp_path):
    """Then no pixel is without an instance, and numbers still begin at 1."""
    planes = np.zeros((4, 6, 3), np.uint16)
    planes[..., 0], planes[:, :3, 1], planes[:, 3:, 1] = 8, 7, 65535
    write_png16(tmp_path / "x.png", planes)
    label, instance = decoded(torch.from_numpy(read_synthia(tmp_path / "x.png")))
    assert (label == NAMES.index("car")).all()
    assert instance[0].tolist() == [1, 1, 1, 2, 2, 2]


def test_other_files_are_refused(tmp_path):
    Image.fromarray(np.full((4, 4), 7, np.uint8)).save(tmp_path / "labelIds.png")
    with pytest.raises(ValueError, match=r"must be a 16-bit PNG of one channel .* got mode 'L'"):
        read_cityscapes(tmp_path / "labelIds.png")
    Image.fromarray(np.full((4, 4), 60001, np.uint16)).save(tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"holds the values \[60\]: expected Cityscapes' label ids"):
        read_cityscapes(tmp_path / "x.png")
    write_png16(tmp_path / "y.png", np.full((4, 4, 3), 40, np.uint16))
    with pytest.raises(ValueError, match="expected SYNTHIA's class ids"):
        read_synthia(tmp_path / "y.png")
    write_cityscapes(tmp_path / "c", 1, SIZE)
    for path in (tmp_path / "c" / "gtFine" / "val" / "ulm").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"label not found: .*instanceIds\.png .*_gtFine_instanceIds"):
        cityscapes(tmp_path / "c", "val", None)


def test_the_published_task_reads_both(tmp_path):
    folders = {
        "source": write_synthia(tmp_path / "s", 3, SIZE),
        "target": write_cityscapes(tmp_path / "c", 2, SIZE),
    }
    keys = [f'data.{key}="{folder}"' for key, folder in folders.items()]
    sizes = ["data.source_size=[32, 48]", "data.target_size=[32, 48]", "data.test_size=[16, 24]"]
    config = load_config("synthia", [*keys, *sizes, "data.min_pixels=13"])
    task = load_task(config.data)
    assert (len(task.source.names), len(task.unlabelled.names)) == (3, 2)
    assert task.classes == NAMES
    assert task.tests["val"].image(0).shape == (3, 16, 24)
    assert task.tests["val"].label(0).shape == SIZE
    counts = source_classes(task, config.data, tmp_path / "kept")
    label = decoded(task.source.label(0))[0]
    assert counts.counts.shape == (3, 16)
    assert counts.counts[0].tolist() == [int((label == c).sum()) for c in range(16)]
    (tmp_path / "s" / "GT" / "LABELS" / "0000001.png").unlink()
    with pytest.raises(FileNotFoundError, match="label not found"):
        load_task(config.data)
    for key in ("source", "target"):
        with pytest.raises(ValueError, match=f"needs the folder of its {key}"):
            load_task(load_config("synthia", [k for k in keys if f".{key}=" not in k]).data)
