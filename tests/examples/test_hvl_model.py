"""HVL's parts: text, generator, filter, refinement, the mask transformer, and the set loss against loops."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("transformers")
pytest.importorskip("kornia")

from examples.common.vision import VisionEncoder
from examples.hvl.config import LossConfig, WeightConfig, load_config
from examples.hvl.losses import at_points, consistency_loss, pair_losses, set_loss
from examples.hvl.model.decoder import class_scores, pyramid, pyramid_channels
from examples.hvl.model.network import Prediction, build_network
from examples.hvl.model.queries import ClassText, PixelTextRefinement, QueryGenerator, RelevanceFilter

CLASSES = ("sky", "road", "sign_symbol")


def network(*overrides: str):
    torch.manual_seed(0)
    return build_network(load_config("smoke", overrides), CLASSES)[0]


def test_text_starts_at_the_prototypes_and_leaves_them() -> None:
    text = ClassText(torch.randn(4, 6), learn=True)
    learnt, projected = text()
    torch.testing.assert_close(text.prototypes.norm(dim=1), torch.ones(4))
    assert torch.equal(learnt, text.prototypes)
    torch.testing.assert_close(projected, text.prototypes)
    projected.sum().backward()
    assert text.offset.grad is not None
    assert not ClassText(torch.randn(4, 6), learn=False).offset.requires_grad


def test_levels_are_maps_of_their_own() -> None:
    text = torch.randn(4, 6)
    queries = QueryGenerator(6, 8, 3)(text)
    assert queries.shape == (4, 3, 8)
    assert (queries[:, 0] - queries[:, 1]).abs().max() > 1e-3
    plain = QueryGenerator(6, 8, 0)
    assert plain.levels == 1
    torch.testing.assert_close(plain(2 * text) - plain(text), plain(text) - plain(0 * text))  # linear


def test_the_filter_prefers_the_class_that_the_image_is_like() -> None:
    relevance = RelevanceFilter(6, 6)
    torch.nn.init.eye_(relevance.project.weight)
    torch.nn.init.zeros_(relevance.project.bias)
    text = F.normalize(torch.randn(4, 6), dim=1)
    factor = relevance(text[1:3, :, None, None].expand(2, 6, 3, 5), text)
    assert factor.shape == (2, 4)
    assert factor.argmax(1).tolist() == [1, 2]
    assert ((factor > 0) & (factor < 1)).all()


def test_refinement_keeps_shapes_and_lets_both_sides_see_each_other() -> None:
    refine = PixelTextRefinement(8, 2).eval()
    queries, maps = torch.randn(2, 5, 8), [torch.randn(2, 8, 2, 3), torch.randn(2, 8, 4, 6)]
    again, refined = refine(queries, maps)
    assert again.shape == queries.shape
    assert [x.shape for x in refined] == [x.shape for x in maps]
    other = [maps[0], maps[1].roll(1, 1)]
    assert (refine(queries, other)[0] - again).abs().max() > 1e-4
    assert (refine(queries.roll(1, 2), maps)[1][0] - refined[0]).abs().max() > 1e-4
    swapped = refine(queries[[1, 0]], [x[[1, 0]] for x in maps])[0]
    torch.testing.assert_close(swapped[[1, 0]], again)  # images do not see each other


def test_a_vits_maps_become_a_pyramid() -> None:
    maps = [torch.randn(1, c, 4, 6) for c in (3, 4, 5)]
    assert [tuple(x.shape[1:]) for x in pyramid(maps)] == [(3, 16, 24), (4, 8, 12), (5, 4, 6), (5, 2, 3)]
    assert pyramid_channels((3, 4, 5)) == (3, 4, 5, 5)
    four = [torch.randn(1, 2, 4, 4)] * 4
    assert pyramid(four) is four


@pytest.mark.parametrize(
    ("overrides", "text_queries", "all_queries"),
    [
        ((), 6, 11),
        (("components.generator=false",), 3, 8),
        (("components.object_queries=false", "components.refinement=false"), 6, 6),
        (("components.relevance=false", "model.levels=1"), 3, 8),
    ],
)
def test_every_combination_of_parts_predicts_and_learns(overrides, text_queries, all_queries) -> None:
    model = network(*overrides)
    prediction = model(torch.rand(2, 3, 32, 48))
    assert prediction.text_queries == text_queries
    assert len(prediction.classes) == len(prediction.masks) == 3  # before, and after each of two layers
    assert prediction.classes[-1].shape == (2, all_queries, 4)
    assert prediction.masks[-1].shape[:2] == (2, all_queries)
    logits = prediction.logits((32, 48))
    assert logits.shape == (2, 3, 32, 48)
    labels = torch.randint(0, 3, (2, 32, 48))
    config = load_config("smoke", overrides)
    set_loss(prediction, labels, config.weights, config.loss, 255).backward()
    without = {
        name
        for name, p in model.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.any())
    }
    # Φ is L_anchor's and L_align's, `to_text` L_align's; the rest of CLIP's tower is behind its last used layer.
    known = ("text.project", "to_text", "vision.")
    if "components.object_queries=false" in overrides:
        known += ("objects",)
    softened = (".bias",)  # biases of attention's keys have no effect on its output
    assert not [name for name in without if not name.startswith(known) and not name.endswith(softened)]


def test_scores_are_mask2formers_semantic_inference() -> None:
    classes, masks = torch.randn(2, 5, 4), torch.randn(2, 5, 3, 3)
    scores = class_scores(classes, masks)
    expected = sum(
        classes[:, q].softmax(-1)[:, :3, None, None] * masks[:, q, None].sigmoid() for q in range(5)
    )
    torch.testing.assert_close(scores, expected)
    logits = Prediction([classes], [masks], 5).logits((3, 3))
    torch.testing.assert_close(logits.softmax(1), scores / scores.sum(1, keepdim=True))


def test_an_encoder_that_is_frozen_stays_so() -> None:
    model = network("model.train_vision=false").train()
    assert isinstance(model.vision, VisionEncoder)
    assert not model.vision.training
    assert not any(p.requires_grad for p in model.vision.parameters())


def test_the_reference_is_the_encoder_as_it_starts() -> None:
    torch.manual_seed(3)
    model, reference = build_network(load_config("smoke"), CLASSES)
    torch.manual_seed(4)
    _, again = build_network(load_config("smoke"), CLASSES)
    images = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(model.vision(images)[-1], reference(images)[-1])
    assert torch.equal(reference(images)[-1], again(images)[-1])  # the same for all seeds
    assert not any(p.requires_grad for p in reference.parameters())


# The set loss


def test_points_are_read_where_they_lie() -> None:
    maps = torch.arange(6.0).view(1, 1, 2, 3)
    centres = torch.tensor([[[1 / 6, 0.25], [0.5, 0.75], [5 / 6, 0.25]]])
    for mode in ("nearest", "bilinear"):
        torch.testing.assert_close(at_points(maps, centres, mode)[0, 0], torch.tensor([0.0, 4.0, 2.0]))


def test_pair_losses_equal_torchs_and_the_formula_of_dice() -> None:
    logits, target = torch.randn(4, 30) * 3, (torch.rand(2, 30) < 0.4).float()
    valid = (torch.rand(30) < 0.8).float()
    bce, dice = pair_losses(logits, target, valid)
    keep = valid.bool()
    for q in range(4):
        for k in range(2):
            z, y = logits[q, keep], target[k, keep]
            torch.testing.assert_close(bce[q, k], F.binary_cross_entropy_with_logits(z, y))
            p = z.sigmoid()
            expected = 1 - (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1)
            torch.testing.assert_close(dice[q, k], expected)
    extreme, _ = pair_losses(torch.full((1, 30), 1e4), target, valid)
    assert extreme.isfinite().all()


def test_the_set_loss_equals_a_loop_over_every_matching() -> None:
    """Two classes of three in the image; L = 2, and three object queries, tried in every order."""
    weights, options = WeightConfig(), LossConfig(points=64)
    classes, masks = torch.randn(1, 9, 4), torch.randn(1, 9, 4, 6)
    labels = torch.tensor([0, 2, 255, 2]).view(1, 1, 4).expand(1, 4, 4).repeat_interleave(3, 2)
    torch.manual_seed(1)
    value = set_loss(Prediction([classes], [masks], 6), labels, weights, options, 255)
    torch.manual_seed(1)
    points = torch.rand(1, 64, 2)
    target = at_points(labels[:, None].float(), points, "nearest")[0, 0].long()
    sampled = at_points(masks, points, "bilinear")[0]
    keep = target != 255

    def cost(query: int, c: int) -> torch.Tensor:
        z, y = sampled[query, keep], (target[keep] == c).float()
        p = z.sigmoid()
        dice = 1 - (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1)
        return 5 * F.binary_cross_entropy_with_logits(z, y) + 5 * dice

    def matching(pair: tuple[int, ...]) -> float:
        chances = classes[0].softmax(-1)
        return sum(float(cost(q, c) - 2 * chances[q, c]) for q, c in zip(pair, (0, 2), strict=True))

    first, second = min(permutations((6, 7, 8), 2), key=matching)
    matched = [(0, 0), (1, 0), (4, 2), (5, 2), (first, 0), (second, 2)]  # queries 2 and 3 are class 1's
    wanted = torch.full((9,), 3)
    for query, c in matched:
        wanted[query] = c
    weight = torch.tensor([1.0, 1.0, 1.0, 0.1])
    named = F.cross_entropy(classes[0], wanted, weight)
    torch.testing.assert_close(value, torch.stack([cost(*pair) for pair in matched]).mean() + 2 * named)


def test_images_without_labels_add_nothing() -> None:
    weights, options = WeightConfig(), LossConfig(points=32)
    classes, masks = torch.randn(2, 5, 4, requires_grad=True), torch.randn(2, 5, 4, 6, requires_grad=True)
    labels = torch.full((2, 8, 12), 255)
    nothing = set_loss(Prediction([classes], [masks], 3), labels, weights, options, 255)
    nothing.backward()
    assert nothing == 0
    assert not classes.grad.any()
    labels[0] = 1
    set_loss(Prediction([classes], [masks], 3), labels, weights, options, 255).backward()
    assert classes.grad[0].any()
    assert not classes.grad[1].any()
    assert not masks.grad[1].any()


def test_consistency_counts_confident_pixels_over_all() -> None:
    student = torch.randn(2, 3, 4, 5, requires_grad=True)
    wanted = torch.randn(2, 3, 4, 5, requires_grad=True) * 2
    loss, share = consistency_loss(student, wanted, 0.7)
    p, label = wanted.softmax(1).max(1)
    terms = F.cross_entropy(student, label, reduction="none")[p >= 0.7]
    torch.testing.assert_close(loss, terms.sum() / 40)
    assert 0 < share < 1
    assert float(share) == pytest.approx(len(terms) / 40)
    loss.backward()
    assert student.grad is not None
    none, nobody = consistency_loss(student, torch.zeros(2, 3, 4, 5), 0.9)
    assert none == nobody == 0
    assert none.requires_grad
