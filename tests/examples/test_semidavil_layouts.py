"""GTA5, SYNTHIA and Cityscapes are read back as they are published, and wrong layouts are named."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from png16 import write_png16
from semidavil_files import (
    SIZE,
    expected,
    picture,
    save,
    train_ids,
    write_cityscapes,
    write_gta5,
    write_synthia,
)

from examples.common.scenes.labels import (
    CITYSCAPES_IDS,
    CLASSES,
    SUBSETS,
    SYNTHIA_IDS,
    from_cityscapes_ids,
    from_colours,
)
from examples.common.scenes.layouts import cityscapes, gta5, synthia
from examples.common.scenes.png16 import read_png16


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("row_filters", [(0,), (1,), (2,), (3,), (4,), (4, 3, 2, 1, 0)])
def test_16_bit_pngs_come_back_exactly(tmp_path, channels, row_filters):
    image = np.random.default_rng(0).integers(0, 65536, (11, 7, channels)).astype(np.uint16)
    write_png16(tmp_path / "x.png", image, row_filters=row_filters)
    read = read_png16(tmp_path / "x.png")
    assert read.dtype == np.uint16
    assert np.array_equal(read, image)


def test_pillow_alone_reads_class_indices_of_16_bits_as_zeros(tmp_path):
    image = np.full((4, 5, 3), 22, np.uint16)
    write_png16(tmp_path / "x.png", image)
    with Image.open(tmp_path / "x.png") as file:
        assert not np.asarray(file).any()  # the trap
    assert np.array_equal(read_png16(tmp_path / "x.png"), image)


def test_16_bit_reader_refuses_other_pngs(tmp_path):
    save(picture(train_ids(0)), tmp_path / "8bit.png")
    with pytest.raises(
        ValueError, match=r"8bit\.png must be a PNG of three or four channels of 16 bits.*colour"
    ):
        read_png16(tmp_path / "8bit.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ValueError, match=r"broken\.png cannot be decoded"):
        read_png16(tmp_path / "broken.png")


def _check(domain, number):
    assert len(domain.names) == len(set(domain.names)) == number
    for i in range(number):
        image, label = domain.image(i), domain.label(i)
        assert (image.dtype, image.shape, label.dtype, label.shape) == (
            torch.float32,
            (3, *SIZE),
            torch.int64,
            SIZE,
        )
        assert torch.equal(
            (image * 255).round().byte(), torch.tensor(np.array(picture(train_ids(i)))).permute(2, 0, 1)
        )


def test_gta5_palette_and_colour_labels(tmp_path):
    domain = gta5(write_gta5(tmp_path), size=None)
    _check(domain, 3)
    assert domain.names == ("00001", "00002", "00003")
    for i in range(3):
        assert np.array_equal(domain.label(i), expected(i))


def test_synthia_labels(tmp_path):
    domain = synthia(write_synthia(tmp_path), size=None)
    _check(domain, 2)
    for i in range(2):
        assert np.array_equal(domain.label(i), expected(i))


def test_cityscapes_labels_of_all_towns(tmp_path):
    domain = cityscapes(write_cityscapes(tmp_path, 2), "train", size=None)
    _check(domain, 2)
    assert domain.names == ("aachen_000000_000019", "ulm_000001_000019")
    for i in range(2):
        assert np.array_equal(domain.label(i), expected(i))
    assert cityscapes(tmp_path, "val").names == ("lindau_000000_000019", "lindau_000001_000019")


def test_sizes_of_section_4_2(tmp_path):
    source, target = (
        gta5(write_gta5(tmp_path / "g", 1)),
        cityscapes(write_cityscapes(tmp_path / "c"), "train"),
    )
    assert source.image(0).shape == (3, 760, 1280)
    assert target.image(0).shape == (3, 512, 1024)
    assert target.label(0).shape == (512, 1024)
    assert set(target.label(0).unique().tolist()) == set(
        np.unique(expected(0)).tolist()
    )  # nothing is blended


def test_label_tables():
    assert len(CLASSES) == len(CITYSCAPES_IDS) == len(SYNTHIA_IDS) == 19
    assert CITYSCAPES_IDS[7] == 0
    assert CITYSCAPES_IDS[33] == 18
    assert [len(SUBSETS[n]) for n in (19, 16, 13)] == [19, 16, 13]
    assert set(SUBSETS[13]) < set(SUBSETS[16]) < set(SUBSETS[19])
    assert {CLASSES[c] for c in set(SUBSETS[19]) - set(SUBSETS[16])} == {"terrain", "truck", "train"}
    assert {CLASSES[c] for c in set(SUBSETS[16]) - set(SUBSETS[13])} == {"wall", "fence", "pole"}


def test_ids_that_are_not_trained_are_ignored_and_unknown_ones_refused(tmp_path):
    assert from_cityscapes_ids(np.array([[0, 7, 34, 255, 1]]), tmp_path).tolist() == [[255, 0, 255, 255, 255]]
    with pytest.raises(ValueError, match=r"holds the values \[40\]: expected Cityscapes' label ids"):
        from_cityscapes_ids(np.array([[40]]), tmp_path)
    assert from_colours(np.array([[[128, 64, 128], [1, 2, 3]]], np.uint8)).tolist() == [[0, 255]]


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        ("images", r"folder not found: .*images \(expected GTA5/images"),
        ("labels", r"folder not found: .*labels \(expected GTA5/images"),
        ("labels/00002.png", r"label not found: .*labels/00002\.png \(expected"),
    ],
)
def test_a_wrong_gta5_layout_is_named(tmp_path, break_it, message):
    write_gta5(tmp_path)
    (tmp_path / break_it).rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=message):
        gta5(tmp_path)


def test_wrong_synthia_and_cityscapes_layouts_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"folder not found: .*RGB \(expected SYNTHIA/RGB"):
        synthia(tmp_path)
    write_synthia(tmp_path)
    (tmp_path / "GT" / "LABELS").rename(tmp_path / "GT" / "COLOR")
    with pytest.raises(FileNotFoundError, match=r"folder not found: .*GT/LABELS"):
        synthia(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"folder not found: .*leftImg8bit/train"):
        cityscapes(tmp_path, "train")
    (tmp_path / "leftImg8bit" / "train").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"no \*/\*_leftImg8bit\.png in .*leftImg8bit/train"):
        cityscapes(tmp_path, "train")


def test_labels_of_another_encoding_are_refused(tmp_path):
    write_synthia(tmp_path / "s")
    save(picture(train_ids(0)), tmp_path / "s" / "GT" / "LABELS" / "0000000.png")
    with pytest.raises(ValueError, match="is it a colour picture"):
        synthia(tmp_path / "s").label(0)
    write_cityscapes(tmp_path / "c")
    path = min((tmp_path / "c" / "gtFine" / "train").glob("*/*.png"))
    save(picture(train_ids(0)), path)
    with pytest.raises(ValueError, match="must be an 8-bit PNG of one channel"):
        cityscapes(tmp_path / "c", "train").label(0)
    write_gta5(tmp_path / "g")
    save(Image.fromarray(np.zeros((4, 4), np.uint16)), tmp_path / "g" / "labels" / "00001.png")
    with pytest.raises(ValueError, match="palette PNG of label ids or an RGB picture"):
        gta5(tmp_path / "g").label(0)
