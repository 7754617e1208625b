"""The label files that the statistics read, whole and damaged, against files written here byte by byte."""

from __future__ import annotations

import gzip
import re
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from test_stats import Image, counts_of, run, save_png, write_png

from classbalance_losses.stats import histogram, images

LABELS = np.random.default_rng(0).integers(3, size=(6, 8)).astype(np.uint8)
COUNTS = np.bincount(LABELS.ravel()).tolist()
PALETTE = np.array([[128, 64, 128], [0, 0, 0], [7, 8, 9]], dtype=np.uint8)


def save_image(path: Path, array: np.ndarray, **options: Any) -> None:
    Image.fromarray(array).save(path, **options)


def save_nifti(
    path: Path, array: np.ndarray, order: str = "<", slope: float = 1, intercept: float = 0
) -> None:
    """Write a NIfTI-1 file: the fields of its header that a reader of labels needs."""
    codes = {
        "u1": 2,
        "i2": 4,
        "i4": 8,
        "f4": 16,
        "f8": 64,
        "i1": 256,
        "u2": 512,
        "u4": 768,
        "i8": 1024,
        "c8": 32,
    }
    kind = array.dtype.str[1:]
    header = bytearray(352)
    struct.pack_into(f"{order}i", header, 0, 348)
    shape = [array.ndim, *array.shape, *[1] * (7 - array.ndim)]
    struct.pack_into(f"{order}8h", header, 40, *shape)
    struct.pack_into(f"{order}2h", header, 70, codes[kind], 8 * array.itemsize)
    struct.pack_into(f"{order}3f", header, 108, 352, slope, intercept)
    header[344:348] = b"n+1\0"
    content = bytes(header) + array.astype(order + kind).tobytes(order="F")
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def save_tiff(path: Path, rows: list[list[int]], width: int, bits: int, photometric: int) -> None:
    """Write an uncompressed grey TIFF of any bit depth; ``rows`` are the packed bytes of each line."""
    data = bytes(byte for row in rows for byte in row)
    tags = [(256, width), (257, len(rows)), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1)]
    tags += [(278, len(rows)), (279, len(data))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    padded = data + b"\0" * (-len(data) % 2)
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(padded)) + padded + directory)


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("a.PNG", save_png),
        ("a.png", lambda path, array: save_image(path, array.astype(np.uint16))),
        ("a.tif", save_image),
        ("a.tiff", lambda path, array: save_image(path, array, compression="tiff_lzw")),
        ("a.tif", lambda path, array: save_png(path, array, palette=True)),
        ("a.tif", lambda path, array: save_image(path, array.astype(np.uint16))),
        ("a.tif", lambda path, array: save_image(path, array.astype(np.int32), compression="tiff_deflate")),
        ("a.npy", np.save),
        ("a.npy", lambda path, array: np.save(path, np.asfortranarray(array.astype(">i4")))),
        ("a.npz", lambda path, array: np.savez_compressed(path, label=array)),
        ("a.nii", save_nifti),
        ("a.NII.gz", save_nifti),
    ],
)
def test_every_format_gives_the_same_counts(
    name: str, save: Callable[[Path, np.ndarray], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / name, LABELS)
    assert counts_of(tmp_path, capsys) == COUNTS


def test_labels_above_255(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_image(tmp_path / "a.png", np.array([[0, 300], [300, 65535]], dtype=np.uint16))
    assert "Target 300 is out of bounds for 256 classes" in run(capsys, tmp_path)[2]
    counts = counts_of(tmp_path, capsys, "--num-classes", 301, "--ignore-index", 65535)
    assert (counts[0], counts[300], sum(counts)) == (1, 2, 3)


@pytest.mark.parametrize(
    ("bits", "rows"), [(1, [[0b01100000]]), (2, [[0b00010100]]), (4, [[0x01, 0x10]]), (8, [[0, 1, 1, 0]])]
)
@pytest.mark.parametrize("photometric", [0, 1])
def test_tiff_gives_the_numbers_that_it_stores(
    bits: int, rows: list[list[int]], photometric: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_tiff(tmp_path / "a.tif", [*rows, [0] * len(rows[0])], 4, bits, photometric)
    assert counts_of(tmp_path, capsys) == [6, 2]


def test_pages_of_a_tiff_are_one_volume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pages = [Image.fromarray(LABELS), Image.fromarray(LABELS[::-1].copy()), Image.fromarray(LABELS[:3])]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:2])
    assert counts_of(tmp_path, capsys) == [2 * count for count in COUNTS]
    assert "1 label maps" in run(capsys, tmp_path)[1]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    assert "pages of 2 sizes" in run(capsys, tmp_path)[2]


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "f4", "f8"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_nifti_of_every_type(
    dtype: str, order: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_nifti(tmp_path / "a.nii.gz", LABELS.astype(dtype).reshape(2, 6, 4), order)
    assert counts_of(tmp_path, capsys) == COUNTS


@pytest.mark.parametrize(("slope", "intercept"), [(0, 9), (float("nan"), 0), (1, 0), (1 / 255, 0), (2, 1)])
def test_nifti_scales(
    slope: float, intercept: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = LABELS.astype(np.int16) * 255 if slope == 1 / 255 else LABELS
    save_nifti(tmp_path / "a.nii", stored, slope=slope, intercept=intercept)
    expected = [0, COUNTS[0], 0, COUNTS[1], 0, COUNTS[2]] if slope == 2 else COUNTS
    assert counts_of(tmp_path, capsys) == expected


def test_nifti_as_nibabel_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nibabel = pytest.importorskip("nibabel", reason="compares with nibabel")
    for version, code in ((nibabel.Nifti1Image, 0), (nibabel.Nifti2Image, 1)):
        version(LABELS.astype(np.int16)[None], np.eye(4)).to_filename(tmp_path / "a.nii.gz")
        assert run(capsys, tmp_path, "--json", tmp_path / "out.json")[0] == code
    remedy = re.findall(r"nibabel\.\w+\.from_image.*\)", run(capsys, tmp_path)[2])[0]
    # Read before it is written: the same name serves for both.
    exec(remedy.replace("FILE", "file"), {"nibabel": nibabel, "file": str(tmp_path / "a.nii.gz")})
    assert counts_of(tmp_path, capsys) == COUNTS


def _nifti(**changes: Any) -> Callable[[Path], None]:
    def save(path: Path) -> None:
        array = changes.get("array", LABELS)
        save_nifti(path, array)
        content = path.read_bytes()
        path.write_bytes(changes.get("change", bytes)(content))

    return save


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("a.npy", lambda path: np.save(path, np.zeros(3)), "labels.astype('uint8')"),
        ("a.npy", lambda path: np.save(path, np.array([{}]), allow_pickle=True), "cannot be read"),
        ("a.npz", lambda path: np.savez(path, label=np.array([{}])), "cannot be read"),
        ("a.npy", lambda path: path.write_bytes(b"text"), "cannot be read"),
        ("a.tif", lambda path: save_image(path, np.zeros((2, 2, 3), np.uint8)), "--colors FILE"),
        ("a.tif", lambda path: save_image(path, np.zeros((2, 2), np.float32)), "got float32"),
        ("a.tif", lambda path: path.write_bytes(b"text"), "cannot be read"),
        ("a.nii", _nifti(change=lambda content: content[:-1]), "ends before its last voxel"),
        ("a.nii", _nifti(change=lambda content: content[:200]), "not a NIfTI-1 file"),
        ("a.nii", _nifti(change=lambda content: b"\0" * len(content)), "not a NIfTI-1 file"),
        ("a.nii", _nifti(array=np.full((2, 2), 0.5, np.float32)), "has a voxel of 0.5"),
        ("a.nii", _nifti(array=np.full((2, 2), np.inf, np.float32)), "has a voxel of inf"),
        ("a.nii", _nifti(array=np.zeros((2, 2), np.complex64)), "data type 32"),
        ("a.nii.gz", _nifti(change=lambda content: content[:40]), "cannot be read"),
    ],
)
def test_names_the_file_it_cannot_read(
    name: str,
    write: Callable[[Path], None],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(tmp_path / name)
    code, _, err = run(capsys, tmp_path)
    assert (code, message in err, f"{tmp_path / name}: " in err) == (1, True, True), err


ARRAYS = st.one_of(
    *(
        hnp.arrays(dtype, hnp.array_shapes(min_side=0, max_side=9), elements=elements)
        for dtype, elements in (
            *((kind, None) for kind in (bool, np.uint8, np.int8, np.uint16, np.int16)),
            (np.int64, st.sampled_from([-(2**40), -100, 0, 3, 255, 256, 2**40])),
            (np.dtype(">i4"), st.integers(-5, 5)),
        )
    )
)


@pytest.mark.parametrize("pillow", [True, False])
@given(labels=ARRAYS, transposed=st.booleans())
def test_histogram(pillow: bool, labels: np.ndarray, transposed: bool) -> None:
    labels = labels.T if transposed else labels
    values, numbers = np.unique(labels, return_counts=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(histogram, "PIECE", 8)
        if not pillow:
            patch.setitem(sys.modules, "PIL", None)
        counts = histogram.count_values(labels)
    assert (counts.values.tolist(), counts.numbers.tolist()) == (values.tolist(), numbers.tolist())


def test_decoding_does_not_rely_on_where_pillow_decodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import ImageFile, PngImagePlugin

    def fresh(self: Any) -> None:
        self.im = Image.core.new(self.mode, self.size)

    monkeypatch.setattr(ImageFile.ImageFile, "load_prepare", fresh)
    save_png(tmp_path / "a.png", LABELS)
    with PngImagePlugin.PngImageFile(tmp_path / "a.png") as image:
        assert np.array_equal(images._decoded(image), LABELS)
    assert counts_of(tmp_path, capsys) == COUNTS


def colours_file(folder: Path, *lines: str) -> Path:
    path = folder / "colors.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


LINES = ("128 64 128 road", "", "#000000\tpole", "7,8, 9")


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colours_are_classes(
    name: str, mode: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = Image.fromarray(LABELS if mode == "P" else PALETTE[LABELS])
    if mode == "P":
        image.putpalette(PALETTE.tobytes())
    image.convert(mode).save(tmp_path / name)
    colors = colours_file(tmp_path, *LINES)
    assert counts_of(tmp_path, capsys, "--colors", colors) == COUNTS
    out = run(capsys, tmp_path, "--colors", colors)[1]
    assert re.search(r"0  road .*\n1  pole .*\n2  class 2 ", out)


def test_unknown_colours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both remedies of the message work."""
    save_image(tmp_path / "a.png", PALETTE[LABELS])
    colors = colours_file(tmp_path, *LINES[:3])
    code, _, err = run(capsys, tmp_path, "--colors", colors)
    assert (code, f"{tmp_path / 'a.png'}: " in err, f"7 8 9 ({COUNTS[2]} pixels)" in err) == (1, True, True)
    code, out, _ = run(capsys, tmp_path, "--colors", colors, "--ignore-unknown")
    assert f"{COUNTS[2]} pixels ({COUNTS[2] / 48:.2%}) ignored" in out
    assert "as classes from 2 on" in err.replace("\n", " ")
    colours_file(tmp_path, *LINES[:3], "7 8 9")
    assert counts_of(tmp_path, capsys, "--colors", colors) == COUNTS


def test_very_many_colours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng, colors = np.random.default_rng(0), colours_file(tmp_path, *LINES)
    save_image(tmp_path / "a.png", rng.integers(256, size=(9, 9, 3)).astype(np.uint8))
    err = run(capsys, tmp_path, "--colors", colors)[2]
    assert "and 76 more" in err
    assert "lossy compression" in err
    save_image(tmp_path / "a.png", rng.integers(256, size=(300, 300, 3)).astype(np.uint8))
    assert "more than 65,536 colours" in run(capsys, tmp_path, "--colors", colors)[2]
    write_png(tmp_path / "a.png", np.zeros((1, 12), np.uint8), 16, 2)
    assert "16-bit colour" in run(capsys, tmp_path, "--colors", colors)[2]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("road",), "got 'road'"),
        (("1 2 300",), "got '1 2 300'"),
        (("#12345",), "got '#12345'"),
        (("1 2 3", "#010203"), "1 2 3 for class 0 and again for class 1"),
        (("1 2 3",), "at least 2"),
    ],
)
def test_files_of_colours_that_are_none(
    lines: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_image(tmp_path / "a.png", PALETTE[LABELS])
    assert message in run(capsys, tmp_path, "--colors", colours_file(tmp_path, *lines))[2]


def test_other_files_than_images_have_no_colours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "a.npy", PALETTE[LABELS])
    assert "has no colours" in run(capsys, tmp_path, "--colors", colours_file(tmp_path, *LINES))[2]


def test_arrays_need_no_pillow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    np.save(tmp_path / "a.npy", LABELS)
    assert counts_of(tmp_path, capsys) == COUNTS
    save_nifti(tmp_path / "a.nii", LABELS)
    assert counts_of(tmp_path, capsys) == [2 * count for count in COUNTS]
