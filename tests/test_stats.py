"""The command line that counts a folder of labels: what it reads, prints, refuses, and goes on from."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_class_statistics import counted, labels

from classbalance_losses import stats

DATA = Path(__file__).parents[2] / "shared" / "data"
Image = pytest.importorskip("PIL.Image", reason="Pillow is an extra")


def save_png(path: Path, array: np.ndarray, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    if palette:
        image.putpalette(list(range(255, -1, -1)) * 3)
        assert image.mode == "P"
    image.save(path)


def write_png(path: Path, rows: np.ndarray, depth: int, colour: int) -> None:
    """Write a PNG of any bit depth; ``rows`` are the packed bytes of each line."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    width = rows.shape[1] * 8 // (depth * {0: 1, 2: 3}[colour])
    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0)
    packed = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    )


def save_all(folder: Path, **options: Any) -> None:
    for number, image in enumerate(labels().numpy()):
        save_png(folder / f"{number}.png", image, **options)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = stats.main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_all(tmp_path / "set" / "labels" / "deep")
    (tmp_path / "set" / "dataset.json").write_text(
        '{"classes": ["road", "pole", "tram"], "ignore_index": 255}'
    )
    return tmp_path / "set" / "labels"


def test_prints_counts_shares_and_every_scheme(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, folder, "--json", folder / "out.json")
    assert code == 0
    assert "dataset.json" in err
    statistics, written = counted(labels()), json.loads((folder / "out.json").read_text())
    assert written["classes"] == ["road", "pole", "tram"]
    assert written["pixel_counts"] == statistics.pixel_counts.tolist()
    assert written["num_ignored"] == int(statistics.num_ignored)
    for scheme in ("pixel_frequency", "median_frequency", "image_frequency", "effective_number"):
        assert written["weights"][scheme] == pytest.approx(statistics.weights(scheme).tolist(), rel=1e-5)
        assert f"{scheme} = {written['weights'][scheme]}" in out
    assert "6 label maps" in out
    pole = next(line for line in out.splitlines() if "pole" in line).split()
    assert pole[:3] == ["1", "pole", str(int(statistics.pixel_counts[1]))]


