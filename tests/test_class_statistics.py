"""Statistics of a data set: counts against loops, and a loop over a loader that can be interrupted."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from classbalance_losses import ClassStatistics
from classbalance_losses import functional as C
from classbalance_losses.state import accumulate

SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, max_side=4)
LABELS = hnp.arrays(np.int64, SHAPES, elements=st.sampled_from([0, 1, 2, 255]))


def labels(images: int = 6, seed: int = 0) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(
        rng.choice([0, 1, 2, 255], p=[0.8, 0.1, 0.05, 0.05], size=(images, 4, 5)).astype(np.uint8)
    )


def counted(target: Tensor, classes: int = 3) -> ClassStatistics:
    statistics = ClassStatistics(classes, ignore_index=255)
    statistics.update(target)
    return statistics


def assert_same(one: ClassStatistics, other: ClassStatistics) -> None:
    for (name, count), expected in zip(one.named_buffers(), other.buffers(), strict=True):
        assert torch.equal(count, expected), name


@given(LABELS)
def test_counts_by_looping_over_images(target: np.ndarray) -> None:
    statistics = counted(torch.from_numpy(target), 4)
    for c in range(4):
        inside = [image for image in target if (image == c).any()]
        assert statistics.pixel_counts[c] == (target == c).sum()
        assert statistics.image_counts[c] == len(inside)
        assert statistics.image_pixel_counts[c] == sum((image != 255).sum() for image in inside)
    assert statistics.num_images == len(target)
    assert statistics.num_ignored == (target == 255).sum()
    assert statistics.num_pixels == statistics.pixel_counts.sum() == (target != 255).sum()
    assert statistics.pixel_shares.sum().item() == pytest.approx(float((target != 255).any()))


@given(LABELS, st.integers(0, 4))
def test_parts_add_up(target: np.ndarray, cut: int) -> None:
    whole, parts = counted(torch.from_numpy(target)), counted(torch.from_numpy(target[:cut]))
    assert_same(parts.merge(counted(torch.from_numpy(target[cut:]))), whole)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_label_dtypes_and_strides(dtype: torch.dtype) -> None:
    assert_same(counted(labels().to(dtype).transpose(1, 2)), counted(labels()))


def test_state_dict_round_trip() -> None:
    one, other = counted(labels()), ClassStatistics(3, ignore_index=255)
    other.load_state_dict(one.state_dict())
    assert_same(one, other)
    assert repr(one) == "ClassStatistics(num_classes=3, ignore_index=255)"


def test_weights_are_the_functions_of_the_counts() -> None:
    statistics = counted(labels())
    pixels = statistics.pixel_counts
    expected = {
        "pixel_frequency": C.pixel_frequency_weights(pixels),
        "median_frequency": C.median_frequency_weights(pixels, statistics.image_pixel_counts),
        "image_frequency": C.image_frequency_weights(statistics.image_counts, 6),
        "effective_number": C.effective_number_weights(pixels),
        "enet": C.enet_weights(pixels),
    }
    for scheme, weight in expected.items():
        assert torch.equal(statistics.weights(scheme), weight)
    assert torch.equal(
        statistics.weights("effective_number", beta=0.5), C.effective_number_weights(pixels, beta=0.5)
    )
    with pytest.raises(ValueError, match="'median_frequency'"):
        statistics.weights("loss_based")


def test_update_errors() -> None:
    statistics = ClassStatistics(3)
    with pytest.raises(IndexError, match=r"Target 255 is out of bounds .* Did you mean ignore_index=255\?"):
        statistics.update(labels())
    assert statistics.num_images == 0
    with pytest.raises(TypeError, match="float32"):
        statistics.update(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="0-dim"):
        statistics.update(torch.tensor(1))
    with pytest.raises(ValueError, match="at least 2"):
        ClassStatistics(1)
    with pytest.raises(ValueError, match="got 3 classes with ignore_index=255"):
        statistics.merge(counted(labels()))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda y: y,
        lambda y: (torch.zeros(1), y),
        lambda y: [y],
        lambda y: {"image": torch.zeros(1), "label": y},
        lambda y: {"target": y, "image": torch.zeros(1)},
    ],
)
@pytest.mark.parametrize("progress", [True, False])
def test_accumulate_finds_the_labels(wrap: Any, progress: bool) -> None:
    statistics = ClassStatistics(3, ignore_index=255)
    assert statistics.accumulate((wrap(part) for part in labels().split(2)), progress=progress) is statistics
    assert_same(statistics, counted(labels()))


@pytest.mark.parametrize("batch", [{"mask": 1}, [], "labels", {"label": [1, 2]}])
def test_accumulate_says_what_it_looked_for(batch: Any) -> None:
    with pytest.raises(TypeError, match="a dict with 'label' or 'target'"):
        ClassStatistics(3).accumulate([batch], progress=False)


def test_accumulate_needs_no_tqdm(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert_same(ClassStatistics(3, ignore_index=255).accumulate(labels().split(1)), counted(labels()))
    assert capsys.readouterr().err == ""


class Interrupting:
    """A loader that is stopped once, before the batch ``stop``."""

    def __init__(self, stop: int) -> None:
        self.stop, self.read = stop, 0

    def __iter__(self) -> Iterator[Tensor]:
        for number, part in enumerate(labels().split(1)):
            if number == self.stop:
                self.stop = -1
                raise KeyboardInterrupt
            self.read += 1
            yield part


@pytest.mark.parametrize("stop", [0, 1, 4])
@pytest.mark.parametrize("save_every", [0.0, 60.0])
def test_accumulate_goes_on_after_an_interruption(
    stop: int, save_every: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accumulate, "SAVE_EVERY", save_every)
    loader, file = Interrupting(stop), tmp_path / "counts.pt"
    with pytest.raises(KeyboardInterrupt):
        ClassStatistics(3, ignore_index=255).accumulate(loader, progress=False, checkpoint=file)
    assert file.exists() == (stop > 0)
    for _ in range(2):  # the second time everything has been counted
        resumed = ClassStatistics(3, ignore_index=255).accumulate(loader, progress=False, checkpoint=file)
        assert_same(resumed, counted(labels()))
    assert [path.name for path in tmp_path.iterdir()] == ["counts.pt"]


def test_an_interrupted_update_is_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C may fall between two buffers of one batch; the checkpoint holds whole batches alone."""
    statistics, file, whole = (
        ClassStatistics(3, ignore_index=255),
        tmp_path / "counts.pt",
        ClassStatistics.update,
    )

    def half(self: ClassStatistics, target: Tensor) -> None:
        if self.num_images == 2:
            self.pixel_counts.add_(1)
            raise KeyboardInterrupt
        whole(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(ClassStatistics, "update", half)
        with pytest.raises(KeyboardInterrupt):
            statistics.accumulate(labels().split(1), progress=False, checkpoint=file)
    resumed = ClassStatistics(3, ignore_index=255).accumulate(
        labels().split(1), progress=False, checkpoint=file
    )
    assert_same(resumed, counted(labels()))


def test_a_sequence_is_not_read_again(tmp_path: Path) -> None:
    class Counting(tuple):
        reads = 0

        def __getitem__(self, index: Any) -> Any:
            Counting.reads += 1
            return super().__getitem__(index)

    for _ in range(2):
        ClassStatistics(3, ignore_index=255).accumulate(
            Counting(labels().split(1)), progress=False, checkpoint=tmp_path / "counts.pt"
        )
    assert Counting.reads == 6


def test_checkpoints_are_not_mixed_up(tmp_path: Path) -> None:
    file, parts = tmp_path / "counts.pt", labels().split(2)
    ClassStatistics(3, ignore_index=255).accumulate(parts, progress=False, checkpoint=file)
    with pytest.raises(
        ValueError, match="was counting 3 batches, 3 classes, ignore_index=255; this is 2 batches"
    ):
        ClassStatistics(3, ignore_index=255).accumulate(parts[:2], progress=False, checkpoint=file)
    with pytest.raises(ValueError, match="this is 3 batches, 4 classes"):
        ClassStatistics(4, ignore_index=255).accumulate(parts, progress=False, checkpoint=file)
    pair = torch.zeros(1, 2, 2, 2, dtype=torch.uint8)
    of_labels = tmp_path / "labels.pt"
    ClassStatistics(2, task="multilabel").accumulate([pair], progress=False, checkpoint=of_labels)
    with pytest.raises(ValueError, match="task=multilabel; this is 1 batches, 4 classes"):
        ClassStatistics(4).accumulate([pair[0]], progress=False, checkpoint=of_labels)
    file.write_text("{}")
    with pytest.raises(ValueError, match="is no checkpoint"):
        ClassStatistics(3).accumulate(parts, progress=False, checkpoint=file)
    with pytest.raises(ValueError, match="no such folder"):
        ClassStatistics(3).accumulate(parts, progress=False, checkpoint=tmp_path / "nowhere" / "counts.pt")
    shuffled = DataLoader(TensorDataset(labels(), labels()), shuffle=True)
    with pytest.raises(ValueError, match="shuffle=False"):
        ClassStatistics(3).accumulate(shuffled, checkpoint=file)


def test_accumulate_a_data_loader(tmp_path: Path) -> None:
    loader = DataLoader(TensorDataset(torch.zeros(6, 1), labels()), batch_size=4)
    statistics = ClassStatistics(3, ignore_index=255)
    assert_same(statistics.accumulate(loader, checkpoint=tmp_path / "counts.pt"), counted(labels()))


def test_the_counts_follow_the_labels_to_their_device() -> None:
    statistics = ClassStatistics(3)
    statistics.update(torch.zeros(2, 4, dtype=torch.int64, device="meta"))
    assert {count.device.type for count in statistics.buffers()} == {"meta"}
