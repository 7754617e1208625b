"""The synthetic streets: the same from the same seed, in perspective, and shared out as CamVid is."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from examples.common.streets import CLASSES, IGNORE_INDEX, THINGS, Streets, render_instances, render_street

COUNT = 60
SIZE = (96, 128)
INDEX = {name: index for index, name in enumerate(CLASSES)}
# Pixel shares of CamVid's published training split; 4.0 % of its pixels are ignored.
CAMVID = {
    "sky": 0.174,
    "building": 0.242,
    "pole": 0.0102,
    "road": 0.331,
    "pavement": 0.0467,
    "tree": 0.101,
    "sign_symbol": 0.0122,
    "fence": 0.0117,
    "car": 0.061,
    "pedestrian": 0.0067,
    "bicyclist": 0.0030,
}


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    return np.stack([render_street(seed, SIZE)[1] for seed in range(COUNT)])


def test_same_seed_same_bytes():
    first, second = render_street(5, SIZE), render_street(5, SIZE)
    assert np.array_equal(first[0], second[0])
    assert np.array_equal(first[1], second[1])


@pytest.mark.parametrize("size", [SIZE, (77, 131)])
def test_instances_change_nothing_of_image_and_labels(size):
    for seed in range(4):
        image, label, instance = render_instances(seed, size)
        plain = render_street(seed, size)
        assert np.array_equal(image, plain[0])
        assert np.array_equal(label, plain[1])
        assert np.array_equal(instance, render_instances(seed, size)[2])


def test_instances_are_of_one_thing_class_each():
    most = 0
    for seed in range(12):
        _, label, instance = render_instances(seed, SIZE)
        assert instance.shape == SIZE
        assert instance.dtype == np.int32
        assert np.array_equal(instance > 0, np.isin(label, THINGS))
        numbers = np.unique(instance[instance > 0])
        assert np.array_equal(numbers, np.arange(1, len(numbers) + 1))
        assert all(len(np.unique(label[instance == number])) == 1 for number in numbers)
        most = max(most, len(numbers))
    assert most > 5


def test_nearer_things_have_greater_numbers():
    """Where a car hides another one, its lower edge is below."""
    ordered = []
    for seed in range(12):
        _, label, instance = render_instances(seed, SIZE)
        cars = np.unique(instance[(label == INDEX["car"]) & (instance > 0)])
        feet = [np.nonzero(instance == number)[0].max() for number in cars]
        ordered += [b >= a for a, b in pairwise(feet)]
    assert np.mean(ordered) > 0.8


def test_other_seed_other_street():
    (image, label), (other_image, other_label) = render_street(5, SIZE), render_street(6, SIZE)
    assert (image != other_image).mean() > 0.5
    assert (label != other_label).any()


@pytest.mark.parametrize("size", [(96, 128), (180, 240), (77, 131), (16, 16)])
def test_shapes_and_dtypes(size):
    image, label = render_street(3, size)
    assert image.shape == (*size, 3)
    assert image.dtype == np.uint8
    assert label.shape == size
    assert label.dtype == np.uint8


def test_label_values(labels):
    assert set(np.unique(labels).tolist()) == {*range(len(CLASSES)), IGNORE_INDEX}


@pytest.mark.parametrize("name", CLASSES)
def test_shares_are_like_camvid(labels, name):
    share = (labels == INDEX[name]).mean()
    factor = 1.5 if CAMVID[name] > 0.1 else 2.5
    assert CAMVID[name] / factor < share < CAMVID[name] * factor


def test_some_pixels_are_ignored(labels):
    assert 0.01 < (labels == IGNORE_INDEX).mean() < 0.1


def test_perspective(labels):
    rows = np.arange(SIZE[0])[None, :, None]
    middle = {
        name: (rows * (labels == index)).sum() / (labels == index).sum() for name, index in INDEX.items()
    }
    assert middle["sky"] < middle["building"] < middle["car"] < middle["road"]
    assert not (labels[:, -1] == INDEX["sky"]).any()
    assert not (labels[:, : SIZE[0] // 4] == INDEX["road"]).any()


def test_shares_do_not_depend_on_the_size():
    seeds = range(8)
    small = np.stack([render_street(seed, (96, 128))[1] for seed in seeds])
    large = np.stack([render_street(seed, (192, 256))[1] for seed in seeds])
    for name in ("sky", "building", "road", "pavement", "tree", "car"):
        assert (small == INDEX[name]).mean() == pytest.approx((large == INDEX[name]).mean(), rel=0.1)


def test_light_varies_between_images():
    brightness = [render_street(seed, SIZE)[0].mean() for seed in range(12)]
    assert np.std(brightness) > 10


def test_dataset():
    streets = Streets(4, size=SIZE, seed=2)
    image, label = streets[1]
    assert len(streets) == 4
    assert image.shape == (3, *SIZE)
    assert image.dtype == torch.float32
    assert 0 <= image.min() < image.max() <= 1
    assert label.shape == SIZE
    assert label.dtype == torch.int64
    assert (streets.num_classes, streets.ignore_index) == (11, 255)
    assert streets.classes == CLASSES
    expected = render_street(2_000_001, SIZE)
    assert np.array_equal((image.permute(1, 2, 0) * 255).round().byte().numpy(), expected[0])
    assert torch.equal(streets[-3][1], label)


def test_cached_and_fresh_streets_are_equal():
    cached, fresh = Streets(2, size=SIZE), Streets(2, size=SIZE, cache=False)
    for _ in range(2):
        assert torch.equal(cached[1][0], fresh[1][0])
    cached[1][0].zero_()
    assert cached[1][0].max() > 0


def test_splits_share_no_street():
    train, val = Streets(1_000_000, seed=0), Streets(1_000_000, seed=1)
    with pytest.raises(ValueError, match="1000000"):
        Streets(1_000_001)
    assert train.render_seed(999_999) < val.render_seed(0)


def test_bad_arguments():
    with pytest.raises(ValueError, match="seed"):
        render_street(-1)
    with pytest.raises(ValueError, match="16 pixels"):
        render_street(0, (8, 240))
    with pytest.raises(ValueError, match="seed"):
        Streets(2, seed=-1)
    with pytest.raises(IndexError, match="2 streets"):
        Streets(2)[2]
