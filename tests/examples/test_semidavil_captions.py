"""Captions: composed, from a file, by BLIP-2."""

from __future__ import annotations

import json

import pytest
import torch

pytest.importorskip("transformers")

from examples.common.scenes.domain import PairDomain
from examples.semidavil.model.blip2 import Blip2, write_captions
from examples.semidavil.model.captions import (
    DomainCaptions,
    FileCaptions,
    PredictedCaptions,
    build_captioner,
    compose,
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
    assert predicted(["x", "y"], lambda: maps) == [
        "a street with car above and road below",
        "a street with road in the centre",
    ]
    maps[1] = 255
    maps[1, :, :2], maps[1, 4:6, 4:6], maps[1, 3:7, 8:] = 0, 1, 2
    predicted = PredictedCaptions(["road", "sky_line", "car"], "a street", min_share=0.01)
    assert predicted(["y"], lambda: maps[1:]) == [
        "a street with road left, car right and sky line in the centre"
    ]
    with pytest.raises(ValueError, match="captions must be"):
        build_captioner("label", [], "", "")


def test_captions_from_a_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"python -m examples semidavil caption"):
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
