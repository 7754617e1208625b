"""DAFormer's feature distance against its formula."""

from __future__ import annotations

from itertools import product

import pytest
import torch

pytest.importorskip("torchmetrics")

from examples.common.scenes.labels import CLASSES
from examples.common.streets import CLASSES as STREETS
from examples.common.things import THINGS, feature_distance, thing_cells, thing_classes


def test_things_are_the_data_sets_own_or_those_chosen():
    assert [CLASSES[c] for c in thing_classes(CLASSES)] == list(THINGS["cityscapes"])
    assert {STREETS[c] for c in thing_classes(STREETS)} == set(THINGS["camvid"])
    assert thing_classes(("sky", "car", "pedestrian", "sign_symbol", "bicyclist")) == [3, 1, 2, 4]
    assert thing_classes(CLASSES, ("bus",)) == [CLASSES.index("bus")]
    with pytest.raises(ValueError, match=r"feature_distance\.classes must be among road, .*, got 'boat'"):
        thing_classes(CLASSES, ("boat",))


def test_cells_belong_to_the_class_that_most_of_their_pixels_have():
    torch.manual_seed(0)
    label = torch.randint(0, 3, (2, 8, 12))
    label[0, :4, :4] = 2
    label[1, :4, :4] = 255
    things, share = [1, 2], 0.5
    found = thing_cells(label, things, 3, (2, 3), share)
    for n, y, x in product(range(2), range(2), range(3)):
        cell = label[n, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4]
        counts = torch.stack([(cell == c).sum() for c in (0, 1, 2, 255)])
        best = int(counts.argmax())
        assert bool(found[n, y, x]) == (best in things and int(counts[best]) >= 8), (n, y, x)
    assert found[0, 0, 0]
    assert not found[1, 0, 0]


def test_the_distance_is_the_mean_norm_over_cells_and_moves_no_other():
    torch.manual_seed(0)
    now, first = torch.randn(2, 5, 2, 3, requires_grad=True), torch.randn(2, 5, 2, 3)
    cells = torch.tensor([[[1, 0, 1], [0, 0, 0]], [[0, 0, 0], [1, 0, 0]]]).bool()
    chosen = [(now[n, :, y, x] - first[n, :, y, x]).norm() for n, y, x in cells.nonzero().tolist()]
    value = feature_distance(now, first, cells)
    torch.testing.assert_close(value, torch.stack(chosen).mean())
    value.backward()
    assert torch.equal(now.grad.abs().sum(1) > 0, cells)
    now.grad = None
    nothing = feature_distance(now, first, torch.zeros_like(cells))
    nothing.backward()
    assert nothing == 0
    assert not now.grad.any()


def test_a_share_of_a_cell_is_enough_or_not():
    label = torch.zeros(1, 4, 8, dtype=torch.long)
    label[0, :, 4:] = 2
    label[0, 0, 4] = 255
    label[0, 3, 0] = 2
    assert thing_cells(label, [2], 3, (1, 2), 0.75).tolist() == [[[False, True]]]  # 15 of 16 pixels
    assert not thing_cells(label, [2], 3, (1, 2), 0.95).any()
    assert not thing_cells(label, [1], 3, (1, 2), 0.5).any()
