"""The data of synapse_ssl: the phantom, lists of labelled patients, patches."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from examples.common.organs import CLASSES, ORGANS, render_organs
from examples.synapse_ssl.data import btcv
from examples.synapse_ssl.data.batches import Patches, Steps, random_patch
from examples.synapse_ssl.data.config import DataConfig
from examples.synapse_ssl.data.splits import kept_labelled, labelled_patients
from examples.synapse_ssl.data.task import Stored, Subset, Task, load_task

TINY = DataConfig(size=(12, 24, 20), patch=(8, 16, 16), cases=(5, 1, 2), budget=0.4)


@pytest.fixture(scope="module")
def phantoms() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [render_organs(number, (32, 64, 64)) for number in range(20)]


@pytest.fixture
def tiny(tmp_path: Path) -> Task:
    return load_task(TINY, tmp_path)


def _counts(label: torch.Tensor) -> torch.Tensor:
    return torch.bincount(label.flatten().long(), minlength=len(CLASSES)).double()


def test_phantoms_have_the_shares_of_synapse(phantoms):
    counts = torch.stack([_counts(label) for _, label in phantoms]).sum(0)
    share = counts / counts.sum()
    assert share[0].item() == pytest.approx(0.956, abs=0.005)
    organs = dict(zip(CLASSES[1:], (counts[1:] / counts[1:].sum()).tolist(), strict=True))
    assert organs["liver"] == pytest.approx(0.54, abs=0.03)
    for side in ("right", "left"):
        assert organs[f"{side}_adrenal_gland"] == pytest.approx(0.0014, rel=0.2)
    for organ in ORGANS:
        assert organs[organ.name] == pytest.approx(organ.share, rel=0.2)
    assert sum(organ.share for organ in ORGANS) == pytest.approx(1)


def test_phantoms_name_the_classes_of_btcv():
    assert CLASSES == btcv.CLASSES


def test_phantoms_differ_between_patients_and_not_between_calls(phantoms):
    (image, label), (other, other_label) = phantoms[:2]
    again, label_again = render_organs(0, (32, 64, 64))
    assert torch.equal(image, again)
    assert torch.equal(label, label_again)
    assert (label != other_label).float().mean() > 0.01
    assert (image - other).abs().mean() > 0.02


@pytest.mark.parametrize("size", [(16, 32, 32), (9, 40, 24)])
def test_phantoms_have_every_organ_at_any_size(size):
    image, label = render_organs(7, size)
    assert (image.shape, image.dtype) == ((1, *size), torch.float32)
    assert (label.shape, label.dtype) == (size, torch.uint8)
    assert 0 <= image.min() < image.max() <= 1
    assert (_counts(label) > 0).all()


def test_organs_lie_in_the_body_on_their_sides(phantoms):
    for image, label in phantoms[:5]:
        liver, spleen, aorta = (label == CLASSES.index(name) for name in ("liver", "spleen", "aorta"))
        width = torch.arange(64.0).expand_as(label)
        assert width[liver].mean() < width[aorta].mean() < width[spleen].mean()
        assert image[0][label > 0].mean() > 2 * image[0, :, :5, :5].mean()  # air is dark


def test_intensity_alone_does_not_tell_the_organs_apart(phantoms):
    images = torch.stack([image[0] for image, _ in phantoms])
    labels = torch.stack([label for _, label in phantoms]).long()
    means = torch.stack([images[labels == number].mean() for number in range(len(CLASSES))])
    guess = (images[..., None] - means).abs().argmin(-1)
    both = _counts(guess[guess == labels])
    dice = 2 * both / (_counts(guess) + _counts(labels))
    assert dice[1:].mean() < 0.2
    assert dice[1:].max() < 0.7


def test_a_task_of_phantoms_parts_labelled_from_unlabelled(tiny, tmp_path):
    assert tiny.classes == CLASSES
    assert [len(cases.names) for cases in (tiny.labelled, tiny.unlabelled)] == [2, 3]
    assert [len(cases.names) for cases in (tiny.validation, tiny.test)] == [1, 2]
    names = [n for c in (tiny.labelled, tiny.unlabelled, tiny.validation, tiny.test) for n in c.names]
    assert len(set(names)) == 8
    assert tiny.labelled.label(0).dtype == torch.int64
    assert tiny.labelled.image(1) is tiny.labelled.image(1)  # in memory once it is rendered
    assert not torch.equal(tiny.validation.image(0), tiny.test.image(0))
    assert load_task(TINY, tmp_path).labelled.names == tiny.labelled.names
    full = load_task(replace(TINY, budget=1.0), tmp_path)
    assert sorted(full.labelled.names) == sorted(full.unlabelled.names)
    assert len(full.labelled.names) == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget": 0.0}, "0 < budget <= 1, got 0.0"),
        ({"budget": 1.2}, "0 < budget <= 1, got 1.2"),
        ({"patch": (0, 8, 8)}, "patch must be three numbers"),
        ({"size": (8, 8)}, "size must be three numbers"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"kind": "btcv", "preprocessing": "half"}, "drop data.size"),
        (
            {"patch": (8, 32, 16)},
            r"data.size is \(12, 24, 20\), smaller than the patch, \(8, 32, 16\): lower",
        ),
    ],
)
def test_configurations_that_cannot_be_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)


def test_a_patch_that_no_phantom_holds_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"phantoms' size is \(48, 96, 96\), smaller than the patch"):
        load_task(DataConfig(patch=(64, 64, 64)), tmp_path)


def test_budgets_are_nested_seeded_and_at_least_one_patient():
    patients = [f"patient{i:03d}" for i in range(60)]
    lists = [labelled_patients(patients, budget, seed=3) for budget in (0.001, 0.05, 0.1, 0.2, 1.0)]
    assert [len(listed) for listed in lists] == [1, 3, 6, 12, 60]
    for smaller, larger in pairwise(lists):
        assert larger[: len(smaller)] == smaller
    assert labelled_patients(patients[::-1], 0.2, seed=3) == lists[3]
    assert labelled_patients(patients, 0.2, seed=4) != lists[3]
    assert set(labelled_patients(patients, 0.05, 3, first=patients[:3])) == set(patients[:3])


@pytest.mark.parametrize("content", ["", "a\na\n", "a\nstranger\n"])
def test_a_kept_list_is_checked(tmp_path, content):
    assert kept_labelled(tmp_path, "abcde", 0.4, seed=0) == labelled_patients("abcde", 0.4, seed=0)
    path = tmp_path / "labelled_0.4.txt"
    path.write_text("b\nd\n")
    assert kept_labelled(tmp_path, "abcde", 0.4, seed=0) == ("b", "d")
    path.write_text(content)
    with pytest.raises(ValueError, match=r"labelled_0\.4\.txt must list one or more different"):
        kept_labelled(tmp_path, "abcde", 0.4, seed=0)


def _coded(shape: tuple[int, int, int]) -> torch.Tensor:
    """Another number for each voxel, so that a patch tells where it comes from."""
    return torch.arange(1, np.prod(shape) + 1).view(shape)


def test_a_patch_is_a_window_of_image_and_label_alike_with_in_plane_mirroring():
    code = _coded((6, 7, 8))
    seen = set()
    for seed in range(300):
        image, label = random_patch(code[None], code, (4, 5, 6), torch.Generator().manual_seed(seed))
        assert torch.equal(image[0], label)
        axes = [axis for axis, step in ((-2, 8), (-1, 1)) if label.diff(dim=axis).unique().item() == -step]
        straight = label.flip(axes)
        start = tuple(int(i) for i in np.unravel_index(int(straight[0, 0, 0]) - 1, (6, 7, 8)))
        assert torch.equal(
            straight, code[tuple(slice(s, s + w) for s, w in zip(start, (4, 5, 6), strict=True))]
        )
        seen.add((start, tuple(axes)))
    assert len({start for start, _ in seen}) == 27  # every place
    assert len({axes for _, axes in seen}) == 4  # every mirroring


def test_a_volume_smaller_than_the_patch_is_padded_with_background():
    code = _coded((3, 9, 4))
    image, label = random_patch(code[None].float(), code, (5, 6, 8), torch.Generator().manual_seed(0))
    assert (image.shape, label.shape) == ((1, 5, 6, 8), (5, 6, 8))
    assert torch.equal(image[0].long(), label)
    assert (label[[0, -1]] == 0).all()
    assert (label[1:-1, :, 2:-2] > 0).all()
    assert (label > 0).sum() == 3 * 6 * 4


def _same(one: dict[str, Patches], other: dict[str, Patches]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].names == other[name].names and torch.equal(one[name].image, other[name].image)
        for name in one
    )


def test_a_step_is_a_function_of_seed_and_step(tiny):
    steps = Steps(tiny, TINY, seed=5, start=0, stop=6)
    again = Steps(tiny, TINY, seed=5, start=4, stop=6)
    assert (len(steps), len(again)) == (6, 2)
    assert _same(steps[4], again[0])
    assert torch.equal(steps[5]["labelled"].label, again[1]["labelled"].label)
    assert _same(steps[2], steps[2])
    assert not _same(steps[4], steps[5])
    assert not _same(steps[4], Steps(tiny, TINY, seed=6, start=4, stop=6)[0])
    item = steps[0]["labelled"]
    assert (item.image.shape, item.image.dtype) == ((2, 1, 8, 16, 16), torch.float32)
    assert (item.label.shape, item.label.dtype) == ((2, 8, 16, 16), torch.int64)


def test_each_epoch_has_each_volume_once(tiny):
    config = replace(TINY, batch_size=3)
    steps = Steps(tiny, config, seed=0, start=0, stop=20)
    epochs = [steps[t]["unlabelled"].names for t in range(20)]  # three volumes, three a step
    assert all(sorted(epoch) == sorted(tiny.unlabelled.names) for epoch in epochs)
    assert len(set(epochs)) > 1


def test_a_volume_gives_another_patch_each_epoch(tiny):
    config = replace(TINY, batch_size=2)  # both labelled volumes in each step
    steps = Steps(tiny, config, seed=0, start=0, stop=8)
    name = tiny.labelled.names[0]
    items = [steps[t]["labelled"] for t in range(8)]
    patches = [item.image[item.names.index(name)] for item in items]
    assert sum(torch.equal(patches[0], patch) for patch in patches[1:]) < 2


def test_the_streams_draw_their_crops_apart(tiny):
    one = Subset(tiny.labelled, tiny.labelled.names[:1])
    steps = Steps(replace(tiny, labelled=one, unlabelled=one), replace(TINY, batch_size=1), 0, 0, 4)
    items = [steps[t] for t in range(4)]
    assert sum(torch.equal(item["labelled"].image, item["unlabelled"].image) for item in items) < 2


def test_workers_of_a_loader_give_the_same_steps(tiny):
    steps = Steps(tiny, TINY, seed=1, start=0, stop=3)
    loaded = list(DataLoader(steps, batch_size=None, num_workers=1))
    assert len(loaded) == 3
    assert all(_same(one, steps[t]) for t, one in enumerate(loaded))


def test_no_label_of_the_unlabelled_is_read(tiny):
    def refuse(index: int) -> torch.Tensor:
        raise AssertionError(f"label {index} of the unlabelled was read")

    unlabelled = Stored(tiny.unlabelled.names, tiny.unlabelled.image, refuse)
    steps = Steps(replace(tiny, unlabelled=unlabelled), TINY, seed=0, start=0, stop=6)
    assert all(steps[t]["unlabelled"].label is None for t in range(6))
    with pytest.raises(AssertionError, match="was read"):  # the guard guards
        Steps(replace(tiny, labelled=unlabelled), TINY, seed=0, start=0, stop=6)[0]


def test_the_unlabelled_stream_can_be_left_out(tiny):
    assert list(Steps(tiny, TINY, seed=0, start=0, stop=1, unlabelled=False)[0]) == ["labelled"]


def test_patches_move_to_a_device_with_or_without_labels():
    patches = Patches(torch.zeros(1, 1, 2, 2, 2), torch.zeros(1, 2, 2, 2, dtype=torch.long), ("a",))
    moved = patches.to(torch.device("meta"))
    assert (moved.image.device.type, moved.label.device.type, moved.names) == ("meta", "meta", ("a",))
    assert replace(patches, label=None).to(torch.device("meta")).label is None