@pytest.mark.parametrize(
    "labels_of",
    [
        {"road": 0, "tram": 2, "pole": 1, "ignore": 255},  # nnU-Net's
        {"0": "road", "1": "pole", "2": "tram"},  # the Medical Segmentation Decathlon's
    ],
)
def test_other_dataset_files(
    labels_of: dict[str, object], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder.parent / "dataset.json"
    path.write_text(json.dumps({"labels": labels_of}))
    code, _, err = run(capsys, folder, "--json", folder / "out.json")
    written = json.loads((folder / "out.json").read_text())
    assert (code, "dataset.json" in err, written["classes"]) == (0, True, ["road", "pole", "tram"])
    path.write_text('{"labels": {"background": 0, "whole": [1, 2], "core": 2}}')  # regions are no classes
    assert run(capsys, folder, "--json", folder / "out.json")[0] == 0
    assert json.loads((folder / "out.json").read_text())["classes"][1] == "class 1"


@pytest.mark.parametrize("palette", [False, True])
def test_without_a_dataset_file_the_labels_say_how_many_classes(
    palette: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_all(tmp_path, palette=palette)
    (tmp_path / "dataset.json").write_text('{"classes": [{"no": "names"}]}')
    code, out, err = run(capsys, tmp_path, "--json", tmp_path / "out.json")
    assert (code, "3 classes found" in err) == (0, True)
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["pixel_counts"] == counted(labels()).pixel_counts.tolist()
    assert written["classes"] == ["class 0", "class 1", "class 2"]
    assert "class 2" in out
    assert run(capsys, tmp_path, "--num-classes", 5)[1].count("class 4") == 1


def counts_of(folder: Path, capsys: pytest.CaptureFixture[str], *options: object) -> list[int]:
    code, _, err = run(capsys, folder, "--json", folder / "out.json", *options)
    assert code == 0, err
    counts: list[int] = json.loads((folder / "out.json").read_text())["pixel_counts"]
    return counts


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_grey_pngs_of_every_depth(depth: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed = {
        1: [0b01100000],
        2: [0b00010100],
        4: [0x01, 0x10],
        8: [0, 1, 1, 0],
        16: [0, 0, 0, 1, 0, 1, 0, 0],
    }
    write_png(tmp_path / "a.png", np.array([packed[depth]], dtype=np.uint8), depth, colour=0)
    assert counts_of(tmp_path, capsys) == [6 if depth == 1 else 2, 2]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64, bool])
def test_volumes_in_npz(dtype: type, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(
        tmp_path / "a.npz", image=np.zeros((2, 3, 4)), seg=(np.arange(24) % 2).reshape(2, 3, 4).astype(dtype)
    )
    assert counts_of(tmp_path, capsys, "--key", "seg") == [12, 12]
    assert "'image', 'seg'" in run(capsys, tmp_path)[2]


def test_effective_number_of_many_pixels_explains_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "a.npz", label=np.arange(400_000).reshape(1000, 400) % 2)
    out = run(capsys, tmp_path)[1]
    assert "effective_number is flat" in out
    assert "--beta 0.9999975" in out
    assert "is flat" not in run(capsys, tmp_path, "--beta", "1")[1]


def test_goes_on_from_a_checkpoint(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, original = folder / "counts.pt", stats.LabelFiles.__getitem__

    def stop(self: stats.LabelFiles, index: int) -> Any:
        if index == 4:
            raise KeyboardInterrupt
        return original(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(stats.LabelFiles, "__getitem__", stop)
        assert run(capsys, folder)[0] == 130
        code, _, err = run(capsys, folder, "--checkpoint", file)
        assert (code, "Run the same command again" in err) == (130, True)
    read: list[int] = []
    note = lambda self, index: read.append(index) or original(self, index)  # noqa: E731
    monkeypatch.setattr(stats.LabelFiles, "__getitem__", note)
    _, out, _ = run(capsys, folder, "--checkpoint", file)
    assert read == [4, 5]
    assert out == run(capsys, folder)[1]
    (folder / "deep" / "5.png").rename(folder / "deep" / "6.png")
    assert "was counting 6 label files" in run(capsys, folder, "--checkpoint", file)[2]


def _damaged(path: Path) -> None:
    save_png(path, labels().numpy()[0])
    path.write_bytes(path.read_bytes()[:45])


def _cut_npz(path: Path) -> None:
    np.savez(path, label=np.arange(999))
    path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("a.png", lambda path: save_png(path, np.zeros((2, 2, 3), np.uint8)), "has colour or alpha channels"),
        ("a.png", lambda path: write_png(path, np.zeros((1, 12), np.uint8), 16, 2), "16-bit colour"),
        ("a.png", lambda path: path.write_text("text"), "not a PNG"),
        ("a.png", _damaged, "cannot be read"),
        (
            "a.png",
            lambda path: save_png(path, np.full((2, 2), 7, np.uint8)),
            "Target 7 is out of bounds for 3 classes",
        ),
        ("a.npz", _cut_npz, "cannot be read"),
        ("a.npz", lambda path: np.savez(path, label=np.zeros(3)), "got float64"),
        ("a.npz", lambda path: np.savez(path, image=np.zeros(3)), "--key"),
    ],
)
def test_names_the_file_it_cannot_count(
    name: str, write: Any, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder / name)
    code, _, err = run(capsys, folder)
    assert code == 1
    assert message in err
    assert f"{folder / name}: " in err


def test_other_errors(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for arguments, message in (
        ((tmp_path / "nowhere",), "no such folder"),
        ((empty,), "holds no .png and no .npz"),
        ((folder, "--beta", "2"), "beta"),
        ((folder, "--num-classes", "0"), "at least 2"),
        ((folder, "--num-classes", "1000000000000"), "at most"),
        ((folder, "--ignore-index", "0"), "Did you mean ignore_index=255?"),
        ((folder, "--json", empty / "no" / "out.json"), "No such file"),
    ):
        code, _, err = run(capsys, *arguments)
        assert (code, message in err) == (1, True), err


def test_says_how_to_get_pillow(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert 'pip install "classbalance_losses[stats]"' in run(capsys, folder)[2]


def test_runs_as_a_module(folder: Path) -> None:
    command = [sys.executable, "-W", "error", "-m", "classbalance_losses.stats", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "median_frequency = [" in done.stdout


@pytest.mark.parametrize("name", ["camvid-small", "acdc"])
def test_real_data(name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    if not (DATA / name).is_dir():
        pytest.skip(f"{name} is not in ../shared/data")
    labels_folder = DATA / name / "train" / ("labels" if name == "camvid-small" else "")
    assert run(capsys, labels_folder, "--json", tmp_path / "out.json")[0] == 0
    written = json.loads((tmp_path / "out.json").read_text())
    about = json.loads((DATA / name / "dataset.json").read_text())
    split = about["splits"]["train"]
    shares = list(split["pixel_fraction"].values()) if "pixel_fraction" in split else split["voxel_fraction"]
    assert written["classes"] == about["classes"]
    assert written["num_images"] == split.get("images", split.get("volumes"))
    assert written["pixel_shares"] == pytest.approx(shares, abs=1e-5)
    ignored = written["num_ignored"] / (written["num_ignored"] + written["num_pixels"])
    assert ignored == pytest.approx(split.get("ignored_fraction", 0.0), abs=1e-5)


def masks(folder: Path, *values: int) -> np.ndarray:
    """Save three masks whose classes 0, 1, ... are drawn as those values; return the classes."""
    classes = np.random.default_rng(0).integers(len(values), size=(3, 8, 8))
    for number, mask in enumerate(np.array(values, dtype=np.uint8)[classes]):
        save_png(folder / f"{number}.png", mask)
    return classes


@pytest.mark.parametrize("label", [255, 128])
def test_masks_of_two_labels_are_asked_about(
    label: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each remedy of the message, given as an option, counts what it says, from the checkpoint where that fits."""
    share = [int((masks(tmp_path, 0, label) == c).sum()) for c in (0, 1)]
    kept = ("--checkpoint", tmp_path / "counts.pt")
    code, out, err = run(capsys, tmp_path, *kept)
    assert (code, out) == (1, "")
    assert f"The labels are 0 and {label} alone" in err
    (object_option, other) = re.findall(r"--(?:object|ignore-index|num-classes) \d+", err)
    assert counts_of(tmp_path, capsys, *object_option.split()) == share
    expected = share if label == 128 else share[:1]
    assert [
        n for n in counts_of(tmp_path, capsys, *other.split(), *(kept if label == 255 else ())) if n
    ] == expected
    code, _, err = run(capsys, tmp_path, *kept, *object_option.split())
    assert (code, "was counting 3 label files" in err) == (1, True)


def test_masks_of_two_labels_where_the_answer_is_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A data set's own word is one; a third label, or a class 1, leaves no doubt."""
    share = [int((masks(tmp_path / "a", 0, 255, 128) == c).sum()) for c in (0, 1, 2)]
    counts = counts_of(tmp_path / "a", capsys, "--object", 255, "--ignore-index", 128)
    assert counts == share[:2]
    assert "128 too" in run(capsys, tmp_path / "a", "--object", 255)[2]
    assert "are both 255" in run(capsys, tmp_path / "a", "--object", 255, "--ignore-index", 255)[2]
    (tmp_path / "a" / "dataset.json").write_text('{"classes": ["road", "pole"], "ignore_index": 255}')
    for number in range(3):
        save_png(tmp_path / "a" / f"{number}.png", np.array([[0, 255]], dtype=np.uint8))
    assert counts_of(tmp_path / "a", capsys) == [3, 0]
    (tmp_path / "a" / "dataset.json").write_text('{"classes": ["road", "pole"]}')
    assert "0 and 255 alone" in run(capsys, tmp_path / "a")[2]
    save_png(tmp_path / "b" / "0.png", np.array([[255, 255]], dtype=np.uint8))
    assert "The labels are 255 alone" in run(capsys, tmp_path / "b")[2]
    masks(tmp_path / "c", 0, 1, 255)
    assert run(capsys, tmp_path / "c")[0] == 0


def test_no_weight_for_a_class_that_was_not_seen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    masks(tmp_path, 0, 1, 3)
    code, out, _ = run(capsys, tmp_path, "--num-classes", 5, "--json", tmp_path / "out.json")
    written = json.loads((tmp_path / "out.json").read_text())
    assert code == 0
    assert "Not seen: 2, 4." in out
    for scheme, weights in written["weights"].items():
        assert [weight is None for weight in weights] == [False, False, True, False, True]
        assert min(weight for weight in weights if weight is not None) > 0
        assert f"{scheme} = {weights}" in out
    assert "5 classes" in out
    np.savez(tmp_path / "a.npz", label=np.arange(30))
    code, out, _ = run(capsys, tmp_path, "--num-classes", 256)
    assert "48, 49, …" in out


@pytest.mark.parametrize("pixels", [100, 10_000, 60_000])
@pytest.mark.parametrize("classes", [1, 2])
def test_effective_number_is_called_flat_only_where_it_is(
    classes: int, pixels: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither one class, nor classes that are small and alike, have far more than 1/(1 - beta) pixels each."""
    np.savez(tmp_path / "a.npz", label=np.arange(classes * pixels).reshape(classes, pixels) // pixels)
    out = run(capsys, tmp_path, "--num-classes", 2)[1]
    assert ("is flat" in out) == (pixels == 60_000 and classes == 2)


def test_folders_that_are_links(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each folder once, also where a link leads back up."""
    save_png(tmp_path / "all" / "val" / "a.png", np.zeros((2, 2), np.uint8))
    save_png(tmp_path / "elsewhere" / "b.png", np.full((2, 2), 3, np.uint8))
    (tmp_path / "all" / "train").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "all")
    _, out, _ = run(capsys, tmp_path / "all", "--num-classes", 4, "--json", tmp_path / "s.json")
    assert "2 label maps" in out
    assert json.loads((tmp_path / "s.json").read_text())["pixel_counts"] == [4, 0, 0, 4]


def test_of_many_classes_255_is_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "a.npy", np.arange(300)[None])
    code, out, _ = run(capsys, tmp_path, "--num-classes", 300)
    assert code == 0
    assert "300 pixels" in out
    assert "255" not in out.split("class 0")[0]
    (tmp_path / "dataset.json").write_text(json.dumps({"classes": [f"kind {k}" for k in range(300)]}))
    assert "300 pixels" in run(capsys, tmp_path)[1]
    (tmp_path / "dataset.json").unlink()
    np.save(
        tmp_path / "a.npy", np.broadcast_to([0, 1, 255], (150, 1, 3))
    )  # of many labels a pixel 255 is none
    assert "ignored, label 255" in run(capsys, tmp_path, "--num-classes", 150, "--task", "multilabel")[1]


def test_files_that_windows_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A mark of the byte order stands before the first letter."""
    save_png(tmp_path / "images" / "a.png", np.zeros((2, 2, 3), np.uint8))
    (tmp_path / "colors.txt").write_text("0 0 0 road\n9 9 9 car", encoding="utf-8-sig")
    assert "road" in run(capsys, tmp_path / "images", "--colors", tmp_path / "colors.txt")[1]
    save_png(tmp_path / "named" / "a.png", np.zeros((2, 2), np.uint8))
    (tmp_path / "named" / "dataset.json").write_text(
        '{"classes": ["street", "tree"], "ignore_index": true}', encoding="utf-8-sig"
    )
    code, out, _ = run(capsys, tmp_path / "named")
    assert code == 0
    assert "tree" in out


def test_what_cannot_be_is_told_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "a.npz")
    assert "has no array 'label', and no other." in run(capsys, tmp_path)[2]
    assert "a number of 64 bits" in run(capsys, tmp_path, "--ignore-index", 10**20)[2]
